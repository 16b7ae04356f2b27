// A primal-dual interior point method for batches of small semidefinite programs: `interior_point.py` for processors.
//
// Eight instances go side by side, a lane each, through one program; what is done with one lane stands still until all
// are. Of an instance that is alone the residuals are dealt to the lanes instead (`TOGETHER`), and what is small is done
// eight times. Matrices are stored row by row; A by columns, so that a column is one row of packs.
#include <algorithm>
#include <cstring>
#include <memory>

#include "instances.h"
#include "lanes.h"

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

struct Arena {  // Memory of one thread, handed out from the beginning to the end.
  std::unique_ptr<char[]> memory;
  Pack *next;
  explicit Arena(size_t packs) : memory(new char[(packs + 2) * sizeof(Pack)]) {
    next = reinterpret_cast<Pack *>((reinterpret_cast<uintptr_t>(memory.get()) + sizeof(Pack) - 1) & ~(sizeof(Pack) - 1));
  }
  Pack *take(size_t count) {
    Pack *given = next;
    next += count;
    return given;
  }
};

struct Point {
  Pack *z, *plus, *minus, *upper, *lower, *X, *Y;
  Point(Arena &arena, int64_t n, int64_t packs, int64_t area)
      : z(arena.take(n)), plus(arena.take(packs)), minus(arena.take(packs)), upper(arena.take(packs)),
        lower(arena.take(packs)), X(arena.take(area)), Y(arena.take(area)) {}
  static size_t size(int64_t n, int64_t packs, int64_t area) { return n + 4 * packs + 2 * area; }
};

// Lower Cholesky factor in place; 1 where a pivot is not positive. Says in which lanes one was not.
Mask cholesky(Pack *matrix, int64_t size) {
  Mask failed = {};
  for (int64_t j = 0; j < size; ++j) {
    Pack *row = matrix + j * size, pivot = row[j];
    for (int64_t k = 0; k < j; ++k) pivot -= row[k] * row[k];
    const Mask good = pivot > 0 & pivot < 1e300;
    failed |= ~good;
    row[j] = root(select(good, pivot, splat(1)));
    const Pack inverse = 1 / row[j];
    for (int64_t i = j + 1; i < size; ++i) {
      Pack *other = matrix + i * size, sum = other[j];
      for (int64_t k = 0; k < j; ++k) sum -= other[k] * row[k];
      other[j] = sum * inverse;
    }
  }
  return failed;
}

// Inverse of a lower triangular matrix, zeros above included.
void invert_lower(const Pack *factor, Pack *inverse, int64_t size) {
  for (int64_t j = 0; j < size; ++j) {
    for (int64_t i = 0; i < j; ++i) inverse[i * size + j] = Pack{};
    inverse[j * size + j] = 1 / factor[j * size + j];
    for (int64_t i = j + 1; i < size; ++i) {
      Pack sum = {};
      for (int64_t k = j; k < i; ++k) sum -= factor[i * size + k] * inverse[k * size + j];
      inverse[i * size + j] = sum / factor[i * size + i];
    }
  }
}

void solve_cholesky(const Pack *factor, Pack *x, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    Pack sum = x[i];
    for (int64_t k = 0; k < i; ++k) sum -= factor[i * size + k] * x[k];
    x[i] = sum / factor[i * size + i];
  }
  for (int64_t i = size - 1; i >= 0; --i) {
    x[i] /= factor[i * size + i];
    for (int64_t k = 0; k < i; ++k) x[k] -= factor[i * size + k] * x[i];
  }
}

void product(const Pack *a, const Pack *b, Pack *out, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t j = 0; j < size; ++j) out[i * size + j] = a[i * size] * b[j];
    for (int64_t k = 1; k < size; ++k)
      for (int64_t j = 0; j < size; ++j) out[i * size + j] += a[i * size + k] * b[k * size + j];
  }
}

void symmetrise(Pack *matrix, int64_t size) {
  for (int64_t i = 0; i < size; ++i)
    for (int64_t j = 0; j < i; ++j)
      matrix[i * size + j] = matrix[j * size + i] = 0.5 * (matrix[i * size + j] + matrix[j * size + i]);
}

