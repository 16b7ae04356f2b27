// The paper's online protocol: one environment, one transition and one Gauss-Seidel sweep of Adamax at a time, on cells.
//
// Dense Adamax (Kingma and Ba 2015, alg. 2) moves every row at every update, but a transition reads few of them. A row
// without a gradient moves by
//     m <- b1 m,  u <- b2 u,  F <- F - c m/u,
// so r = m/u shrinks by b1/b2 an update, and a row that is read n updates after it was last brought up to date needs
//     F <- F - r sum_j c_j (b1/b2)^j,  r <- (b1/b2)^n r,  u <- b2^n u,     j = 1..n,
// no division and no visit in between. The result is that of the dense form to rounding.

// What n updates without a gradient do to a row, for all runs of a call.
struct Decay {
  int64_t steady = 0;                                  // from here on c is constant
  std::vector<real> step_size, ratio, second, drift;  // c of each update; (b1/b2)^n, b2^n and c sum_j (b1/b2)^j by n
  real small;                                          // a smaller u could meet Adamax's floor during the call

  explicit Decay(const Args &a) {
    const int64_t count = a.steps * SWEEPS * a.updates;
    step_size.resize(count + 1), ratio.assign(count + 1, 1), second.assign(count + 1, 1), drift.assign(count + 1, 0);
    for (int64_t n = 1; n <= count; ++n) {
      const double number = double(a.num_updates + n);
      step_size[n] = a.learning_rate[(n - 1) / SWEEPS] / (number < 1000 ? real(1 - std::pow(0.9, number)) : real(1));
      if (n > 1 && step_size[n] != step_size[n - 1]) steady = n - 1;
      ratio[n] = ratio[n - 1] * (BETA1 / BETA2), second[n] = second[n - 1] * BETA2;
    }
    for (int64_t n = 1; n <= count; ++n) drift[n] = drift[n - 1] + step_size[count] * ratio[n];
    small = EPS / second[count] * real(1.01);
  }

  // sum_j c_j (b1/b2)^j over the updates after `from` up to `to`.
  real between(int64_t from, int64_t to) const {
    if (from >= steady) return drift[to - from];
    real sum = 0;
    for (int64_t n = from + 1; n <= to && ratio[n - from] > real(1e-20); ++n) sum += step_size[n] * ratio[n - from];
    return sum;
  }
};

// A row of a factor F with r = m/u and u.
struct LazyRow {
  Row<RANK> value, ratio, second;
  int64_t now, visited;  // updates that F and r, and that u, have seen
  bool small;            // u is near Adamax's floor: every update is taken by itself

  void mark(const Decay &decay) {
    Vector least = splat(decay.small);
    for (int i = 0; i < value.VECTORS; ++i) least = ratio.part[i] != 0 ? smaller(second.part[i], least) : least;
    small = smallest(least) < decay.small;
  }

  void decay_second(const Decay &decay, int64_t update) {
    const int64_t n = update - visited;
    if (n == 0) return;
    for (Vector &u : second.part) u = larger(u * decay.second[n], splat(EPS));
    visited = update;
  }

  // The updates up to this one, none of which had a gradient here.
  void catch_up(const Decay &decay, int64_t update) {
    if (now == update) return;
    if (small) {
      while (now < update) visit(decay, now + 1, real(0), Row<RANK>{});
      return;
    }
    const real drift = decay.between(now, update), shrunk = decay.ratio[update - now];
    for (int i = 0; i < value.VECTORS; ++i)
      value.part[i] = fma(splat(-drift), ratio.part[i], value.part[i]), ratio.part[i] *= shrunk;
    now = update;
  }

  // The next update, with the gradient amount · cofactor: torchq.optim.adamax.
  void visit(const Decay &decay, int64_t update, real amount, const Row<RANK> &cofactor) {
    decay_second(decay, update - 1);
    const Vector step = splat(-decay.step_size[update]);
    for (int i = 0; i < value.VECTORS; ++i) {
      Vector &r = ratio.part[i], &u = second.part[i];
      const Vector g = amount * cofactor.part[i], m = r * u * BETA1 + (1 - BETA1) * g;
      u = larger(BETA2 * u, larger(g, -g) + EPS);
      r = m / u;
      value.part[i] = fma(step, r, value.part[i]);
    }
    now = visited = update;
    mark(decay);
  }
};

