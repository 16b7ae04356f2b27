// Small matrices of packs, row by row: each of eight instances its own.
#pragma once
#include <algorithm>

#include "lanes.h"

// Lower Cholesky factor in place. Says in which lanes a pivot was not above `least`, and takes the square of `instead`
// for it: 1, or a number so large that a solution is zero there.
static Mask cholesky(Pack *matrix, int64_t size, Pack least = Pack{}, double instead = 1) {
  Mask failed = {};
  for (int64_t j = 0; j < size; ++j) {
    Pack *row = matrix + j * size, pivot = row[j];
    for (int64_t k = 0; k < j; ++k) pivot -= row[k] * row[k];
    const Mask good = pivot > least & pivot < 1e300;
    failed |= ~good;
    row[j] = root(select(good, pivot, splat(instead * instead)));
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
static void invert_lower(const Pack *factor, Pack *inverse, int64_t size) {
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

static void solve_cholesky(const Pack *factor, Pack *x, int64_t size) {
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

static void product(const Pack *a, const Pack *b, Pack *out, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t j = 0; j < size; ++j) out[i * size + j] = a[i * size] * b[j];
    for (int64_t k = 1; k < size; ++k)
      for (int64_t j = 0; j < size; ++j) out[i * size + j] += a[i * size + k] * b[k * size + j];
  }
}

static void symmetrise(Pack *matrix, int64_t size) {
  for (int64_t i = 0; i < size; ++i)
    for (int64_t j = 0; j < i; ++j)
      matrix[i * size + j] = matrix[j * size + i] = 0.5 * (matrix[i * size + j] + matrix[j * size + i]);
}

// Lower bound of the smallest eigenvalue of a symmetric matrix, which is overwritten, to some thousandths of its norm:
// s - |(sI - T)^256|^(1/256), where s = |T|, in the norm of Frobenius.
static Pack smallest_eigenvalue(Pack *matrix, Pack *other, int64_t size) {
  if (size == 1) return matrix[0];
  const int64_t area = size * size;
  Pack norm = {};
  for (int64_t i = 0; i < area; ++i) norm += matrix[i] * matrix[i];
  const Pack s = root(norm) + 1e-300;
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
