// Small dense matrices, row by row, in double precision.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

typedef std::vector<double> Numbers;

static inline double dot(const double *x, const double *y, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += x[i] * y[i];
  return sum;
}
static inline double largest(const double *x, int64_t count) {
  double most = 0;
  for (int64_t i = 0; i < count; ++i) most = std::max(most, std::abs(x[i]));
  return most;
}
static inline double mean_size(const double *x, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += std::abs(x[i]);
  return count ? sum / count : 0;
}
static inline bool all_finite(const double *x, int64_t count) {
  double sums[8] = {};  // Zero times a number is zero if it is finite, else NaN.
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int lane = 0; lane < 8; ++lane) sums[lane] += 0 * x[i + lane];
  for (; i < count; ++i) sums[0] += 0 * x[i];
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7])) == 0;
}
// Whether a matrix is symmetric; what is not finite says nothing.
static inline bool is_symmetric(const double *matrix, int64_t size) {
  const double most = 1e-9 * largest(matrix, size * size);
  for (int64_t i = 0; i < size; ++i)
    for (int64_t j = 0; j < i; ++j)
      if (std::abs(matrix[i * size + j] - matrix[j * size + i]) > most) return false;
  return true;
}
// x' M y of columns x and y of a square matrix.
static inline double quadratic_form(const double *matrix, const double *x, const double *y, int64_t size) {
  double sum = 0;
  for (int64_t r = 0; r < size; ++r) {
    double row = 0;
    for (int64_t s = 0; s < size; ++s) row += matrix[r * size + s] * y[s * size];
    sum += x[r * size] * row;
  }
  return sum;
}

// Eigenvalues of a symmetric matrix, which is overwritten, and its eigenvectors, one a column, by Jacobi's rotations.
static void eigenvectors(double *matrix, double *values, double *vectors, int64_t size) {
  if (vectors) {
    std::fill_n(vectors, size * size, 0.0);
    for (int64_t i = 0; i < size; ++i) vectors[i * size + i] = 1;
  }
  const auto rotate = [size](double *a, int64_t p, int64_t q, int64_t apart, double c, double s) {
    for (int64_t k = 0; k < size; ++k) {
      double &x = a[p * apart + k * (size + 1 - apart)], &y = a[q * apart + k * (size + 1 - apart)];
      const double old = x;
      x = c * old - s * y, y = s * old + c * y;
    }
  };
  for (int sweep = 0; sweep < 30; ++sweep) {
    double off = 0, whole = 0;
    for (int64_t i = 0; i < size; ++i)
      for (int64_t j = 0; j < size; ++j) (i == j ? whole : off) += matrix[i * size + j] * matrix[i * size + j];
    if (!(off > 1e-32 * whole)) break;
    for (int64_t p = 0; p < size; ++p)
      for (int64_t q = p + 1; q < size; ++q) {
        const double between = matrix[p * size + q];
        if (between == 0) continue;
        const double theta = (matrix[q * size + q] - matrix[p * size + p]) / (2 * between);
        const double t = (theta < 0 ? -1 : 1) / (std::abs(theta) + std::sqrt(theta * theta + 1));
        const double c = 1 / std::sqrt(t * t + 1), s = t * c;
        rotate(matrix, p, q, size, c, s);  // Rows.
        rotate(matrix, p, q, 1, c, s);     // Columns.
        if (vectors) rotate(vectors, p, q, 1, c, s);
      }
  }
  for (int64_t i = 0; i < size; ++i) values[i] = matrix[i * size + i];
}

// Solution by Gaussian elimination with row pivots; the matrix is overwritten. False if a pivot is zero.
static bool eliminate(Numbers &matrix, Numbers &x) {
  const int64_t size = int64_t(x.size());
  for (int64_t k = 0; k < size; ++k) {
    int64_t pivot = k;
    for (int64_t i = k + 1; i < size; ++i)
      if (std::abs(matrix[i * size + k]) > std::abs(matrix[pivot * size + k])) pivot = i;
    if (!(std::abs(matrix[pivot * size + k]) > 0)) return false;
    if (pivot != k) {
      std::swap_ranges(matrix.begin() + k * size, matrix.begin() + (k + 1) * size, matrix.begin() + pivot * size);
      std::swap(x[k], x[pivot]);
    }
    const double *row = matrix.data() + k * size;
    for (int64_t i = k + 1; i < size; ++i) {
      double *other = matrix.data() + i * size;
      if (other[k] == 0) continue;
      const double factor = other[k] / row[k];
      for (int64_t j = k + 1; j < size; ++j) other[j] -= factor * row[j];
      x[i] -= factor * x[k];
    }
  }
  for (int64_t k = size - 1; k >= 0; --k) {
    for (int64_t j = k + 1; j < size; ++j) x[k] -= matrix[k * size + j] * x[j];
    x[k] /= matrix[k * size + k];
  }
  return true;
}

// Householder's reflections that make a matrix, stored by columns, triangular; `order` of its columns by pivots if
// there is a `cut`: the rank is where what is left falls below it, relative to the first pivot.
struct Triangular {
  const int64_t rows;
  Numbers columns, diagonal;  // Above the diagonal the factor R, from it on the vectors of the reflections.
  std::vector<int64_t> order;
  int64_t rank = 0;

