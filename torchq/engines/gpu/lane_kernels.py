"""What the kernels of the batched protocol are made of: rows of lanes, the sums of semi-gradients, stored transitions.

A lane is one transition or environment; MODEL is `tensors.ModelConstants`.
"""

import triton
import triton.language as tl

from torchq.engines.gpu.common_kernels import CELLS, adam, adamax, corrected, neighbours


@triton.jit
def gather(factors, offset, index, inside, MODE: tl.constexpr, MODEL: tl.constexpr):
    k = tl.arange(0, MODEL.RANK_P)[None, :]
    at = offset[MODE] + index[:, None] * MODEL.RANK + k
    return tl.load(factors[MODE] + at, mask=inside[:, None] & (k < MODEL.RANK), other=0.0)


@triton.jit
def visited(factors, offset, places, task, inside, MODE: tl.constexpr, MODEL: tl.constexpr):
    # φᵀF: the row of a task or state mode at every lane's place, or between two.
    if MODEL.HAS_TASK and MODE == 0:
        rows = gather(factors, offset, inside.to(tl.int32) * 0 + task, inside, MODE, MODEL)
    elif MODEL.KINDS[MODE - MODEL.HAS_TASK] == CELLS:
        rows = gather(factors, offset, places[MODE - MODEL.HAS_TASK], inside, MODE, MODEL)
    else:
        below, above, weight = neighbours(places[MODE - MODEL.HAS_TASK], MODEL.SIZES[MODE])
        rows = gather(factors, offset, below, inside, MODE, MODEL)
        rows += weight[:, None] * (gather(factors, offset, above, inside, MODE, MODEL) - rows)
    return rows


@triton.jit
def all_visited(factors, offset, places, task, inside, MODEL: tl.constexpr):
    # Those rows of all task and state modes.
    ACTION: tl.constexpr = MODEL.ACTION
    rows = ()
    for mode in tl.static_range(ACTION):
        rows = rows + (visited(factors, offset, places, task, inside, mode, MODEL),)
    return rows


@triton.jit
def product(rows, inside, SKIP: tl.constexpr, MODEL: tl.constexpr):
    # Product of the visited rows of all task and state modes but one, for every lane.
    ACTION: tl.constexpr = MODEL.ACTION
    RANK_P: tl.constexpr = MODEL.RANK_P
    k = tl.arange(0, RANK_P)[None, :]
    result = (inside[:, None] & (k < MODEL.RANK)).to(rows[0].dtype)
    for mode in tl.static_range(ACTION):
        if mode != SKIP:
            result = result * rows[mode]
    return result


@triton.jit
def best_action(factors, offset, weights, MODEL: tl.constexpr):
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
def policy_action(factors, guide, margin, offset, places, name, inside, MODEL: tl.constexpr):
    # The greedy action, or the guide's where no other is better by a margin: torchq.lowrank.guide.
    ACTIONS: tl.constexpr = MODEL.ACTIONS
    weights = product(all_visited(factors, offset, places, name, inside, MODEL), inside, -1, MODEL)
    if MODEL.GUIDE:
        guiding = product(all_visited(guide, offset, places, name, inside, MODEL), inside, -1, MODEL)
        _, chosen = best_action(guide, offset, guiding, MODEL)
        bonus = tl.load(margin).to(weights.dtype)
        k = tl.arange(0, MODEL.RANK_P)
        base = factors[MODEL.ACTION] + offset[MODEL.ACTION]
        best = tl.sum(weights * tl.load(base + k, mask=k < MODEL.RANK, other=0.0)[None, :], axis=1)
        best += tl.where(chosen == 0, bonus, 0.0)
        action = chosen * 0
        for a in tl.static_range(1, ACTIONS):
            row = tl.load(base + a * MODEL.RANK + k, mask=k < MODEL.RANK, other=0.0)
            value = tl.sum(weights * row[None, :], axis=1) + tl.where(chosen == a, bonus, 0.0)
            action = tl.where(value > best, a, action)
            best = tl.maximum(best, value)
    else:
        _, action = best_action(factors, offset, weights, MODEL)
    return action


@triton.jit
def sum_by_task(values, TASKS: tl.constexpr, ENVS: tl.constexpr):
    # Sums over the environments of each task of a chunk.
    return tl.sum(tl.reshape(values, (TASKS, ENVS)), axis=1)


