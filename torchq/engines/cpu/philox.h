// Philox4x32-10 (Salmon et al. 2011) for many environments at once, and numbers from its words; see torchq.philox.

enum Purpose { EXPLORATION = 1, RESET = 2, STEP = 3, AUTORESET = 4, EVALUATION_RESET = 5, EVALUATION_STEP = 6, REPLAY = 8 };

static inline void philox_round(uint32_t *c, uint32_t k0, uint32_t k1) {
  const uint64_t p0 = uint64_t(0xD2511F53u) * c[0], p1 = uint64_t(0xCD9E8D57u) * c[2];
  const uint32_t n0 = uint32_t(p1 >> 32) ^ c[1] ^ k0, n2 = uint32_t(p0 >> 32) ^ c[3] ^ k1;
  c[0] = n0, c[1] = uint32_t(p1), c[2] = n2, c[3] = uint32_t(p0);
}

// Four words for each of `count` environments. Ten rounds on arrays: compilers turn the loop into vectors.
__attribute__((noinline)) static void philox(uint64_t seed, uint64_t step, const uint32_t *__restrict env,
                                             const uint32_t *__restrict task, uint32_t purpose, uint32_t block,
                                             int count, uint32_t *__restrict w0, uint32_t *__restrict w1,
                                             uint32_t *__restrict w2, uint32_t *__restrict w3) {
  const uint32_t low = uint32_t(step), high = (purpose << 24) | (block << 12) | uint32_t(step >> 32);
  for (int i = 0; i < count; ++i) {
    uint32_t c[4] = {low, env[i], task[i], high}, k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      philox_round(c, k0, k1);
      k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    w0[i] = c[0], w1[i] = c[1], w2[i] = c[2], w3[i] = c[3];
  }
}

// 32 bits in double precision, 24 in single; whole numbers below 2^31 are what vectors convert fastest.
static inline real uniform(uint32_t bits) {
  return sizeof(real) == 8 ? real(bits * 0x1p-32) : real(int32_t(bits >> 8) * 0x1p-24f);
}

// A whole number below `high`: torchq.philox.integers.
static inline int64_t below(uint32_t bits, int64_t high) { return int64_t((uint64_t(bits) * uint64_t(high)) >> 32); }

static inline int32_t random_action(uint32_t bits) { return int32_t((uint64_t(bits) * ACTIONS) >> 32); }
