"""What the kernels of the batched protocol are made of: rows of lanes, the sums of semi-gradients, stored transitions.

A lane is one transition or environment; MODEL is `tensors.ModelConstants`.
"""

import triton
import triton.language as tl

from torchq.engines.gpu.common_kernels import CELLS, neighbours


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
def products(factors, offset, places, task, inside, SKIP: tl.constexpr, MODEL: tl.constexpr):
    # Product of the visited rows of all task and state modes but one, for every lane.
    ACTION: tl.constexpr = MODEL.ACTION
    k = tl.arange(0, MODEL.RANK_P)[None, :]
    product = (inside[:, None] & (k < MODEL.RANK)).to(factors[0].dtype.element_ty)
    for mode in tl.static_range(ACTION):
        if mode != SKIP:
            product = product * visited(factors, offset, places, task, inside, mode, MODEL)
    return product


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
    weights = products(factors, offset, places, name, inside, -1, MODEL)
    if MODEL.GUIDE:
        _, chosen = best_action(guide, offset, products(guide, offset, places, name, inside, -1, MODEL), MODEL)
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
def clear(base, like, ROWS: tl.constexpr, MODEL: tl.constexpr):
    # A block's sums of the shared modes, from zero.
    RANK: tl.constexpr = MODEL.RANK
    RANK_P: tl.constexpr = MODEL.RANK_P
    k = tl.arange(0, RANK_P)
    zeros = tl.zeros([RANK_P], like.dtype.element_ty)
    for row in range(ROWS):
        tl.store(base + row * RANK + k, zeros, mask=k < RANK)
    tl.debug_barrier()


@triton.jit
def add_gradients(
    factors, target, offset, here, landed, action, reward, discount, name, weight, inside, base, by_task, place,
    MODEL: tl.constexpr, TASKS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The errors of a chunk of transitions, LANES of each of TASKS tasks, their semi-gradients added to the sums."""
    ACTION: tl.constexpr = MODEL.ACTION
    RANK: tl.constexpr = MODEL.RANK
    RANK_P: tl.constexpr = MODEL.RANK_P
    k = tl.arange(0, RANK_P)
    best, _ = best_action(target, offset, products(target, offset, landed, name, inside, -1, MODEL), MODEL)
    weights = products(factors, offset, here, name, inside, -1, MODEL)
    chosen = gather(factors, offset, action, inside, ACTION, MODEL)
    error = tl.where(inside, reward + discount * best - tl.sum(weights * chosen, axis=1), 0.0)
    amount = -weight * error
    first_row = 0
    for mode in tl.static_range(ACTION + 1):
        cofactor = products(factors, offset, here, name, inside, mode, MODEL)
        if mode != ACTION:
            cofactor = cofactor * chosen
        values = amount[:, None] * cofactor
        if MODEL.HAS_TASK and mode == 0:
            summed = tl.sum(tl.reshape(values, (TASKS, LANES, RANK_P)), axis=1)
            tl.store(by_task + place[:, None] * RANK + k[None, :], summed, mask=k[None, :] < RANK)
        else:
            interpolates = False
            below, above, share = action, action, amount
            if mode != ACTION:
                interpolates = MODEL.KINDS[mode - MODEL.HAS_TASK] != CELLS
                below = here[mode - MODEL.HAS_TASK]
                if MODEL.KINDS[mode - MODEL.HAS_TASK] != CELLS:
                    below, above, share = neighbours(here[mode - MODEL.HAS_TASK], MODEL.SIZES[mode])
            # One row after the other, in order: exact in any precision, and no two programs share a row.
            for row in range(MODEL.SIZES[mode]):
                hit = tl.where((below == row)[:, None], values, 0.0)
                if interpolates:
                    hit = tl.where((below == row)[:, None], (1.0 - share)[:, None] * values, 0.0)
                    hit += tl.where((above == row)[:, None], share[:, None] * values, 0.0)
                total = base + (first_row + row) * RANK + k
                added = tl.load(total, mask=k < RANK, other=0.0) + tl.sum(hit, axis=0)
                tl.store(total, added, mask=k < RANK)
            first_row = first_row + MODEL.SIZES[mode]
    return error


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
