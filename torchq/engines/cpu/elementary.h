// Elementary functions on lanes: the C library's where W is 1, else series that compilers turn into vectors.
//
// In double precision they are within about one unit in the last place; in single precision they are rounded from double
// precision, so that nearly every result is the nearest number. Truncated Taylor series on reduced arguments (Muller,
// "Elementary Functions", 2016, ch. 11); arguments that the reduction does not serve go to the C library lane by lane.

template <class V> static inline V polynomial(V x, std::initializer_list<double> coefficients) {
  V sum = fill<V>(0);
  for (const double *c = coefficients.end(); c-- != coefficients.begin();) sum = fused(sum, x, fill<V>(*c));
  return sum;
}

template <class V> static inline Pack<int64_t, width<V>> bits_of(V x) {
  Pack<int64_t, width<V>> bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

template <class V> static inline Pack<double, width<V>> from_bits(V bits) {
  Pack<double, width<V>> x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

template <class M> static inline bool any(M chosen) {
  Element<M> found = 0;
  for (int lane = 0; lane < width<M>; ++lane) found |= chosen[lane];
  return found != 0;
}

// sin and cos of x = r + k pi/2 with |r| <= pi/4: pi/2 in two parts, of which the first subtracts exactly.
template <bool WANTED, class V> static inline V circular(V x) {
  const V half_pi = fill<V>(0x1.921fb54442d18p+0), rest = fill<V>(0x1.1a62633145c07p-54);
  const V k = map(x * fill<V>(0x1.45f306dc9c883p-1), [](double v) { return std::rint(v); });
  const V r = fused(-k, rest, fused(-k, half_pi, x)), square = r * r;
  const V odd = fused(r * square, polynomial(square, {-1.0 / 6, 1.0 / 120, -1.0 / 5040, 1.0 / 362880, -1.0 / 39916800,
                                                      1.0 / 6227020800, -1.0 / 1307674368000, 1.0 / 355687428096000}), r);
  const V even = fused(square * square, polynomial(square, {1.0 / 24, -1.0 / 720, 1.0 / 40320, -1.0 / 3628800,
                                                            1.0 / 479001600, -1.0 / 87178291200, 1.0 / 20922789888000}),
                       fused(fill<V>(-0.5), square, fill<V>(1)));
  typedef Pack<int64_t, width<V>> Count;
  const Count quadrant = convert<int64_t>(k) + fill<Count>(WANTED ? 1 : 0);  // The cosine is the sine a quarter on.
  const V value = (quadrant & fill<Count>(1)) != fill<Count>(0) ? even : odd;
  const V result = (quadrant & fill<Count>(2)) != fill<Count>(0) ? -value : value;
  const auto large = absolute(x) > fill<V>(1e9);
  if (__builtin_expect(any(large), 0))
    return large ? map(x, [](double v) { return WANTED ? std::cos(v) : std::sin(v); }) : result;
  return result;
}

// log(1 + f) = f - s (f - R) with s = f / (2 + f), R = 2 s^2/3 + 2 s^4/5 + ..., for 1 + f in [sqrt(1/2), sqrt(2)];
// x = 2^e (1 + f).
template <class V> struct Logarithm {
  V exponent, value;

  explicit Logarithm(V x) {
    typedef Pack<int64_t, width<V>> Count;
    const auto small = x < fill<V>(0x1p-1022);
    const Count bits = bits_of(small ? x * fill<V>(0x1p54) : x), root = fill<Count>(0x3fe6a09e667f3bcd);
    const Count power = (bits - root) >> 52;
    exponent = convert<double>(power) - (small ? fill<V>(54) : fill<V>(0));
    const V f = from_bits(bits - (power << 52)) - fill<V>(1), s = f / (fill<V>(2) + f), square = s * s;
    const V rest = square * polynomial(square, {2.0 / 3, 2.0 / 5, 2.0 / 7, 2.0 / 9, 2.0 / 11, 2.0 / 13, 2.0 / 15, 2.0 / 17,
                                                2.0 / 19, 2.0 / 21});
    value = f - s * (f - rest);
  }
};

template <class V> static inline V defined_logarithm(V x, V value) {
  const V infinity = fill<V>(INFINITY), zero = fill<V>(0);
  value = x < infinity ? value : x;  // Infinity and NaN stay.
  value = x == zero ? -infinity : value;
  return x < zero ? fill<V>(NAN) : value;
}

template <class V> static inline V logarithm(V x) {
  const Logarithm<V> parts(x);
  const V low = fused(parts.exponent, fill<V>(0x1.abc9e3b39803fp-56), parts.value);
  return defined_logarithm(x, fused(parts.exponent, fill<V>(0x1.62e42fefa39efp-1), low));
}

template <class V> static inline V logarithm2(V x) {
  const Logarithm<V> parts(x);
  const V low = fused(parts.value, fill<V>(0x1.777d0ffda0d24p-56), parts.exponent);
  return defined_logarithm(x, fused(parts.value, fill<V>(0x1.71547652b82fep+0), low));
}

template <class V> static inline V logarithm1p(V x) {
  const V one = fill<V>(1), sum = one + x, lost = x - (sum - one);
  const auto plain = (sum > fill<V>(0)) & (sum < fill<V>(INFINITY));
  return logarithm(sum) + (plain ? lost / sum : fill<V>(0));
}

// e^x = 2^k e^r with |r| <= log(2)/2.
template <class V> static inline V exponential(V given) {
  typedef Pack<int64_t, width<V>> Count;
  const V x = lower(upper(given, fill<V>(-750)), fill<V>(750));
  const V k = map(x * fill<V>(0x1.71547652b82fep+0), [](double v) { return std::rint(v); });
  const V r = fused(-k, fill<V>(0x1.abc9e3b39803fp-56), fused(-k, fill<V>(0x1.62e42fefa39efp-1), x));
  const V tail = polynomial(r, {0.5, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040, 1.0 / 40320, 1.0 / 362880,
                                1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800});
  const V value = fill<V>(1) + fused(r * r, tail, r);
  const Count power = convert<int64_t>(k), half = power >> 1;  // In two steps, for 2^k alone may overflow.
  const Count bias = fill<Count>(1023);
  return value * from_bits((half + bias) << 52) * from_bits((power - half + bias) << 52);
}

// A function in the precision of its argument: the C library's for one number, a series in double precision for lanes.
#define TORCHQ_SERIES(NAME, LIBRARY, SERIES)                                                        \
  template <class V> static inline V NAME(V x) {                                                    \
    if constexpr (width<V> == 1) return LIBRARY(x);                                                 \
    else if constexpr (std::is_same_v<Element<V>, float>) return convert<float>(SERIES(convert<double>(x))); \
    else return SERIES(x);                                                                          \
  }
TORCHQ_SERIES(sine, std::sin, circular<false>)
TORCHQ_SERIES(cosine, std::cos, circular<true>)
TORCHQ_SERIES(natural_log, std::log, logarithm)
TORCHQ_SERIES(log_of_one_plus, std::log1p, logarithm1p)
TORCHQ_SERIES(binary_log, std::log2, logarithm2)
TORCHQ_SERIES(exponent, std::exp, exponential)

template <class V> static inline V tangent(V x) {
  if constexpr (width<V> == 1) return std::tan(x);
  else return sine(x) / cosine(x);
}
