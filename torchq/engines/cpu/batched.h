// The batched protocol: all environments of a run step together, then one update from all of them.
//
// A batch is cut into shards of tasks, and these into parts, whose gradients are summed where they arise and then added
// in a fixed order: part after part in a shard, shards in pairs, pairs of pairs, and so on. So sums do not depend on the
// number of threads, nor on which process owns which shards.

// One copy of what is long, wherever it is called: compiling takes a user's time.
#define LONG __attribute__((noinline))

constexpr int CHUNK = 128;     // transitions that are handled together
constexpr int MAX_PARTS = 64;  // sums of one program's gradient, whatever the number of threads

typedef Lanes<64 / sizeof(real)> Wide;
typedef Lanes<1> One;

// Where one state lies along the state modes: rows, and the weight of the row above where a mode interpolates.
struct Place {
  int32_t row[STATE_MODES];
  real weight[STATE_MODES];
};

// Where each environment lies.
struct Rows {
  std::vector<int32_t> mode[STATE_MODES];
  std::vector<real> weight[STATE_MODES];

  void resize(int64_t batch) {
    for (int d = 0; d < STATE_MODES; ++d) mode[d].resize(batch), weight[d].resize(interpolates(d) ? batch : 0);
  }
  template <class L> void store(const Places<L> &places, int64_t at, int count) {
    for (int d = 0; d < STATE_MODES; ++d) {
      store_lanes(places.row[d], mode[d].data(), at, count);
      if (interpolates(d)) store_lanes(places.weight[d], weight[d].data(), at, count);
    }
  }
  Place operator[](int64_t at) const {
    Place place;
#pragma GCC unroll 16
    for (int d = 0; d < STATE_MODES; ++d) {
      place.row[d] = mode[d][at];
      if (interpolates(d)) place.weight[d] = weight[d][at];
    }
    return place;
  }
};

// What an update learns from.
struct Transition {
  Place here, landed;
  int32_t action;
  real reward, discount;
};

// The places of a stored transition, and all of it: torchq.lowrank.replay.
static inline Place recalled_place(const real *record) {
  Place place;
#pragma GCC unroll 16
  for (int d = 0; d < STATE_MODES; ++d) {
    place.row[d] = int32_t(record[d]);
    if (!interpolates(d)) continue;
    // NaN falls on a valid row, where its weight shows it.
    place.row[d] = record[d] >= 0 ? std::min(int32_t(record[d]), GRID_SIZES_[d] - 1) : 0;
    place.weight[d] = record[d] - real(place.row[d]);
  }
  return place;
}

static inline Transition recalled(const real *record) {
  const real *rest = record + 2 * STATE_MODES;
  return {recalled_place(record), recalled_place(record + STATE_MODES), int32_t(rest[0]), rest[1], rest[2]};
}

// Where a task lies along the mode of a parameter.
struct TaskPlace {
  int64_t below, above;
  real weight;
};

// Factors of one run, their moments, and room for gradients.
struct Batched {
  const Run run;
  const Args &a;
  const int64_t tasks, batch, per_task;  // environments in all; transitions of a task in an update
  const int64_t shards;
  int64_t pieces, parts_each, parts, shared_rows;  // pieces of a task, parts of a shard and in all
  std::vector<Row<RANK>> values, first, second, target, gradient, task_gradient, parameter_gradient, guide;
  Row<ACTIONS> columns[RANK_PADDED] = {}, target_columns[RANK_PADDED] = {}, guide_columns[GUIDE ? RANK_PADDED : 1] = {};
  std::vector<double> sums;
  // Of each environment: who it is, where it stands before and after a step, and what the step gave.
  std::vector<uint32_t> env_of, task_of, task_row_of, task_name_of;
  std::vector<real> parameter[Family::PARAMETERS + 1], reward, discount;
  std::vector<int32_t> action;
  Rows rows[2], landed_;
  std::vector<TaskPlace> task_places;    // (tasks, TASK_MODES)
  std::vector<const real *> records[4];  // Stored transitions of each task for as many updates, (tasks, batch).
  int64_t offset[ALL_MODES];
  std::vector<Row<RANK>> sent, received;  // Sums over this rank's shards, and those of all ranks.
  bool failed = false;

