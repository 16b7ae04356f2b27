// Vectors, and rows of them: the width that compilers turn into single instructions.
//
// Eight numbers, or sixteen in single precision where rows are long enough to fill them.

constexpr int WIDTH = sizeof(real) == 4 && RANK > 8 ? 16 : 8;
typedef real Vector __attribute__((vector_size(WIDTH * sizeof(real))));

static inline Vector splat(real x) { return x - Vector{}; }

static inline Vector fma(Vector x, Vector y, Vector z) {
  for (int lane = 0; lane < WIDTH; ++lane) z[lane] = std::fma(x[lane], y[lane], z[lane]);
  return z;
}

static inline Vector root(Vector x) {
  for (int lane = 0; lane < WIDTH; ++lane) x[lane] = std::sqrt(x[lane]);
  return x;
}

static inline Vector larger(Vector x, Vector y) { return x > y ? x : y; }

static inline Vector smaller(Vector x, Vector y) { return x < y ? x : y; }

// Compilers that cannot say what they have cannot shuffle either.
#ifdef __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLES
#endif
#endif

// Half of a vector, from the lane FROM on.
template <int COUNT> using Part = real __attribute__((vector_size(COUNT * sizeof(real))));
template <int FROM, class V, int... LANE> static inline auto half(V x, std::integer_sequence<int, LANE...>) {
#ifdef SHUFFLES
  return __builtin_shufflevector(x, x, (FROM + LANE)...);
#else
  return Part<sizeof...(LANE)>{x[FROM + LANE]...};
#endif
}

// The upper half of a vector combined with the lower one, and so on: a fixed order, whatever the processor.
template <int COUNT, class V, class F> static inline real fold(V x, F combine) {
  if constexpr (COUNT == 1) return x[0];
  else {
    typedef std::make_integer_sequence<int, COUNT / 2> Lanes;
    const auto both = combine(half<0>(x, Lanes{}), half<COUNT / 2>(x, Lanes{}));
    if constexpr (COUNT == 2) return both[0];
    else return fold<COUNT / 2>(both, combine);
  }
}

static inline real sum(Vector x) {
  return fold<WIDTH>(x, [](auto low, auto high) { return low + high; });
}

static inline real largest(Vector x) {
  return fold<WIDTH>(x, [](auto low, auto high) { return low < high ? high : low; });
}

static inline real smallest(Vector x) { return -largest(-x); }

template <int SIZE> struct Row {
  static constexpr int VECTORS = (SIZE + WIDTH - 1) / WIDTH;
  Vector part[VECTORS];

  real *data() { return reinterpret_cast<real *>(part); }
  const real *data() const { return reinterpret_cast<const real *>(part); }

  Row operator*(const Row &other) const {
    Row product;
    for (int i = 0; i < VECTORS; ++i) product.part[i] = part[i] * other.part[i];
    return product;
  }

  void add(real amount, const Row &other) {
    for (int i = 0; i < VECTORS; ++i) part[i] = fma(splat(amount), other.part[i], part[i]);
  }

  real inner(const Row &other) const {
    Vector total = part[0] * other.part[0];
    for (int i = 1; i < VECTORS; ++i) total = fma(part[i], other.part[i], total);
    return sum(total);
  }
};
