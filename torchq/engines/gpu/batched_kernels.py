"""The batched protocol in Triton: one kernel a step and one a mode, gradients summed by block before they reach memory.

`play` handles chunks of one task's environments: behaviour, environment, error, and the sums of the semi-gradients of
its transitions, for the shared modes in a buffer of its own block, for the task mode in one row a chunk. `descend` adds
these up in a fixed order and takes the optimiser's step. No atomic additions: equal runs give equal bytes.
"""

import triton
import triton.language as tl

from torchq.engines.gpu.common_kernels import (
    AUTORESET,
    EXPLORATION,
    TESTING,
    TRAINING,
    adamax,
    choose,
    corrected,
    load,
    load_parameters,
    rows_of,
    store,
    uniform,
    uniforms,
    words,
)


@triton.jit
def _gather(factors, offset, index, inside, MODE: tl.constexpr, MODEL: tl.constexpr):
    k = tl.arange(0, MODEL.RANK_P)[None, :]
    at = offset[MODE] + index[:, None] * MODEL.RANK + k
    return tl.load(factors[MODE] + at, mask=inside[:, None] & (k < MODEL.RANK), other=0.0)


@triton.jit
def _products(factors, offset, rows, task, inside, SKIP: tl.constexpr, MODEL: tl.constexpr):
    # Product of the visited rows of all task and state modes but one, for every lane.
    ACTION: tl.constexpr = MODEL.ACTION
    k = tl.arange(0, MODEL.RANK_P)[None, :]
    product = (inside[:, None] & (k < MODEL.RANK)).to(factors[0].dtype.element_ty)
    for mode in tl.static_range(ACTION):
        if mode != SKIP:
            index = rows[0] * 0 + task
            if not MODEL.HAS_TASK or mode > 0:
                index = rows[mode - MODEL.HAS_TASK]
            product = product * _gather(factors, offset, index, inside, mode, MODEL)
    return product


@triton.jit
def _best(factors, offset, weights, MODEL: tl.constexpr):
    # Largest action value and the first action that has it, action by action.
    ACTIONS: tl.constexpr = MODEL.ACTIONS
    k = tl.arange(0, MODEL.RANK_P)
    base = factors[MODEL.ACTION] + offset[MODEL.ACTION]
    best = tl.sum(weights * tl.load(base + k, mask=k < MODEL.RANK, other=0.0)[None, :], axis=1)
    action = (best * 0.0).to(tl.int32)
    for a in tl.static_range(1, ACTIONS):
        row = tl.load(base + a * MODEL.RANK + k, mask=k < MODEL.RANK, other=0.0)
        value = tl.sum(weights * row[None, :], axis=1)
        action = tl.where(value > best, a, action)
        best = tl.maximum(best, value)
    return best, action


@triton.jit
def _by_task(values, TASKS: tl.constexpr, ENVS: tl.constexpr):
    # Sums over the environments of each task of a chunk.
    return tl.sum(tl.reshape(values, (TASKS, ENVS)), axis=1)