@triton.jit
def add_to_rows(base, first_row, values, place, before, MODE: tl.constexpr, KIND: tl.constexpr, MODEL: tl.constexpr):
    # Σ φ values on the rows of a shared mode, (rows, lanes) · (lanes, rank), some rows at a time, in a fixed order.
    # Single precision is split into three tf32 products; double precision is taken as it is.
    RANK: tl.constexpr = MODEL.RANK
    RANK_P: tl.constexpr = MODEL.RANK_P
    SIZE: tl.constexpr = MODEL.SIZES[MODE]
    ROWS: tl.constexpr = MODEL.SIZES_P[MODE]
    k = tl.arange(0, RANK_P)[None, :]
    for start in range(0, SIZE, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        if KIND == CELLS:
            phi = (place[None, :] == row).to(values.dtype)
        else:
            below, above, share = neighbours(place, SIZE)
            phi = tl.where(below[None, :] == row, 1.0 - share[None, :], 0.0)
            phi += tl.where(above[None, :] == row, share[None, :], 0.0)
        total, real = base + (first_row + row) * RANK + k, (row < SIZE) & (k < RANK)
        added = tl.load(total, mask=real & (row * 0 + before > 0), other=0.0)
        tl.store(total, tl.dot(phi, values, added, input_precision="tf32x3", out_dtype=values.dtype), mask=real)


@triton.jit
def add_gradients(
    factors, target, offset, here, landed, action, reward, discount, name, weight, inside, base, by_task, place, before,
    MODEL: tl.constexpr, TASKS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The errors of a chunk of transitions, LANES of each of TASKS tasks, their semi-gradients added to the sums.

    Sums of the shared modes begin anew where there were no chunks `before`.
    """
    ACTION: tl.constexpr = MODEL.ACTION
    RANK: tl.constexpr = MODEL.RANK
    RANK_P: tl.constexpr = MODEL.RANK_P
    KINDS: tl.constexpr = MODEL.KINDS
    k = tl.arange(0, RANK_P)
    following = product(all_visited(target, offset, landed, name, inside, MODEL), inside, -1, MODEL)
    best, _ = best_action(target, offset, following, MODEL)
    rows = all_visited(factors, offset, here, name, inside, MODEL)
    weights = product(rows, inside, -1, MODEL)
    chosen = gather(factors, offset, action, inside, ACTION, MODEL)
    error = tl.where(inside, reward + discount * best - tl.sum(weights * chosen, axis=1), 0.0)
    amount = -weight * error
    first_row = 0
    for mode in tl.static_range(ACTION):
        values = amount[:, None] * (product(rows, inside, mode, MODEL) * chosen)
        if MODEL.HAS_TASK and mode == 0:
            summed = tl.sum(tl.reshape(values, (TASKS, LANES, RANK_P)), axis=1)
            tl.store(by_task + place[:, None] * RANK + k[None, :], summed, mask=k[None, :] < RANK)
        else:
            at = here[mode - MODEL.HAS_TASK]
            add_to_rows(base, first_row, values, at, before, mode, KINDS[mode - MODEL.HAS_TASK], MODEL)
            first_row = first_row + MODEL.SIZES[mode]
    add_to_rows(base, first_row, amount[:, None] * weights, action, before, ACTION, CELLS, MODEL)
    return error


@triton.jit
def sum_of(buffer, at, stride, num_parts, TILE: tl.constexpr, MODEL: tl.constexpr):
    # Σ buffer[at + part · stride] over parts, in a fixed order.
    RANK: tl.constexpr = MODEL.RANK
    RANK_P: tl.constexpr = MODEL.RANK_P
    k = tl.arange(0, RANK_P)
    total = tl.zeros([RANK_P], buffer.dtype.element_ty)
    for start in range(0, num_parts, TILE):
        part = start + tl.arange(0, TILE)[:, None]
        inside = (part < num_parts) & (k[None, :] < RANK)
        total += tl.sum(tl.load(buffer + (at + part * stride) * RANK + k[None, :], mask=inside, other=0.0), axis=0)
    return total


@triton.jit
def descend_row(factor, first, second, target, row, g, rate, update, MODEL: tl.constexpr):
    # The optimiser's step on a row from its gradient, and the target tensor's Polyak step.
    RANK: tl.constexpr = MODEL.RANK
    RANK_P: tl.constexpr = MODEL.RANK_P
    k = tl.arange(0, RANK_P)
    at, real = row * RANK + k, k < RANK
    f, m = tl.load(factor + at, mask=real, other=0.0), tl.load(first + at, mask=real, other=0.0)
    u = tl.load(second + at, mask=real, other=1.0)
    step_size = corrected(rate, update)
    if MODEL.ADAM:
        f, m, u = adam(f, m, u, g, step_size, update)
    else:
        f, m, u = adamax(f, m, u, g, step_size)
    if MODEL.TARGET_RATE > 0:
        mean = tl.load(target + at, mask=real, other=0.0)
        tl.store(target + at, mean + MODEL.TARGET_RATE * (f - mean), mask=real)
    tl.store(first + at, m, mask=real)
    tl.store(second + at, u, mask=real)
    tl.store(factor + at, f, mask=real)


@triton.jit
def offsets(program, MODEL: tl.constexpr):
    # Where each mode of a program's factors begins.
    ACTION: tl.constexpr = MODEL.ACTION
    offset = ()
    for mode in tl.static_range(ACTION + 1):
        offset = offset + (program * MODEL.SIZES[mode] * MODEL.RANK,)
    return offset


@triton.jit
def remember(record, here, landed, action, reward, discount, inside, MODEL: tl.constexpr):
    # Write a transition: torchq.lowrank.replay.store.
    STATES: tl.constexpr = MODEL.ACTION - MODEL.HAS_TASK
    for d in tl.static_range(STATES):
        tl.store(record + d, here[d].to(reward.dtype), mask=inside)
        tl.store(record + STATES + d, landed[d].to(reward.dtype), mask=inside)
    tl.store(record + 2 * STATES, action.to(reward.dtype), mask=inside)
    tl.store(record + 2 * STATES + 1, reward, mask=inside)
    tl.store(record + 2 * STATES + 2, discount, mask=inside)


@triton.jit
def recalled(record, inside, FIRST: tl.constexpr, MODEL: tl.constexpr):
    # Places of a stored transition, from a column on.
    STATES: tl.constexpr = MODEL.ACTION - MODEL.HAS_TASK
    places = ()
    for d in tl.static_range(STATES):
        place = tl.load(record + FIRST + d, mask=inside, other=0.0)
        if MODEL.KINDS[d] == CELLS:
            places = places + (place.to(tl.int32),)
        else:
            places = places + (place,)
    return places
