// One run of low-rank Q-learning as one program: environment, behaviour policy and update of whole episodes.
//
// The mathematics is that of torchq.engines.rollout, torchq.lowrank.low_rank_q and torchq.engines.evaluation, on the
// same counter-based random numbers; tests/engines/test_fused.py holds the two together. A program keeps a run's factors and
// moments in padded rows of its own, so that a row is a whole number of vectors.
//
// torchq.engines.cpu.build defines the constants in capitals, and FAMILY, a file with the struct Family that
// torchq.engines.codegen.cpp has printed.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

typedef REAL real;

// Nothing but the entry points has a name outside: several programs live in one process, each with its own sizes.
namespace {

#include "vectors.h"
#include "lanes.h"
#include FAMILY
#include "philox.h"
#include "common.h"
#include "batched.h"
#include "online.h"

constexpr int BLOCKS = BLOCK_ORDER ? MODES : 1;

// Whether runs, or tasks that share nothing, are shared out between threads, not the batch of one run.
static bool side_by_side(const Args &a, int64_t tasks) {
  if (a.exchange) return false;
  return a.seeds * a.groups >= a.threads || tasks * a.per_task() < 4 * CHUNK;
}

// One run by one thread, from the first step to the last.
static void train_alone(const Run &run) {
  const Args &a = run.a;
  if constexpr (BLOCK_ORDER && OPTIMIZER == ADAMAX && !NORMALISED && !any_interpolates() && !TASK_MODES && !ONLY_TASKS && !GUIDE) {
    if (run.tasks * a.per_task() == 1 && !a.target[ACTION]) {
      const Decay decay(a);
      return Online(a, decay).train(run);
    }
  }
  Batched p(run);
  for (int64_t step = 0; step < a.steps; ++step) {
    for (int64_t part = 0; part < p.parts; ++part) p.act(part, step);
    for (int64_t sweep = 0; sweep < a.updates_per_step(); ++sweep) p.sweep_alone(step, sweep);
  }
  p.write_back();
}

// Few runs with large batches: all threads on one run after the other, a part of its batch each.
static bool train_in_parts(const Args &a) {
  bool failed = false;
  constexpr int64_t ROWS = 256;
  for (int64_t seed = 0; seed < a.seeds && !failed; ++seed)
    for (int64_t group = 0; group < a.groups; ++group) {
      Batched p(Run{a, seed, group});
#pragma omp parallel num_threads(a.threads)
      for (int64_t step = 0; step < a.steps && !p.failed; ++step) {
#pragma omp for schedule(static)
        for (int64_t part = 0; part < p.parts; ++part) p.act(part, step);
        for (int64_t sweep = 0; sweep < a.updates_per_step(); ++sweep) {
          const int64_t update = sweep / SWEEPS;
          if (a.replay_ratio && sweep % (4 * SWEEPS) == 0) {
#pragma omp for schedule(static)
            for (int64_t task = 0; task < p.tasks; ++task) p.draw(task, step, update);
          }
          for (int block = 0; block < BLOCKS; ++block) {
#pragma omp for schedule(static)
            for (int64_t part = 0; part < p.parts; ++part)
              p.accumulate_block(block, part, step, update, sweep + block == 0);
            const Batched::Corrections corrections(p.update_number(step, sweep));
#pragma omp single
            p.spread();
            if (a.exchange) {
#pragma omp for schedule(static)
              for (int64_t at = 0; at < int64_t(p.sent.size()); ++at) p.sent[at] = p.own_sum(at);
#pragma omp master
              p.exchange();
#pragma omp barrier
            }
            for (int mode = 0; mode < ALL_MODES; ++mode) {
              if (!p.learns(mode) || (BLOCK_ORDER && mode != block)) continue;
              const int64_t slices = (a.rows[mode] + ROWS - 1) / ROWS;
#pragma omp for schedule(static)
              for (int64_t slice = 0; slice < slices; ++slice)
                p.descend_rows(mode, slice * ROWS, std::min(a.rows[mode], (slice + 1) * ROWS), step, corrections);
            }
          }
          if (p.has_target()) {
            const int64_t rows = p.values.size();
#pragma omp for schedule(static)
            for (int64_t from = 0; from < rows; from += ROWS) p.follow(from, std::min(rows, from + ROWS));
          }
#pragma omp single
          p.finish_sweep();
        }
      }
      p.write_back();
      failed |= p.failed;
    }
  return !failed;
}

// Greedy episodes of all environments of some runs, shared out between threads.
static void test_all(const Args &a) {
  const int runs = int(std::min(a.seeds * a.groups, a.threads));
#pragma omp parallel for schedule(dynamic) collapse(2) num_threads(runs)
  for (int64_t seed = 0; seed < a.seeds; ++seed)
    for (int64_t group = 0; group < a.groups; ++group) {
      Batched p(Run{a, seed, group});
#pragma omp parallel for schedule(dynamic) num_threads(a.threads / runs)
      for (int64_t at = 0; at < p.batch; at += CHUNK) p.greedy(at, int(std::min<int64_t>(CHUNK, p.batch - at)));
    }
}

// False if other processes could not be reached.
static bool train_all(const Args &a) {
  if (!side_by_side(a, a.tasks)) return train_in_parts(a);
#pragma omp parallel for schedule(dynamic) collapse(2) num_threads(a.threads)
  for (int64_t seed = 0; seed < a.seeds; ++seed)
    for (int64_t group = 0; group < a.groups; ++group) train_alone(Run{a, seed, group});
  return true;
}

// Environments at the start of episodes, (steps, seeds, tasks, envs).
static void reset_all(const Args &a) {
  const int64_t each = a.tasks * a.envs, chunks = (each + CHUNK - 1) / CHUNK;
#pragma omp parallel for schedule(static) collapse(3) num_threads(a.threads)
  for (int64_t number = 0; number < a.steps; ++number)
    for (int64_t seed = 0; seed < a.seeds; ++seed)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t from = chunk * CHUNK;
      const int count = int(std::min<int64_t>(CHUNK, each - from));
      uint32_t env[CHUNK], name[CHUNK];
      real parameter[Family::PARAMETERS + 1][CHUNK], uniforms[Family::RESET_UNIFORMS + 1][CHUNK];
      for (int i = 0; i < count; ++i) {
        const int64_t task = (from + i) / a.envs;
        env[i] = uint32_t((from + i) % a.envs), name[i] = uint32_t(a.task_names[task]);
        for (int p = 0; p < Family::PARAMETERS; ++p) parameter[p][i] = a.parameters[task * Family::PARAMETERS + p];
      }
      Run{a, seed, 0}.uniforms<Family::RESET_UNIFORMS>(Purpose(a.purpose), a.reset_at[number], env, name, count, uniforms);
      for (int lane = 0; lane < count; lane += Wide::COUNT) {
        const int lanes = std::min(Wide::COUNT, count - lane);
        Wide::r p[Family::PARAMETERS + 1], u[Family::RESET_UNIFORMS + 1];
        for (int i = 0; i < Family::PARAMETERS; ++i) p[i] = load_lanes<Wide::r>(parameter[i], lane, lanes);
        for (int i = 0; i < Family::RESET_UNIFORMS; ++i) u[i] = load_lanes<Wide::r>(uniforms[i], lane, lanes);
        Family::reset<Wide>(p, u).store(a.state, (number * a.seeds + seed) * each + from + lane, lanes);
      }
    }
}

