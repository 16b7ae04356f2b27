// What is said and made of solutions of small semidefinite programs, one instance after the other on each core: whether
// data are finite and symmetric, how good a solution is, Newton steps that make it exact, and gradients. `quality.py`,
// `polish.py` and `derivatives.py` for processors; the equations are there. Of the system of what is active, this holds
// no rows of what is not.
#include <cmath>
#include <utility>

#include "dense.h"
#include "instances.h"

extern "C" struct Found {  // Primal and dual solutions, as solved or to be filled in.
  Program program;
  int64_t steps;        // Of Newton's method.
  const int64_t *usable;  // Which instances have a solution.
  double *z, *w, *Y;    // (batch, n), (batch, N), (batch, area).
  double *error;        // (batch,)
  double *cost, *gap, *primal, *dual;  // (batch,)
};

extern "C" struct Gradients {
  Found found;
  const double *of_z;      // (batch, n)
  double *const *of_parts; // As the parts of the program, all with a batch dimension; none where not asked for.
};

namespace {

constexpr int HALVINGS = 6;
constexpr double NOTHING = 1e-8;  // A slack where data say nothing of its size: they are zero.
constexpr double ROUNDING = 1e-14, KINK = 1e-7, FAR = 1e-3, FLOOR = 1e-4, TINY = 1e-300, SINGULAR = 1e-9;
const double DIAGONAL = std::sqrt(2.0);  // A pair (i, j) of a symmetric matrix counts once, times this.

// A solution, and what is active in it.
struct Candidate {
  Numbers z, w, Y, u, X;
  Numbers sides;  // Nw + u over its scale: of which side of zero a residual is, or within +-1 if it is active.
  std::vector<int64_t> residuals;  // Those that are zero.
  Numbers vectors;                 // Of each block, one a column.
  Numbers rows, ratio;             // Of all pairs of all blocks: q_i' L_k q_j, and mu_j / lambda_i.
  std::vector<char> on;            // Whether both vectors of a pair are Y's.
  double error = INFINITY;
};

struct Block {
  int64_t number, rows, at, pair, pairs;  // Where its matrices begin, and its pairs.
  const double *C, *L;
  double term;  // Largest entry of L, or one.
};

struct Instance {
  const Program &program;
  const Terms &terms;
  const int64_t n, N;
  const double *c = nullptr, *A = nullptr, *b = nullptr;
  std::vector<Block> blocks;
  double size_b = 0, cost = 0;  // mean |b|; |c| and the largest mean of a column of |A|.
  Numbers given, dual, turned, entries, step, scratch, values, multipliers, system, right;  // Room for what follows.

  Instance(const Program &program, const Terms &terms)
      : program(program), terms(terms), n(program.num_variables), N(program.num_residuals), dual(n),
        scratch(terms.most_rows * terms.most_rows), values(terms.most_rows) {
    int64_t at = 0, pair = 0;
    for (int64_t j = 0; j < program.num_blocks; ++j) {
      const int64_t rows = program.rows[j], pairs = rows * (rows + 1) / 2;
      blocks.push_back({j, rows, at, pair, pairs, nullptr, nullptr, 1});
      at += rows * rows, pair += pairs;
    }
    turned.resize(pair), entries.resize(pair);
  }

  void load(int64_t instance) {
    c = part_of(program, COST, instance), A = part_of(program, MATRIX, instance);
    b = part_of(program, OFFSET, instance);
    for (Block &block : blocks) {
      block.C = part_of(program, BLOCKS + 2 * block.number, instance);
      block.L = part_of(program, BLOCKS + 2 * block.number + 1, instance);
      block.term = 0;
      each_entry(block, [&](const Entry &, double value) { block.term = std::max(block.term, std::abs(value)); });
      if (block.term == 0) block.term = 1;
    }
    cost = largest(c, n), size_b = mean_size(b, N);
    if (!N) return;
    std::fill(dual.begin(), dual.end(), 0.0);
    for (int64_t i = 0; i < N; ++i)
      for (int64_t k = 0; k < n; ++k) dual[k] += std::abs(A[i * n + k]);
    cost += largest(dual.data(), n) / N;
  }

