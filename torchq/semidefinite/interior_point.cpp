// A primal-dual interior point method for batches of small semidefinite programs: `interior_point.py` for processors.
//
// Eight instances go side by side, a lane each, through one program; what is done with one lane stands still until all
// are. Of an instance that is alone the residuals are dealt to the lanes instead (`TOGETHER`), and what is small is
// done eight times. Matrices are stored row by row; A by columns, so that a column is one row of packs.
#include <algorithm>
#include <cstring>
#include <memory>

#include "dense.h"
#include "instances.h"
#include "lanes.h"
#include "small_matrices.h"

extern "C" struct Task {
  Program program;
  int64_t iterations, alone;
  double tolerance;
  double *z, *w, *X, *Y, *merit;  // X, Y: matrices of all blocks, one after the other.
  int64_t *taken;
};

namespace {

constexpr int64_t TILE = 32;  // Residuals.
constexpr double TINY = 1e-300, POOR = 1e6, FAR = 1e13;

struct Arena {  // Memory of one thread, handed out from the beginning to the end; without any it counts.
  std::unique_ptr<char[]> memory;
  Pack *begin = nullptr;
  size_t used = 0;
  Arena() = default;
  explicit Arena(size_t packs) : memory(new char[(packs + 1) * sizeof(Pack)]) {
    const auto address = reinterpret_cast<uintptr_t>(memory.get()) + sizeof(Pack) - 1;
    begin = reinterpret_cast<Pack *>(address & ~(sizeof(Pack) - 1));
  }
  Pack *take(size_t count) {
    used += count;
    return begin ? begin + used - count : nullptr;
  }
};

struct Point {  // Variables, slacks and multipliers of the inequalities.
  Pack *z, *X, *Y;
};

template <bool TOGETHER> struct Solver {
  const Task &task;
  const Program &program;
  const Terms &terms;
  const int64_t n, N, packs, area, num_entries;  // Packs of residuals; entries of all blocks' matrices, and of L.
  Arena arena;
  Pack *A, *b, *c, *C, *entries;
  Point point, best, step;
  Pack *plus, *minus, *upper, *lower, *best_w;  // Of residuals: u = plus - minus, their multipliers 1 - w and 1 + w.
  Pack *step_plus, *step_minus, *step_w;
  Pack *u, *weight, *by_upper, *by_lower;       // Az - b; reciprocals, for dividing takes long.
  Pack *tile, *dual, *primal, *matrix, *factor, *right, *rest, *weighted;
  Pack *inverse, *half_X, *half_Y, *wanted, *scratch, *scratch2;
  Pack norm_dual, norm_b, size_b, gap_of_residuals, cost_scale;
  Pack *block_scale, *variable_scale;  // What each is multiplied by.
  Mask valid_last;  // Of the last pack, if residuals are dealt to lanes.

  static int64_t count_packs(int64_t N) { return TOGETHER ? (N + LANES - 1) / LANES : N; }

  Solver(const Task &task, const Terms &terms)
      : task(task), program(task.program), terms(terms), n(program.num_variables), N(program.num_residuals),
        packs(count_packs(N)), area(terms.area), num_entries(int64_t(terms.entries.size())) {
    Arena counting;
    lay_out(counting);
    arena = Arena(counting.used);
    lay_out(arena);
    for (int lane = 0; lane < LANES; ++lane) valid_last[lane] = -(!TOGETHER || (packs - 1) * LANES + lane < N);
  }

  void lay_out(Arena &from) {
    A = from.take(n * packs), b = from.take(packs), c = from.take(n), C = from.take(area);
    entries = from.take(num_entries), tile = from.take(4 * TILE);
    for (Point *each : {&point, &best, &step}) *each = {from.take(n), from.take(area), from.take(area)};
    for (Pack **each : {&plus, &minus, &upper, &lower, &best_w}) *each = from.take(packs);
    for (Pack **each : {&step_plus, &step_minus, &step_w}) *each = from.take(packs);
    for (Pack **each : {&u, &weight, &by_upper, &by_lower}) *each = from.take(packs);
    for (Pack **each : {&dual, &right, &rest, &weighted}) *each = from.take(n);
    block_scale = from.take(program.num_blocks), variable_scale = from.take(n);
    for (Pack **each : {&matrix, &factor}) *each = from.take(n * n);
    for (Pack **each : {&primal, &inverse, &half_X, &half_Y, &wanted}) *each = from.take(area);
    for (Pack **each : {&scratch, &scratch2}) *each = from.take(terms.most_rows * terms.most_rows);
  }

  // Over residuals: of each lane, or of all lanes for all.
  static Pack summed(Pack x) { return TOGETHER ? splat(total(x)) : x; }
  static Pack most(Pack x) { return TOGETHER ? splat(largest(x)) : x; }

  template <class F> void each_block(F act) const {
    for (int64_t j = 0, at = 0; j < program.num_blocks; at += program.rows[j] * program.rows[j], ++j)
      act(at, program.rows[j], terms.begins.data() + j * (n + 1));
  }

  // A power of two that brings a number to about one; one if it is within 2^slack of that.
  static double scale_of(double size, int slack = 0) {
    int exponent = 0;
    if (size > 0 && std::isfinite(size)) std::frexp(size / std::sqrt(2.0), &exponent);
    return std::abs(exponent) <= slack ? 1 : std::ldexp(1.0, -std::clamp(exponent, -500, 500));
  }

  void load(int64_t first, int64_t count) {
    const double scale = std::max<int64_t>(1, N);
    const auto of = [&](int lane) { return TOGETHER ? first : first + std::min<int64_t>(lane, count - 1); };
    const double *its_A[LANES];
    for (int lane = 0; lane < LANES; ++lane) its_A[lane] = part_of(program, MATRIX, of(lane));
    for (int64_t i = 0; i < packs; ++i)
      for (int64_t k = 0; k < n; ++k)
        for (int lane = 0; lane < LANES; ++lane) {
          const int64_t row = TOGETHER ? i * LANES + lane : i;
          A[k * packs + i][lane] = row < N ? its_A[lane][row * n + k] : 0;
        }
    for (int lane = 0; lane < LANES; ++lane) {
      const int64_t instance = of(lane);
      const double *its_c = part_of(program, COST, instance), *its_b = part_of(program, OFFSET, instance);
      for (int64_t k = 0; k < n; ++k) c[k][lane] = scale * its_c[k];
      for (int64_t i = 0; i < packs; ++i) {
        const int64_t row = TOGETHER ? i * LANES + lane : i;
        b[i][lane] = row < N ? its_b[row] : 0;
      }
      for (int64_t j = 0, at = 0; j < program.num_blocks; at += program.rows[j] * program.rows[j], ++j) {
        const int64_t rows = program.rows[j];
        const double *its_C = part_of(program, BLOCKS + 2 * j, instance);
        const double *its_L = part_of(program, BLOCKS + 2 * j + 1, instance);
        const double scale = scale_of(largest(its_L, n * rows * rows));
        block_scale[j][lane] = scale;
        for (int64_t i = 0; i < rows * rows; ++i) C[at + i][lane] = scale * its_C[i];
        for (int64_t e = terms.begins[j * (n + 1)]; e < terms.begins[j * (n + 1) + n]; ++e) {
          const auto [k, r, s] = terms.entries[e];
          entries[e][lane] = scale * its_L[(k * rows + r) * rows + s];
        }
      }
    }
    scale_variables();
  }

  // Blocks are scaled by the largest entry of L; then variables by that of theirs in all L, or of their column in A if no
  // inequality holds them; then the objective, by the largest entry of A, or of the costs if there are no residuals.
  void scale_variables() {
    Pack largest_A = {}, dearest = {};
    for (int64_t k = 0; k < n; ++k) {
      Pack size = {}, column = {};
      for (int64_t i = 0; i < packs; ++i) column = larger(column, magnitude(A[k * packs + i]));
      column = most(column);
      const auto each_entry = [&](auto act) {
        each_block([&](int64_t, int64_t, const int64_t *begins) {
          for (int64_t e = begins[k]; e < begins[k + 1]; ++e) act(entries[e]);
        });
      };
      each_entry([&](Pack &entry) { size = larger(size, magnitude(entry)); });
      size = select(size > 0, size, column);
      for (int lane = 0; lane < LANES; ++lane) variable_scale[k][lane] = scale_of(size[lane]);
      c[k] *= variable_scale[k];
      largest_A = larger(largest_A, column * variable_scale[k]);
      dearest = larger(dearest, magnitude(c[k]));
      for (int64_t i = 0; i < packs; ++i) A[k * packs + i] *= variable_scale[k];
      each_entry([&](Pack &entry) { entry *= variable_scale[k]; });
    }
    for (int lane = 0; lane < LANES; ++lane) cost_scale[lane] = N ? scale_of(largest_A[lane], 8) : scale_of(dearest[lane]);
    for (int64_t k = 0; k < n; ++k) c[k] *= cost_scale;
    for (int64_t i = 0; i < n * packs; ++i) A[i] *= cost_scale;
    for (int64_t i = 0; i < packs; ++i) b[i] *= cost_scale;
  }

  // Az of some residuals into `out`, four columns at a time.
  void product_of_tile(const Pack *z, int64_t first, int64_t count, Pack *out) const {
    std::fill_n(out, count, Pack{});
    int64_t k = 0;
    for (; k + 3 < n; k += 4) {
      const Pack *A0 = A + k * packs + first, *A1 = A0 + packs, *A2 = A1 + packs, *A3 = A2 + packs;
      const Pack z0 = z[k], z1 = z[k + 1], z2 = z[k + 2], z3 = z[k + 3];
      for (int64_t i = 0; i < count; ++i) out[i] += (z0 * A0[i] + z1 * A1[i]) + (z2 * A2[i] + z3 * A3[i]);
    }
    for (; k < n; ++k)
      for (int64_t i = 0; i < count; ++i) out[i] += z[k] * A[k * packs + first + i];
  }

  // Adds A'x of some residuals to `out`, where lanes are not summed yet.
  void add_transposed_of_tile(const Pack *x, int64_t first, int64_t count, Pack *out) const {
    int64_t k = 0;
    for (; k + 3 < n; k += 4) {
      const Pack *A0 = A + k * packs + first, *A1 = A0 + packs, *A2 = A1 + packs, *A3 = A2 + packs;
      Pack sum0 = out[k], sum1 = out[k + 1], sum2 = out[k + 2], sum3 = out[k + 3];
      for (int64_t i = 0; i < count; ++i)
        sum0 += A0[i] * x[i], sum1 += A1[i] * x[i], sum2 += A2[i] * x[i], sum3 += A3[i] * x[i];
      out[k] = sum0, out[k + 1] = sum1, out[k + 2] = sum2, out[k + 3] = sum3;
    }
    for (; k < n; ++k)
      for (int64_t i = 0; i < count; ++i) out[k] += A[k * packs + first + i] * x[i];
  }

  // Some residuals at a time, so that what is done with them finds them near.
  template <class F> void each_tile(F act) const {
    for (int64_t first = 0; first < packs; first += TILE) act(first, std::min<int64_t>(TILE, packs - first));
  }

  void add_terms(const Pack *z, Pack *out) const {
    each_block([&](int64_t at, int64_t rows, const int64_t *begins) {
      for (int64_t k = 0; k < n; ++k)
        for (int64_t e = begins[k]; e < begins[k + 1]; ++e) {
          const int64_t r = terms.entries[e].row, s = terms.entries[e].column;
          const Pack change = z[k] * entries[e];
          out[at + r * rows + s] += change;
          if (r != s) out[at + s * rows + r] += change;
        }
    });
  }

  // Adds sign times L*(Y).
  void add_adjoint(const Pack *Y, Pack *out, double sign) const {
    each_block([&](int64_t at, int64_t rows, const int64_t *begins) {
      for (int64_t k = 0; k < n; ++k)
        for (int64_t e = begins[k]; e < begins[k + 1]; ++e) {
          const int64_t r = terms.entries[e].row, s = terms.entries[e].column;
          out[k] += (r == s ? sign : 2 * sign) * entries[e] * Y[at + r * rows + s];
        }
    });
  }

  void start() {
    Pack sum = {}, biggest = {};
    for (int64_t i = 0; i < packs; ++i) sum += magnitude(b[i]), biggest = larger(biggest, magnitude(b[i]));
    const Pack mean = summed(sum) / double(std::max<int64_t>(1, N));
    norm_b = most(biggest);
    norm_b = select(norm_b > 0, norm_b, splat(1));
    size_b = N ? select(mean > 0, smaller(mean, splat(1)), splat(1)) : splat(1);
    const Pack size = mean + 1e-8;
    for (int64_t i = 0; i < packs; ++i) {
      plus[i] = larger(-b[i], Pack{}) + size, minus[i] = larger(b[i], Pack{}) + size;
      upper[i] = lower[i] = splat(1);
    }
    Pack longest = {}, dearest = {};
    for (int64_t k = 0; k < n; ++k) {
      Pack column = {};
      for (int64_t i = 0; i < packs; ++i) column += magnitude(A[k * packs + i]);
      longest = larger(longest, summed(column));
      dearest = larger(dearest, magnitude(c[k]));
      point.z[k] = Pack{};
    }
    norm_dual = longest + dearest;
    norm_dual = select(norm_dual > 0, norm_dual, splat(1));
    each_block([&](int64_t at, int64_t rows, const int64_t *begins) {
      Pack norm = {}, of_X = splat(1), of_Y = {};
      for (int64_t i = 0; i < rows * rows; ++i) {
        norm += C[at + i] * C[at + i];
        point.X[at + i] = point.Y[at + i] = Pack{};
      }
      of_X = larger(of_X, root(norm));
      for (int64_t k = 0; k < n; ++k) {
        norm = Pack{};
        for (int64_t e = begins[k]; e < begins[k + 1]; ++e)
          norm += (terms.entries[e].row == terms.entries[e].column ? 1 : 2) * entries[e] * entries[e];
        of_X = larger(of_X, root(norm));
        of_Y = larger(of_Y, (1 + magnitude(c[k])) / (1 + root(norm)));
      }
      for (int64_t i = 0; i < rows; ++i) {
        point.X[at + i * rows + i] = std::sqrt(double(rows)) * of_X;
        point.Y[at + i * rows + i] = std::sqrt(double(rows)) * of_Y;
      }
    });
  }

  // Moves residuals along the step, in lanes that move; errors of the optimality conditions there into `dual`, `u` and
  // `primal`; the gap, and what `merit` returns.
  Pack errors(Mask moves, Pack p, Pack d, Pack &gap) {
    Pack cost = {}, sum = {}, worst_residual = {};
    std::fill_n(dual, n, Pack{});
    each_tile([&](int64_t first, int64_t count) {
      product_of_tile(point.z, first, count, u + first);
      for (int64_t t = 0; t < count; ++t) {
        const int64_t i = first + t;
        plus[i] = select(moves, plus[i] + p * step_plus[i], plus[i]);
        minus[i] = select(moves, minus[i] + p * step_minus[i], minus[i]);
        upper[i] = select(moves, upper[i] - d * step_w[i], upper[i]);
        lower[i] = select(moves, lower[i] + d * step_w[i], lower[i]);
        u[i] -= b[i];
        cost += magnitude(u[i]);
        worst_residual = larger(worst_residual, magnitude(u[i] - (plus[i] - minus[i])));
        sum += valid(i, plus[i] * upper[i] + minus[i] * lower[i]);
        tile[t] = 0.5 * (lower[i] - upper[i]);
      }
      add_transposed_of_tile(tile, first, count, dual);
    });
    cost = summed(cost), gap = gap_of_residuals = summed(sum);
    for (int64_t i = 0; i < area; ++i) primal[i] = C[i] - point.X[i], gap += point.X[i] * point.Y[i];
    add_terms(point.z, primal);
    Pack worst_dual = {}, scale = splat(double(std::max<int64_t>(1, N)));
    for (int64_t k = 0; k < n; ++k) dual[k] = summed(dual[k]) + c[k], cost += c[k] * point.z[k];
    add_adjoint(point.Y, dual, -1);
    for (int64_t k = 0; k < n; ++k) worst_dual = larger(worst_dual, magnitude(dual[k]));
    Pack worst = larger(gap / (magnitude(cost) + scale * size_b + TINY), worst_dual / norm_dual);
    if (N) worst = larger(worst, most(worst_residual) / norm_b);
    each_block([&](int64_t at, int64_t rows, const int64_t *) {
      Pack left = {}, size = {};
      for (int64_t i = 0; i < rows * rows; ++i)
        left = larger(left, magnitude(primal[at + i])), size = larger(size, magnitude(C[at + i]));
      worst = larger(worst, left / (1 + size));
    });
    return select(worst == worst & gap == gap & worst_dual == worst_dual, worst / task.tolerance, splat(INFINITY));
  }

  Pack valid(int64_t i, Pack x) const { return TOGETHER && i == packs - 1 ? select(valid_last, x, Pack{}) : x; }

  // The lower triangle of A'DA, and A'Du into `weighted`, some residuals at a time, four columns with four.
  void gram() {
    std::fill_n(matrix, n * n, Pack{});
    std::fill_n(weighted, n, Pack{});
    each_tile([&](int64_t first, int64_t count) {
      for (int64_t i = first; i < first + count; ++i) {
        // One division instead of three, of 1/upper, 1/lower and 1/(plus/upper + minus/lower).
        const Pack both = upper[i] * lower[i], sum = plus[i] * lower[i] + minus[i] * upper[i];
        const Pack inverse = 1 / (both * sum), by_both = sum * inverse;
        by_upper[i] = lower[i] * by_both, by_lower[i] = upper[i] * by_both, weight[i] = both * both * inverse;
      }
      for (int64_t k = 0; k < n; k += 4) {
        const int64_t rows = std::min<int64_t>(4, n - k);
        if (rows == 4) weigh(A + k * packs + first, weight + first, u + first, packs, count, tile, weighted + k);
        else
          for (int64_t p = 0; p < rows; ++p)
            for (int64_t i = 0; i < count; ++i) {
              tile[p * TILE + i] = weight[first + i] * A[(k + p) * packs + first + i];
              weighted[k + p] += tile[p * TILE + i] * u[first + i];
            }
        for (int64_t l = 0; l <= k; l += 4) {
          if (rows == 4) add_products(tile, A + l * packs + first, packs, count, matrix + k * n + l, n);
          else
            for (int64_t p = 0; p < rows; ++p)
              for (int64_t q = l; q < std::min(n, l + 4); ++q)
                for (int64_t i = 0; i < count; ++i)
                  matrix[(k + p) * n + q] += tile[p * TILE + i] * A[q * packs + first + i];
        }
      }
    });
    if (!TOGETHER) return;
    for (int64_t i = 0; i < n * n; ++i) matrix[i] = summed(matrix[i]);
    for (int64_t k = 0; k < n; ++k) weighted[k] = summed(weighted[k]);
  }

  // Four columns of A times the weights into a tile, and these times u. This and the next apart, so that sums stay in
  // registers.
  __attribute__((noinline)) static void weigh(const Pack *columns, const Pack *weight, const Pack *u, int64_t packs,
                                              int64_t count, Pack *tile, Pack *out) {
    Pack sums[4] = {out[0], out[1], out[2], out[3]};
    for (int64_t i = 0; i < count; ++i)
      for (int p = 0; p < 4; ++p) {
        const Pack both = weight[i] * columns[p * packs + i];
        tile[p * TILE + i] = both;
        sums[p] += both * u[i];
      }
    std::copy_n(sums, 4, out);
  }

  __attribute__((noinline)) static void add_products(const Pack *tile, const Pack *columns, int64_t packs,
                                                     int64_t count, Pack *out, int64_t n) {
    Pack sums[4][4];
    for (int p = 0; p < 4; ++p)
      for (int q = 0; q < 4; ++q) sums[p][q] = out[p * n + q];
    for (int64_t i = 0; i < count; ++i)
      for (int p = 0; p < 4; ++p)
        for (int q = 0; q < 4; ++q) sums[p][q] += tile[p * TILE + i] * columns[q * packs + i];
    for (int p = 0; p < 4; ++p)
      for (int q = 0; q < 4; ++q) out[p * n + q] = sums[p][q];
  }

  // Factors of X, Y and the Schur complement; in which lanes one failed.
  Mask factorise() {
    Mask failed = {};
    gram();
    each_block([&](int64_t at, int64_t rows, const int64_t *begins) {
      std::copy_n(point.Y + at, rows * rows, scratch);
      failed |= cholesky(scratch, rows);
      invert_lower(scratch, half_Y + at, rows);
      std::copy_n(point.X + at, rows * rows, scratch);
      failed |= cholesky(scratch, rows);
      Pack *half = half_X + at, *inv = inverse + at;
      invert_lower(scratch, half, rows);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t s = 0; s <= r; ++s) {
          Pack sum = {};
          for (int64_t k = r; k < rows; ++k) sum += half[k * rows + r] * half[k * rows + s];
          inv[r * rows + s] = inv[s * rows + r] = sum;
        }
      add_curvature(at, rows, begins);
    });
    Pack biggest = {};
    for (int64_t k = 0; k < n; ++k) biggest = larger(biggest, matrix[k * n + k]);
    copy_lower(1e-15, Pack{} + TINY, biggest);
    const Mask first = cholesky(factor, n);
    if (any(first)) {
      std::copy_n(factor, n * n, spared());
      copy_lower(1e-10, 1e-16 * biggest, biggest);
      cholesky(factor, n, 1e-16 * biggest, 1e100);  // What rounding has left of a pivot leaves its variable where it is.
      for (int64_t i = 0; i < n * n; ++i) factor[i] = select(first, factor[i], spare[i]);
      failed |= first & ~(biggest < INFINITY);
    }
    return failed;
  }