  explicit Batched(const Run &run_)
      : run(run_), a(run_.a), tasks(run_.tasks), batch(tasks * a.envs), per_task(a.per_task()),
        shards(tasks == a.tasks ? a.shards : 1) {
    const int64_t most = std::max<int64_t>(1, MAX_PARTS / (shards * a.ranks));
    const int64_t largest = tasks == a.tasks ? a.shard_tasks : tasks;
    pieces = std::min<int64_t>((per_task + CHUNK - 1) / CHUNK, most);
    parts_each = std::min<int64_t>((largest * per_task + CHUNK - 1) / CHUNK, most);
    // Parts hold whole tasks, or tasks hold whole parts, so that no two parts add to one row of the task factor.
    if (pieces > 1) parts_each = pieces;
    parts = shards * parts_each;
    int64_t rows = 0;
    for (int mode = 0; mode < ALL_MODES; ++mode) offset[mode] = rows, rows += a.rows[mode];
    shared_rows = offset[ACTION] + a.rows[ACTION] - offset[FIRST_STATE];
    for (auto *kind : {&values, &first, &second}) kind->assign(rows, {});
    if (has_target()) target.assign(rows, {});
    if (a.replay_ratio) for (auto &drawn : records) drawn.resize(tasks * a.replay_batch);
    gradient.resize(parts * shared_rows);
    if (HAS_TASK) task_gradient.resize(tasks * pieces);
    parameter_gradient.resize(shards * parameter_rows());
    if (a.exchange) sent.resize(shared_rows + parameter_rows()), received.resize(a.ranks * sent.size());
    sums.assign(tasks * pieces * 4, 0);
    place();
    for (int mode = 0; mode < ALL_MODES; ++mode) copy(mode, true);
    place_tasks(), compose(), load_guide();
    transpose(values, columns);
    if (has_target()) transpose(target, target_columns);
  }

  bool has_target() const { return a.target[ACTION] != nullptr; }

  // Whether the rows of tasks are made up of those of their parameters: torchq.lowrank.task_modes.
  bool composes() const { return TASK_MODES && a.factors[ALL_MODES - 1] != nullptr; }

  int64_t first_parameter_row() const { return offset[ACTION] + a.rows[ACTION]; }
  int64_t parameter_rows() const { return TASK_MODES ? offset[ALL_MODES - 1] + a.rows[ALL_MODES - 1] - first_parameter_row() : 0; }

  bool has_guide() const { return GUIDE && a.guide[ACTION] != nullptr; }

  void load_guide() {
    if (!has_guide()) return;
    guide.assign(first_parameter_row(), {});
    for (int mode = 0; mode < MODES; ++mode)
      for (int64_t index = 0; index < a.rows[mode]; ++index)
        std::memcpy(guide[offset[mode] + index].data(), run.row(a.guide, mode, index), RANK * sizeof(real));
    transpose(guide, guide_columns);
  }

  // Which modes learn.
  bool learns(int mode) const {
    if (mode == 0 && composes()) return false;
    return !ONLY_TASKS || mode == 0 || mode > ACTION;
  }

  // Where tasks lie along the modes of their parameters.
  void place_tasks() {
    if (!composes()) return;
    for (int64_t at = 0; at < tasks * TASK_MODES; ++at) {
      const real place = a.task_places[at], below = std::floor(place);
      const int64_t size = a.rows[MODES + at % std::max(TASK_MODES, 1)], row = int64_t(below) % size;
      task_places.push_back({row, (row + 1) % size, place - below});
    }
  }

  // The row of a parameter at a task's place: cp.interpolate.
  Row<RANK> parameter_row(const std::vector<Row<RANK>> &factors, int64_t task, int p) const {
    const TaskPlace &at = task_places[task * TASK_MODES + p];
    Row<RANK> mixed = factors[offset[MODES + p] + at.below];
    const Row<RANK> &next = factors[offset[MODES + p] + at.above];
    for (int i = 0; i < mixed.VECTORS; ++i)
      mixed.part[i] = fma(splat(at.weight), next.part[i] - mixed.part[i], mixed.part[i]);
    return mixed;
  }

  // The rows of the task mode: task_modes.compose.
  void compose() {
    if (!composes()) return;
    for (auto *factors : {&values, &target}) {
      if (factors->empty()) continue;
      for (int64_t task = 0; task < tasks; ++task) {
        Row<RANK> row = parameter_row(*factors, task, 0);
        for (int p = 1; p < TASK_MODES; ++p) row = row * parameter_row(*factors, task, p);
        (*factors)[offset[0] + task] = row;
      }
    }
  }

