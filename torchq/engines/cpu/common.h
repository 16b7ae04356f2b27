// What both protocols share: sizes, arguments, the grid, action values, and what belongs to one run.

constexpr int RANK_PADDED = (RANK + WIDTH - 1) / WIDTH * WIDTH;
constexpr int ACTIONS_PADDED = (ACTIONS + WIDTH - 1) / WIDTH * WIDTH;
constexpr int STATE_MODES = JOINT ? 1 : Family::DIMENSIONS;
constexpr int MODES = HAS_TASK + STATE_MODES + 1;  // task (stlrq only), states, action
constexpr int FIRST_STATE = HAS_TASK, ACTION = MODES - 1;
constexpr int ALL_MODES = MODES + TASK_MODES;  // and those of the tasks' parameters, whose rows make up the task mode
constexpr real BETA1 = real(0.9), BETA2 = real(0.999), EPS = real(1e-8);
constexpr double GRID_LOW_[] = GRID_LOW, GRID_HIGH_[] = GRID_HIGH;
constexpr int GRID_SIZES_[] = GRID_SIZES;
enum Kind { CELLS, LINEAR, PERIODIC, QUADRATIC, LOG };
constexpr int GRID_KINDS_[] = GRID_KINDS;

// Whether a state mode has two active rows: torchq.lowrank.modes.
constexpr bool interpolates(int d) { return !JOINT && GRID_KINDS_[d] != CELLS && GRID_SIZES_[d] > 1; }
constexpr bool any_interpolates(int d = 0) { return d < STATE_MODES && (interpolates(d) || any_interpolates(d + 1)); }

enum Optimizer { SGD, ADAM, ADAMAX };

struct Args {
  int64_t seeds, groups, tasks, envs, steps, first_step, updates, num_updates, threads;
  const int64_t *run_seeds, *task_index;
  const int64_t *task_names;       // (tasks): numbers of the tasks in the whole run, by which random numbers are drawn
  const real *parameters;          // (tasks, PARAMETERS)
  void *state[Family::FIELDS];     // (seeds, tasks, envs), each of its own type
  int64_t field_bytes[Family::FIELDS];
  real *factors[ALL_MODES];        // (seeds, groups, rows, RANK); that of tasks is null where it is made up
  int64_t factor_groups[ALL_MODES];
  real *first[ALL_MODES], *second[ALL_MODES];
  int64_t rows[ALL_MODES];
  const real *task_places;         // (tasks, TASK_MODES), or null
  const real *epsilon, *learning_rate;  // (steps)
  const real *task_weights;             // (tasks), or null
  double *statistics;                   // (seeds, tasks, 4): reward, episodes, |error|, error squared, over all steps
  double *total;                        // (seeds, tasks, envs): returns of greedy episodes
  int64_t replay_ratio, replay_batch, replay_capacity, slots;
  double replay_recent;
  real *memory;                         // (seeds, tasks, slots, RECORD): stored transitions, or null
  real *target[ALL_MODES];              // the target tensor's factors, or null
  real target_rate;
  real gamma;
  real *guide[ALL_MODES];               // factors of the guide, or null: torchq.lowrank.guide
  double margin, margin_end;            // M, and the updates after which nothing is left of it
  int64_t purpose;                      // of the random numbers of resets
  const int64_t *reset_at;              // (steps): how many steps each has taken before, of as many resets
  // Shards of tasks, whose gradients are added in a fixed order: torchq.engines.shards.
  int64_t shards;
  const int64_t *shard_begins;          // (shards + 1): their first tasks, and the end of the last
  int64_t shard_tasks;                  // of the largest shard of the whole run
  int64_t ranks;                        // processes that share the tasks
  // Gathers what every rank sends, so many bytes each; null where there is one. Not 0: it failed, and all ends.
  int64_t (*exchange)(const void *sent, void *received, int64_t bytes);

  // Updates of each step, and transitions of each task in one.
  int64_t updates_per_step() const { return SWEEPS * updates * (replay_ratio ? replay_ratio : 1); }
  int64_t per_task() const { return envs + (replay_ratio ? replay_batch : 0); }
};

// A stored transition: places before and after, action, reward, discount. See torchq.lowrank.replay.
constexpr int RECORD = 2 * STATE_MODES + 3;

static inline double margin_after(int64_t count, double margin, double updates) {
  return margin * std::max(0.0, 1 - double(count) / updates);
}