  std::unique_ptr<Pack[]> spare;
  Pack *spared() {
    if (!spare) spare.reset(new Pack[n * n]);
    return spare.get();
  }

  void copy_lower(double relative, Pack absolute, Pack biggest) {
    for (int64_t k = 0; k < n; ++k) {
      std::copy_n(matrix + k * n, k + 1, factor + k * n);
      Pack &pivot = factor[k * n + k];
      // A variable that nothing holds goes far, but not beyond all numbers.
      pivot = select(pivot > 1e-30 * biggest, pivot + relative * pivot + absolute, 1e-16 * larger(biggest, splat(1)));
    }
  }

  // H_kl += <L_k, Y L_l X^-1> of one block.
  void add_curvature(int64_t at, int64_t rows, const int64_t *begins) {
    const Pack *Y = point.Y + at, *inv = inverse + at;
    for (int64_t l = 0; l < n; ++l) {
      if (begins[l] == begins[l + 1]) continue;
      std::fill_n(scratch, rows * rows, Pack{});
      for (int64_t e = begins[l]; e < begins[l + 1]; ++e) {
        const int64_t r = terms.entries[e].row, s = terms.entries[e].column;
        for (int64_t i = 0; i < rows; ++i) {
          const Pack first = entries[e] * Y[i * rows + r], second = r == s ? Pack{} : entries[e] * Y[i * rows + s];
          for (int64_t j = 0; j < rows; ++j)
            scratch[i * rows + j] += first * inv[s * rows + j] + second * inv[r * rows + j];
        }
      }
      for (int64_t k = l; k < n; ++k) {
        Pack sum = {};
        for (int64_t e = begins[k]; e < begins[k + 1]; ++e) {
          const int64_t r = terms.entries[e].row, s = terms.entries[e].column;
          sum += entries[e] * (r == s ? scratch[r * rows + r] : scratch[r * rows + s] + scratch[s * rows + r]);
        }
        matrix[k * n + l] += sum;
      }
    }
  }

