"""The paper's online protocol in Triton: one persistent program per independent run, whole episodes in one launch.

A program keeps the state of its environment in registers and its factors and moments in memory that no other program
touches, small enough to stay in the caches of its processor. Between a store and the load of it by another lane stands
a barrier. Importing this needs Triton; TRITON_INTERPRET=1 runs it without a GPU.
"""

import triton
import triton.language as tl


@triton.jit
def _uniform(bits, like):
    # 32 bits in double precision, 24 in single, as torchq.philox.uniform.
    if like.dtype == tl.float64:
        value = bits.to(tl.float64) * 2.3283064365386963e-10
    else:
        value = (bits >> 8).to(tl.float32) * 5.960464477539063e-08
    return value


@triton.jit
def _draw(seed, step, env, task, purpose: tl.constexpr, block: tl.constexpr):
    high = (purpose << 24) | (block << 12) | (step >> 32)
    return tl.philox(seed, (step & 0xFFFFFFFF).to(tl.uint32), env.to(tl.uint32), task.to(tl.uint32), high.to(tl.uint32))


@triton.jit
def _row_of(x, low: tl.constexpr, high: tl.constexpr, size: tl.constexpr):
    # The nearest grid point, half to even.
    if size == 1:
        return tl.zeros_like(x).to(tl.int32)
    scaled = (tl.minimum(tl.maximum(x, low), high) - low) / (high - low) * (size - 1)
    below = tl.floor(scaled)
    fraction = scaled - below
    whole = below.to(tl.int32)
    up = (fraction > 0.5) | ((fraction == 0.5) & (whole % 2 == 1))
    return tl.minimum(tl.maximum(whole + up.to(tl.int32), 0), size - 1)


@triton.jit
def _rows_of(
    o0,
    o1,
    o2,
    o3,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    SIZES: tl.constexpr,
    DIMENSIONS: tl.constexpr,
    JOINT: tl.constexpr,
):
    i0 = _row_of(o0, LOW[0], HIGH[0], SIZES[0])
    i1, i2, i3 = i0, i0, i0
    if DIMENSIONS > 1:
        i1 = _row_of(o1, LOW[1], HIGH[1], SIZES[1])
    if DIMENSIONS > 2:
        i2 = _row_of(o2, LOW[2], HIGH[2], SIZES[2])
    if DIMENSIONS > 3:
        i3 = _row_of(o3, LOW[3], HIGH[3], SIZES[3])
    if JOINT:
        if DIMENSIONS > 1:
            i0 = i0 * SIZES[1] + i1
        if DIMENSIONS > 2:
            i0 = i0 * SIZES[2] + i2
        if DIMENSIONS > 3:
            i0 = i0 * SIZES[3] + i3
    return i0, i1, i2, i3


@triton.jit
def _pick(i0, i1, i2, i3, position: tl.constexpr):
    if position == 0:
        return i0
    if position == 1:
        return i1
    if position == 2:
        return i2
    return i3


@triton.jit
def _visited(
    factors,
    offset,
    i0,
    i1,
    i2,
    i3,
    task_row,
    MODE: tl.constexpr,
    HAS_TASK: tl.constexpr,
    RANK: tl.constexpr,
    RANK_P: tl.constexpr,
):
    # The row of a task or state mode that a transition visits.
    k = tl.arange(0, RANK_P)
    index = task_row
    if not HAS_TASK or MODE > 0:
        index = _pick(i0, i1, i2, i3, MODE - HAS_TASK)
    return tl.load(factors[MODE] + offset[MODE] + index * RANK + k, mask=k < RANK, other=0.0)


@triton.jit
def _weights(
    factors,
    offset,
    i0,
    i1,
    i2,
    i3,
    task_row,
    SKIP: tl.constexpr,
    ACTION: tl.constexpr,
    HAS_TASK: tl.constexpr,
    RANK: tl.constexpr,
    RANK_P: tl.constexpr,
):
    # Product of the visited rows of all task and state modes but one.
    k = tl.arange(0, RANK_P)
    product = (k < RANK).to(factors[0].dtype.element_ty)
    for mode in tl.static_range(ACTION):
        if mode != SKIP:
            product = product * _visited(factors, offset, i0, i1, i2, i3, task_row, mode, HAS_TASK, RANK, RANK_P)
    return product