// Rounds, each an episode of every task, all together or in turns, with tests after some of them: torchq.engines.contract.Block.
struct Block {
  Args args;                            // of the first turn of the first round
  int64_t rounds, turns, fresh, test_envs;  // fresh: every round begins with states of its own
  const int64_t *test;                  // (rounds): number of the test after each, or -1
  int64_t test_tasks;                   // those of the batch, and others that are tested only
  const int64_t *test_index, *test_names;
  double test_margin_end;
  const real *test_parameters;
  void *test_state[Family::FIELDS];     // (tests, seeds, test_tasks, test_envs)
  uint8_t *finite;                      // (tests, seeds, groups)

  // The arguments of one turn. Those of a block lie one round after the other, rates one turn after the other.
  Args turn(int64_t round, int64_t number) const {
    Args a = args;
    const int64_t played = round * turns + number;
    a.first_step += round * a.steps, a.num_updates += played * a.steps * a.updates_per_step();
    a.epsilon += played * a.steps, a.learning_rate += played * a.steps;
    a.statistics += round * a.seeds * a.tasks * 4;
    if (fresh) forward(a, a.state, round);
    return a;
  }

  // The arguments of the test after a round, whose random numbers follow from the rounds played by then. What is tested
  // is the target tensor, where there is one.
  Args tested(int64_t round) const {
    Args a = args;
    a.envs = test_envs, a.first_step += (round + 1) * a.steps;
    a.tasks = test_tasks, a.task_index = test_index, a.task_names = test_names, a.parameters = test_parameters;
    a.shards = 1, a.shard_tasks = test_tasks;
    if (TASK_MODES) a.rows[0] = test_tasks;
    a.margin = margin_after(a.num_updates + (round + 1) * turns * a.steps * a.updates_per_step(), a.margin, test_margin_end);
    a.margin_end = INFINITY;
    a.total += test[round] * a.seeds * a.tasks * a.envs;
    if (a.target[ACTION]) std::copy(a.target, a.target + ALL_MODES, a.factors);
    for (auto *unused : {a.first, a.second, a.target}) std::fill(unused, unused + ALL_MODES, nullptr);
    a.replay_ratio = 0;
    forward(a, test_state, test[round]);
    return a;
  }

  static void forward(Args &a, void *const *state, int64_t number) {
    for (int field = 0; field < Family::FIELDS; ++field)
      a.state[field] = static_cast<char *>(state[field]) + number * a.seeds * a.tasks * a.envs * a.field_bytes[field];
  }
};

// Places along the state modes of environments side by side: rows, and the weight of the row above where there are two.
template <class L> struct Places {
  typename L::i32 row[STATE_MODES];
  typename L::r weight[STATE_MODES];
};

template <class I> static inline I inside(I index, int size) {
  return lower(upper(index, fill<I>(0)), fill<I>(size - 1));
}

// The nearest grid point, half to even.
template <class L> static inline typename L::i32 grid_index(typename L::r x, int d) {
  typedef typename L::i32 Index;
  typedef typename L::r Real;
  if (GRID_SIZES_[d] == 1) return fill<Index>(0);
  const real low = real(GRID_LOW_[d]), high = real(GRID_HIGH_[d]);
  const Real clipped = lower(upper(x, fill<Real>(low)), fill<Real>(high));
  const Real scaled = (clipped - fill<Real>(low)) / fill<Real>(high - low) * fill<Real>(real(GRID_SIZES_[d] - 1));
  return inside(convert<int32_t>(map(scaled, [](real v) { return std::rint(v); })), GRID_SIZES_[d]);
}

// A fractional place between two points: Mode.place.
template <class L> static inline typename L::r between(typename L::r x, int d) {
  typedef typename L::r Real;
  const real low = real(GRID_LOW_[d]), high = real(GRID_HIGH_[d]);
  if (GRID_KINDS_[d] == PERIODIC) {
    const Real size = fill<Real>(real(GRID_SIZES_[d]));
    return modulo((x - fill<Real>(low)) / fill<Real>(high - low) * size, size);
  }
  const Real clipped = lower(upper(x, fill<Real>(low)), fill<Real>(high));
  if (GRID_KINDS_[d] == LOG) {
    const Real scale = fill<Real>(real(std::log(GRID_HIGH_[d] / GRID_LOW_[d])));
    const Real shifted = map(clipped / fill<Real>(low), [](real v) { return std::log(v); });
    return shifted / scale * fill<Real>(real(GRID_SIZES_[d] - 1));
  }
  const Real share = (clipped - fill<Real>(low)) / fill<Real>(high - low);
  const Real scaled = GRID_KINDS_[d] == QUADRATIC ? map(share, [](real v) { return std::sqrt(v); }) : share;
  return scaled * fill<Real>(real(GRID_SIZES_[d] - 1));
}