  // What of residual i does not depend on dz: dw = weight (A dz) + shift; `up` and `down` are what complementarity
  // wants: zero for the predictor; mu for the corrector, with the second order of the predictor's step.
  template <bool CORRECTS> Pack shift(int64_t i, Pack mu, Pack &up, Pack &down) const {
    up = -plus[i] * upper[i], down = -minus[i] * lower[i];
    if (!CORRECTS) return weight[i] * u[i];
    up += mu + step_plus[i] * step_w[i], down += mu - step_minus[i] * step_w[i];
    return weight[i] * (u[i] - (plus[i] - minus[i]) - up * by_upper[i] + down * by_lower[i]);
  }

  struct Reach {  // Lengths to which a step may go, and how the gap of residuals changes with both: p, d, and pd.
    Pack primal, dual, by_primal = {}, by_dual = {}, by_both = {};
  };

  // Newton's step; what it may be taken by.
  template <bool CORRECTS> Reach direction(Pack mu) {
    if (CORRECTS) {
      std::fill_n(right, n, Pack{});
      each_tile([&](int64_t first, int64_t count) {
        Pack up, down;
        for (int64_t t = 0; t < count; ++t) tile[t] = shift<CORRECTS>(first + t, mu, up, down);
        add_transposed_of_tile(tile, first, count, right);
      });
      for (int64_t k = 0; k < n; ++k) right[k] = -dual[k] - summed(right[k]);
    } else {
      for (int64_t k = 0; k < n; ++k) right[k] = -dual[k] - weighted[k];
    }
    each_block([&](int64_t at, int64_t rows, const int64_t *) {
      product(point.Y + at, primal + at, scratch, rows);
      if (CORRECTS) {
        product(step.Y + at, step.X + at, scratch2, rows);
        for (int64_t i = 0; i < rows * rows; ++i) scratch[i] += scratch2[i];
      }
      product(scratch, inverse + at, scratch2, rows);
      symmetrise(scratch2, rows);
      for (int64_t i = 0; i < rows * rows; ++i) wanted[at + i] = mu * inverse[at + i] - point.Y[at + i] - scratch2[i];
    });
    add_adjoint(wanted, right, 1);
    solve_schur();
    Reach reach = step_residuals<CORRECTS>(mu);
    std::fill_n(step.X, area, Pack{});
    add_terms(step.z, step.X);
    each_block([&](int64_t at, int64_t rows, const int64_t *) {
      product(point.Y + at, step.X + at, scratch, rows);
      product(scratch, inverse + at, scratch2, rows);
      symmetrise(scratch2, rows);
      for (int64_t i = 0; i < rows * rows; ++i) {
        step.Y[at + i] = wanted[at + i] - scratch2[i];
        step.X[at + i] += primal[at + i];
      }
      reach.primal = smaller(reach.primal, positive_up_to(half_X + at, step.X + at, rows));
      reach.dual = smaller(reach.dual, positive_up_to(half_Y + at, step.Y + at, rows));
    });
    return reach;
  }