@triton.jit
def _action_values(
    factors,
    offset,
    weights,
    ACTION: tl.constexpr,
    ACTIONS: tl.constexpr,
    ACTIONS_P: tl.constexpr,
    RANK: tl.constexpr,
    RANK_P: tl.constexpr,
):
    a, k = tl.arange(0, ACTIONS_P)[:, None], tl.arange(0, RANK_P)[None, :]
    table = tl.load(factors[ACTION] + offset[ACTION] + a * RANK + k, mask=(a < ACTIONS) & (k < RANK), other=0.0)
    values = tl.sum(table * weights[None, :], axis=1)
    return tl.where(tl.arange(0, ACTIONS_P) < ACTIONS, values, -float("inf"))


@triton.jit
def _adamax(
    factors,
    first,
    second,
    offset,
    gradient,
    index,
    step_size,
    MODE: tl.constexpr,
    ROWS: tl.constexpr,
    ROWS_P: tl.constexpr,
    RANK: tl.constexpr,
    RANK_P: tl.constexpr,
):
    # Dense: every row of the factor moves by its momentum, a block of rows at a time.
    k = tl.arange(0, RANK_P)[None, :]
    for start in range(0, ROWS, ROWS_P):
        row = start + tl.arange(0, ROWS_P)[:, None]
        at, inside = offset[MODE] + row * RANK + k, (row < ROWS) & (k < RANK)
        g = tl.where(row == index, gradient[None, :], 0.0)
        f = tl.load(factors[MODE] + at, mask=inside, other=0.0)
        m = tl.load(first[MODE] + at, mask=inside, other=0.0)
        u = tl.load(second[MODE] + at, mask=inside, other=1.0)
        m = m + 0.1 * (g - m)
        u = tl.maximum(0.999 * u, tl.abs(g) + 1e-8)
        tl.store(first[MODE] + at, m, mask=inside)
        tl.store(second[MODE] + at, u, mask=inside)
        tl.store(factors[MODE] + at, f - step_size * m / u, mask=inside)


