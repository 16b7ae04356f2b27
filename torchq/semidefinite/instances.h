// A batch of small semidefinite programs as `processor.py` hands it over, and which entries of its matrices L count.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

extern "C" struct Program {
  int64_t batch, num_variables, num_residuals, num_blocks, threads;
  const int64_t *rows;           // Of each block.
  const double *const *parts;    // c, A, b, and C and L of each block, row by row.
  const int64_t *strides;        // Of each part from one instance to the next; 0 if all share it.
};

enum { COST, MATRIX, OFFSET, BLOCKS };  // Numbers of parts; of block j: BLOCKS + 2 j is C, the next one L.

static inline const double *part_of(const Program &program, int64_t part, int64_t instance) {
  return program.parts[part] + instance * program.strides[part];
}

struct Entry {
  int64_t variable, row, column;  // Row at most the column.
};

// Those entries of L that are not zero in some instance, by block and variable.
struct Terms {
  std::vector<int64_t> begins;  // Of each variable in each block: blocks x (variables + 1).
  std::vector<Entry> entries;
  int64_t area = 0, sum_rows = 0, most_rows = 1;

  explicit Terms(const Program &program) {
    const int64_t n = program.num_variables;
    for (int64_t j = 0; j < program.num_blocks; ++j) {
      const int64_t rows = program.rows[j], square = rows * rows, part = BLOCKS + 2 * j + 1;
      std::vector<char> counts(n * square);
      for (int64_t instance = 0; instance < (program.strides[part] ? program.batch : 1); ++instance) {
        const double *L = part_of(program, part, instance);
        for (int64_t i = 0; i < n * square; ++i) counts[i] |= L[i] != 0;
      }
      begins.push_back(int64_t(entries.size()));
      for (int64_t k = 0; k < n; ++k) {
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t s = r; s < rows; ++s)
            if (counts[k * square + r * rows + s]) entries.push_back({k, r, s});
        begins.push_back(int64_t(entries.size()));
      }
      area += square, sum_rows += rows, most_rows = std::max(most_rows, rows);
    }
  }
};