  // dz of the right side, refined once.
  void solve_schur() {
    std::copy_n(right, n, step.z);
    solve_cholesky(factor, step.z, n);
    for (int64_t k = 0; k < n; ++k) {
      Pack sum = right[k];
      for (int64_t l = 0; l < n; ++l) sum -= (l <= k ? matrix[k * n + l] : matrix[l * n + k]) * step.z[l];
      rest[k] = sum;
    }
    solve_cholesky(factor, rest, n);
    for (int64_t k = 0; k < n; ++k) step.z[k] += rest[k];
  }

  template <bool CORRECTS> Reach step_residuals(Pack mu) {
    Reach reach;
    Pack fall = splat(TINY), dual_fall = splat(TINY);
    each_tile([&](int64_t first, int64_t count) {
      product_of_tile(step.z, first, count, tile);
      for (int64_t t = 0; t < count; ++t) {
        const int64_t i = first + t;
        Pack up, down;
        const Pack fixed = shift<CORRECTS>(i, mu, up, down), dw = weight[i] * tile[t] + fixed;
        const Pack dplus = (up + plus[i] * dw) * by_upper[i], dminus = (down - minus[i] * dw) * by_lower[i];
        if (CORRECTS) fall = larger(fall, larger(-dplus * minus[i], -dminus * plus[i]) / (plus[i] * minus[i]));
        else fall = larger(fall, larger(1 - dw * by_upper[i], 1 + dw * by_lower[i]));
        dual_fall = larger(dual_fall, larger(dw * by_upper[i], -dw * by_lower[i]));
        if (!CORRECTS) {
          reach.by_primal += valid(i, dplus * upper[i] + dminus * lower[i]);
          reach.by_dual += valid(i, dw * (minus[i] - plus[i]));
          reach.by_both += valid(i, dw * (dminus - dplus));
        }
        step_plus[i] = dplus, step_minus[i] = dminus, step_w[i] = dw;
      }
    });
    reach.primal = 1 / most(fall), reach.dual = 1 / most(dual_fall);
    return reach;
  }