// All rounds of one run by one thread, no other of which it need wait for.
static void play_alone(const Block &b, int64_t seed, int64_t group) {
  for (int64_t round = 0; round < b.rounds; ++round) {
    const bool tests = b.test[round] >= 0;
    const Args test = tests ? b.tested(round) : b.args;
    for (int64_t turn = 0; turn < b.turns; ++turn) {
      const Args a = b.turn(round, turn);
      const Run whole{a, seed, group}, one{a, seed, group, 1, turn};
      train_alone(b.turns > 1 ? one : whole);
      if (!tests) continue;
      const Run tested_whole{test, seed, group}, tested_one{test, seed, group, 1, turn};
      Batched p(b.turns > 1 ? tested_one : tested_whole);
      for (int64_t at = 0; at < p.batch; at += CHUNK) p.greedy(at, int(std::min<int64_t>(CHUNK, p.batch - at)));
    }
    if (tests) b.finite[(b.test[round] * test.seeds + seed) * test.groups + group] = Run{b.args, seed, group}.finite();
  }
}

static bool play_all(const Block &b) {
  const int64_t seeds = b.args.seeds, groups = b.args.groups;
  if (side_by_side(b.args, b.turns > 1 ? 1 : b.args.tasks)) {
#pragma omp parallel for schedule(dynamic) collapse(2) num_threads(b.args.threads)
    for (int64_t seed = 0; seed < seeds; ++seed)
      for (int64_t group = 0; group < groups; ++group) play_alone(b, seed, group);
    return true;
  }
  for (int64_t round = 0; round < b.rounds; ++round) {
    if (!train_all(b.turn(round, 0))) return false;
    if (b.test[round] < 0) continue;
    const Args test = b.tested(round);
    test_all(test);
    for (int64_t seed = 0; seed < seeds; ++seed)
      for (int64_t group = 0; group < groups; ++group)
        b.finite[(b.test[round] * seeds + seed) * groups + group] = Run{b.args, seed, group}.finite();
  }
  return true;
}

}  // namespace

extern "C" void torchq_train(const Args *args) { train_all(*args); }
extern "C" void torchq_greedy(const Args *args) { test_all(*args); }
extern "C" void torchq_play(const Block *block) { play_all(*block); }
extern "C" void torchq_reset(const Args *args) { reset_all(*args); }
extern "C" int64_t torchq_size() { return sizeof(Block); }
