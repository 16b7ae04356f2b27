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
  std::vector<real> values, first, second, gradient, task_gradient, columns;
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
    for (auto *kind : {&values, &first, &second}) kind->assign(rows * RANK_PADDED, 0);
    gradient.assign(parts * shared_rows * RANK_PADDED, 0);
    if (HAS_TASK) task_gradient.assign(tasks * pieces * RANK_PADDED, 0);
    columns.assign(RANK * ACTIONS_PADDED, 0);
    transitions.resize(batch);
    sums.assign(tasks * pieces * 3, 0);
    for (int mode = 0; mode < MODES; ++mode) copy(mode, true);
    transpose();
  }

  void copy(int mode, bool in) {
    real *const *outer[] = {a.factors, a.first, a.second};
    real *inner[] = {values.data(), first.data(), second.data()};
    for (int kind = 0; kind < 3; ++kind) {
      if (!outer[kind][mode]) continue;
      for (int64_t index = 0; index < a.rows[mode]; ++index) {
        real *mine = inner[kind] + (offset[mode] + index) * RANK_PADDED, *theirs = run.row(outer[kind], mode, index);
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

  const real *row(int mode, int64_t index) const { return &values[(offset[mode] + index) * RANK_PADDED]; }

  void transpose() {
    for (int k = 0; k < RANK; ++k)
      for (int action = 0; action < ACTIONS; ++action) columns[k * ACTIONS_PADDED + action] = row(ACTION, action)[k];
  }

  void weights(int64_t task, const int *rows, real *w) const {
    const real *f = row(FIRST_STATE, rows[0]);
    if (HAS_TASK) {
      const real *t = row(0, run.task_row(task));
      for (int k = 0; k < RANK_PADDED; ++k) w[k] = t[k] * f[k];
    } else {
      for (int k = 0; k < RANK_PADDED; ++k) w[k] = f[k];
    }
    for (int d = 1; d < STATE_MODES; ++d) {
      const real *g = row(FIRST_STATE + d, rows[d]);
      for (int k = 0; k < RANK_PADDED; ++k) w[k] *= g[k];
    }
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
            real w[RANK_PADDED], q[ACTIONS_PADDED];
            weights(task, t.row, w);
            action_values(w, columns.data(), q);
            t.action = first_best(q);
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
    real *shared = &gradient[part * shared_rows * RANK_PADDED];
    const int64_t low = offset[std::max(FROM, FIRST_STATE)] - offset[FIRST_STATE];
    const int64_t high = TO < MODES ? offset[TO] - offset[FIRST_STATE] : shared_rows;
    if (high > low) std::fill(shared + low * RANK_PADDED, shared + high * RANK_PADDED, real(0));
    each(part, [&](int64_t task, int64_t from, int64_t to, int64_t piece) {
      real *own = HAS_TASK ? &task_gradient[(task * pieces + piece) * RANK_PADDED] : nullptr;
      if (HAS_TASK && FROM == 0) std::fill(own, own + RANK_PADDED, real(0));
      const real scale = run.weight(task);
      double absolute = 0, squared = 0;
      for (int64_t env = from; env < to; ++env) {
        const Transition &t = transitions[task * a.envs + env];
        const real *f[MODES];
        if (HAS_TASK) f[0] = row(0, run.task_row(task));
        for (int d = 0; d < STATE_MODES; ++d) f[FIRST_STATE + d] = row(FIRST_STATE + d, t.row[d]);
        f[ACTION] = row(ACTION, t.action);
        real w[RANK_PADDED], q[ACTIONS_PADDED];
        weights(task, t.next_row, w);
        action_values(w, columns.data(), q);
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
          for (int k = 0; k < RANK_PADDED; ++k) g[k] = std::fma(amount, cofactor[k], g[k]);
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
    for (int64_t index = from; index < to; ++index) {
      alignas(64) real g[RANK_PADDED] = {};
      if (HAS_TASK && mode == 0) {
        // Tasks of the batch are the rows in order, or the one row named.
        int64_t task = tasks == a.rows[0] ? index : index == run.task_row(0) ? 0 : -1;
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
    const int64_t at = run.at(task, env);
    double total = 0;
    int rows[STATE_MODES];
    run.observe(at, rows);
    for (int64_t step = 0; step < a.steps; ++step) {
      real w[RANK_PADDED], q[ACTIONS_PADDED], uniforms[Env::UNIFORMS + 1];
      weights(task, rows, w);
      action_values(w, columns.data(), q);
      run.draw(task, env, step, EVALUATION_STEP, uniforms);
      total += run.advance(at, task, first_best(q), uniforms, rows);
    }
    a.total[at] = total;
  }
};