  // How far X + t dX stays positive, from the inverse of the Cholesky factor of X.
  Pack positive_up_to(const Pack *half, const Pack *change, int64_t rows) {
    product(half, change, scratch, rows);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j <= i; ++j) {
        Pack sum = {};
        for (int64_t k = 0; k <= j; ++k) sum += scratch[i * rows + k] * half[j * rows + k];
        scratch2[i * rows + j] = scratch2[j * rows + i] = sum;
      }
    return 1 / larger(-smallest_eigenvalue(scratch2, scratch, rows), splat(TINY));
  }

  // The gap after a predictor of lengths p and d.
  Pack gap_after(const Reach &reach, Pack p, Pack d) const {
    Pack sum = gap_of_residuals + p * summed(reach.by_primal) + d * summed(reach.by_dual);
    sum += p * d * summed(reach.by_both);
    for (int64_t i = 0; i < area; ++i) sum += (point.X[i] + p * step.X[i]) * (point.Y[i] + d * step.Y[i]);
    return sum;
  }

  static void advance(Mask moves, Pack length, Pack *x, const Pack *dx, int64_t count) {
    for (int64_t i = 0; i < count; ++i) x[i] = select(moves, x[i] + length * dx[i], x[i]);
  }
  static void keep(Mask better, const Pack *x, Pack *best, int64_t count) {
    for (int64_t i = 0; i < count; ++i) best[i] = select(better, x[i], best[i]);
  }
  void keep_all(Mask better) {
    keep(better, point.z, best.z, n);
    for (int64_t i = 0; i < packs; ++i) best_w[i] = select(better, 0.5 * (lower[i] - upper[i]), best_w[i]);
    keep(better, point.X, best.X, area);
    keep(better, point.Y, best.Y, area);
  }

  // Where a point runs away, along what proves that there is no solution.
  Mask is_far() const {
    Pack most = {};
    for (int64_t k = 0; k < n; ++k) most = larger(most, magnitude(point.z[k]));
    for (int64_t i = 0; i < area; ++i) most = larger(most, magnitude(point.Y[i]));
    return most > FAR;
  }

  void run(int64_t first, int64_t count) {
    load(first, count);
    start();
    const double cones = std::max<int64_t>(1, 2 * N + terms.sum_rows);
    Pack gap, least = errors(Mask{}, Pack{}, Pack{}, gap), taken = {}, waited = {};
    Mask stands = least <= 1;
    keep_all(~Mask{});
    for (int64_t iteration = 0; iteration < task.iterations && any(~stands); ++iteration) {
      const Mask failed = factorise();
      const Pack mu = gap / cones;
      const Reach predicted = direction<false>(Pack{});
      const Pack whole = splat(1), to_p = smaller(predicted.primal, whole), to_d = smaller(predicted.dual, whole);
      const Pack ratio = larger(gap_after(predicted, to_p, to_d) / gap, Pack{});  // Rounding may take it below zero.
      const Pack centring = smaller(splat(1), larger(splat(1e-8), ratio * root(ratio)));
      const Reach corrected = direction<true>(centring * mu);
      const Pack share = smaller(splat(0.995), larger(splat(0.9), 1 - 0.1 * ratio));
      const Pack p = smaller(splat(1), share * corrected.primal), d = smaller(splat(1), share * corrected.dual);
      stands |= failed;
      const Mask moves = ~stands;
      advance(moves, p, point.z, step.z, n);
      advance(moves, p, point.X, step.X, area);
      advance(moves, d, point.Y, step.Y, area);
      const Pack now = errors(moves, p, d, gap);
      const Mask better = moves & now < least;
      keep_all(better);
      waited = select(better, Pack{}, waited + 1);
      least = select(better, now, least);
      taken += select(moves, splat(1), Pack{});
      stands |= least <= 1 | (waited > 6 & least < 1e4) | is_far();
    }
    keep_all(least > POOR);  // The last point may prove that there is no solution.
    store(first, count, least, taken);
  }

  void store(int64_t first, int64_t count, Pack least, Pack taken) {
    const double scale = 1.0 / std::max<int64_t>(1, N);
    for (int lane = 0; lane < (TOGETHER ? 1 : count); ++lane) {
      const int64_t instance = first + lane;
      for (int64_t k = 0; k < n; ++k) task.z[instance * n + k] = best.z[k][lane] * variable_scale[k][lane];
      for (int64_t row = 0; row < N; ++row) {
        const int64_t i = TOGETHER ? row / LANES : row, at = TOGETHER ? row % LANES : lane;
        task.w[instance * N + row] = scale * best_w[i][at];
      }
      for (int64_t j = 0, at = 0; j < program.num_blocks; at += program.rows[j] * program.rows[j], ++j)
        for (int64_t i = at; i < at + program.rows[j] * program.rows[j]; ++i) {
          task.X[instance * area + i] = best.X[i][lane] / block_scale[j][lane];
          task.Y[instance * area + i] = scale * block_scale[j][lane] * best.Y[i][lane] / cost_scale[lane];
        }
      task.merit[instance] = least[lane];
      task.taken[instance] = int64_t(taken[lane]);
    }
  }
};

}  // namespace

extern "C" void solve(const Task *task) {
  const int64_t batch = task->program.batch, whole = batch / LANES, left = batch % LANES;
  const bool lanes = left >= LANES / 2 || (left && !task->alone);  // Fewer are quicker one after the other.
  const int64_t chunks = whole + lanes, singles = lanes ? 0 : left;
  if (!batch) return;
  const Terms terms(task->program);
#pragma omp parallel num_threads(int(task->program.threads)) if (chunks + singles > 1)
  {
    if (chunks) {
      Solver<false> solver(*task, terms);
#pragma omp for schedule(dynamic, 1) nowait
      for (int64_t chunk = 0; chunk < chunks; ++chunk)
        solver.run(chunk * LANES, std::min<int64_t>(LANES, batch - chunk * LANES));
    }
    if (singles) {
      Solver<true> solver(*task, terms);
#pragma omp for schedule(dynamic, 1)
      for (int64_t one = 0; one < singles; ++one) solver.run(whole * LANES + one, 1);
    }
  }
}
