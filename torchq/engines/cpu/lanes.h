// Numbers of W environments side by side: vectors of GCC and Clang, or plain numbers where W is 1.
//
// Environments are written once, for any W. Masks are as wide as real, whatever was compared.

template <class T, int W> struct PackOf { typedef T type __attribute__((vector_size(W * sizeof(T)))); };
template <class T> struct PackOf<T, 1> { typedef T type; };
template <class T, int W> using Pack = typename PackOf<T, W>::type;

template <class V, bool = std::is_arithmetic_v<V>> struct Parts {
  typedef std::remove_reference_t<decltype(std::declval<V &>()[0])> type;
  static constexpr int width = sizeof(V) / sizeof(type);
};
template <class V> struct Parts<V, true> {
  typedef V type;
  static constexpr int width = 1;
};
template <class V> using Element = typename Parts<V>::type;
template <class V> constexpr int width = Parts<V>::width;

template <int SIZE> struct WholeOf { typedef int32_t type; };
template <> struct WholeOf<8> { typedef int64_t type; };
template <class T> using Whole = typename WholeOf<sizeof(T)>::type;

template <int W> struct Lanes {
  static constexpr int COUNT = W;
  typedef Pack<float, W> f32;
  typedef Pack<double, W> f64;
  typedef Pack<int32_t, W> i32;
  typedef Pack<int64_t, W> i64;
  typedef Pack<real, W> r;
  typedef std::conditional_t<W == 1, bool, Pack<Whole<real>, W>> mask;
};

// A function of numbers, lane by lane; compilers make one instruction of it where there is one.
template <class V, class F> static inline V map(V x, F function) {
  if constexpr (width<V> == 1) return function(x);
  else {
    for (int lane = 0; lane < width<V>; ++lane) x[lane] = function(x[lane]);
    return x;
  }
}

template <class V, class F> static inline V map(V x, V y, F function) {
  if constexpr (width<V> == 1) return function(x, y);
  else {
    for (int lane = 0; lane < width<V>; ++lane) x[lane] = function(x[lane], y[lane]);
    return x;
  }
}

template <class V> static inline V fill(Element<V> x) {
  if constexpr (width<V> == 1) return x;
  else {
    V all;
    for (int lane = 0; lane < width<V>; ++lane) all[lane] = x;
    return all;
  }
}

template <class V> static inline Element<V> lane_of(V x, int lane) {
  if constexpr (width<V> == 1) return x;
  else return x[lane];
}

template <class To, class V> static inline Pack<To, width<V>> convert(V x) {
  if constexpr (width<V> == 1) return To(x);
  else return __builtin_convertvector(x, Pack<To, width<V>>);
}

template <class V> static inline V fused(V x, V y, V z) {
  if constexpr (width<V> == 1) return std::fma(x, y, z);
  else {
    for (int lane = 0; lane < width<V>; ++lane) z[lane] = std::fma(x[lane], y[lane], z[lane]);
    return z;
  }
}

// The mask of a comparison, and a choice by it.
template <class M, class C> static inline M mask(C compared) {
  if constexpr (std::is_same_v<M, C>) return compared;
  else return __builtin_convertvector(compared, M);
}

template <class M, class V> static inline V choose(M chosen, V yes, V no) {
  if constexpr (std::is_same_v<M, bool>) return chosen ? yes : no;
  else if constexpr (std::is_same_v<M, V>) return (chosen & yes) | (~chosen & no);
  else {
    typedef Pack<Whole<Element<V>>, width<V>> Same;
    return mask<Same>(chosen) ? yes : no;
  }
}

template <class M> static inline M invert(M x) {
  if constexpr (std::is_same_v<M, bool>) return !x;
  else return ~x;
}

template <class M> static inline bool any(M chosen) {
  if constexpr (std::is_same_v<M, bool>) return chosen;
  else {
    Element<M> found = 0;
    for (int lane = 0; lane < width<M>; ++lane) found |= chosen[lane];
    return found != 0;
  }
}

template <class M> static inline M all(bool value) {
  if constexpr (std::is_same_v<M, bool>) return value;
  else return fill<M>(value ? -1 : 0);
}

template <class V, class M> static inline V from_mask(M x) { return choose(x, fill<V>(1), fill<V>(0)); }

// Of two numbers; NaN if the first is, as torch.clamp and, where the second is a constant, torch.minimum.
template <class V> static inline V lower(V x, V y) { return x > y ? y : x; }
template <class V> static inline V upper(V x, V y) { return x < y ? y : x; }
// NaN if either is: torch.minimum, torch.maximum.
template <class V> static inline V minimum(V x, V y) { return y != y ? y : lower(x, y); }
template <class V> static inline V maximum(V x, V y) { return y != y ? y : upper(x, y); }

template <class V> static inline V absolute(V x) {
  if constexpr (std::is_integral_v<Element<V>>) return x < fill<V>(0) ? -x : x;
  else return map(x, [](Element<V> v) { return std::fabs(v); });
}

// With the sign of the divisor: torch.remainder, exact while |x/y| < 2^(digits − 2); what comes beyond has no digits left.
template <class V> static inline V modulo(V x, V y) {
  const V zero = fill<V>(0);
  V rest;
  if constexpr (std::is_integral_v<Element<V>>) rest = x % y;
  else rest = fused(-map(x / y, [](Element<V> q) { return std::trunc(q); }), y, x);
  if constexpr (!std::is_integral_v<Element<V>>) {  // A quotient that was rounded to a whole number is one off.
    const V size = absolute(y);
    rest = rest >= size ? rest - size : rest;
    rest = rest <= -size ? rest + size : rest;
  }
  const auto other = ((rest < zero) & (y > zero)) | ((rest > zero) & (y < zero));
  return other ? rest + y : rest;
}

// Memory to lanes and back, for the first `count` of them; the others repeat the first.
template <class V> static inline V load_lanes(const void *from, int64_t at, int count) {
  const Element<V> *source = static_cast<const Element<V> *>(from) + at;
  if constexpr (width<V> == 1) return *source;
  else {
    V x;
    if (count >= width<V>) return std::memcpy(&x, source, sizeof x), x;
    x = fill<V>(*source);
    std::memcpy(&x, source, count * sizeof *source);
    return x;
  }
}

template <class V> static inline void store_lanes(V x, void *to, int64_t at, int count) {
  Element<V> *target = static_cast<Element<V> *>(to) + at;
  if constexpr (width<V> == 1) *target = x;
  else if (count >= width<V>) std::memcpy(target, &x, sizeof x);
  else std::memcpy(target, &x, count * sizeof *target);
}

// The same for booleans, which take a byte each in memory.
template <class M> static inline M load_mask(const void *from, int64_t at, int count) {
  const bool *source = static_cast<const bool *>(from) + at;
  if constexpr (std::is_same_v<M, bool>) return *source;
  else {
    M x = all<M>(*source);
    for (int lane = 1; lane < count && lane < width<M>; ++lane) x[lane] = source[lane] ? -1 : 0;
    return x;
  }
}

template <class M> static inline void store_mask(M x, void *to, int64_t at, int count) {
  bool *target = static_cast<bool *>(to) + at;
  if constexpr (std::is_same_v<M, bool>) *target = x;
  else
    for (int lane = 0; lane < count && lane < width<M>; ++lane) target[lane] = x[lane] != 0;
}

// What a step gives besides the next state.
template <class L> struct Outcome {
  typename L::r reward;
  typename L::mask terminated, truncated;
};
