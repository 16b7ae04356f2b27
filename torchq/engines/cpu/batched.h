// The batched protocol: all environments of a run step together, then one update from all of them.
//
// A batch is cut into parts whose gradients are summed where they arise and then added in a fixed order, so sums do not
// depend on the number of threads.

// One copy of what is long, wherever it is called: compiling takes a user's time.
#define LONG __attribute__((noinline))

constexpr int CHUNK = 128;     // transitions that are handled together
constexpr int MAX_PARTS = 64;  // sums of one program's gradient, whatever the number of threads

typedef Lanes<64 / sizeof(real)> Wide;
typedef Lanes<1> One;

// Rows of the state modes that each environment visits.
struct Rows {
  std::vector<int32_t> mode[STATE_MODES];

  void resize(int64_t batch) {
    for (auto &row : mode) row.resize(batch);
  }
  template <class Index> void store(const Index *rows, int64_t at, int count) {
    for (int d = 0; d < STATE_MODES; ++d) store_lanes(rows[d], mode[d].data(), at, count);
  }
};

// Factors of one run, their moments, and room for gradients.
struct Batched {
  const Run run;
  const Args &a;
  const int64_t tasks, batch;
  int64_t pieces, parts, shared_rows;
  std::vector<Row<RANK>> values, first, second, gradient, task_gradient;
  Row<ACTIONS> columns[RANK_PADDED] = {};
  std::vector<double> sums;
  // Of each environment: who it is, where it stands before and after a step, and what the step gave.
  std::vector<uint32_t> env_of, task_of, task_row_of;
  std::vector<real> parameter[Family::PARAMETERS + 1], reward, discount;
  std::vector<int32_t> action;
  Rows rows[2], landed_;
  int64_t offset[MODES];

  explicit Batched(const Run &run_) : run(run_), a(run_.a), tasks(run_.tasks), batch(tasks * a.envs) {
    pieces = std::min<int64_t>((a.envs + CHUNK - 1) / CHUNK, MAX_PARTS);
    parts = std::min<int64_t>((batch + CHUNK - 1) / CHUNK, MAX_PARTS);
    // Parts hold whole tasks, or tasks hold whole parts, so that no two parts add to one row of the task factor.
    if (pieces > 1) parts = pieces;
    int64_t rows = 0;
    for (int mode = 0; mode < MODES; ++mode) offset[mode] = rows, rows += a.rows[mode];
    shared_rows = rows - (HAS_TASK ? a.rows[0] : 0);
    for (auto *kind : {&values, &first, &second}) kind->assign(rows, {});
    gradient.resize(parts * shared_rows);
    if (HAS_TASK) task_gradient.resize(tasks * pieces);
    sums.assign(tasks * pieces * 4, 0);
    place();
    for (int mode = 0; mode < MODES; ++mode) copy(mode, true);
    transpose();
  }

  // Environments in a row, and the grid points where they start.
  void place() {
    for (auto *who : {&env_of, &task_of, &task_row_of}) who->resize(batch);
    for (auto &values : parameter) values.resize(batch);
    action.resize(batch), reward.resize(batch), rows[0].resize(batch), rows[1].resize(batch);
    if (Family::TERMINATES) discount.resize(batch), landed_.resize(batch);
    for (int64_t i = 0, task = 0; task < tasks; ++task)
      for (int64_t env = 0; env < a.envs; ++env, ++i) {
        env_of[i] = uint32_t(env), task_of[i] = uint32_t(task), task_row_of[i] = uint32_t(run.task_row(task));
        for (int p = 0; p < Family::PARAMETERS; ++p) parameter[p][i] = run.parameters(task)[p];
      }
    for (int64_t at = 0; at < batch; at += Wide::COUNT) {
      const int count = int(std::min<int64_t>(Wide::COUNT, batch - at));
      Wide::i32 visited[STATE_MODES];
      locate<Wide>(Family::State<Wide>::load(a.state, run.begin() + at, count), visited);
      rows[0].store(visited, at, count);
    }
  }

  Rows &here(int64_t step) { return rows[step & 1]; }
  // Where a step led: where the next one starts, but for environments that terminated and were reset.
  Rows &landed(int64_t step) { return Family::TERMINATES ? landed_ : rows[(step + 1) & 1]; }

  void copy(int mode, bool in) {
    real *const *outer[] = {a.factors, a.first, a.second};
    Row<RANK> *inner[] = {values.data(), first.data(), second.data()};
    for (int kind = 0; kind < 3; ++kind) {
      if (!outer[kind][mode]) continue;
      for (int64_t index = 0; index < a.rows[mode]; ++index) {
        real *mine = inner[kind][offset[mode] + index].data(), *theirs = run.row(outer[kind], mode, index);
        std::memcpy(in ? mine : theirs, in ? theirs : mine, RANK * sizeof(real));
      }
    }
  }

