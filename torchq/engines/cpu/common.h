// What both protocols share: sizes, arguments, random numbers, the grid, action values, and one run's environments.

constexpr int RANK_PADDED = (RANK + 7) / 8 * 8;
constexpr int ACTIONS_PADDED = (ACTIONS + 7) / 8 * 8;
constexpr int STATE_MODES = JOINT ? 1 : DIMENSIONS;
constexpr int MODES = HAS_TASK + STATE_MODES + 1;  // task (stlrq only), states, action
constexpr int FIRST_STATE = HAS_TASK, ACTION = MODES - 1;
constexpr real BETA1 = real(0.9), BETA2 = real(0.999), EPS = real(1e-8);
constexpr double GRID_LOW_[] = GRID_LOW, GRID_HIGH_[] = GRID_HIGH;
constexpr int GRID_SIZES_[] = GRID_SIZES;

enum Optimizer { SGD, ADAM, ADAMAX };
enum Purpose { EXPLORATION = 1, STEP = 3, EVALUATION_STEP = 6 };

struct Args {
  int64_t seeds, groups, tasks, envs, steps, first_step, updates, num_updates, threads;
  const int64_t *seed_numbers, *task_numbers;
  const real *parameters;          // (tasks, Env::PARAMETERS)
  real *state[Env::FIELDS];        // (seeds, tasks, envs)
  real *factors[MODES];            // (seeds, groups, rows, RANK)
  int64_t factor_groups[MODES];
  real *first[MODES], *second[MODES];
  int64_t rows[MODES];
  const real *epsilon, *learning_rate;  // (steps)
  const real *task_weights;             // (tasks), or null
  double *statistics;                   // (seeds, tasks, 4): reward, episodes, |error|, error squared, over all steps
  double *total;                        // (seeds, tasks, envs): returns of greedy episodes
  real gamma;
};

// Philox4x32-10 (Salmon et al. 2011); see torchq.random.
static inline void philox(uint64_t seed, uint64_t step, uint32_t env, uint32_t task, uint32_t purpose, uint32_t block,
                          uint32_t *words) {
  uint32_t c0 = uint32_t(step), c1 = env, c2 = task, c3 = (purpose << 24) | (block << 12) | uint32_t(step >> 32);
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    uint64_t p0 = uint64_t(0xD2511F53u) * c0, p1 = uint64_t(0xCD9E8D57u) * c2;
    uint32_t n0 = uint32_t(p1 >> 32) ^ c1 ^ k0, n2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c0 = n0, c1 = uint32_t(p1), c2 = n2, c3 = uint32_t(p0);
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

static inline real uniform(uint32_t bits) {
  return sizeof(real) == 8 ? real(bits * 0x1p-32) : real((bits >> 8) * 0x1p-24f);
}

static inline int random_action(uint32_t bits) { return int((uint64_t(bits) * ACTIONS) >> 32); }

static inline int grid_index(real x, int d) {
  if (GRID_SIZES_[d] == 1) return 0;
  const real low = real(GRID_LOW_[d]), high = real(GRID_HIGH_[d]);
  real scaled = (std::min(std::max(x, low), high) - low) / (high - low) * real(GRID_SIZES_[d] - 1);
  int index = int(std::nearbyint(scaled));  // half to even
  return std::min(std::max(index, 0), GRID_SIZES_[d] - 1);
}

static inline void state_rows(const real *observation, int *row) {
  int flat = 0;
  for (int d = 0; d < DIMENSIONS; ++d) {
    int index = grid_index(observation[d], d);
    if (JOINT) flat = flat * GRID_SIZES_[d] + index; else row[d] = index;
  }
  if (JOINT) row[0] = flat;
}

// Q(s, ·) = Σₖ w[k] A[·, k], from A with a row for each k, in chains of additions that need not wait for each other.
static inline Row<ACTIONS> action_values(const real *w, const Row<ACTIONS> *columns) {
  constexpr int CHAINS = 4;
  Row<ACTIONS> q[CHAINS] = {};
  for (int k = 0; k < RANK_PADDED; k += CHAINS)
#pragma GCC unroll 4
    for (int chain = 0; chain < CHAINS; ++chain)
      for (int i = 0; i < q->VECTORS; ++i)
        q[chain].part[i] = fma(splat(w[k + chain]), columns[k + chain].part[i], q[chain].part[i]);
  for (int i = 0; i < q->VECTORS; ++i) q->part[i] = (q[0].part[i] + q[1].part[i]) + (q[2].part[i] + q[3].part[i]);
  for (int action = ACTIONS; action < ACTIONS_PADDED; ++action) q->data()[action] = -INFINITY;
  return *q;
}

static inline real best_value(const Row<ACTIONS> &q) {
  Vector best = q.part[0];
  for (int i = 1; i < q.VECTORS; ++i) best = larger(q.part[i], best);
  return largest(best);
}

static inline int first_best(const Row<ACTIONS> &q) {
  int best = 0;
  for (int action = 1; action < ACTIONS; ++action) best = q.data()[action] > q.data()[best] ? action : best;
  return best;
}

// One run, or for lrq one task of it: which random numbers, environments and rows of the arguments are its own.
struct Run {
  const Args &a;
  int64_t seed, group;
  int64_t tasks = a.groups > 1 ? 1 : a.tasks, first_task = a.groups > 1 ? group : 0;

  int64_t at(int64_t task, int64_t env) const { return (seed * a.tasks + first_task + task) * a.envs + env; }
  int64_t task_row(int64_t task) const { return a.task_numbers[first_task + task]; }
  real weight(int64_t task) const {
    return real(LOSS_SCALE) * (a.task_weights ? a.task_weights[first_task + task] : real(1));
  }
  double *statistics(int64_t task) const { return a.statistics + (seed * a.tasks + first_task + task) * 4; }

  // One row of a factor, or of its moments, in the arguments.
  real *row(real *const *tensors, int mode, int64_t index) const {
    int64_t own = seed * a.factor_groups[mode] + (a.factor_groups[mode] > 1 ? group : 0);
    return tensors[mode] + (own * a.rows[mode] + index) * RANK;
  }

  void words(int64_t task, int64_t env, int64_t step, uint32_t purpose, uint32_t block, uint32_t *words) const {
    philox(a.seed_numbers[seed], a.first_step + step, uint32_t(env), uint32_t(task_row(task)), purpose, block, words);
  }

  void draw(int64_t task, int64_t env, int64_t step, uint32_t purpose, real *uniforms) const {
    uint32_t bits[4];
    for (int i = 0; i < Env::UNIFORMS; ++i) {
      if (i % 4 == 0) words(task, env, step, purpose, i / 4, bits);
      uniforms[i] = uniform(bits[i % 4]);
    }
  }

  void observe(int64_t at, int *rows) const {
    real observation[DIMENSIONS], fields[Env::FIELDS];
    for (int f = 0; f < Env::FIELDS; ++f) fields[f] = a.state[f][at];
    Env::observe(fields, observation);
    state_rows(observation, rows);
  }

  real advance(int64_t at, int64_t task, int action, const real *uniforms, int *rows) const {
    real observation[DIMENSIONS], fields[Env::FIELDS];
    for (int f = 0; f < Env::FIELDS; ++f) fields[f] = a.state[f][at];
    real reward = Env::step(a.parameters + (first_task + task) * Env::PARAMETERS, fields, action, uniforms);
    for (int f = 0; f < Env::FIELDS; ++f) a.state[f][at] = fields[f];
    Env::observe(fields, observation);
    state_rows(observation, rows);
    return reward;
  }
};
