"""The batched protocol in Triton: two or three kernels an update, gradients summed by block before they reach memory.

`play` handles chunks of one task's environments: behaviour, environment, error, and the sums of the semi-gradients of
its transitions, for the shared modes in a buffer of its own block, for the task mode in one row a chunk. `descend` adds
these up in a fixed order and takes the optimiser's step. With replay, `play` stores its transitions, and `learn`, once
an update, sums the semi-gradients of these and of stored ones. No atomic additions: equal runs give equal bytes.
"""

import triton
import triton.language as tl

from torchq.engines.gpu.common_kernels import (
    AUTORESET,
    EXPLORATION,
    REPLAYING,
    TESTING,
    TRAINING,
    choose,
    load,
    load_parameters,
    places_of,
    store,
    uniform,
    uniforms,
    words,
)
from torchq.engines.gpu.lane_kernels import (
    add_gradients,
    descend_row,
    offsets,
    policy_action,
    recalled,
    remember,
    sum_by_task,
    sum_of,
)


@triton.jit(do_not_specialize=["step_index"])
def play(
    factors, target, guide, margin, state, parameters, seeds, task_index, task_weights, buffers, memory, epsilon,
    first_step, step_index, sizes, FAMILY: tl.constexpr, MODEL: tl.constexpr, SHARED_ROWS: tl.constexpr,
    TASKS: tl.constexpr, ENVS: tl.constexpr, LEARN: tl.constexpr, STORE: tl.constexpr,
):  # fmt: skip
    """One step of all environments, the `step_index`-th from `first_step`; with LEARN the sums of their semi-gradients.

    Behaviour follows the `guide`'s factors by a margin of each step. With STORE their transitions are written into the
    memory (seeds, tasks, slots, width).

    Programs are (run · group, block), flat, for only a grid's first axis is long. A block takes every `num_blocks`-th
    chunk of its run, a chunk TASKS tasks with up to ENVS environments each; TASKS is 1 where one has more environments.
    Buffers: of the shared modes (programs, blocks, SHARED_ROWS, rank), of the task mode (programs, chunks · TASKS,
    rank), and sums of reward, episodes, |δ| and δ² (programs, chunks · TASKS, 4). `sizes` are numbers of groups, tasks,
    environments, pieces, chunks, blocks and slots.
    """
    # Names of their own, for not every version of Triton takes a field for a constant.
    RANK: tl.constexpr = MODEL.RANK
    WIDTH: tl.constexpr = 2 * (MODEL.ACTION - MODEL.HAS_TASK) + 3
    num_groups, num_tasks, num_envs, num_pieces, num_chunks, num_blocks, num_slots = sizes
    shared, by_task, sums = buffers
    block = tl.program_id(0) % num_blocks
    program = (tl.program_id(0) // num_blocks).to(tl.int64)
    group, now = program % num_groups, tl.load(first_step) + step_index
    seed = tl.load(seeds + program // num_groups).to(tl.uint64)
    threshold = tl.load(epsilon + step_index)
    lane, task_lane = tl.arange(0, TASKS * ENVS), tl.arange(0, TASKS)
    offset = offsets(program, MODEL)
    base = shared + (program * num_blocks + block) * SHARED_ROWS * RANK
    for chunk in range(block, num_chunks, num_blocks):
        task = (chunk // num_pieces) * TASKS + lane // ENVS
        env = (chunk % num_pieces) * ENVS + lane % ENVS
        inside = (env < num_envs) & (task < num_tasks // num_groups)
        position = tl.where(inside, group * (num_groups > 1) + task, 0)  # in the batch: lrq has one task a program
        name = tl.load(task_index + position)
        at = ((program // num_groups) * num_tasks + position) * num_envs + env
        like = tl.zeros([TASKS * ENVS], factors[0].dtype.element_ty)
        s, p = load(state, at, inside, FAMILY.FIELDS), load_parameters(parameters, position, FAMILY.PARAMETERS)
        here = places_of(s, like, FAMILY, MODEL)
        drawn = words(seed, now, env, name, EXPLORATION, 0)
        greedy = policy_action(factors, guide, margin + step_index, offset, here, name, inside, MODEL)
        random = ((drawn[1].to(tl.uint64) * MODEL.ACTIONS) >> 32).to(tl.int32)
        action = tl.where(uniform(drawn[0], like) < threshold, random, greedy)
        u = uniforms(seed, now, env, name, like, TRAINING, FAMILY.STEP_UNIFORMS)
        s, reward, terminated, truncated = FAMILY.STEP(p, s, action.to(tl.int64), u, like)
        reward = reward + like
        landed = places_of(s, like, FAMILY, MODEL)
        done = terminated | truncated
        if FAMILY.TERMINATES:
            u = uniforms(seed, now, env, name, like, AUTORESET, FAMILY.RESET_UNIFORMS)
            s = choose(done, FAMILY.RESET(p, u, like), s, FAMILY.FIELDS)
        tl.debug_barrier()  # Lanes may load what others are about to overwrite.
        store(state, at, s, inside, FAMILY.FIELDS)
        place = program * num_chunks * TASKS + chunk * TASKS + task_lane
        seen = sums + place * 4
        tl.store(seen, tl.load(seen) + sum_by_task(tl.where(inside, reward, 0.0), TASKS, ENVS))
        tl.store(seen + 1, tl.load(seen + 1) + sum_by_task((inside & done).to(like.dtype), TASKS, ENVS))
        discount = tl.where(terminated, 0.0, like + MODEL.GAMMA)
        if STORE:
            slot = (now.to(tl.int64) * num_envs + env) % num_slots
            where = ((program // num_groups) * num_tasks + position) * num_slots + slot
            remember(memory + where * WIDTH, here, landed, action, reward, discount, inside, MODEL)
        if LEARN:
            weight = tl.load(task_weights + position)
            error = add_gradients(
                factors, target, offset, here, landed, action, reward, discount, name, weight, inside, base, by_task,
                place, chunk - block, MODEL, TASKS, ENVS,
            )  # fmt: skip
            tl.store(seen + 2, tl.load(seen + 2) + sum_by_task(tl.abs(error), TASKS, ENVS))
            tl.store(seen + 3, tl.load(seen + 3) + sum_by_task(error * error, TASKS, ENVS))
        tl.debug_barrier()


@triton.jit(do_not_specialize=["step_index"])
def learn(
    factors, target, seeds, task_index, task_weights, buffers, memory, first_step, step_index, sizes, replay,
    MODEL: tl.constexpr, SHARED_ROWS: tl.constexpr, TASKS: tl.constexpr, LANES: tl.constexpr, UPDATE: tl.constexpr,
    RECENT: tl.constexpr,
):  # fmt: skip
    """Sums of the semi-gradients of an update's transitions: of each task those of the step, then stored ones.

    Programs and buffers as in `play`, with LANES transitions of a task in the place of environments, of which there are
    environments + batch; sums are of |δ| and δ² of the step's own in its first update (programs, chunks · TASKS, 2).
    `replay` is batch and capacity; RECENT the share of all transitions that is drawn from: Replay.drawn.
    """
    RANK: tl.constexpr = MODEL.RANK
    STATES: tl.constexpr = MODEL.ACTION - MODEL.HAS_TASK
    num_groups, num_tasks, num_envs, num_pieces, num_chunks, num_blocks, num_slots = sizes
    num_stored, capacity = replay
    shared, by_task, sums = buffers
    block = tl.program_id(0) % num_blocks
    program = (tl.program_id(0) // num_blocks).to(tl.int64)
    group, now = program % num_groups, tl.load(first_step) + step_index
    seed = tl.load(seeds + program // num_groups).to(tl.uint64)
    lane, task_lane = tl.arange(0, TASKS * LANES), tl.arange(0, TASKS)
    offset = offsets(program, MODEL)
    base = shared + (program * num_blocks + block) * SHARED_ROWS * RANK
    count = (now.to(tl.int64) + 1) * num_envs
    recent = tl.ceil(count.to(tl.float64) * RECENT).to(tl.int64)
    available = tl.minimum(tl.minimum(count, capacity), tl.maximum(recent, 1000))
    for chunk in range(block, num_chunks, num_blocks):
        task = (chunk // num_pieces) * TASKS + lane // LANES
        item = (chunk % num_pieces) * LANES + lane % LANES
        inside = (item < num_envs + num_stored) & (task < num_tasks // num_groups)
        position = tl.where(inside, group * (num_groups > 1) + task, 0)
        name = tl.load(task_index + position)
        drawn = words(seed, now, tl.maximum(item - num_envs, 0), name, REPLAYING, UPDATE // 4)[UPDATE % 4]
        again = count - available + ((drawn.to(tl.uint64) * available.to(tl.uint64)) >> 32).to(tl.int64)
        number = tl.where(item < num_envs, count - num_envs + item, again)
        where = ((program // num_groups) * num_tasks + position) * num_slots + number % num_slots
        record = memory + where * (2 * STATES + 3)
        action = tl.load(record + 2 * STATES, mask=inside, other=0.0).to(tl.int32)
        reward = tl.load(record + 2 * STATES + 1, mask=inside, other=0.0)
        discount = tl.load(record + 2 * STATES + 2, mask=inside, other=0.0)
        place = program * num_chunks * TASKS + chunk * TASKS + task_lane
        error = add_gradients(
            factors, target, offset, recalled(record, inside, 0, MODEL), recalled(record, inside, STATES, MODEL),
            action, reward, discount, name, tl.load(task_weights + position), inside, base, by_task, place,
            chunk - block, MODEL, TASKS, LANES,
        )  # fmt: skip
        if UPDATE == 0:
            own = tl.where(item < num_envs, error, 0.0)
            seen = sums + place * 2
            tl.store(seen, tl.load(seen) + sum_by_task(tl.abs(own), TASKS, LANES))
            tl.store(seen + 1, tl.load(seen + 1) + sum_by_task(own * own, TASKS, LANES))
        tl.debug_barrier()


@triton.jit(do_not_specialize=["step_index"])
def descend(
    factors, first, second, target, buffers, learning_rate, num_updates, step_index, sizes, MODEL: tl.constexpr,
    MOVES: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr, UPDATE: tl.constexpr, UPDATES: tl.constexpr,
):  # fmt: skip
    """Adamax or Adam on all factors, in update UPDATE of the UPDATES of a step: programs are (run · group, row), flat.

    The target tensor's factors take their Polyak step with them, unless MODEL.TARGET_RATE is 0. Rows are those of the
    modes that MOVES says move, ROWS in all.

    The gradient of a shared mode's row is the sum over blocks (buffer (programs, blocks, shared rows, rank)), of a
    task's over its own pieces (buffer (programs, tasks · pieces or more, rank)), TILES of each at a time. `sizes` are
    numbers of blocks, shared rows, pieces and rows of the tasks' buffer.
    """
    ACTION: tl.constexpr = MODEL.ACTION
    num_blocks, shared_rows, num_pieces, task_rows = sizes
    shared, by_task, _ = buffers
    row = tl.program_id(0) % ROWS
    program = (tl.program_id(0) // ROWS).to(tl.int64)
    update = tl.load(num_updates) + step_index * UPDATES + UPDATE + 1
    rate = tl.load(learning_rate + step_index)
    begin, first_row = 0, 0
    for mode in tl.static_range(ACTION + 1):
        if MOVES[mode]:
            if (row >= begin) & (row < begin + MODEL.SIZES[mode]):
                local = row - begin
                if MODEL.HAS_TASK and mode == 0:
                    at = program * task_rows + local * num_pieces
                    g = sum_of(by_task, at, 1, num_pieces, TILES[0], MODEL)
                else:
                    at = program * num_blocks * shared_rows + first_row + local
                    g = sum_of(shared, at, shared_rows, num_blocks, TILES[1], MODEL)
                place = program * MODEL.SIZES[mode] + local
                descend_row(factors[mode], first[mode], second[mode], target[mode], place, g, rate, update, MODEL)
            begin = begin + MODEL.SIZES[mode]
        if not (MODEL.HAS_TASK and mode == 0):
            first_row = first_row + MODEL.SIZES[mode]


@triton.jit
def greedy(
    factors, guide, margin, factor_groups, factor_rows, state, parameters, seeds, total, first_step, num_steps,
    num_tasks, num_envs, num_pieces, FAMILY: tl.constexpr, MODEL: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Undiscounted returns of whole greedy episodes: programs are (run · task, LANES environments), flat.

    `factor_groups` is 1 for each mode that tasks share and their number for the others; `factor_rows` are its rows.
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
        offset = offset + ((run * factor_groups[mode] + group) * factor_rows[mode] * MODEL.RANK,)
    like = tl.zeros([LANES], factors[0].dtype.element_ty)
    s, p = load(state, at, inside, FAMILY.FIELDS), load_parameters(parameters, task + env * 0, FAMILY.PARAMETERS)
    returns, alive = like, env >= 0
    for step in range(num_steps):
        rows = places_of(s, like, FAMILY, MODEL)
        action = policy_action(factors, guide, margin, offset, rows, task, inside, MODEL)
        u = uniforms(seed, begun + step, env, task, like, TESTING, FAMILY.STEP_UNIFORMS)
        s, reward, terminated, truncated = FAMILY.STEP(p, s, action.to(tl.int64), u, like)
        returns += tl.where(alive, reward, 0.0)
        alive = alive & ~(terminated | truncated)
    tl.store(total + at, returns, mask=inside)