  Candidate candidate(const Found &found, int64_t instance) const {
    Candidate made;
    made.z.assign(found.z + instance * n, found.z + (instance + 1) * n);
    made.w.assign(found.w + instance * N, found.w + (instance + 1) * N);
    made.Y.assign(found.Y + instance * terms.area, found.Y + (instance + 1) * terms.area);
    made.u.resize(N), made.sides.resize(N), made.X.resize(terms.area), made.vectors.resize(terms.area);
    made.rows.resize(turned.size() * n), made.ratio.resize(turned.size()), made.on.resize(turned.size());
    return made;
  }

  template <class F> void each_entry(const Block &block, F act) const {
    const int64_t *begins = terms.begins.data() + block.number * (n + 1);
    for (int64_t e = begins[0]; e < begins[n]; ++e) {
      const Entry &entry = terms.entries[e];
      act(entry, block.L[(entry.variable * block.rows + entry.row) * block.rows + entry.column]);
    }
  }

  // u = Az - b and X = F(z).
  void evaluate(Candidate &at) const {
    for (int64_t i = 0; i < N; ++i) at.u[i] = dot(A + i * n, at.z.data(), n) - b[i];
    for (const Block &block : blocks) {
      double *X = at.X.data() + block.at;
      std::copy_n(block.C, block.rows * block.rows, X);
      each_entry(block, [&](const Entry &e, double value) {
        X[e.row * block.rows + e.column] += at.z[e.variable] * value;
        if (e.row != e.column) X[e.column * block.rows + e.row] += at.z[e.variable] * value;
      });
    }
  }

  // c + A'w - L*(Y), into `dual`.
  void balance(const Candidate &at) {
    std::copy_n(c, n, dual.data());
    for (int64_t i = 0; i < N; ++i)
      for (int64_t k = 0; k < n; ++k) dual[k] += at.w[i] * A[i * n + k];
    for (const Block &block : blocks)
      each_entry(block, [&](const Entry &e, double value) {
        dual[e.variable] -= (e.row == e.column ? 1 : 2) * value * at.Y[block.at + e.row * block.rows + e.column];
      });
  }

  // What is active, by which of a multiplier and its slack is larger, each on its own scale.
  void find_active(Candidate &at) {
    evaluate(at);
    const double scale = std::max(mean_size(at.u.data(), N) + 1e-3 * size_b, size_b > 0 ? TINY : NOTHING);
    for (int64_t i = 0; i < N; ++i) at.sides[i] = N * at.w[i] + at.u[i] / scale;
    const auto score = [&](int64_t i) { return 1 - std::abs(at.sides[i]); };
    at.residuals.clear();
    for (int64_t i = 0; i < N; ++i)
      if (score(i) > 0) at.residuals.push_back(i);
    if (int64_t(at.residuals.size()) > n) {
      const auto before = [&](int64_t i, int64_t j) { return std::pair(-score(i), i) < std::pair(-score(j), j); };
      std::nth_element(at.residuals.begin(), at.residuals.begin() + n, at.residuals.end(), before);
      at.residuals.resize(n);
    }
    double of_X = TINY, of_Y = std::max(TINY, FLOOR * cost), constant = 0;
    for (const Block &block : blocks) {
      const int64_t square = block.rows * block.rows;
      constant = std::max(constant, largest(block.C, square));
      of_X = std::max({of_X, largest(at.X.data() + block.at, square) / block.term,
                       FLOOR * (largest(block.C, square) / block.term + largest(at.z.data(), n))});
      of_Y = std::max(of_Y, largest(at.Y.data() + block.at, square) * block.term);
    }
    if (constant == 0) of_X = std::max(of_X, NOTHING);
    for (const Block &block : blocks) find_face(at, block, block.term * of_X, of_Y / block.term);
  }

