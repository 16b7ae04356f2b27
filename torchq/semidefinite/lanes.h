// Eight numbers side by side: one of each of eight instances, or eight of one instance (`TOGETHER`).
#pragma once
#include <cmath>
#include <cstdint>

constexpr int LANES = 8;
typedef double Pack __attribute__((vector_size(LANES * sizeof(double))));
typedef int64_t Mask __attribute__((vector_size(LANES * sizeof(int64_t))));

static inline Pack splat(double x) { return x - Pack{}; }
static inline Pack larger(Pack x, Pack y) { return x > y ? x : y; }
static inline Pack smaller(Pack x, Pack y) { return x < y ? x : y; }
static inline Pack magnitude(Pack x) { return x < 0 ? -x : x; }
static inline Pack select(Mask mask, Pack yes, Pack no) { return mask ? yes : no; }
static inline Pack root(Pack x) {
  for (int lane = 0; lane < LANES; ++lane) x[lane] = std::sqrt(x[lane]);
  return x;
}
static inline bool any(Mask mask) {
  int64_t found = 0;
  for (int lane = 0; lane < LANES; ++lane) found |= mask[lane];
  return found;
}
static inline double total(Pack x) {
  return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}
static inline double largest(Pack x) {
  double most = x[0];
  for (int lane = 1; lane < LANES; ++lane) most = most < x[lane] ? x[lane] : most;
  return most;
}