  // Gradients of the parameters' modes from those of tasks, by the chain rule: task_modes.spread.
  LONG void spread() {
    if (!composes()) return;
    std::fill(parameter_gradient.begin(), parameter_gradient.end(), Row<RANK>{});
    for (int64_t shard = 0; shard < shards; ++shard)
      for (int64_t task = begins(shard); task < begins(shard + 1); ++task) spread_task(task, shard);
  }

  void spread_task(int64_t task, int64_t shard) {
    Row<RANK> g = {};
    for (int64_t piece = 0; piece < pieces; ++piece) g.add(1, task_gradient[task * pieces + piece]);
    for (int p = 0; p < TASK_MODES; ++p) {
      Row<RANK> mine = g;
      for (int other = 0; other < TASK_MODES; ++other)
        if (other != p) mine = mine * parameter_row(values, task, other);
      const TaskPlace &at = task_places[task * TASK_MODES + p];
      Row<RANK> *rows = &parameter_gradient[shard * parameter_rows() + offset[MODES + p] - first_parameter_row()];
      rows[at.below].add(1 - at.weight, mine), rows[at.above].add(at.weight, mine);
    }
  }

  // Environments in a row, and the grid points where they start.
  void place() {
    for (auto *who : {&env_of, &task_of, &task_row_of, &task_name_of}) who->resize(batch);
    for (auto &values : parameter) values.resize(batch);
    action.resize(batch), reward.resize(batch), rows[0].resize(batch), rows[1].resize(batch);
    if (Family::TERMINATES) discount.resize(batch), landed_.resize(batch);
    for (int64_t i = 0, task = 0; task < tasks; ++task)
      for (int64_t env = 0; env < a.envs; ++env, ++i) {
        env_of[i] = uint32_t(env), task_of[i] = uint32_t(task), task_row_of[i] = uint32_t(run.task_row(task));
        task_name_of[i] = uint32_t(run.task_name(task));
        for (int p = 0; p < Family::PARAMETERS; ++p) parameter[p][i] = run.parameters(task)[p];
      }
    for (int64_t at = 0; at < batch; at += Wide::COUNT) {
      const int count = int(std::min<int64_t>(Wide::COUNT, batch - at));
      Places<Wide> places;
      locate<Wide>(Family::State<Wide>::load(a.state, run.begin() + at, count), places);
      rows[0].store(places, at, count);
    }
  }

  Rows &here(int64_t step) { return rows[step & 1]; }
  // Where a step led: where the next one starts, but for environments that terminated and were reset.
  Rows &landed(int64_t step) { return Family::TERMINATES ? landed_ : rows[(step + 1) & 1]; }

  void copy(int mode, bool in) {
    real *const *outer[] = {a.factors, a.first, a.second, a.target};
    Row<RANK> *inner[] = {values.data(), first.data(), second.data(), target.data()};
    for (int kind = 0; kind < 4; ++kind) {
      if (!outer[kind][mode]) continue;
      for (int64_t index = 0; index < a.rows[mode]; ++index) {
        real *mine = inner[kind][offset[mode] + index].data(), *theirs = run.row(outer[kind], mode, index);
        std::memcpy(in ? mine : theirs, in ? theirs : mine, RANK * sizeof(real));
      }
    }
  }

  void write_back() {
    for (int mode = 0; mode < ALL_MODES; ++mode) copy(mode, false);
    for (int64_t task = 0; task < tasks; ++task) {
      double *out = run.statistics(task);
      for (int64_t piece = 0; piece < pieces; ++piece) {
        const double *in = &sums[(task * pieces + piece) * 4];
        for (int i = 0; i < 4; ++i) out[i] += in[i] / a.envs;
      }
    }
  }

  const Row<RANK> &row(int mode, int64_t index) const { return values[offset[mode] + index]; }

  // The action mode with a row for each k.
  LONG void transpose(const std::vector<Row<RANK>> &from, Row<ACTIONS> *to) const {
    for (int action = 0; action < ACTIONS; ++action) {
      const real *row = from[offset[ACTION] + action].data();
      for (int k = 0; k < RANK; ++k) to[k].data()[action] = row[k];
    }
  }