  void find_face(Candidate &at, const Block &block, double of_X, double of_Y) {
    const int64_t d = block.rows;
    double *mixed = scratch.data(), *V = at.vectors.data() + block.at;
    const double *X = at.X.data() + block.at, *Y = at.Y.data() + block.at;
    for (int64_t i = 0; i < d * d; ++i) mixed[i] = X[i] / of_X - Y[i] / of_Y;
    eigenvectors(mixed, values.data(), V, d);
    Numbers &of_slack = values, of_multiplier(d);
    std::vector<char> its(d);
    for (int64_t i = 0; i < d; ++i) {
      of_slack[i] = quadratic_form(X, V + i, V + i, d), of_multiplier[i] = quadratic_form(Y, V + i, V + i, d);
      its[i] = of_slack[i] / of_X < of_multiplier[i] / of_Y;
    }
    int64_t pair = block.pair;
    for (int64_t i = 0; i < d; ++i)
      for (int64_t j = i; j < d; ++j, ++pair) {
        const int64_t x = its[i] ? j : i, y = its[i] ? i : j;
        at.on[pair] = its[i] && its[j];
        at.ratio[pair] = its[i] == its[j] ? 0 : std::max(0.0, of_multiplier[y] / of_slack[x]);
        double *row = at.rows.data() + pair * n;
        std::fill_n(row, n, 0.0);
        if (!its[i] && !its[j]) continue;
        const double times = i == j ? 1 : DIAGONAL;
        each_entry(block, [&](const Entry &e, double value) {
          const double *first = V + e.row * d, *second = V + e.column * d;
          const double both = e.row == e.column ? first[i] * first[j] : first[i] * second[j] + first[j] * second[i];
          row[e.variable] += times * value * both;
        });
      }
  }

  // Entries q_i' M q_j of pairs that matter, into `turned`.
  void turn(const Candidate &at, const Numbers &matrix) {
    for (const Block &block : blocks) {
      const double *V = at.vectors.data() + block.at;
      int64_t pair = block.pair;
      for (int64_t i = 0; i < block.rows; ++i)
        for (int64_t j = i; j < block.rows; ++j, ++pair)
          turned[pair] = !at.on[pair] && at.ratio[pair] == 0 ? 0
                         : (i == j ? 1 : DIAGONAL) * quadratic_form(matrix.data() + block.at, V + i, V + j, block.rows);
    }
  }

  // Adds the symmetric matrix whose pairs these are to `out`.
  void add_from_pairs(const Candidate &at, const Block &block, const double *entries, double *out) const {
    const int64_t d = block.rows;
    const double *V = at.vectors.data() + block.at;
    int64_t pair = 0;
    for (int64_t i = 0; i < d; ++i)
      for (int64_t j = i; j < d; ++j, ++pair) {
        const double value = entries[pair] * (i == j ? 0.5 : 1 / DIAGONAL);
        if (value == 0) continue;
        for (int64_t r = 0; r < d; ++r)
          for (int64_t s = 0; s < d; ++s)
            out[r * d + s] += value * (V[r * d + i] * V[s * d + j] + V[r * d + j] * V[s * d + i]);
      }
  }

  // Multipliers without what rounding left where they are known: +-1/N, and zero outside of the Y-vectors.
  void project(Candidate &at) {
    multipliers = at.w;
    for (int64_t i = 0; i < N; ++i) at.w[i] = (at.sides[i] > 0 ? 1.0 : -1.0) / N;
    for (int64_t i : at.residuals) at.w[i] = multipliers[i];
    turn(at, at.Y);
    std::fill(at.Y.begin(), at.Y.end(), 0.0);
    for (size_t pair = 0; pair < turned.size(); ++pair)
      if (!at.on[pair]) turned[pair] = 0;
    for (const Block &block : blocks) add_from_pairs(at, block, turned.data() + block.pair, at.Y.data() + block.at);
  }