@triton.jit(do_not_specialize=["num_steps"])
def train(
    factors, first, second, state, parameters, seed_numbers, task_numbers, epsilon, learning_rate, statistics,
    task_weights, first_step, num_updates, num_steps, num_groups,
    OBSERVE: tl.constexpr, STEP: tl.constexpr, FIELDS: tl.constexpr, PARAMETERS: tl.constexpr, UNIFORMS: tl.constexpr,
    SIZES: tl.constexpr, SIZES_P: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, GRID: tl.constexpr,
    DIMENSIONS: tl.constexpr, JOINT: tl.constexpr, HAS_TASK: tl.constexpr, MODES: tl.constexpr, ACTIONS: tl.constexpr,
    ACTIONS_P: tl.constexpr, RANK: tl.constexpr, RANK_P: tl.constexpr, SWEEPS: tl.constexpr, GAMMA: tl.constexpr,
):  # fmt: skip
    """Consecutive online steps of one run and task: behaviour, environment, and a Gauss–Seidel sweep over the modes.

    Programs are (seed, group). Pointers come as tuples, one per mode or field; `first_step` and `num_updates` point to
    counters, for each number would be compiled anew; SIZES are the rows of each mode, SIZES_P those moved together.
    The weight of a task carries the scale of the loss. Statistics: sums of reward, |δ| and δ² per program.
    """
    program = tl.program_id(0).to(tl.int64)
    group = program % num_groups
    ACTION: tl.constexpr = MODES - 1
    offset = ()
    for mode in tl.static_range(MODES):
        offset = offset + (program * SIZES[mode] * RANK,)
    seed = tl.load(seed_numbers + program // num_groups).to(tl.uint64)
    task, weight = tl.load(task_numbers + group), tl.load(task_weights + group)
    p = parameters + group * PARAMETERS
    p0 = tl.load(p)
    p1, p2, p3 = p0, p0, p0
    if PARAMETERS > 1:
        p1 = tl.load(p + 1)
    if PARAMETERS > 2:
        p2 = tl.load(p + 2)
    if PARAMETERS > 3:
        p3 = tl.load(p + 3)
    s0 = tl.load(state[0] + program)
    s1, s2, s3, s4 = s0, s0, s0, s0
    if FIELDS > 1:
        s1 = tl.load(state[1] + program)
    if FIELDS > 2:
        s2 = tl.load(state[2] + program)
    if FIELDS > 3:
        s3 = tl.load(state[3] + program)
    if FIELDS > 4:
        s4 = tl.load(state[4] + program)
    zero, begun, updates = task * 0, tl.load(first_step), tl.load(num_updates)
    rewards, absolute, squared = s0 * 0.0, s0 * 0.0, s0 * 0.0
    o0, o1, o2, o3 = OBSERVE(s0, s1, s2, s3, s4)
    i0, i1, i2, i3 = _rows_of(o0, o1, o2, o3, LOW, HIGH, GRID, DIMENSIONS, JOINT)
    for step in range(num_steps):
        now = zero + begun + step
        explore, random, _, _ = _draw(seed, now, zero, task, 1, 0)
        w = _weights(factors, offset, i0, i1, i2, i3, task, -1, ACTION, HAS_TASK, RANK, RANK_P)
        q = _action_values(factors, offset, w, ACTION, ACTIONS, ACTIONS_P, RANK, RANK_P)
        greedy = tl.minimum(tl.argmax(q, axis=0, tie_break_left=True), ACTIONS - 1)  # where all is NaN, too
        drawn = ((random.to(tl.uint64) * ACTIONS) >> 32).to(tl.int32)
        action = tl.where(_uniform(explore, s0) < tl.load(epsilon + step), drawn, greedy)
        u0, u1, u2, u3, u4 = s0, s0, s0, s0, s0
        if UNIFORMS > 0:
            b0, b1, b2, b3 = _draw(seed, now, zero, task, 3, 0)
            u0, u1, u2, u3 = _uniform(b0, s0), _uniform(b1, s0), _uniform(b2, s0), _uniform(b3, s0)
        if UNIFORMS > 4:
            b4, _, _, _ = _draw(seed, now, zero, task, 3, 1)
            u4 = _uniform(b4, s0)
        s0, s1, s2, s3, s4, reward = STEP(s0, s1, s2, s3, s4, p0, p1, p2, p3, action, u0, u1, u2, u3, u4)
        o0, o1, o2, o3 = OBSERVE(s0, s1, s2, s3, s4)
        j0, j1, j2, j3 = _rows_of(o0, o1, o2, o3, LOW, HIGH, GRID, DIMENSIONS, JOINT)
        rewards += reward
        rate = tl.load(learning_rate + step)
        for sweep in range(SWEEPS):
            count = (zero + updates + step * SWEEPS + sweep + 1).to(s0.dtype)
            step_size = rate / (1.0 - tl.exp2(count * -0.15200309344504997))  # 0.9 to the count
            for mode in tl.static_range(MODES):
                w = _weights(factors, offset, j0, j1, j2, j3, task, -1, ACTION, HAS_TASK, RANK, RANK_P)
                best = tl.max(_action_values(factors, offset, w, ACTION, ACTIONS, ACTIONS_P, RANK, RANK_P), axis=0)
                k = tl.arange(0, RANK_P)
                chosen = tl.load(factors[ACTION] + offset[ACTION] + action * RANK + k, mask=k < RANK, other=0.0)
                others = _weights(factors, offset, i0, i1, i2, i3, task, mode, ACTION, HAS_TASK, RANK, RANK_P)
                if mode == ACTION:
                    cofactor, own, index = others, chosen, action
                else:
                    cofactor = others * chosen
                    own = _visited(factors, offset, i0, i1, i2, i3, task, mode, HAS_TASK, RANK, RANK_P)
                    index = task.to(tl.int32)
                    if not HAS_TASK or mode > 0:
                        index = _pick(i0, i1, i2, i3, mode - HAS_TASK)
                error = reward + GAMMA * best - tl.sum(cofactor * own, axis=0)
                if mode == 0:
                    reported = tl.where(sweep == 0, error, 0.0)
                    absolute += tl.abs(reported)
                    squared += reported * reported
                tl.debug_barrier()
                _adamax(
                    factors,
                    first,
                    second,
                    offset,
                    -weight * error * cofactor,
                    index,
                    step_size,
                    mode,
                    SIZES[mode],
                    SIZES_P[mode],
                    RANK,
                    RANK_P,
                )
                tl.debug_barrier()
        i0, i1, i2, i3 = j0, j1, j2, j3
    tl.store(state[0] + program, s0)
    if FIELDS > 1:
        tl.store(state[1] + program, s1)
    if FIELDS > 2:
        tl.store(state[2] + program, s2)
    if FIELDS > 3:
        tl.store(state[3] + program, s3)
    if FIELDS > 4:
        tl.store(state[4] + program, s4)
    tl.store(statistics + program * 3, rewards)
    tl.store(statistics + program * 3 + 1, absolute)
    tl.store(statistics + program * 3 + 2, squared)