  static int above(int row, int d) { return row + 1 < GRID_SIZES_[d] ? row + 1 : 0; }

  // The row of state mode d at a place: cp.interpolate.
  Row<RANK> state_row(const std::vector<Row<RANK>> &factors, int d, const Place &place) const {
    const Row<RANK> *mode = &factors[offset[FIRST_STATE + d]];
    Row<RANK> mixed = mode[place.row[d]];
    if (interpolates(d)) {
      const Row<RANK> &next = mode[above(place.row[d], d)];
      for (int i = 0; i < mixed.VECTORS; ++i)
        mixed.part[i] = fma(splat(place.weight[d]), next.part[i] - mixed.part[i], mixed.part[i]);
    }
    return mixed;
  }

  // Product of the rows visited of the task and state modes.
  Row<RANK> weights(const std::vector<Row<RANK>> &factors, const Place &place, int64_t task) const {
    Row<RANK> w = state_row(factors, 0, place);
    if (HAS_TASK) w = w * factors[offset[0] + task];
#pragma GCC unroll 16
    for (int d = 1; d < STATE_MODES; ++d) w = w * state_row(factors, d, place);
    return w;
  }

  // The greedy action, or the guide's where no other is better by a margin: torchq.lowrank.guide.
  int best_action(const Rows &visited, int64_t at, real margin) const {
    const Place place = visited[at];
    Row<ACTIONS> q = action_values(weights(values, place, task_row_of[at]).data(), columns);
    if (GUIDE && margin > 0) {
      const Row<ACTIONS> guided = action_values(weights(guide, place, task_row_of[at]).data(), guide_columns);
      q.data()[first_best(guided)] += margin;
    }
    return first_best(q);
  }

  real margin_at(int64_t step) const {
    return has_guide() ? real(margin_after(a.num_updates + step * a.updates_per_step(), a.margin, a.margin_end)) : 0;
  }

  // max Q of a state in the tensor that gives the targets.
  real best_next(const Place &place, int64_t task) const {
    if (has_target()) return best_value(action_values(weights(target, place, task).data(), target_columns));
    return best_value(action_values(weights(values, place, task).data(), columns));
  }

  // The first task of a shard.
  int64_t begins(int64_t shard) const { return shards == 1 ? shard * tasks : a.shard_begins[shard]; }

  // A part of a shard: a range of its tasks with all of their `each` environments or transitions, or the same share of
  // these of every task, a piece.
  struct Part { int64_t first_task, end_task, from, to, piece; };
  Part part_of(int64_t part, int64_t each) const {
    const int64_t shard = part / parts_each, piece = part % parts_each, first = begins(shard), end = begins(shard + 1);
    if (pieces > 1) return {first, end, each * piece / pieces, each * (piece + 1) / pieces, piece};
    return {first + (end - first) * piece / parts_each, first + (end - first) * (piece + 1) / parts_each, 0, each, 0};
  }

  // The transitions of a part.
  template <class Body> void each(int64_t part, Body body) {
    const Part of = part_of(part, per_task);
    for (int64_t task = of.first_task; task < of.end_task; ++task) body(task, of.from, of.to, of.piece);
  }

  // Behaviour policy and environment: Rollout.step, first half.
  void act(int64_t part, int64_t step) {
    const Part of = part_of(part, a.envs);
    if (pieces == 1) return act_on(of.first_task * a.envs, of.end_task * a.envs, 0, step);
    for (int64_t task = of.first_task; task < of.end_task; ++task)
      act_on(task * a.envs + of.from, task * a.envs + of.to, of.piece, step);
  }

  LONG void act_on(int64_t from, int64_t to, int64_t piece, int64_t step) {
    for (int64_t at = from; at < to; at += CHUNK) {
      const int count = int(std::min<int64_t>(CHUNK, to - at));
      choose_actions(at, count, step);
      advance(at, count, piece, step);
      if (a.replay_ratio)
        for (int i = 0; i < count; ++i) remember(at + i, step);
    }
  }

  real *record(int64_t task, int64_t number) const {
    return a.memory + ((run.seed * a.tasks + run.first_task + task) * a.slots + number % a.slots) * RECORD;
  }

  int64_t steps_before(int64_t step) const { return a.first_step + step; }

  // Where the transition of an environment at a step is stored.
  real *own_record(int64_t task, int64_t env, int64_t step) const {
    return record(task, steps_before(step) * a.envs + env);
  }