  // Largest error of the optimality conditions relative to the data.
  double optimality(const Candidate &at) {
    double worst = 0;
    if (N) {
      double near = 0;
      for (int64_t i : at.residuals) near = std::max(near, std::abs(at.u[i]));
      worst = std::max(near / (size_b + mean_size(at.u.data(), N) + TINY), N * largest(at.w.data(), N) - 1);
    }
    turn(at, at.X);
    for (const Block &block : blocks) {
      const int64_t d = block.rows;
      const double *X = at.X.data() + block.at, *Y = at.Y.data() + block.at;
      const double of_X = block.term + largest(X, d * d), of_Y = TINY + cost / block.term;
      // Not the product of X and Y: of a small one it would hide that the other is not zero.
      worst = std::max(worst, largest(turned.data() + block.pair, block.pairs) / of_X);
      worst = std::max({worst, -least_eigenvalue(X, d) / of_X, -least_eigenvalue(Y, d) / of_Y});
    }
    balance(at);
    worst = std::max(worst, largest(dual.data(), n) / (cost + TINY));
    double moved = 0;
    for (int64_t k = 0; k < n; ++k) moved = std::max(moved, std::abs(at.z[k] - given[k]));
    const bool near = moved <= FAR * largest(given.data(), n) + TINY;  // Or it is another of many solutions.
    const bool good = near && all_finite(dual.data(), n) && all_finite(at.z.data(), n) && std::isfinite(worst);
    return good ? worst : INFINITY;
  }

  double least_eigenvalue(const double *matrix, int64_t d) {
    std::copy_n(matrix, d * d, scratch.data());
    eigenvectors(scratch.data(), values.data(), nullptr, d);
    return *std::min_element(values.begin(), values.begin() + d);
  }

  int64_t count_active(const Candidate &at) const {
    return n + int64_t(at.residuals.size()) + std::count(at.on.begin(), at.on.end(), 1);
  }

  // [[H, J'], [J, 0]] of what is active, into `system`.
  void assemble(const Candidate &at) {
    const int64_t size = count_active(at);
    system.assign(size * size, 0.0);
    int64_t at_row = n;
    const auto add_row = [&](const double *row) {
      for (int64_t k = 0; k < n; ++k) system[at_row * size + k] = system[k * size + at_row] = row[k];
      ++at_row;
    };
    for (int64_t i : at.residuals) add_row(A + i * n);
    for (size_t pair = 0; pair < at.on.size(); ++pair) {
      const double *row = at.rows.data() + pair * n;
      if (at.on[pair]) add_row(row);
      if (at.ratio[pair] > 0)
        for (int64_t k = 0; k < n; ++k)
          for (int64_t l = 0; l < n; ++l) system[k * size + l] += at.ratio[pair] * row[k] * row[l];
    }
  }

  // Newton's step from a candidate, into `step`.
  void newton(const Candidate &at) {
    balance(at);
    turn(at, at.X);
    right.assign(dual.begin(), dual.end());
    for (int64_t i : at.residuals) right.push_back(at.u[i]);
    for (size_t pair = 0; pair < turned.size(); ++pair) {
      if (at.on[pair]) right.push_back(turned[pair]);
      if (at.ratio[pair] > 0)  // What is left of X where X and Y mix rotates Y.
        for (int64_t k = 0; k < n; ++k) right[k] += at.rows[pair * n + k] * at.ratio[pair] * turned[pair];
    }
    assemble(at);
    step.resize(right.size());
    solve_symmetric(system, right, step, SINGULAR);
    for (double &x : step) x = -x;
  }

  // Pairs of a solution (g, h) of the system, into `entries`: h of active ones, and what g does to mixed ones.
  void pairs_from(const Candidate &at, const Numbers &solution, double sign, bool shifted) {
    int64_t place = n + int64_t(at.residuals.size());
    for (size_t pair = 0; pair < entries.size(); ++pair) {
      entries[pair] = at.on[pair] ? sign * solution[place++] : 0;
      if (at.ratio[pair] == 0) continue;
      const double change = dot(at.rows.data() + pair * n, solution.data(), n);
      entries[pair] += sign * at.ratio[pair] * ((shifted ? turned[pair] : 0) + change);
    }
  }

