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

// The online protocol, every run by one thread.
static void train_online(const Args &a) {
  const Decay decay(a);
#pragma omp parallel num_threads(a.threads)
  {
    Online program(a, decay);
#pragma omp for schedule(dynamic) collapse(2)
    for (int64_t seed = 0; seed < a.seeds; ++seed)
      for (int64_t group = 0; group < a.groups; ++group) program.train(Run{a, seed, group});
  }
}

// Every run by one thread, from the first step to the last.
static void train_side_by_side(const Args &a) {
#pragma omp parallel for schedule(dynamic) collapse(2) num_threads(a.threads)
  for (int64_t seed = 0; seed < a.seeds; ++seed)
    for (int64_t group = 0; group < a.groups; ++group) {
      Batched p(Run{a, seed, group});
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
      Batched p(Run{a, seed, group});
#pragma omp parallel num_threads(a.threads)
      for (int64_t step = 0; step < a.steps; ++step) {
#pragma omp for schedule(static)
        for (int64_t part = 0; part < p.parts; ++part) p.act(part, step);
        for (int64_t sweep = 0; sweep < SWEEPS * a.updates; ++sweep)
          for (int block = 0; block < BLOCKS; ++block) {
#pragma omp for schedule(static)
            for (int64_t part = 0; part < p.parts; ++part) p.accumulate_block(block, part, step, sweep + block == 0);
            const Batched::Corrections corrections(p.update_number(step, sweep));
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
  const int64_t batch = a.groups > 1 ? a.envs : a.tasks * a.envs;
  constexpr bool LAZY = BLOCK_ORDER && OPTIMIZER == ADAMAX && !NORMALISED;
  if constexpr (LAZY) {
    if (batch == 1) return train_online(a);
  }
  if (a.seeds * a.groups >= a.threads || a.tasks * a.envs < 4 * CHUNK) train_side_by_side(a);
  else train_in_parts(a);
}

extern "C" void torchq_greedy(const Args *args) {
  const Args &a = *args;
  const int runs = int(std::min(a.seeds * a.groups, a.threads));
#pragma omp parallel for schedule(dynamic) collapse(2) num_threads(runs)
  for (int64_t seed = 0; seed < a.seeds; ++seed)
    for (int64_t group = 0; group < a.groups; ++group) {
      Batched p(Run{a, seed, group});
#pragma omp parallel for schedule(dynamic) num_threads(a.threads / runs)
      for (int64_t at = 0; at < p.batch; at += CHUNK) p.greedy(at, int(std::min<int64_t>(CHUNK, p.batch - at)));
    }
}

extern "C" int64_t torchq_size() { return sizeof(Args); }