  void remember(int64_t at, int64_t step) {
    real *to = own_record(task_of[at], env_of[at], step);
    for (const Rows *where : {&here(step), &landed(step)})
      for (int d = 0; d < STATE_MODES; ++d)
        *to++ = interpolates(d) ? real(where->mode[d][at]) + where->weight[d][at] : real(where->mode[d][at]);
    to[0] = real(action[at]), to[1] = reward[at], to[2] = Family::TERMINATES ? discount[at] : a.gamma;
  }

  // How many of the stored transitions of a task are drawn from: Replay.available.
  int64_t available_of(int64_t stored) const {
    const int64_t recent = int64_t(std::ceil(a.replay_recent * double(stored)));
    return std::min({stored, a.replay_capacity, std::max<int64_t>(recent, 1000)});
  }

  // Which stored transitions of a task four updates of a step learn from: Replay.drawn.
  LONG void draw(int64_t task, int64_t step, int64_t update) {
    uint32_t lane[CHUNK], name[CHUNK], words[4][CHUNK];
    const int64_t stored = (steps_before(step) + 1) * a.envs, available = available_of(stored);
    std::fill(name, name + CHUNK, uint32_t(run.task_name(task)));
    for (int64_t from = 0; from < a.replay_batch; from += CHUNK) {
      const int count = int(std::min<int64_t>(CHUNK, a.replay_batch - from));
      for (int i = 0; i < count; ++i) lane[i] = uint32_t(from + i);
      philox(a.run_seeds[run.seed], steps_before(step), lane, name, REPLAY, uint32_t(update / 4), count, words[0],
             words[1], words[2], words[3]);
      const int64_t wanted = std::min<int64_t>(4, a.replay_ratio - update);
      for (int64_t next = 0; next < wanted; ++next)
        for (int i = 0; i < count; ++i) {
          const real *found = record(task, stored - available + below(words[next][i], available));
          records[next][task * a.replay_batch + from + i] = found;
          __builtin_prefetch(found), __builtin_prefetch(found + RECORD - 1);
        }
    }
  }

  // The i-th transition of a task in an update: those of the step itself first, then stored ones.
  Transition transition(int64_t task, int64_t i, int64_t step, int64_t update) {
    if (a.replay_ratio) {
      if (i < a.envs) return recalled(own_record(task, i, step));
      return recalled(records[update & 3][task * a.replay_batch + i - a.envs]);
    }
    const int64_t at = task * a.envs + i;
    return {here(step)[at], landed(step)[at], action[at], reward[at], Family::TERMINATES ? discount[at] : a.gamma};
  }

  void choose_actions(int64_t at, int count, int64_t step) {
    uint32_t words[4][CHUNK];
    philox(a.run_seeds[run.seed], a.first_step + step, &env_of[at], &task_name_of[at], EXPLORATION, 0, count, words[0],
           words[1], words[2], words[3]);
    const real margin = margin_at(step);
    for (int i = 0; i < count; ++i) {
      const bool explores = uniform(words[0][i]) < a.epsilon[step];
      action[at + i] = explores ? random_action(words[1][i]) : best_action(here(step), at + i, margin);
    }
  }

  template <class L> LONG static void locate(const Family::State<L> &state, Places<L> &places) {
    state_places<L>(state, places);
  }

  // Lanes of environments from `at`, with what a step asks for.
  template <class L> struct Moved {
    Family::State<L> state;
    Outcome<L> outcome;
    typename L::mask done;
    Places<L> visited;
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
    run.uniforms<Family::STEP_UNIFORMS>(STEP, step, &env_of[at], &task_name_of[at], count, uniforms);
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
    run.uniforms<Family::RESET_UNIFORMS>(AUTORESET, step, &env_of[at], &task_name_of[at], count, uniforms);
    Wide::r p[Family::PARAMETERS + 1], u[Family::RESET_UNIFORMS + 1];
    for (int i = 0; i < Family::PARAMETERS; ++i) p[i] = load_lanes<Wide::r>(parameter[i].data(), at, count);
    for (int i = 0; i < Family::RESET_UNIFORMS; ++i) u[i] = load_lanes<Wide::r>(uniforms[i], 0, count);
    moved.state = Family::State<Wide>::choose(moved.done, Family::reset<Wide>(p, u), moved.state);
  }