  void move(const Candidate &from, double share, Candidate &to) {
    to = from;
    for (int64_t k = 0; k < n; ++k) to.z[k] += share * step[k];
    for (size_t i = 0; i < from.residuals.size(); ++i) to.w[from.residuals[i]] += share * step[n + i];
    turn(from, from.X);
    pairs_from(from, step, -share, true);
    for (const Block &block : blocks) add_from_pairs(from, block, entries.data() + block.pair, to.Y.data() + block.at);
    find_active(to);
    project(to);
    to.error = optimality(to);
  }

  // Newton steps, halved until they help. Where none does, what is active may be wrong, which a whole step finds out.
  void polish(Candidate &best, int64_t steps) {
    given = best.z;
    find_active(best);
    project(best);
    best.error = optimality(best);
    Candidate at = best, tried, whole;
    bool missed = false;
    for (int64_t time = 0; time < steps && !(best.error < ROUNDING); ++time) {
      newton(at);
      bool helped = false;
      for (int halving = 0; halving < HALVINGS && !helped; ++halving) {
        move(at, std::ldexp(1.0, -halving), tried);
        if (halving == 0) whole = tried;
        helped = tried.error < at.error;
      }
      if (!helped && missed) break;
      missed = !helped;
      std::swap(at, helped ? tried : whole);
      if (at.error < best.error) best = at;
    }
  }

  void describe(const Candidate &at, double &objective, double &gap, double &primal, double &dual_residual) {
    double dual_value = 0, length = 0;
    objective = dot(c, at.z.data(), n) + mean_size(at.u.data(), N);
    for (int64_t i = 0; i < N; ++i) dual_value -= b[i] * at.w[i];
    primal = 0;
    for (const Block &block : blocks) {
      for (int64_t i = 0; i < block.rows * block.rows; ++i) dual_value -= block.C[i] * at.Y[block.at + i];
      primal = std::max(primal, -least_eigenvalue(at.X.data() + block.at, block.rows));
    }
    balance(at);
    dual_residual = all_finite(dual.data(), n) ? largest(dual.data(), n) : NAN;
    for (double x : at.z) length += std::abs(x);
    gap = std::abs(objective - dual_value) + dual_residual * length;
  }

  // Gradients of an instance without a solution.
  void forget(int64_t instance, double *const *of_parts) const {
    const auto clear = [&](int64_t part, int64_t count) {
      if (of_parts[part]) std::fill_n(of_parts[part] + instance * count, count, 0.0);
    };
    clear(COST, n), clear(MATRIX, N * n), clear(OFFSET, N);
    for (const Block &block : blocks) {
      clear(BLOCKS + 2 * block.number, block.rows * block.rows);
      clear(BLOCKS + 2 * block.number + 1, n * block.rows * block.rows);
    }
  }

