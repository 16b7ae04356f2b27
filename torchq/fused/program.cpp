// One run of low-rank Q-learning as one program: environment, behaviour policy and update of whole episodes.
//
// The mathematics is that of torchq.rollout.Problem.step, torchq.learners.lowrank and torchq.evaluation, on the same
// counter-based random numbers; tests/test_fused.py holds the two together. A program keeps a run's factors and moments
// in padded rows of its own, so that a row is a whole number of vectors. Sums run in an order that does not depend on
// the number of threads.
//
// torchq.fused.build defines the constants in capitals and ENVIRONMENT, whose file defines the struct Env.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

typedef REAL real;

// Nothing but the entry points has a name outside: several programs live in one process, each with its own sizes.
namespace {

#include ENVIRONMENT

constexpr int RANK_PADDED = (RANK + 7) / 8 * 8;
constexpr int ACTIONS_PADDED = (ACTIONS + 7) / 8 * 8;
constexpr int STATE_MODES = JOINT ? 1 : DIMENSIONS;
constexpr int MODES = HAS_TASK + STATE_MODES + 1;  // task (stlrq only), states, action
constexpr int FIRST_STATE = HAS_TASK, ACTION = MODES - 1;
constexpr int CHUNK = 128;    // transitions that are handled together
constexpr int MAX_PARTS = 64; // sums of one program's gradient, whatever the number of threads
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

static inline real inner(const real *x, const real *y) {
  real lanes[8] = {};
  for (int k = 0; k < RANK_PADDED; k += 8)
    for (int lane = 0; lane < 8; ++lane) lanes[lane] = std::fma(x[k + lane], y[k + lane], lanes[lane]);
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

// What one step leaves of one transition.
struct Transition {
  int row[STATE_MODES], next_row[STATE_MODES], action;
  real reward;
};

// Factors of one run (or of one task of it, for lrq), their moments, and room for gradients.
struct Program {
  const Args &a;
  int64_t seed, group, tasks, first_task, batch, pieces, parts, shared_rows;
  std::vector<real> values, first, second, gradient, task_gradient, transposed;
  std::vector<double> sums;
  std::vector<Transition> transitions;
  std::vector<real> errors;
  int64_t offset[MODES];

  Program(const Args &args, int64_t seed_, int64_t group_) : a(args), seed(seed_), group(group_) {
    tasks = a.groups > 1 ? 1 : a.tasks;
    first_task = a.groups > 1 ? group : 0;
    batch = tasks * a.envs;
    pieces = std::min<int64_t>((a.envs + CHUNK - 1) / CHUNK, MAX_PARTS);
    parts = std::min<int64_t>((batch + CHUNK - 1) / CHUNK, MAX_PARTS);
    // Parts hold whole tasks, or tasks hold whole parts, so that no two parts add to one row of the task factor.
    if (pieces > 1) parts = pieces;
    int64_t rows = 0;
    for (int mode = 0; mode < MODES; ++mode) offset[mode] = rows, rows += a.rows[mode];
    shared_rows = rows - (HAS_TASK ? a.rows[0] : 0);
    values.assign(rows * RANK_PADDED, 0), first.assign(rows * RANK_PADDED, 0), second.assign(rows * RANK_PADDED, 0);
    gradient.assign(parts * shared_rows * RANK_PADDED, 0);
    if (HAS_TASK) task_gradient.assign(tasks * pieces * RANK_PADDED, 0);
    transposed.assign(RANK_PADDED * ACTIONS_PADDED, 0);
    transitions.resize(batch), errors.resize(batch);
    sums.assign(tasks * pieces * 3, 0);
    for (int mode = 0; mode < MODES; ++mode) copy(mode, true);
    transpose();
  }

  void copy(int mode, bool in) {
    int64_t at = (seed * a.factor_groups[mode] + (a.factor_groups[mode] > 1 ? group : 0)) * a.rows[mode];
    real *outer[] = {a.factors[mode], a.first[mode], a.second[mode]};
    real *inner[] = {values.data(), first.data(), second.data()};
    for (int kind = 0; kind < 3; ++kind) {
      if (!outer[kind]) continue;
      for (int64_t row = 0; row < a.rows[mode]; ++row) {
        real *mine = inner[kind] + (offset[mode] + row) * RANK_PADDED, *theirs = outer[kind] + (at + row) * RANK;
        std::memcpy(in ? mine : theirs, in ? theirs : mine, RANK * sizeof(real));
      }
    }
  }

  void write_back() {
    for (int mode = 0; mode < MODES; ++mode) copy(mode, false);
    for (int64_t task = 0; task < tasks; ++task) {
      double *out = a.statistics + (seed * a.tasks + first_task + task) * 4;
      for (int64_t piece = 0; piece < pieces; ++piece) {
        const double *in = &sums[(task * pieces + piece) * 3];
        out[0] += in[0] / a.envs, out[2] += in[1] / a.envs, out[3] += in[2] / a.envs;
      }
    }
  }

  const real *row(int mode, int64_t index) const { return &values[(offset[mode] + index) * RANK_PADDED]; }

  // Action values are sums over the rank of whole rows of actions.
  void transpose() {
    for (int k = 0; k < RANK; ++k)
      for (int action = 0; action < ACTIONS; ++action) transposed[k * ACTIONS_PADDED + action] = row(ACTION, action)[k];
  }

  int64_t task_row(int64_t task) const { return a.task_numbers[first_task + task]; }

  void weights(int64_t task, const int *rows, real *w) const {
    const real *f = row(FIRST_STATE, rows[0]);
    if (HAS_TASK) {
      const real *t = row(0, task_row(task));
      for (int k = 0; k < RANK_PADDED; ++k) w[k] = t[k] * f[k];
    } else {
      for (int k = 0; k < RANK_PADDED; ++k) w[k] = f[k];
    }
    for (int d = 1; d < STATE_MODES; ++d) {
      const real *g = row(FIRST_STATE + d, rows[d]);
      for (int k = 0; k < RANK_PADDED; ++k) w[k] *= g[k];
    }
  }

  void action_values(const real *w, real *q) const {
    for (int action = 0; action < ACTIONS_PADDED; ++action) q[action] = 0;
    for (int k = 0; k < RANK; ++k) {
      const real *f = &transposed[k * ACTIONS_PADDED];
      for (int action = 0; action < ACTIONS_PADDED; ++action) q[action] = std::fma(w[k], f[action], q[action]);
    }
  }

  static int first_best(const real *q) {
    int best = 0;
    for (int action = 1; action < ACTIONS; ++action) best = q[action] > q[best] ? action : best;
    return best;
  }

  static real best_value(const real *q) {
    real best = q[0];
    for (int action = 1; action < ACTIONS; ++action) best = std::max(best, q[action]);
    return best;
  }

  int64_t batch_part(int64_t part) const {
    int64_t units = pieces > 1 ? a.envs : tasks;  // pieces of every task, or whole tasks
    return units * part / parts;
  }

  // The transitions of a part: the same share of every task's environments, or a range of tasks with all of theirs.
  template <class Body> void each(int64_t part, Body body) {
    int64_t from = batch_part(part), to = batch_part(part + 1);
    if (pieces > 1) {
      for (int64_t task = 0; task < tasks; ++task) body(task, from, to, part);
    } else {
      for (int64_t task = from; task < to; ++task) body(task, int64_t(0), a.envs, int64_t(0));
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

  void draw_step(int64_t task, int64_t env, int64_t step, uint32_t purpose, real *uniforms) const {
    uint32_t words[4];
    for (int i = 0; i < Env::UNIFORMS; ++i) {
      if (i % 4 == 0)
        philox(a.seed_numbers[seed], a.first_step + step, env, a.task_numbers[first_task + task], purpose, i / 4, words);
      uniforms[i] = uniform(words[i % 4]);
    }
  }

  // Behaviour policy and environment: Problem.step, first half.
  void act(int64_t part, int64_t step) {
    const uint64_t number = a.seed_numbers[seed];
    each(part, [&](int64_t task, int64_t from, int64_t to, int64_t piece) {
      double reward = 0;
      for (int64_t start = from; start < to; start += CHUNK) {
        const int count = int(std::min<int64_t>(CHUNK, to - start));
        uint32_t explore[CHUNK], random[CHUNK];
        const uint32_t task_number = uint32_t(a.task_numbers[first_task + task]);
        for (int i = 0; i < count; ++i) {
          uint32_t words[4];
          philox(number, a.first_step + step, uint32_t(start + i), task_number, EXPLORATION, 0, words);
          explore[i] = words[0], random[i] = words[1];
        }
        for (int i = 0; i < count; ++i) {
          const int64_t env = start + i, at = (seed * a.tasks + first_task + task) * a.envs + env;
          Transition &t = transitions[task * a.envs + env];
          observe(at, t.row);
          if (uniform(explore[i]) < a.epsilon[step]) {
            t.action = int((uint64_t(random[i]) * ACTIONS) >> 32);
          } else {
            real w[RANK_PADDED], q[ACTIONS_PADDED];
            weights(task, t.row, w);
            action_values(w, q);
            t.action = first_best(q);
          }
          real uniforms[Env::UNIFORMS + 1];
          draw_step(task, env, step, STEP, uniforms);
          t.reward = advance(at, task, t.action, uniforms, t.next_row);
          reward += t.reward;
        }
      }
      sums[(task * pieces + piece) * 3] += reward;
    });
  }

  // Sum of the semi-gradients of one block of modes over a part: LowRankQ._descend, first half.
  template <int FROM, int TO> void accumulate(int64_t part, bool report) {
    real *shared = &gradient[part * shared_rows * RANK_PADDED];
    if (batch > 1) {
      const int64_t low = offset[std::max(FROM, FIRST_STATE)] - offset[FIRST_STATE];
      const int64_t high = TO < MODES ? offset[TO] - offset[FIRST_STATE] : shared_rows;
      if (high > low) std::fill(shared + low * RANK_PADDED, shared + high * RANK_PADDED, real(0));
    }
    each(part, [&](int64_t task, int64_t from, int64_t to, int64_t piece) {
      real *own = HAS_TASK ? &task_gradient[(task * pieces + piece) * RANK_PADDED] : nullptr;
      if (HAS_TASK && FROM == 0) std::fill(own, own + RANK_PADDED, real(0));
      const real scale = real(LOSS_SCALE) * (a.task_weights ? a.task_weights[first_task + task] : real(1));
      double absolute = 0, squared = 0;
      for (int64_t env = from; env < to; ++env) {
        const Transition &t = transitions[task * a.envs + env];
        const real *f[MODES];
        if (HAS_TASK) f[0] = row(0, task_row(task));
        for (int d = 0; d < STATE_MODES; ++d) f[FIRST_STATE + d] = row(FIRST_STATE + d, t.row[d]);
        f[ACTION] = row(ACTION, t.action);
        real w[RANK_PADDED], q[ACTIONS_PADDED];
        weights(task, t.next_row, w);
        action_values(w, q);
        weights(task, t.row, w);
        const real prediction = inner(w, f[ACTION]);
        const real error = t.reward + a.gamma * best_value(q) - prediction;
        if (report) absolute += std::abs(error), squared += double(error) * error;
        for (int mode = FROM; mode < TO; ++mode) {
          real cofactor[RANK_PADDED];
          if (mode == ACTION) {
            for (int k = 0; k < RANK_PADDED; ++k) cofactor[k] = w[k];
          } else {
            for (int k = 0; k < RANK_PADDED; ++k) cofactor[k] = f[ACTION][k];
            for (int other = 0; other < ACTION; ++other)
              if (other != mode)
                for (int k = 0; k < RANK_PADDED; ++k) cofactor[k] *= f[other][k];
          }
          real amount = -scale * error;
          if (NORMALISED) amount /= inner(cofactor, cofactor) + real(1e-3);
          int64_t index = mode == ACTION ? t.action : HAS_TASK && mode == 0 ? 0 : t.row[mode - FIRST_STATE];
          real *g = HAS_TASK && mode == 0 ? own : shared + (offset[mode] - offset[FIRST_STATE] + index) * RANK_PADDED;
          if (batch == 1) {
            for (int k = 0; k < RANK_PADDED; ++k) g[k] = amount * cofactor[k];
          } else {
            for (int k = 0; k < RANK_PADDED; ++k) g[k] = std::fma(amount, cofactor[k], g[k]);
          }
        }
      }
      double *out = &sums[(task * pieces + piece) * 3];
      if (report) out[1] += absolute, out[2] += squared;
    });
  }

  void accumulate_block(int mode, int64_t part, bool report) {
    if (!BLOCK_ORDER) return accumulate<0, MODES>(part, report);
    switch (mode) {
      case 0: return accumulate<0, 1>(part, report);
      case 1: return accumulate<1, 2>(part, report);
      case 2: return accumulate<2, (MODES > 2 ? 3 : 2)>(part, report);
      case 3: return accumulate<3, (MODES > 3 ? 4 : 3)>(part, report);
      case 4: return accumulate<4, (MODES > 4 ? 5 : 4)>(part, report);
      case 5: return accumulate<5, (MODES > 5 ? 6 : 5)>(part, report);
      default: return;
    }
  }

  // One optimiser step on a row: torchq.optim.
  void descend_row(int64_t index, const real *g, real rate, real correction1, real correction2) {
    real *f = &values[index * RANK_PADDED], *m = &first[index * RANK_PADDED], *v = &second[index * RANK_PADDED];
    const real step_size = rate / correction1;
    for (int k = 0; k < RANK_PADDED; ++k) {
      if (OPTIMIZER == SGD) {
        f[k] -= rate * g[k];
      } else {
        m[k] += (1 - BETA1) * (g[k] - m[k]);
        if (OPTIMIZER == ADAM) {
          v[k] = BETA2 * v[k] + (1 - BETA2) * g[k] * g[k];
          f[k] -= rate * (m[k] / correction1) / (std::sqrt(v[k] / correction2) + EPS);
        } else {
          v[k] = std::max(BETA2 * v[k], std::abs(g[k]) + EPS);
          f[k] -= step_size * m[k] / v[k];
        }
      }
    }
  }

  // Bias corrections of an update, by its number from 1.
  struct Corrections {
    real first = 1, second = 1;
    explicit Corrections(int64_t count) {
      if (OPTIMIZER != SGD && count < 1000) first = real(1 - std::pow(0.9, double(count)));
      if (OPTIMIZER == ADAM) second = real(1 - std::pow(0.999, double(count)));
    }
  };

  void descend_rows(int mode, int64_t from, int64_t to, int64_t step, const Corrections &corrections) {
    const real rate = a.learning_rate[step], correction1 = corrections.first, correction2 = corrections.second;
    if (batch == 1 && !(HAS_TASK && mode == 0)) {  // One transition: all rows but one have no gradient.
      static const real zero[RANK_PADDED] = {};
      const Transition &t = transitions[0];
      const int64_t visited = mode == ACTION ? t.action : t.row[mode - FIRST_STATE];
      const int64_t at = offset[mode] - offset[FIRST_STATE] + visited;
      for (int64_t index = from; index < to; ++index)
        descend_row(offset[mode] + index, index == visited ? &gradient[at * RANK_PADDED] : zero, rate, correction1,
                    correction2);
      return;
    }
    for (int64_t index = from; index < to; ++index) {
      alignas(64) real g[RANK_PADDED] = {};
      if (HAS_TASK && mode == 0) {
        // Tasks of the batch are the rows in order, or the one row named.
        int64_t task = tasks == a.rows[0] ? index : index == task_row(0) ? 0 : -1;
        for (int64_t piece = 0; task >= 0 && piece < pieces; ++piece)
          for (int k = 0; k < RANK_PADDED; ++k) g[k] += task_gradient[(task * pieces + piece) * RANK_PADDED + k];
      } else {
        const int64_t at = offset[mode] - offset[FIRST_STATE] + index;
        for (int64_t part = 0; part < parts; ++part)
          for (int k = 0; k < RANK_PADDED; ++k) g[k] += gradient[(part * shared_rows + at) * RANK_PADDED + k];
      }
      descend_row(offset[mode] + index, g, rate, correction1, correction2);
    }
  }

  int64_t update_number(int64_t step, int64_t sweep) const { return a.num_updates + step * SWEEPS + sweep + 1; }

  // One update by one thread.
  void sweep_alone(int64_t step, int64_t sweep) {
    const Corrections corrections(update_number(step, sweep));
    for (int block = 0; block < (BLOCK_ORDER ? MODES : 1); ++block) {
      for (int64_t part = 0; part < parts; ++part) accumulate_block(block, part, sweep + block == 0);
      for (int mode = 0; mode < MODES; ++mode)
        if (!BLOCK_ORDER || mode == block) descend_rows(mode, 0, a.rows[mode], step, corrections);
    }
    transpose();
  }

  void greedy(int64_t task, int64_t env) const {
    const int64_t at = (seed * a.tasks + first_task + task) * a.envs + env;
    double total = 0;
    int rows[STATE_MODES];
    observe(at, rows);
    for (int64_t step = 0; step < a.steps; ++step) {
      real w[RANK_PADDED], q[ACTIONS_PADDED], uniforms[Env::UNIFORMS + 1];
      weights(task, rows, w);
      action_values(w, q);
      draw_step(task, env, step, EVALUATION_STEP, uniforms);
      total += advance(at, task, first_best(q), uniforms, rows);
    }
    a.total[at] = total;
  }
};

constexpr int BLOCKS = BLOCK_ORDER ? MODES : 1;

// Every run by one thread, from the first step to the last.
static void train_side_by_side(const Args &a) {
#pragma omp parallel for schedule(dynamic) collapse(2) num_threads(a.threads)
  for (int64_t seed = 0; seed < a.seeds; ++seed)
    for (int64_t group = 0; group < a.groups; ++group) {
      Program p(a, seed, group);
      for (int64_t step = 0; step < a.steps; ++step) {
        for (int64_t part = 0; part < p.parts; ++part) p.act(part, step);
        for (int64_t sweep = 0; sweep < SWEEPS * a.updates; ++sweep) p.sweep_alone(step, sweep);
      }
      p.write_back();
    }
}

// Few runs with large batches: all threads on one run after the other, a part of its batch each.
static void train_in_parts(const Args &a) {
  constexpr int64_t ROWS = 256;
  for (int64_t seed = 0; seed < a.seeds; ++seed)
    for (int64_t group = 0; group < a.groups; ++group) {
      Program p(a, seed, group);
#pragma omp parallel num_threads(a.threads)
      for (int64_t step = 0; step < a.steps; ++step) {
#pragma omp for schedule(static)
        for (int64_t part = 0; part < p.parts; ++part) p.act(part, step);
        for (int64_t sweep = 0; sweep < SWEEPS * a.updates; ++sweep)
          for (int block = 0; block < BLOCKS; ++block) {
#pragma omp for schedule(static)
            for (int64_t part = 0; part < p.parts; ++part) p.accumulate_block(block, part, sweep + block == 0);
            const Program::Corrections corrections(p.update_number(step, sweep));
            for (int mode = 0; mode < MODES; ++mode) {
              if (BLOCK_ORDER && mode != block) continue;
              const int64_t slices = (a.rows[mode] + ROWS - 1) / ROWS;
#pragma omp for schedule(static)
              for (int64_t slice = 0; slice < slices; ++slice)
                p.descend_rows(mode, slice * ROWS, std::min(a.rows[mode], (slice + 1) * ROWS), step, corrections);
            }
#pragma omp single
            p.transpose();
          }
      }
      p.write_back();
    }
}

}  // namespace

extern "C" void torchq_train(const Args *args) {
  const Args &a = *args;
  if (a.seeds * a.groups >= a.threads || a.tasks * a.envs < 4 * CHUNK) train_side_by_side(a);
  else train_in_parts(a);
}

extern "C" void torchq_greedy(const Args *args) {
  const Args &a = *args;
#pragma omp parallel for schedule(dynamic) collapse(2) num_threads(a.threads)
  for (int64_t seed = 0; seed < a.seeds; ++seed)
    for (int64_t group = 0; group < a.groups; ++group) {
      const Program p(a, seed, group);
      for (int64_t task = 0; task < p.tasks; ++task)
        for (int64_t env = 0; env < a.envs; ++env) p.greedy(task, env);
    }
}

extern "C" int64_t torchq_size() { return sizeof(Args); }