// Lower bound of the smallest eigenvalue of a symmetric matrix, which is overwritten, to some thousandths of its norm:
// s - |(sI - T)^256|^(1/256), where s = |T|, in the norm of Frobenius.
Pack smallest_eigenvalue(Pack *matrix, Pack *other, int64_t size) {
  if (size == 1) return matrix[0];
  const int64_t area = size * size;
  Pack norm = {};
  for (int64_t i = 0; i < area; ++i) norm += matrix[i] * matrix[i];
  const Pack s = root(norm) + TINY;
  for (int64_t i = 0; i < area; ++i) matrix[i] = -matrix[i] / s;
  for (int64_t i = 0; i < size; ++i) matrix[i * size + i] += 1;
  Pack *power = matrix;
  for (int time = 0; time < 8; ++time, std::swap(power, other))
    for (int64_t i = 0; i < size; ++i)
      for (int64_t j = 0; j <= i; ++j) {
        Pack sum = {};
        for (int64_t k = 0; k < size; ++k) sum += power[i * size + k] * power[j * size + k];
        other[i * size + j] = other[j * size + i] = sum;
      }
  norm = Pack{};
  for (int64_t i = 0; i < area; ++i) norm += power[i] * power[i];
  for (int time = 0; time < 9; ++time) norm = root(norm);
  return s * (1 - norm);
}