  void differentiate(const Candidate &at, const double *of_z, int64_t instance, double *const *of_parts) {
    assemble(at);
    right.assign(count_active(at), 0.0);
    std::copy_n(of_z, n, right.data());
    step.resize(right.size());
    solve_independent(system, right, step, n, SINGULAR);
    const double *g = step.data();
    if (double *of_c = of_parts[COST])
      for (int64_t k = 0; k < n; ++k) of_c[instance * n + k] = -g[k];
    if (double *of_A = of_parts[MATRIX]) {
      of_A += instance * N * n;
      for (int64_t i = 0; i < N; ++i)
        for (int64_t k = 0; k < n; ++k) of_A[i * n + k] = -at.w[i] * g[k];
      for (size_t i = 0; i < at.residuals.size(); ++i)
        for (int64_t k = 0; k < n; ++k) of_A[at.residuals[i] * n + k] -= g[n + i] * at.z[k];
    }
    if (double *of_b = of_parts[OFFSET]) {
      std::fill_n(of_b + instance * N, N, 0.0);
      for (size_t i = 0; i < at.residuals.size(); ++i) of_b[instance * N + at.residuals[i]] = g[n + i];
    }
    pairs_from(at, step, -1, false);
    for (const Block &block : blocks) {
      double *asked_C = of_parts[BLOCKS + 2 * block.number], *of_L = of_parts[BLOCKS + 2 * block.number + 1];
      const int64_t square = block.rows * block.rows;
      if (!asked_C && !of_L) continue;
      double *of_C = asked_C ? asked_C + instance * square : scratch.data();
      std::fill_n(of_C, square, 0.0);
      add_from_pairs(at, block, entries.data() + block.pair, of_C);
      if (of_L)
        for (int64_t k = 0; k < n; ++k)
          for (int64_t i = 0; i < square; ++i)
            of_L[(instance * n + k) * square + i] = at.z[k] * of_C[i] + g[k] * at.Y[block.at + i];
    }
  }
};

template <class F> void each_instance(const Program &program, F act) {
  if (!program.batch) return;
  const Terms terms(program);
#pragma omp parallel num_threads(int(program.threads)) if (program.batch > 1)
  {
    Instance instance(program, terms);
#pragma omp for schedule(dynamic, 1)
    for (int64_t number = 0; number < program.batch; ++number) {
      instance.load(number);
      act(instance, number);
    }
  }
}

}  // namespace

// Which instances have finite data; returns the number of the first part that is not symmetric though finite, or -1.
extern "C" int64_t look(const Program *program, int64_t *finite) {
  std::fill_n(finite, program->batch, int64_t(1));
  int64_t first = -1;
  if (!program->batch) return first;
  const int64_t n = program->num_variables, N = program->num_residuals;
  for (int64_t part = 0; part < BLOCKS + 2 * program->num_blocks; ++part) {
    const int64_t d = part < BLOCKS ? 0 : program->rows[(part - BLOCKS) / 2];
    const int64_t matrices = d && (part - BLOCKS) % 2 ? n : 1;
    const int64_t count = part == COST ? n : part == MATRIX ? N * n : part == OFFSET ? N : matrices * d * d;
    const bool shared = program->strides[part] == 0;
    for (int64_t instance = 0; instance < (shared ? 1 : program->batch); ++instance) {
      const double *numbers = part_of(*program, part, instance);
      const bool good = all_finite(numbers, count);
      if (!good) std::fill_n(finite + instance, shared ? program->batch : 1, int64_t(0));
      for (int64_t k = 0; d && k < matrices && first < 0; ++k)
        if (!is_symmetric(numbers + k * d * d, d)) first = part;
    }
  }
  return first;
}

extern "C" void polish(const Found *found) {
  each_instance(found->program, [&](Instance &instance, int64_t number) {
    found->error[number] = NAN;
    if (!found->usable[number]) return;
    Candidate best = instance.candidate(*found, number);
    instance.polish(best, found->steps);
    found->error[number] = best.error;
    if (best.error > KINK) return;  // Where nothing helps, a solution stays as it was.
    std::copy(best.z.begin(), best.z.end(), found->z + number * instance.n);
    std::copy(best.w.begin(), best.w.end(), found->w + number * instance.N);
    std::copy(best.Y.begin(), best.Y.end(), found->Y + number * instance.terms.area);
  });
}

extern "C" void describe(const Found *found) {
  each_instance(found->program, [&](Instance &instance, int64_t number) {
    Candidate at = instance.candidate(*found, number);
    instance.evaluate(at);
    instance.describe(at, found->cost[number], found->gap[number], found->primal[number], found->dual[number]);
  });
}

extern "C" void differentiate(const Gradients *asked) {
  each_instance(asked->found.program, [&](Instance &instance, int64_t number) {
    if (!asked->found.usable[number]) return instance.forget(number, asked->of_parts);
    Candidate at = instance.candidate(asked->found, number);
    instance.find_active(at);
    instance.differentiate(at, asked->of_z + number * instance.n, number, asked->of_parts);
  });
}