// The action mode once more, a row for each k, because action values take all of it: F and m/u, always up to date.
struct Columns {
  Row<ACTIONS> value[RANK_PADDED] = {}, ratio[RANK_PADDED] = {};

  void load(const LazyRow *rows) {
    for (int k = 0; k < RANK; ++k) {
      value[k] = ratio[k] = {};
      for (int action = 0; action < ACTIONS; ++action) {
        value[k].data()[action] = rows[action].value.data()[k];
        ratio[k].data()[action] = rows[action].ratio.data()[k];
      }
    }
  }

  // One update, after that of the row of the action taken.
  void advance(const Decay &decay, int64_t update, int action, const LazyRow &row) {
    const real drift = decay.between(update - 1, update), shrunk = decay.ratio[1];
    Row<ACTIONS> lane;
    for (int other = 0; other < ACTIONS_PADDED; ++other) lane.data()[other] = real(other == action);
    for (int k = 0; k < RANK; ++k)
      for (int i = 0; i < Row<ACTIONS>::VECTORS; ++i) {
        Vector &f = value[k].part[i], &r = ratio[k].part[i];
        f = lane.part[i] != 0 ? splat(row.value.data()[k]) : fma(splat(-drift), r, f);
        r = lane.part[i] != 0 ? splat(row.ratio.data()[k]) : r * shrunk;
      }
  }
};

// The factors of one run.
struct Online {
  const Args &a;
  const Decay &decay;
  std::vector<LazyRow> rows;
  int64_t offset[MODES];
  Columns columns;

  Online(const Args &args, const Decay &decay_) : a(args), decay(decay_) {
    int64_t count = 0;
    for (int mode = 0; mode < MODES; ++mode) offset[mode] = count, count += a.rows[mode];
    rows.resize(count);
  }

  void load(const Run &run) {
    for (int mode = 0; mode < MODES; ++mode)
      for (int64_t index = 0; index < a.rows[mode]; ++index) {
        LazyRow &row = rows[offset[mode] + index];
        row = {};
        const real *m = run.row(a.first, mode, index), *u = run.row(a.second, mode, index);
        std::memcpy(row.value.data(), run.row(a.factors, mode, index), RANK * sizeof(real));
        std::memcpy(row.second.data(), u, RANK * sizeof(real));
        for (int k = 0; k < RANK; ++k) row.ratio.data()[k] = u[k] > 0 ? m[k] / u[k] : m[k];
        row.mark(decay);
      }
    columns.load(&rows[offset[ACTION]]);
  }

  void store(const Run &run, int64_t update) {
    for (int mode = 0; mode < MODES; ++mode)
      for (int64_t index = 0; index < a.rows[mode]; ++index) {
        LazyRow &row = rows[offset[mode] + index];
        row.catch_up(decay, update);
        row.decay_second(decay, update);
        real *m = run.row(a.first, mode, index), *u = run.row(a.second, mode, index);
        std::memcpy(run.row(a.factors, mode, index), row.value.data(), RANK * sizeof(real));
        for (int k = 0; k < RANK; ++k) u[k] = row.second.data()[k], m[k] = row.ratio.data()[k] * u[k];
      }
  }

  // The rows of the task and state modes that a state visits.
  void locate(int64_t task, const int *state, LazyRow **visited) {
    if (HAS_TASK) visited[0] = &rows[offset[0] + task];
    for (int d = 0; d < STATE_MODES; ++d) visited[FIRST_STATE + d] = &rows[offset[FIRST_STATE + d] + state[d]];
  }

  static Row<RANK> product(LazyRow *const *visited) {
    Row<RANK> w = visited[0]->value;
    for (int mode = 1; mode < ACTION; ++mode) w = w * visited[mode]->value;
    return w;
  }