  void write_back() {
    for (int mode = 0; mode < MODES; ++mode) copy(mode, false);
    for (int64_t task = 0; task < tasks; ++task) {
      double *out = run.statistics(task);
      for (int64_t piece = 0; piece < pieces; ++piece) {
        const double *in = &sums[(task * pieces + piece) * 4];
        for (int i = 0; i < 4; ++i) out[i] += in[i] / a.envs;
      }
    }
  }

  const Row<RANK> &row(int mode, int64_t index) const { return values[offset[mode] + index]; }

  void transpose() {
    for (int k = 0; k < RANK; ++k)
      for (int action = 0; action < ACTIONS; ++action) columns[k].data()[action] = row(ACTION, action).data()[k];
  }

  // Product of the rows visited of the task and state modes.
  Row<RANK> weights(const Rows &visited, int64_t at) const {
    Row<RANK> w = row(FIRST_STATE, visited.mode[0][at]);
    if (HAS_TASK) w = w * row(0, task_row_of[at]);
    for (int d = 1; d < STATE_MODES; ++d) w = w * row(FIRST_STATE + d, visited.mode[d][at]);
    return w;
  }

  int best_action(const Rows &visited, int64_t at) const {
    return first_best(action_values(weights(visited, at).data(), columns));
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

  // Behaviour policy and environment: Rollout.step, first half.
  void act(int64_t part, int64_t step) {
    const int64_t from = batch_part(part), to = batch_part(part + 1);
    if (pieces > 1) {
      for (int64_t task = 0; task < tasks; ++task) act_on(task * a.envs + from, task * a.envs + to, part, step);
    } else {
      act_on(from * a.envs, to * a.envs, 0, step);
    }
  }

  LONG void act_on(int64_t from, int64_t to, int64_t piece, int64_t step) {
    for (int64_t at = from; at < to; at += CHUNK) {
      const int count = int(std::min<int64_t>(CHUNK, to - at));
      choose_actions(at, count, step);
      advance(at, count, piece, step);
    }
  }

  void choose_actions(int64_t at, int count, int64_t step) {
    uint32_t words[4][CHUNK];
    philox(a.run_seeds[run.seed], a.first_step + step, &env_of[at], &task_row_of[at], EXPLORATION, 0, count, words[0],
           words[1], words[2], words[3]);
    for (int i = 0; i < count; ++i) {
      const bool explores = uniform(words[0][i]) < a.epsilon[step];
      action[at + i] = explores ? random_action(words[1][i]) : best_action(here(step), at + i);
    }
  }

  template <class L> LONG static void locate(const Family::State<L> &state, typename L::i32 *visited) {
    state_rows<L>(state, visited);
  }

  // Lanes of environments from `at`, with what a step asks for.
  template <class L> struct Moved {
    Family::State<L> state;
    Outcome<L> outcome;
    typename L::mask done;
    typename L::i32 visited[STATE_MODES];
  };

  template <class L>
  LONG Moved<L> move(int64_t at, int count, const int32_t *actions, const real (*uniforms)[CHUNK], int lane) const {
    typedef typename L::r Real;
    Real p[Family::PARAMETERS + 1], u[Family::STEP_UNIFORMS + 1];
    for (int i = 0; i < Family::PARAMETERS; ++i) p[i] = load_lanes<Real>(parameter[i].data(), at, count);
    for (int i = 0; i < Family::STEP_UNIFORMS; ++i) u[i] = load_lanes<Real>(uniforms[i], lane, count);
    const auto before = Family::State<L>::load(a.state, run.begin() + at, count);
    const auto chosen = convert<int64_t>(load_lanes<typename L::i32>(actions, 0, count));
    Moved<L> moved;
    moved.outcome = Family::step<L>(p, before, chosen, u, moved.state);
    moved.done = moved.outcome.terminated | moved.outcome.truncated;
    locate<L>(moved.state, moved.visited);
    return moved;
  }

  void advance(int64_t at, int count, int64_t piece, int64_t step) {
    real uniforms[Family::STEP_UNIFORMS + 1][CHUNK];
    run.uniforms<Family::STEP_UNIFORMS>(STEP, step, &env_of[at], &task_row_of[at], count, uniforms);
    for (int lane = 0; lane < count; lane += Wide::COUNT) {
      const int64_t i = at + lane;
      const int lanes = std::min(Wide::COUNT, count - lane);
      Moved<Wide> moved = move<Wide>(i, lanes, &action[i], uniforms, lane);
      landed(step).store(moved.visited, i, lanes);
      store_lanes(moved.outcome.reward, reward.data(), i, lanes);
      const bool ended = any(moved.done);
      if constexpr (Family::TERMINATES) {
        const Wide::r zero = fill<Wide::r>(0), gamma = fill<Wide::r>(a.gamma);
        store_lanes(choose(moved.outcome.terminated, zero, gamma), discount.data(), i, lanes);
        if (ended) restart(moved, i, lanes, step), locate<Wide>(moved.state, moved.visited);
        here(step + 1).store(moved.visited, i, lanes);
      }
      moved.state.store(a.state, run.begin() + i, lanes);
      for (int j = 0; j < lanes;) {  // One task after the other: mostly all lanes are of one.
        const uint32_t task = task_of[i + j];
        double *sum = &sums[(task * pieces + piece) * 4], gained = 0;
        for (; j < lanes && task_of[i + j] == task; ++j) {
          gained += reward[i + j];
          if (ended) sum[1] += moved.done[j] != 0;
        }
        sum[0] += gained;
      }
    }
  }

  // Environments whose episode has ended start another.
  void restart(Moved<Wide> &moved, int64_t at, int count, int64_t step) const {
    real uniforms[Family::RESET_UNIFORMS + 1][Wide::COUNT];
    run.uniforms<Family::RESET_UNIFORMS>(AUTORESET, step, &env_of[at], &task_row_of[at], count, uniforms);
    Wide::r p[Family::PARAMETERS + 1], u[Family::RESET_UNIFORMS + 1];
    for (int i = 0; i < Family::PARAMETERS; ++i) p[i] = load_lanes<Wide::r>(parameter[i].data(), at, count);
    for (int i = 0; i < Family::RESET_UNIFORMS; ++i) u[i] = load_lanes<Wide::r>(uniforms[i], 0, count);
    moved.state = Family::State<Wide>::choose(moved.done, Family::reset<Wide>(p, u), moved.state);
  }

  // Sum of the semi-gradients of one block of modes over a part: LowRankQ._descend, first half.
  template <int FROM, int TO> LONG void accumulate(int64_t part, int64_t step, bool report) {
    const Rows &from_rows = here(step), &to_rows = landed(step);
    Row<RANK> *shared = &gradient[part * shared_rows];
    const int64_t low = offset[std::max(FROM, FIRST_STATE)] - offset[FIRST_STATE];
    const int64_t high = TO < MODES ? offset[TO] - offset[FIRST_STATE] : shared_rows;
    if (high > low) std::fill(shared + low, shared + high, Row<RANK>{});
    each(part, [&](int64_t task, int64_t from, int64_t to, int64_t piece) {
      Row<RANK> *by_task = HAS_TASK ? &task_gradient[task * pieces + piece] : nullptr;
      if (HAS_TASK && FROM == 0) *by_task = {};
      const real scale = run.weight(task);
      double absolute = 0, squared = 0;
      for (int64_t env = from; env < to; ++env) {
        const int64_t at = task * a.envs + env;
        const Row<RANK> *f[MODES];
        if (HAS_TASK) f[0] = &row(0, run.task_row(task));
        for (int d = 0; d < STATE_MODES; ++d) f[FIRST_STATE + d] = &row(FIRST_STATE + d, from_rows.mode[d][at]);
        f[ACTION] = &row(ACTION, action[at]);
        Row<RANK> before[MODES], after = *f[ACTION];  // products of the rows of the modes before and after one
        before[1] = *f[0];
        for (int mode = 1; mode < ACTION; ++mode) before[mode + 1] = before[mode] * *f[mode];
        const real best = best_value(action_values(weights(to_rows, at).data(), columns));
        const real error = reward[at] + (Family::TERMINATES ? discount[at] : a.gamma) * best - before[ACTION].inner(*f[ACTION]);
        if (report) absolute += std::abs(error), squared += double(error) * error;
        for (int mode = ACTION; mode >= 0; --mode) {
          const Row<RANK> cofactor = mode == ACTION ? before[ACTION] : mode == 0 ? after : before[mode] * after;
          if (mode != ACTION) after = after * *f[mode];
          if (mode < FROM || mode >= TO) continue;
          const real amount = NORMALISED ? error / (cofactor.inner(cofactor) + real(1e-3)) : error;
          const int64_t index = offset[mode] - offset[FIRST_STATE] + (mode == ACTION ? action[at] : from_rows.mode[mode - FIRST_STATE][at]);
          (HAS_TASK && mode == 0 ? by_task : &shared[index])->add(-scale * amount, cofactor);
        }
      }
      double *out = &sums[(task * pieces + piece) * 4];
      if (report) out[2] += absolute, out[3] += squared;
    });
  }

  // The same for a block known at run time: one mode, or all of them.
  template <int MODE = 0> void accumulate_block(int block, int64_t part, int64_t step, bool report) {
    if constexpr (!BLOCK_ORDER) accumulate<0, MODES>(part, step, report);
    else if (block == MODE) accumulate<MODE, MODE + 1>(part, step, report);
    else if constexpr (MODE + 1 < MODES) accumulate_block<MODE + 1>(block, part, step, report);
  }

  // One optimiser step on a row: torchq.optim.
  void descend_row(int64_t index, const Row<RANK> &gradient, real rate, real correction1, real correction2) {
    const real step_size = rate / correction1;
    for (int i = 0; i < gradient.VECTORS; ++i) {
      const Vector g = gradient.part[i];
      Vector &f = values[index].part[i], &m = first[index].part[i], &v = second[index].part[i];
      if (OPTIMIZER == SGD) {
        f -= rate * g;
        continue;
      }
      m += (1 - BETA1) * (g - m);
      if (OPTIMIZER == ADAM) {
        v = BETA2 * v + (1 - BETA2) * g * g;
        f -= rate * (m / correction1) / (root(v / correction2) + EPS);
      } else {
        v = larger(BETA2 * v, larger(g, -g) + EPS);
        f -= step_size * m / v;
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

  LONG void descend_rows(int mode, int64_t from, int64_t to, int64_t step, const Corrections &corrections) {
    const real rate = a.learning_rate[step], correction1 = corrections.first, correction2 = corrections.second;
    for (int64_t index = from; index < to; ++index) {
      Row<RANK> g = {};
      if (HAS_TASK && mode == 0) {
        // Tasks of the batch are the rows in order, or the one row named.
        int64_t task = tasks == a.rows[0] ? index : index == run.task_row(0) ? 0 : -1;
        for (int64_t piece = 0; task >= 0 && piece < pieces; ++piece) g.add(1, task_gradient[task * pieces + piece]);
      } else {
        const int64_t at = offset[mode] - offset[FIRST_STATE] + index;
        for (int64_t part = 0; part < parts; ++part) g.add(1, gradient[part * shared_rows + at]);
      }
      descend_row(offset[mode] + index, g, rate, correction1, correction2);
    }
  }

  int64_t update_number(int64_t step, int64_t sweep) const { return a.num_updates + step * SWEEPS + sweep + 1; }

  // One update by one thread.
  void sweep_alone(int64_t step, int64_t sweep) {
    const Corrections corrections(update_number(step, sweep));
    for (int block = 0; block < (BLOCK_ORDER ? MODES : 1); ++block) {
      for (int64_t part = 0; part < parts; ++part) accumulate_block(block, part, step, sweep + block == 0);
      for (int mode = 0; mode < MODES; ++mode)
        if (!BLOCK_ORDER || mode == block) descend_rows(mode, 0, a.rows[mode], step, corrections);
    }
    transpose();
  }

  // Returns of greedy episodes of a chunk of environments, each until its first end: evaluation.greedy_step.
  void greedy(int64_t at, int count) { count == 1 ? greedy_in<One>(at, count) : greedy_in<Wide>(at, count); }

  template <class L> LONG void greedy_in(int64_t at, int count) {
    double total[CHUNK] = {};
    bool alive[CHUNK];
    int32_t *actions = &action[at];
    std::fill(alive, alive + count, true);
    for (int64_t step = 0; step < a.steps; ++step) {
      real uniforms[Family::STEP_UNIFORMS + 1][CHUNK];
      run.uniforms<Family::STEP_UNIFORMS>(EVALUATION_STEP, step, &env_of[at], &task_row_of[at], count, uniforms);
      for (int i = 0; i < count; ++i) actions[i] = best_action(rows[0], at + i);
      for (int lane = 0; lane < count; lane += L::COUNT) {
        const int lanes = std::min(L::COUNT, count - lane);
        const Moved<L> moved = move<L>(at + lane, lanes, actions + lane, uniforms, lane);
        rows[0].store(moved.visited, at + lane, lanes);
        moved.state.store(a.state, run.begin() + at + lane, lanes);
        for (int j = 0; j < lanes; ++j) {
          if (alive[lane + j]) total[lane + j] += lane_of(moved.outcome.reward, j);
          alive[lane + j] &= lane_of(moved.done, j) == 0;
        }
      }
    }
    std::copy(total, total + count, a.total + run.begin() + at);
  }
};
