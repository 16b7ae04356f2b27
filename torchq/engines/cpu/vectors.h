// Vectors of eight numbers, and rows of them: the width that compilers turn into single instructions.

typedef real Vector __attribute__((vector_size(8 * sizeof(real))));

static inline Vector splat(real x) { return Vector{x, x, x, x, x, x, x, x}; }

static inline Vector fma(Vector x, Vector y, Vector z) {
  for (int lane = 0; lane < 8; ++lane) z[lane] = std::fma(x[lane], y[lane], z[lane]);
  return z;
}

static inline Vector root(Vector x) {
  for (int lane = 0; lane < 8; ++lane) x[lane] = std::sqrt(x[lane]);
  return x;
}

static inline Vector larger(Vector x, Vector y) { return x > y ? x : y; }

static inline Vector smaller(Vector x, Vector y) { return x < y ? x : y; }

static inline real sum(Vector x) {
  return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

static inline real largest(Vector x) {
  return std::max(std::max(std::max(x[0], x[4]), std::max(x[2], x[6])),
                  std::max(std::max(x[1], x[5]), std::max(x[3], x[7])));
}

static inline real smallest(Vector x) { return -largest(-x); }

template <int SIZE> struct Row {
  static constexpr int VECTORS = (SIZE + 7) / 8;
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