  // Sum of the semi-gradients of one block of modes over a part: LowRankQ._descend, first half.
  template <int FROM, int TO> LONG void accumulate(int64_t part, int64_t step, int64_t update, bool report) {
    Row<RANK> *shared = &gradient[part * shared_rows];
    const int64_t low = offset[std::max(FROM, FIRST_STATE)] - offset[FIRST_STATE];
    const int64_t high = TO < MODES ? offset[TO] - offset[FIRST_STATE] : shared_rows;
    if (high > low) std::fill(shared + low, shared + high, Row<RANK>{});
    each(part, [&](int64_t task, int64_t from, int64_t to, int64_t piece) {
      Row<RANK> *by_task = HAS_TASK ? &task_gradient[task * pieces + piece] : nullptr;
      if (HAS_TASK && FROM == 0) *by_task = {};
      const real scale = run.weight(task);
      const int64_t task_row = run.task_row(task);
      double absolute = 0, squared = 0;
      for (int64_t i = from; i < to; ++i) {
        const Transition t = transition(task, i, step, update);
        const Row<RANK> *f[MODES];
        Row<RANK> mixed[STATE_MODES];
        if (HAS_TASK) f[0] = &row(0, task_row);
#pragma GCC unroll 16
        for (int d = 0; d < STATE_MODES; ++d) {
          f[FIRST_STATE + d] = &row(FIRST_STATE + d, t.here.row[d]);
          if (interpolates(d)) mixed[d] = state_row(values, d, t.here), f[FIRST_STATE + d] = &mixed[d];
        }
        f[ACTION] = &row(ACTION, t.action);
        Row<RANK> before[MODES], after = *f[ACTION];  // products of the rows of the modes before and after one
        before[1] = *f[0];
        for (int mode = 1; mode < ACTION; ++mode) before[mode + 1] = before[mode] * *f[mode];
        const real best = best_next(t.landed, task_row);
        const real error = t.reward + t.discount * best - before[ACTION].inner(*f[ACTION]);
        if (report && i < a.envs) absolute += std::abs(error), squared += double(error) * error;
#pragma GCC unroll 16
        for (int mode = ACTION; mode >= 0; --mode) {
          const Row<RANK> cofactor = mode == ACTION ? before[ACTION] : mode == 0 ? after : before[mode] * after;
          if (mode != ACTION) after = after * *f[mode];
          if (mode < FROM || mode >= TO) continue;
          const real amount = -scale * (NORMALISED ? error / (cofactor.inner(cofactor) + real(1e-3)) : error);
          if (HAS_TASK && mode == 0) {
            by_task->add(amount, cofactor);
            continue;
          }
          const int d = mode - FIRST_STATE;
          Row<RANK> *rows = shared + offset[mode] - offset[FIRST_STATE];
          if (mode == ACTION) rows[t.action].add(amount, cofactor);
          else if (!interpolates(d)) rows[t.here.row[d]].add(amount, cofactor);
          else {
            const real share = amount * t.here.weight[d];
            rows[t.here.row[d]].add(amount - share, cofactor);
            rows[above(t.here.row[d], d)].add(share, cofactor);
          }
        }
      }
      double *out = &sums[(task * pieces + piece) * 4];
      if (report) out[2] += absolute, out[3] += squared;
    });
  }

  // The same for a block known at run time: one mode, or all of them.
  template <int MODE = 0>
  void accumulate_block(int block, int64_t part, int64_t step, int64_t update, bool report) {
    if constexpr (!BLOCK_ORDER) accumulate<0, ONLY_TASKS ? HAS_TASK : MODES>(part, step, update, report);
    else if (block == MODE) accumulate<MODE, MODE + 1>(part, step, update, report);
    else if constexpr (MODE + 1 < MODES) accumulate_block<MODE + 1>(block, part, step, update, report);
  }