  Triangular(Numbers matrix, int64_t rows, double cut) : rows(rows), columns(std::move(matrix)) {
    const int64_t count = int64_t(columns.size()) / rows;
    for (int64_t j = 0; j < count; ++j) order.push_back(j);
    for (; rank < std::min(rows, count); ++rank) {
      const auto left = [&](int64_t j) { return dot(tail(j), tail(j), rows - rank); };
      int64_t pivot = rank;
      for (int64_t j = rank + 1; cut > 0 && j < count; ++j)
        if (left(j) > left(pivot)) pivot = j;
      const double norm = std::sqrt(left(pivot));
      if (!(norm > cut * (rank ? std::abs(diagonal[0]) : 0))) break;
      std::swap_ranges(column(rank), column(rank) + rows, column(pivot));
      std::swap(order[rank], order[pivot]);
      diagonal.push_back(*tail(rank) > 0 ? -norm : norm);
      *tail(rank) -= diagonal[rank];
      for (int64_t j = rank + 1; j < count; ++j) reflect(rank, column(j));
    }
  }
  double *column(int64_t j) { return columns.data() + j * rows; }
  double *tail(int64_t j) { return column(j) + rank; }
  double entry(int64_t i, int64_t j) const { return i == j ? diagonal[i] : columns[j * rows + i]; }
  void reflect(int64_t number, double *x) const {
    const double *v = columns.data() + number * rows + number;
    const int64_t count = rows - number;
    const double times = -2 * dot(v, x + number, count) / dot(v, v, count);
    for (int64_t i = 0; i < count; ++i) x[number + i] += times * v[i];
  }
};

// Least norm solution of a symmetric system, without what is smaller than `cut` of the largest.
static void least_norm(const Numbers &matrix, Numbers right, Numbers &x, double cut) {
  const int64_t size = int64_t(right.size());
  const Triangular first(matrix, size, cut);
  const int64_t rank = first.rank;
  Numbers across(size * rank), y(size);  // The first rows of R, one a column.
  for (int64_t i = 0; i < rank; ++i) {
    first.reflect(i, right.data());
    for (int64_t j = i; j < size; ++j) across[i * size + j] = first.entry(i, j);
  }
  const Triangular second(across, size, 0);
  for (int64_t i = 0; i < second.rank; ++i) {
    y[i] = right[i];
    for (int64_t k = 0; k < i; ++k) y[i] -= second.entry(k, i) * y[k];
    y[i] /= second.entry(i, i);
  }
  for (int64_t i = second.rank - 1; i >= 0; --i) second.reflect(i, y.data());
  for (int64_t j = 0; j < size; ++j) x[first.order[j]] = y[j];
}

// Solution of a symmetric system scaled by its rows; the one of least norm where it is singular, or `cut` from it.
// False if it is.
static bool solve_symmetric(const Numbers &matrix, const Numbers &right, Numbers &x, double cut) {
  const int64_t size = int64_t(right.size());
  Numbers scale(size), scaled(matrix), target(size);
  for (int64_t i = 0; i < size; ++i)
    scale[i] = 1 / std::sqrt(std::max(largest(matrix.data() + i * size, size), 1e-300));
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t j = 0; j < size; ++j) scaled[i * size + j] *= scale[i] * scale[j];
    target[i] = scale[i] * right[i];
  }
  Numbers factors(scaled);
  x = target;
  bool good = eliminate(factors, x);
  if (good) {
    double left = 0;
    for (int64_t i = 0; i < size; ++i) {
      const double error = dot(scaled.data() + i * size, x.data(), size) - target[i];
      left += error * error;
    }
    const double length = std::max(std::sqrt(dot(target.data(), target.data(), size)), 1e-300);
    good = std::sqrt(left) < cut * length && std::sqrt(dot(x.data(), x.data(), size)) <= length / cut;
  }
  if (good)
    for (int64_t i = 0; i < size; ++i) x[i] *= scale[i];
  else
    least_norm(matrix, right, x, cut);
  return good;
}

// The same for [[H, J'], [J, 0]] with n rows of H, but where it is singular without rows of J that depend on others.
static void solve_independent(const Numbers &matrix, const Numbers &right, Numbers &x, int64_t n, double cut) {
  const int64_t size = int64_t(right.size());
  if (solve_symmetric(matrix, right, x, cut) || n == 0) return;
  Numbers rows(n * (size - n));
  for (int64_t i = n; i < size; ++i) {
    const double *row = matrix.data() + i * size, length = std::sqrt(dot(row, row, n));
    for (int64_t k = 0; k < n; ++k) rows[(i - n) * n + k] = length > 0 ? row[k] / length : 0;
  }
  const Triangular independent(rows, n, cut);
  std::vector<int64_t> kept(n);
  for (int64_t k = 0; k < n; ++k) kept[k] = k;
  for (int64_t i = 0; i < independent.rank; ++i) kept.push_back(n + independent.order[i]);
  const int64_t count = int64_t(kept.size());
  Numbers fewer(count * count), its_right(count), its_x(count);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j < count; ++j) fewer[i * count + j] = matrix[kept[i] * size + kept[j]];
    its_right[i] = right[kept[i]];
  }
  solve_symmetric(fewer, its_right, its_x, cut);
  std::fill(x.begin(), x.end(), 0.0);
  for (int64_t i = 0; i < count; ++i) x[kept[i]] = its_x[i];
}