  // One Gauss-Seidel sweep over the modes: LowRankQ.update; returns the first TD error.
  real sweep(int64_t update, LazyRow **here, LazyRow **next, int action, real reward, real discount,
             real weight) {
    LazyRow *chosen = &rows[offset[ACTION] + action];
    for (int mode = 0; mode < ACTION; ++mode)
      here[mode]->catch_up(decay, update - 1), next[mode]->catch_up(decay, update - 1);
    chosen->catch_up(decay, update - 1);
    real first_error = 0;
    for (int mode = 0; mode < MODES; ++mode) {
      const real target = reward + discount * best_value(action_values(product(next).data(), columns.value));
      const Row<RANK> w = product(here);
      const real error = target - w.inner(chosen->value);
      if (mode == 0) first_error = error;
      Row<RANK> cofactor = w;
      if (mode != ACTION) {
        cofactor = chosen->value;
        for (int other = 0; other < ACTION; ++other)
          if (other != mode) cofactor = cofactor * here[other]->value;
      }
      (mode == ACTION ? chosen : here[mode])->visit(decay, update, -weight * error, cofactor);
      if (mode != ACTION) next[mode]->catch_up(decay, update);
    }
    columns.advance(decay, update, action, *chosen);
    return first_error;
  }

  int behave(const Run &run, int64_t step, LazyRow **here, int64_t update) {
    uint32_t words[4];
    const uint32_t env = 0, task = uint32_t(run.task_name(0));
    philox(a.run_seeds[run.seed], a.first_step + step, &env, &task, EXPLORATION, 0, 1, words, words + 1, words + 2,
           words + 3);
    if (uniform(words[0]) < a.epsilon[step]) return random_action(words[1]);
    for (int mode = 0; mode < ACTION; ++mode) here[mode]->catch_up(decay, update);
    return first_best(action_values(product(here).data(), columns.value));
  }

  void train(const Run &run) {
    load(run);
    const uint32_t env = 0, task = uint32_t(run.task_name(0));
    const real weight = run.weight(0), *parameters = run.parameters(0);
    double rewards = 0, episodes = 0, absolute = 0, squared = 0;
    LazyRow *here[MODES], *next[MODES];
    int64_t update = 0;
    Places<One> places;
    auto state = Family::State<One>::load(a.state, run.begin(), 1);
    state_places<One>(state, places);
    locate(task, places.row, here);
    for (int64_t step = 0; step < a.steps; ++step) {
      const int action = behave(run, step, here, update);
      real draws[std::max(Family::STEP_UNIFORMS, Family::RESET_UNIFORMS) + 1][1];
      run.uniforms<Family::STEP_UNIFORMS>(STEP, step, &env, &task, 1, draws);
      Family::State<One> after;
      const Outcome<One> outcome = Family::step<One>(parameters, state, action, draws[0], after);
      state = after;
      state_places<One>(state, places);
      locate(task, places.row, next);
      rewards += outcome.reward;
      const real discount = Family::TERMINATES && outcome.terminated ? real(0) : a.gamma;
      for (int64_t sweep_index = 0; sweep_index < SWEEPS * a.updates; ++sweep_index) {
        const real error = sweep(++update, here, next, action, outcome.reward, discount, weight);
        if (sweep_index == 0) absolute += std::abs(error), squared += double(error) * error;
      }
      if (outcome.terminated | outcome.truncated) {
        ++episodes;
        if constexpr (Family::TERMINATES) {
          run.uniforms<Family::RESET_UNIFORMS>(AUTORESET, step, &env, &task, 1, draws);
          state = Family::reset<One>(parameters, draws[0]);
          state_places<One>(state, places);
          locate(task, places.row, next);
        }
      }
      std::copy(next, next + ACTION, here);
    }
    state.store(a.state, run.begin(), 1);
    store(run, update);
    double *out = run.statistics(0);
    out[0] += rewards, out[1] += episodes, out[2] += absolute, out[3] += squared;
  }
};