// A fractional place as the row below and the weight of the row above: cp.neighbours.
template <class L> static inline void split(typename L::r place, int d, Places<L> &places) {
  typedef typename L::i32 Index;
  const typename L::r below = map(place, [](real v) { return std::floor(v); });
  const Index row = convert<int32_t>(below), size = fill<Index>(GRID_SIZES_[d]);
  places.row[d] = inside(Index(row >= size ? row - size : row), GRID_SIZES_[d]);
  places.weight[d] = place - below;
}

// Where a state lies along the state modes.
template <class L> static inline void state_places(const Family::State<L> &state, Places<L> &places) {
  typename L::r observation[Family::DIMENSIONS];
  Family::observe<L>(state, observation);
  if (JOINT) {
    places.row[0] = grid_index<L>(observation[0], 0);
    for (int d = 1; d < Family::DIMENSIONS; ++d)
      places.row[0] = places.row[0] * fill<typename L::i32>(GRID_SIZES_[d]) + grid_index<L>(observation[d], d);
    return;
  }
#pragma GCC unroll 16
  for (int d = 0; d < STATE_MODES; ++d) {
    if (interpolates(d)) split<L>(between<L>(observation[d], d), d, places);
    else places.row[d] = grid_index<L>(observation[d], d);
  }
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
  Row<ACTIONS> values;
  for (int i = 0; i < q->VECTORS; ++i) {
    const Vector total = (q[0].part[i] + q[1].part[i]) + (q[2].part[i] + q[3].part[i]);
    Vector lane;
    for (int j = 0; j < WIDTH; ++j) lane[j] = real(i * WIDTH + j);
    values.part[i] = lane < real(ACTIONS) ? total : splat(-INFINITY);  // No action beyond the last is the best.
  }
  return values;
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

// One run, for lrq one task of it, or in turns the task whose turn it is: which random numbers, environments and rows of
// the arguments belong to it.
struct Run {
  const Args &a;
  int64_t seed, group;
  int64_t tasks = a.groups > 1 ? 1 : a.tasks, first_task = a.groups > 1 ? group : 0;

  // Its first environment in the arguments; the others follow, task by task.
  int64_t begin() const { return (seed * a.tasks + first_task) * a.envs; }
  int64_t task_row(int64_t task) const { return a.task_index[first_task + task]; }
  int64_t task_name(int64_t task) const { return a.task_names[first_task + task]; }
  const real *parameters(int64_t task) const { return a.parameters + (first_task + task) * Family::PARAMETERS; }
  real weight(int64_t task) const {
    return real(LOSS_SCALE) * (a.task_weights ? a.task_weights[first_task + task] : real(1));
  }
  double *statistics(int64_t task) const { return a.statistics + (seed * a.tasks + first_task + task) * 4; }

  // Whether its factors, their moments and the target tensor are finite.
  bool finite() const {
    for (int mode = 0; mode < ALL_MODES; ++mode)
      for (real *const *tensors : {a.factors, a.first, a.second, a.target}) {
        const real *from = tensors[mode] ? row(tensors, mode, 0) : nullptr;
        for (int64_t i = 0; from && i < a.rows[mode] * RANK; ++i)
          if (!std::isfinite(from[i])) return false;
      }
    return true;
  }

  // One row of a factor, or of its moments, in the arguments.
  real *row(real *const *tensors, int mode, int64_t index) const {
    const int64_t block = seed * a.factor_groups[mode] + (a.factor_groups[mode] > 1 ? group : 0);
    return tensors[mode] + (block * a.rows[mode] + index) * RANK;
  }

  // Uniform numbers of `count` environments, COUNT for each, as COUNT arrays.
  template <int COUNT, int SIZE>
  void uniforms(Purpose purpose, int64_t step, const uint32_t *env, const uint32_t *task, int count,
                real (*numbers)[SIZE]) const {
    uint32_t words[4][SIZE];
    for (int i = 0; i < COUNT; ++i) {
      if (i % 4 == 0)
        philox(a.run_seeds[seed], a.first_step + step, env, task, purpose, i / 4, count, words[0], words[1], words[2],
               words[3]);
      for (int lane = 0; lane < count; ++lane) numbers[i][lane] = uniform(words[i % 4][lane]);
    }
  }
};