@triton.jit(do_not_specialize=["step_index"])
def play(
    factors, state, parameters, seeds, task_index, task_weights, buffers, epsilon, first_step, step_index, sizes,
    FAMILY: tl.constexpr, MODEL: tl.constexpr, SHARED_ROWS: tl.constexpr, TASKS: tl.constexpr, ENVS: tl.constexpr,
    LEARN: tl.constexpr,
):  # fmt: skip
    """One step of all environments, the `step_index`-th from `first_step`; with LEARN the sums of their semi-gradients.

    Programs are (run · group, block), flat, for only a grid's first axis is long. A block takes every `num_blocks`-th
    chunk of its run, a chunk TASKS tasks with up to ENVS environments each; TASKS is 1 where one has more environments.
    Buffers: of the shared modes (programs, blocks, SHARED_ROWS, rank), of the task mode (programs, chunks · TASKS,
    rank), and sums of reward, episodes, |δ| and δ² (programs, chunks · TASKS, 4). `sizes` are numbers of groups, tasks,
    environments, pieces, chunks and blocks.
    """
    # Names of their own, for not every version of Triton takes a field for a constant.
    ACTION: tl.constexpr = MODEL.ACTION
    RANK: tl.constexpr = MODEL.RANK
    RANK_P: tl.constexpr = MODEL.RANK_P
    num_groups, num_tasks, num_envs, num_pieces, num_chunks, num_blocks = sizes
    shared, by_task, sums = buffers
    block = tl.program_id(0) % num_blocks
    program = (tl.program_id(0) // num_blocks).to(tl.int64)
    group, now = program % num_groups, tl.load(first_step) + step_index
    seed = tl.load(seeds + program // num_groups).to(tl.uint64)
    threshold = tl.load(epsilon + step_index)
    lane, task_lane = tl.arange(0, TASKS * ENVS), tl.arange(0, TASKS)
    k = tl.arange(0, RANK_P)
    offset = ()
    for mode in tl.static_range(ACTION + 1):
        offset = offset + (program * MODEL.SIZES[mode] * RANK,)
    base = shared + (program * num_blocks + block) * SHARED_ROWS * MODEL.RANK
    zeros = tl.zeros([RANK_P], factors[0].dtype.element_ty)
    for row in range(SHARED_ROWS * LEARN):
        tl.store(base + row * RANK + k, zeros, mask=k < RANK)
    tl.debug_barrier()
    for chunk in range(block, num_chunks, num_blocks):
        task = (chunk // num_pieces) * TASKS + lane // ENVS
        env = (chunk % num_pieces) * ENVS + lane % ENVS
        inside = (env < num_envs) & (task < num_tasks // num_groups)
        position = tl.where(inside, group * (num_groups > 1) + task, 0)  # in the batch: lrq has one task a program
        name = tl.load(task_index + position)
        at = ((program // num_groups) * num_tasks + position) * num_envs + env
        like = tl.zeros([TASKS * ENVS], factors[0].dtype.element_ty)
        s, p = load(state, at, inside, FAMILY.FIELDS), load_parameters(parameters, position, FAMILY.PARAMETERS)
        here = rows_of(s, like, FAMILY, MODEL)
        drawn = words(seed, now, env, name, EXPLORATION, 0)
        weights = _products(factors, offset, here, name, inside, -1, MODEL)
        _, greedy = _best(factors, offset, weights, MODEL)
        random = ((drawn[1].to(tl.uint64) * MODEL.ACTIONS) >> 32).to(tl.int32)
        action = tl.where(uniform(drawn[0], like) < threshold, random, greedy)
        u = uniforms(seed, now, env, name, like, TRAINING, FAMILY.STEP_UNIFORMS)
        s, reward, terminated, truncated = FAMILY.STEP(p, s, action.to(tl.int64), u, like)
        reward = reward + like
        landed = rows_of(s, like, FAMILY, MODEL)
        done = terminated | truncated
        if FAMILY.TERMINATES:
            u = uniforms(seed, now, env, name, like, AUTORESET, FAMILY.RESET_UNIFORMS)
            s = choose(done, FAMILY.RESET(p, u, like), s, FAMILY.FIELDS)
        tl.debug_barrier()  # Lanes may load what others are about to overwrite.
        store(state, at, s, inside, FAMILY.FIELDS)
        place = program * num_chunks * TASKS + chunk * TASKS + task_lane
        seen = sums + place * 4
        tl.store(seen, tl.load(seen) + _by_task(tl.where(inside, reward, 0.0), TASKS, ENVS))
        tl.store(seen + 1, tl.load(seen + 1) + _by_task((inside & done).to(like.dtype), TASKS, ENVS))
        if LEARN:
            weights_landed = _products(factors, offset, landed, name, inside, -1, MODEL)
            best, _ = _best(factors, offset, weights_landed, MODEL)
            chosen = _gather(factors, offset, action, inside, ACTION, MODEL)
            discount = tl.where(terminated, 0.0, like + MODEL.GAMMA)
            error = tl.where(inside, reward + discount * best - tl.sum(weights * chosen, axis=1), 0.0)
            amount = -tl.load(task_weights + position) * error
            first_row = 0
            for mode in tl.static_range(ACTION + 1):
                cofactor = _products(factors, offset, here, name, inside, mode, MODEL)
                if mode != ACTION:
                    cofactor = cofactor * chosen
                values = amount[:, None] * cofactor
                if MODEL.HAS_TASK and mode == 0:
                    summed = tl.sum(tl.reshape(values, (TASKS, ENVS, RANK_P)), axis=1)
                    tl.store(by_task + place[:, None] * RANK + k[None, :], summed, mask=k[None, :] < RANK)
                else:
                    index = action
                    if mode != ACTION:
                        index = here[mode - MODEL.HAS_TASK]
                    # One row after the other, in order: exact in any precision, and no two programs share a row.
                    for row in range(MODEL.SIZES[mode]):
                        hit = tl.sum(tl.where((index == row)[:, None], values, 0.0), axis=0)
                        total = base + (first_row + row) * RANK + k
                        tl.store(total, tl.load(total, mask=k < RANK, other=0.0) + hit, mask=k < RANK)
                    first_row = first_row + MODEL.SIZES[mode]
            tl.store(seen + 2, tl.load(seen + 2) + _by_task(tl.abs(error), TASKS, ENVS))
            tl.store(seen + 3, tl.load(seen + 3) + _by_task(error * error, TASKS, ENVS))
        tl.debug_barrier()


@triton.jit(do_not_specialize=["step_index", "first_row", "num_rows", "num_parts", "stride"])
def descend(
    factor, first, second, buffer, learning_rate, num_updates, step_index, first_row, num_rows, num_parts, stride,
    RANK: tl.constexpr, RANK_P: tl.constexpr, BY_TASK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Adamax on one factor, the `step_index`-th time after `num_updates`: programs are (run · group, row), flat.

    The gradient of a row is the sum over `num_parts` blocks of row `first_row` + row of theirs (buffer (programs,
    parts, stride, RANK)); with BY_TASK over the row's own chunks (buffer (programs, stride, RANK), rows · parts used).
    """
    row = tl.program_id(0) % num_rows
    program = (tl.program_id(0) // num_rows).to(tl.int64)
    k = tl.arange(0, RANK_P)
    g = tl.zeros([RANK_P], factor.dtype.element_ty)
    for start in range(0, num_parts, TILE):
        part = start + tl.arange(0, TILE)[:, None]
        at = (program * num_parts + part) * stride + first_row + row
        if BY_TASK:
            at = program * stride + row * num_parts + part
        inside = (part < num_parts) & (k[None, :] < RANK)
        g += tl.sum(tl.load(buffer + at * RANK + k[None, :], mask=inside, other=0.0), axis=0)
    step_size = corrected(tl.load(learning_rate + step_index), tl.load(num_updates) + step_index + 1)
    place = (program * num_rows + row) * RANK + k
    f = tl.load(factor + place, mask=k < RANK, other=0.0)
    m = tl.load(first + place, mask=k < RANK, other=0.0)
    u = tl.load(second + place, mask=k < RANK, other=1.0)
    f, m, u = adamax(f, m, u, g, step_size)
    tl.store(first + place, m, mask=k < RANK)
    tl.store(second + place, u, mask=k < RANK)
    tl.store(factor + place, f, mask=k < RANK)


@triton.jit
def greedy(
    factors, factor_groups, state, parameters, seeds, total, first_step, num_steps, num_tasks, num_envs, num_pieces,
    FAMILY: tl.constexpr, MODEL: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Undiscounted returns of whole greedy episodes: programs are (run · task, LANES environments), flat.

    `factor_groups` is 1 for each mode that tasks share and their number for the others.
    """
    ACTION: tl.constexpr = MODEL.ACTION
    program = (tl.program_id(0) // num_pieces).to(tl.int64)
    run, task = program // num_tasks, program % num_tasks
    env = (tl.program_id(0) % num_pieces) * LANES + tl.arange(0, LANES)
    inside = env < num_envs
    at = program * num_envs + env
    seed, begun = tl.load(seeds + run).to(tl.uint64), tl.load(first_step)
    offset = ()
    for mode in tl.static_range(ACTION + 1):
        group = task * (factor_groups[mode] > 1)
        offset = offset + ((run * factor_groups[mode] + group) * MODEL.SIZES[mode] * MODEL.RANK,)
    like = tl.zeros([LANES], factors[0].dtype.element_ty)
    s, p = load(state, at, inside, FAMILY.FIELDS), load_parameters(parameters, task + env * 0, FAMILY.PARAMETERS)
    returns, alive = like, env >= 0
    for step in range(num_steps):
        rows = rows_of(s, like, FAMILY, MODEL)
        weights = _products(factors, offset, rows, task, inside, -1, MODEL)
        _, action = _best(factors, offset, weights, MODEL)
        u = uniforms(seed, begun + step, env, task, like, TESTING, FAMILY.STEP_UNIFORMS)
        s, reward, terminated, truncated = FAMILY.STEP(p, s, action.to(tl.int64), u, like)
        returns += tl.where(alive, reward, 0.0)
        alive = alive & ~(terminated | truncated)
    tl.store(total + at, returns, mask=inside)