  // One optimiser step on a row: torchq.optim.
  void descend_row(int64_t index, const Row<RANK> &gradient, real rate, real correction1, real correction2) {
    const real step_size = rate / correction1, bias = std::sqrt(correction2);
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
        f -= step_size * bias * m / (root(v) + bias * EPS);
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

  // The sum of a row's gradients, of the modes that tasks share and then of those of their parameters, over a shard.
  Row<RANK> shard_sum(int64_t shard, int64_t at) const {
    Row<RANK> g = {};
    if (at >= shared_rows) g.add(1, parameter_gradient[shard * parameter_rows() + at - shared_rows]);
    else
      for (int64_t part = shard * parts_each; part < (shard + 1) * parts_each; ++part)
        g.add(1, gradient[part * shared_rows + at]);
    return g;
  }

  // A sum in pairs, of pairs, of pairs: that of a power of two of neighbours is one of its terms, whoever adds them.
  template <class Term> static Row<RANK> sum_in_pairs(int64_t count, Term term) {
    Row<RANK> open[8];
    int depth = 0;
    for (int64_t i = 0; i < count; ++i) {
      Row<RANK> sum = term(i);
      for (int64_t pairs = i; pairs & 1; pairs >>= 1) {
        Row<RANK> both = open[--depth];
        both.add(1, sum), sum = both;
      }
      open[depth++] = sum;
    }
    return open[0];
  }

  // Over the shards of this process.
  Row<RANK> own_sum(int64_t at) const {
    return sum_in_pairs(shards, [&](int64_t shard) { return shard_sum(shard, at); });
  }

  // Over all shards, of which other processes have sent theirs.
  Row<RANK> whole_sum(int64_t at) const {
    if (!a.exchange) return own_sum(at);
    return sum_in_pairs(a.ranks, [&](int64_t rank) { return received[rank * sent.size() + at]; });
  }

  void exchange() { failed = a.exchange(sent.data(), received.data(), int64_t(sent.size() * sizeof(Row<RANK>))) != 0; }

  LONG void descend_rows(int mode, int64_t from, int64_t to, int64_t step, const Corrections &corrections) {
    const real rate = a.learning_rate[step], correction1 = corrections.first, correction2 = corrections.second;
    for (int64_t index = from; index < to; ++index) {
      Row<RANK> g = {};
      if (HAS_TASK && mode == 0) {
        // Tasks of the batch are the rows in order, or the one row named.
        int64_t task = tasks == a.rows[0] ? index : index == run.task_row(0) ? 0 : -1;
        for (int64_t piece = 0; task >= 0 && piece < pieces; ++piece) g.add(1, task_gradient[task * pieces + piece]);
      } else {
        g = whole_sum(mode > ACTION ? shared_rows + offset[mode] - first_parameter_row() + index
                                    : offset[mode] - offset[FIRST_STATE] + index);
      }
      descend_row(offset[mode] + index, g, rate, correction1, correction2);
    }
  }

  // Number, from 1, of the `sweep`-th sweep of a step, of all its updates.
  int64_t update_number(int64_t step, int64_t sweep) const {
    return a.num_updates + step * a.updates_per_step() + sweep + 1;
  }

  // Polyak step of the target tensor: LowRankQ._follow.
  void follow(int64_t from, int64_t to) {
    for (int64_t index = from; index < to; ++index)
      for (int i = 0; i < values[index].VECTORS; ++i) {
        Vector &mean = target[index].part[i];
        mean += a.target_rate * (values[index].part[i] - mean);
      }
  }

  // After a sweep: what is kept of the factors besides them.
  void finish_sweep() {
    compose();
    transpose(values, columns);
    if (has_target()) transpose(target, target_columns);
  }

  // One sweep by one thread.
  void sweep_alone(int64_t step, int64_t sweep) {
    const Corrections corrections(update_number(step, sweep));
    const int64_t update = sweep / SWEEPS;
    if (a.replay_ratio && sweep % (4 * SWEEPS) == 0)
      for (int64_t task = 0; task < tasks; ++task) draw(task, step, update);
    for (int block = 0; block < (BLOCK_ORDER ? MODES : 1); ++block) {
      for (int64_t part = 0; part < parts; ++part) accumulate_block(block, part, step, update, sweep + block == 0);
      spread();
      for (int mode = 0; mode < ALL_MODES; ++mode)
        if (learns(mode) && (!BLOCK_ORDER || mode == block)) descend_rows(mode, 0, a.rows[mode], step, corrections);
    }
    if (has_target()) follow(0, int64_t(values.size()));
    finish_sweep();
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
      run.uniforms<Family::STEP_UNIFORMS>(EVALUATION_STEP, step, &env_of[at], &task_name_of[at], count, uniforms);
      for (int i = 0; i < count; ++i) actions[i] = best_action(rows[0], at + i, margin_at(step));
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