template <bool TOGETHER> struct Solver {
  const Task &task;
  const Program &program;
  const Terms &terms;
  const int64_t n, N, packs, area, num_entries;  // Packs of residuals; entries of all blocks' matrices, and of L.
  Arena arena;
  Pack *A, *tile, *b, *c, *C, *entries;
  Point point, best, step;
  Pack *weight, *residual, *shift, *up, *down;
  Pack *by_plus, *by_minus, *by_upper, *by_lower;  // Reciprocals of the point: dividing takes long.
  Pack *dual, *primal, *matrix, *factor, *right, *rest;
  Pack *inverse, *half_X, *half_Y, *wanted, *scratch, *scratch2;
  Pack norm_dual, norm_b, size_b;
  Mask valid_last;  // Of the last pack, if residuals are dealt to lanes.

  static int64_t count_packs(int64_t N) { return TOGETHER ? (N + LANES - 1) / LANES : N; }
  static size_t memory(const Program &program, const Terms &terms) {
    const int64_t n = program.num_variables, packs = count_packs(program.num_residuals), rows = terms.most_rows;
    return 3 * Point::size(n, packs, terms.area) + n * packs + 4 * TILE + packs * 10 + n * (2 * n + 4) + terms.area * 6 +
           terms.entries.size() + 2 * rows * rows + 64;
  }

  Solver(const Task &task, const Terms &terms)
      : task(task), program(task.program), terms(terms), n(program.num_variables), N(program.num_residuals),
        packs(count_packs(N)), area(terms.area), num_entries(int64_t(terms.entries.size())),
        arena(memory(program, terms)), A(arena.take(n * packs)), tile(arena.take(4 * TILE)), b(arena.take(packs)),
        c(arena.take(n)), C(arena.take(area)), entries(arena.take(num_entries)), point(arena, n, packs, area),
        best(arena, n, packs, area), step(arena, n, packs, area), weight(arena.take(packs)),
        residual(arena.take(packs)), shift(arena.take(packs)), up(arena.take(packs)), down(arena.take(packs)), by_plus(arena.take(packs)),
        by_minus(arena.take(packs)), by_upper(arena.take(packs)), by_lower(arena.take(packs)),
        dual(arena.take(n)), primal(arena.take(area)), matrix(arena.take(n * n)), factor(arena.take(n * n)),
        right(arena.take(n)), rest(arena.take(n)), inverse(arena.take(area)), half_X(arena.take(area)),
        half_Y(arena.take(area)), wanted(arena.take(area)), scratch(arena.take(terms.most_rows * terms.most_rows)),
        scratch2(arena.take(terms.most_rows * terms.most_rows)) {
    for (int lane = 0; lane < LANES; ++lane) valid_last[lane] = -(!TOGETHER || (packs - 1) * LANES + lane < N);
  }

  // Over residuals: of each lane, or of all lanes for all.
  static Pack summed(Pack x) { return TOGETHER ? splat(total(x)) : x; }
  static Pack most(Pack x) { return TOGETHER ? splat(largest(x)) : x; }

  template <class F> void each_block(F act) const {
    for (int64_t j = 0, at = 0; j < program.num_blocks; at += program.rows[j] * program.rows[j], ++j)
      act(at, program.rows[j], terms.begins.data() + j * (n + 1));
  }

  void load(int64_t first, int64_t count) {
    const double scale = std::max<int64_t>(1, N);
    for (int lane = 0; lane < LANES; ++lane) {
      const int64_t instance = TOGETHER ? first : first + std::min<int64_t>(lane, count - 1);
      const double *its_c = part_of(program, COST, instance), *its_A = part_of(program, MATRIX, instance);
      const double *its_b = part_of(program, OFFSET, instance);
      for (int64_t k = 0; k < n; ++k) c[k][lane] = scale * its_c[k];
      for (int64_t i = 0; i < packs; ++i) {
        const int64_t row = TOGETHER ? i * LANES + lane : i;
        b[i][lane] = row < N ? its_b[row] : 0;
        for (int64_t k = 0; k < n; ++k) A[k * packs + i][lane] = row < N ? its_A[row * n + k] : 0;
      }
      for (int64_t j = 0, at = 0; j < program.num_blocks; at += program.rows[j] * program.rows[j], ++j) {
        const int64_t rows = program.rows[j];
        const double *its_C = part_of(program, BLOCKS + 2 * j, instance);
        const double *its_L = part_of(program, BLOCKS + 2 * j + 1, instance);
        for (int64_t i = 0; i < rows * rows; ++i) C[at + i][lane] = its_C[i];
        for (int64_t e = terms.begins[j * (n + 1)]; e < terms.begins[j * (n + 1) + n]; ++e) {
          const auto [k, r, s] = terms.entries[e];
          entries[e][lane] = its_L[(k * rows + r) * rows + s];
        }
      }
    }
  }

  // A'x, four columns at a time.
  void transposed_product(const Pack *x, Pack *out) const {
    int64_t k = 0;
    for (; k + 3 < n; k += 4) {
      const Pack *A0 = A + k * packs, *A1 = A0 + packs, *A2 = A1 + packs, *A3 = A2 + packs;
      Pack sums[4] = {};
      for (int64_t i = 0; i < packs; ++i)
        sums[0] += A0[i] * x[i], sums[1] += A1[i] * x[i], sums[2] += A2[i] * x[i], sums[3] += A3[i] * x[i];
      for (int p = 0; p < 4; ++p) out[k + p] = summed(sums[p]);
    }
    for (; k < n; ++k) {
      Pack sum = {};
      for (int64_t i = 0; i < packs; ++i) sum += A[k * packs + i] * x[i];
      out[k] = summed(sum);
    }
  }

  void residual_product(const Pack *z, Pack *out) const {
    for (int64_t i = 0; i < packs; ++i) out[i] = Pack{};
    int64_t k = 0;
    for (; k + 3 < n; k += 4) {
      const Pack *A0 = A + k * packs, *A1 = A0 + packs, *A2 = A1 + packs, *A3 = A2 + packs;
      const Pack z0 = z[k], z1 = z[k + 1], z2 = z[k + 2], z3 = z[k + 3];
      for (int64_t i = 0; i < packs; ++i) out[i] += (z0 * A0[i] + z1 * A1[i]) + (z2 * A2[i] + z3 * A3[i]);
    }
    for (; k < n; ++k)
      for (int64_t i = 0; i < packs; ++i) out[i] += z[k] * A[k * packs + i];
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
    size_b = N ? smaller(mean, splat(1)) : splat(1);
    const Pack size = mean + 1e-8;
    for (int64_t i = 0; i < packs; ++i) {
      point.plus[i] = larger(-b[i], Pack{}) + size;
      point.minus[i] = larger(b[i], Pack{}) + size;
      point.upper[i] = point.lower[i] = splat(1);
    }
    Pack longest = {}, dearest = {};
    for (int64_t k = 0; k < n; ++k) {
      Pack column = {};
      for (int64_t i = 0; i < packs; ++i) column += magnitude(A[k * packs + i]);
      longest = larger(longest, summed(column));
      dearest = larger(dearest, magnitude(c[k]));
      point.z[k] = Pack{};
    }
    norm_dual = longest + dearest + TINY;
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

  // Errors of the optimality conditions into `dual`, `residual` and `primal`; the gap, and what `merit` returns.
  Pack errors(Pack &gap) {
    residual_product(point.z, residual);
    Pack cost = {}, sum = {}, worst_residual = {};
    for (int64_t i = 0; i < packs; ++i) {
      const Pack u = residual[i] - b[i];
      cost += magnitude(u);
      residual[i] = u - (point.plus[i] - point.minus[i]);
      worst_residual = larger(worst_residual, magnitude(residual[i]));
      Pack here = point.plus[i] * point.upper[i] + point.minus[i] * point.lower[i];
      if (TOGETHER && i == packs - 1) here = select(valid_last, here, Pack{});
      sum += here;
      shift[i] = 0.5 * (point.lower[i] - point.upper[i]);
    }
    cost = summed(cost), gap = summed(sum);
    for (int64_t i = 0; i < area; ++i) primal[i] = C[i] - point.X[i], gap += point.X[i] * point.Y[i];
    add_terms(point.z, primal);
    Pack worst_dual = {}, scale = splat(double(std::max<int64_t>(1, N)));
    transposed_product(shift, dual);
    for (int64_t k = 0; k < n; ++k) dual[k] += c[k], cost += c[k] * point.z[k];
    add_adjoint(point.Y, dual, -1);
    for (int64_t k = 0; k < n; ++k) worst_dual = larger(worst_dual, magnitude(dual[k]));
    Pack worst = larger(gap / (magnitude(cost) + scale * size_b + TINY), worst_dual / norm_dual);
    if (N) worst = larger(worst, most(worst_residual) / (norm_b + TINY));
    each_block([&](int64_t at, int64_t rows, const int64_t *) {
      Pack left = {}, size = {};
      for (int64_t i = 0; i < rows * rows; ++i)
        left = larger(left, magnitude(primal[at + i])), size = larger(size, magnitude(C[at + i]));
      worst = larger(worst, left / (1 + size));
    });
    return select(worst == worst & gap == gap & worst_dual == worst_dual, worst / task.tolerance, splat(INFINITY));
  }

  // The lower triangle of A'DA, some residuals at a time so that they stay near, four columns with four.
  void gram() {
    std::fill_n(matrix, n * n, Pack{});
    for (int64_t first = 0; first < packs; first += TILE) {
      const int64_t count = std::min<int64_t>(TILE, packs - first);
      for (int64_t k = 0; k < n; k += 4) {
        const int64_t rows = std::min<int64_t>(4, n - k);
        for (int64_t p = 0; p < rows; ++p)
          for (int64_t i = 0; i < count; ++i) tile[p * TILE + i] = weight[first + i] * A[(k + p) * packs + first + i];
        for (int64_t l = 0; l <= k; l += 4) {
          if (rows == 4) add_products(A + l * packs + first, count, matrix + k * n + l);
          else
            for (int64_t p = 0; p < rows; ++p)
              for (int64_t q = l; q < std::min(n, l + 4); ++q)
                for (int64_t i = 0; i < count; ++i)
                  matrix[(k + p) * n + q] += tile[p * TILE + i] * A[q * packs + first + i];
        }
      }
    }
    if (TOGETHER)
      for (int64_t i = 0; i < n * n; ++i) matrix[i] = summed(matrix[i]);
  }

  void add_products(const Pack *columns, int64_t count, Pack *out) const {
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
    for (int64_t i = 0; i < packs; ++i) {
      by_plus[i] = 1 / point.plus[i], by_minus[i] = 1 / point.minus[i];
      by_upper[i] = 1 / point.upper[i], by_lower[i] = 1 / point.lower[i];
      weight[i] = 1 / (point.plus[i] * by_upper[i] + point.minus[i] * by_lower[i]);
    }
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
    copy_lower(1e-15, Pack{} + TINY);
    const Mask first = cholesky(factor, n);
    if (any(first)) {
      std::copy_n(factor, n * n, spared());
      copy_lower(1e-10, 1e-16 * biggest);
      const Mask second = cholesky(factor, n);
      for (int64_t i = 0; i < n * n; ++i) factor[i] = select(first, factor[i], spare[i]);
      failed |= first & second;
    }
    return failed;
  }

  std::unique_ptr<Pack[]> spare;
  Pack *spared() {
    if (!spare) spare.reset(new Pack[n * n]);
    return spare.get();
  }

  void copy_lower(double relative, Pack absolute) {
    for (int64_t k = 0; k < n; ++k) {
      std::copy_n(matrix + k * n, k + 1, factor + k * n);
      factor[k * n + k] += relative * factor[k * n + k] + absolute;
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

  // Newton's step towards complementarity mu, with the second order of the step before if it is to correct that.
  void direction(Pack mu, bool corrects) {
    for (int64_t i = 0; i < packs; ++i) {
      up[i] = mu - point.plus[i] * point.upper[i];
      down[i] = mu - point.minus[i] * point.lower[i];
      if (corrects) {
        up[i] -= step.plus[i] * step.upper[i];
        down[i] -= step.minus[i] * step.lower[i];
      }
      shift[i] = weight[i] * (residual[i] - up[i] * by_upper[i] + down[i] * by_lower[i]);
    }
    transposed_product(shift, right);
    for (int64_t k = 0; k < n; ++k) right[k] = -dual[k] - right[k];
    each_block([&](int64_t at, int64_t rows, const int64_t *) {
      product(point.Y + at, primal + at, scratch, rows);
      if (corrects) {
        product(step.Y + at, step.X + at, scratch2, rows);
        for (int64_t i = 0; i < rows * rows; ++i) scratch[i] += scratch2[i];
      }
      product(scratch, inverse + at, scratch2, rows);
      symmetrise(scratch2, rows);
      for (int64_t i = 0; i < rows * rows; ++i) wanted[at + i] = mu * inverse[at + i] - point.Y[at + i] - scratch2[i];
    });
    add_adjoint(wanted, right, 1);
    std::copy_n(right, n, step.z);
    solve_cholesky(factor, step.z, n);
    for (int64_t k = 0; k < n; ++k) {  // Refined once.
      Pack sum = right[k];
      for (int64_t l = 0; l < n; ++l) sum -= (l <= k ? matrix[k * n + l] : matrix[l * n + k]) * step.z[l];
      rest[k] = sum;
    }
    solve_cholesky(factor, rest, n);
    for (int64_t k = 0; k < n; ++k) step.z[k] += rest[k];
    residual_product(step.z, step.lower);
    for (int64_t i = 0; i < packs; ++i) {
      const Pack dw = weight[i] * step.lower[i] + shift[i];
      step.plus[i] = (up[i] + point.plus[i] * dw) * by_upper[i];
      step.minus[i] = (down[i] - point.minus[i] * dw) * by_lower[i];
      step.upper[i] = -dw, step.lower[i] = dw;
    }
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
    });
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

  void lengths(Pack &primal_length, Pack &dual_length) {
    Pack fall = splat(TINY), dual_fall = splat(TINY);
    for (int64_t i = 0; i < packs; ++i) {
      fall = larger(fall, larger(-step.plus[i] * by_plus[i], -step.minus[i] * by_minus[i]));
      dual_fall = larger(dual_fall, larger(-step.upper[i] * by_upper[i], -step.lower[i] * by_lower[i]));
    }
    primal_length = 1 / most(fall), dual_length = 1 / most(dual_fall);
    each_block([&](int64_t at, int64_t rows, const int64_t *) {
      primal_length = smaller(primal_length, positive_up_to(half_X + at, step.X + at, rows));
      dual_length = smaller(dual_length, positive_up_to(half_Y + at, step.Y + at, rows));
    });
  }

  Pack gap_after(Pack p, Pack d) const {
    Pack sum = {};
    for (int64_t i = 0; i < packs; ++i) {
      Pack here = (point.plus[i] + p * step.plus[i]) * (point.upper[i] + d * step.upper[i]) +
                  (point.minus[i] + p * step.minus[i]) * (point.lower[i] + d * step.lower[i]);
      if (TOGETHER && i == packs - 1) here = select(valid_last, here, Pack{});
      sum += here;
    }
    sum = summed(sum);
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
    keep(better, point.upper, best.upper, packs);
    keep(better, point.lower, best.lower, packs);
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
    Pack gap, least = errors(gap), taken = {}, waited = {};
    Mask stands = least <= 1;
    keep_all(~Mask{});
    for (int64_t iteration = 0; iteration < task.iterations && any(~stands); ++iteration) {
      const Mask failed = factorise();
      const Pack mu = gap / cones;
      Pack p, d;
      direction(Pack{}, false);
      lengths(p, d);
      const Pack ratio = gap_after(smaller(p, splat(1)), smaller(d, splat(1))) / gap;
      const Pack centring = smaller(splat(1), larger(splat(1e-8), ratio * root(ratio)));
      direction(centring * mu, true);
      lengths(p, d);
      const Pack share = smaller(splat(0.995), larger(splat(0.9), 1 - 0.1 * ratio));
      p = smaller(splat(1), share * p), d = smaller(splat(1), share * d);
      stands |= failed;
      const Mask moves = ~stands;
      advance(moves, p, point.z, step.z, n);
      advance(moves, p, point.plus, step.plus, packs);
      advance(moves, p, point.minus, step.minus, packs);
      advance(moves, d, point.upper, step.upper, packs);
      advance(moves, d, point.lower, step.lower, packs);
      advance(moves, p, point.X, step.X, area);
      advance(moves, d, point.Y, step.Y, area);
      const Pack now = errors(gap);
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
      for (int64_t k = 0; k < n; ++k) task.z[instance * n + k] = best.z[k][lane];
      for (int64_t row = 0; row < N; ++row) {
        const int64_t i = TOGETHER ? row / LANES : row, at = TOGETHER ? row % LANES : lane;
        task.w[instance * N + row] = 0.5 * scale * (best.lower[i][at] - best.upper[i][at]);
      }
      for (int64_t i = 0; i < area; ++i) {
        task.X[instance * area + i] = best.X[i][lane];
        task.Y[instance * area + i] = scale * best.Y[i][lane];
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
