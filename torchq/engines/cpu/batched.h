// The batched protocol: all environments of a run step together, then one update from all of them.
//
// A batch is cut into parts whose gradients are summed where they arise and then added in a fixed order, so sums do not
// depend on the number of threads.

constexpr int CHUNK = 128;     // transitions that are handled together
constexpr int MAX_PARTS = 64;  // sums of one program's gradient, whatever the number of threads

// What one step leaves of one transition.
struct Transition {
  int row[STATE_MODES], next_row[STATE_MODES], action;
  real reward;
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
  std::vector<Transition> transitions;
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
    transitions.resize(batch);
    sums.assign(tasks * pieces * 3, 0);
    for (int mode = 0; mode < MODES; ++mode) copy(mode, true);
    transpose();
  }

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
        const double *in = &sums[(task * pieces + piece) * 3];
        out[0] += in[0] / a.envs, out[2] += in[1] / a.envs, out[3] += in[2] / a.envs;
      }
    }
  }

  const Row<RANK> &row(int mode, int64_t index) const { return values[offset[mode] + index]; }

  void transpose() {
    for (int k = 0; k < RANK; ++k)
      for (int action = 0; action < ACTIONS; ++action) columns[k].data()[action] = row(ACTION, action).data()[k];
  }

  // Product of the rows visited of the task and state modes.
  Row<RANK> weights(int64_t task, const int *rows) const {
    Row<RANK> w = row(FIRST_STATE, rows[0]);
    if (HAS_TASK) w = w * row(0, run.task_row(task));
    for (int d = 1; d < STATE_MODES; ++d) w = w * row(FIRST_STATE + d, rows[d]);
    return w;
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

  // Behaviour policy and environment: Problem.step, first half.
  void act(int64_t part, int64_t step) {
    each(part, [&](int64_t task, int64_t from, int64_t to, int64_t piece) {
      double reward = 0;
      for (int64_t start = from; start < to; start += CHUNK) {
        const int count = int(std::min<int64_t>(CHUNK, to - start));
        uint32_t explore[CHUNK], random[CHUNK];
        for (int i = 0; i < count; ++i) {
          uint32_t words[4];
          run.words(task, start + i, step, EXPLORATION, 0, words);
          explore[i] = words[0], random[i] = words[1];
        }
        for (int i = 0; i < count; ++i) {
          const int64_t env = start + i, at = run.at(task, env);
          Transition &t = transitions[task * a.envs + env];
          run.observe(at, t.row);
          if (uniform(explore[i]) < a.epsilon[step]) {
            t.action = random_action(random[i]);
          } else {
            t.action = first_best(action_values(weights(task, t.row).data(), columns));
          }
          real uniforms[Env::UNIFORMS + 1];
          run.draw(task, env, step, STEP, uniforms);
          t.reward = run.advance(at, task, t.action, uniforms, t.next_row);
          reward += t.reward;
        }
      }
      sums[(task * pieces + piece) * 3] += reward;
    });
  }

  // Sum of the semi-gradients of one block of modes over a part: LowRankQ._descend, first half.
  template <int FROM, int TO> void accumulate(int64_t part, bool report) {
    Row<RANK> *shared = &gradient[part * shared_rows];
    const int64_t low = offset[std::max(FROM, FIRST_STATE)] - offset[FIRST_STATE];
    const int64_t high = TO < MODES ? offset[TO] - offset[FIRST_STATE] : shared_rows;
    if (high > low) std::fill(shared + low, shared + high, Row<RANK>{});
    each(part, [&](int64_t task, int64_t from, int64_t to, int64_t piece) {
      Row<RANK> *own = HAS_TASK ? &task_gradient[task * pieces + piece] : nullptr;
      if (HAS_TASK && FROM == 0) *own = {};
      const real scale = run.weight(task);
      double absolute = 0, squared = 0;
      for (int64_t env = from; env < to; ++env) {
        const Transition &t = transitions[task * a.envs + env];
        const Row<RANK> *f[MODES];
        if (HAS_TASK) f[0] = &row(0, run.task_row(task));
        for (int d = 0; d < STATE_MODES; ++d) f[FIRST_STATE + d] = &row(FIRST_STATE + d, t.row[d]);
        f[ACTION] = &row(ACTION, t.action);
        Row<RANK> before[MODES], after = *f[ACTION];  // products of the rows of the modes before and after one
        before[1] = *f[0];
        for (int mode = 1; mode < ACTION; ++mode) before[mode + 1] = before[mode] * *f[mode];
        const real best = best_value(action_values(weights(task, t.next_row).data(), columns));
        const real error = t.reward + a.gamma * best - before[ACTION].inner(*f[ACTION]);
        if (report) absolute += std::abs(error), squared += double(error) * error;
        for (int mode = ACTION; mode >= 0; --mode) {
          const Row<RANK> cofactor = mode == ACTION ? before[ACTION] : mode == 0 ? after : before[mode] * after;
          if (mode != ACTION) after = after * *f[mode];
          if (mode < FROM || mode >= TO) continue;
          const real amount = NORMALISED ? error / (cofactor.inner(cofactor) + real(1e-3)) : error;
          const int64_t index = offset[mode] - offset[FIRST_STATE] + (mode == ACTION ? t.action : t.row[mode - FIRST_STATE]);
          (HAS_TASK && mode == 0 ? own : &shared[index])->add(-scale * amount, cofactor);
        }
      }
      double *out = &sums[(task * pieces + piece) * 3];
      if (report) out[1] += absolute, out[2] += squared;
    });
  }

  void accumulate_block(int mode, int64_t part, bool report) {
    if constexpr (!BLOCK_ORDER) {
      accumulate<0, MODES>(part, report);
    } else {
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

  void descend_rows(int mode, int64_t from, int64_t to, int64_t step, const Corrections &corrections) {
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
      for (int64_t part = 0; part < parts; ++part) accumulate_block(block, part, sweep + block == 0);
      for (int mode = 0; mode < MODES; ++mode)
        if (!BLOCK_ORDER || mode == block) descend_rows(mode, 0, a.rows[mode], step, corrections);
    }
    transpose();
  }

  void greedy(int64_t task, int64_t env) const {
    const int64_t at = run.at(task, env);
    double total = 0;
    int rows[STATE_MODES];
    run.observe(at, rows);
    for (int64_t step = 0; step < a.steps; ++step) {
      const int action = first_best(action_values(weights(task, rows).data(), columns));
      real uniforms[Env::UNIFORMS + 1];
      run.draw(task, env, step, EVALUATION_STEP, uniforms);
      total += run.advance(at, task, action, uniforms, rows);
    }
    a.total[at] = total;
  }
};
