"""The paper's online protocol in Triton: one persistent program per independent run, whole episodes in one launch.

A program keeps the state of its environment in registers and its factors and moments in memory that no other program
touches, small enough to stay in the caches of its processor. Between a store and the load of it by another lane stands
a barrier. Importing this needs Triton; TRITON_INTERPRET=1 runs it without a GPU.
"""

import triton
import triton.language as tl

from torchq.engines.gpu.common_kernels import (
    AUTORESET,
    EXPLORATION,
    TRAINING,
    adamax,
    choose,
    corrected,
    load,
    load_parameters,
    places_of,
    store,
    uniform,
    uniforms,
    words,
)


@triton.jit
def _visited(factors, offset, rows, task, MODE: tl.constexpr, MODEL: tl.constexpr):
    # The row of a task or state mode that a transition visits.
    k = tl.arange(0, MODEL.RANK_P)
    index = task
    if not MODEL.HAS_TASK or MODE > 0:
        index = rows[MODE - MODEL.HAS_TASK]
    return tl.load(factors[MODE] + offset[MODE] + index * MODEL.RANK + k, mask=k < MODEL.RANK, other=0.0)


@triton.jit
def _weights(factors, offset, rows, task, SKIP: tl.constexpr, MODEL: tl.constexpr):
    # Product of the visited rows of all task and state modes but one.
    ACTION: tl.constexpr = MODEL.ACTION
    product = (tl.arange(0, MODEL.RANK_P) < MODEL.RANK).to(factors[0].dtype.element_ty)
    for mode in tl.static_range(ACTION):
        if mode != SKIP:
            product = product * _visited(factors, offset, rows, task, mode, MODEL)
    return product


@triton.jit
def _action_values(factors, offset, weights, MODEL: tl.constexpr):
    a, k = tl.arange(0, MODEL.ACTIONS_P)[:, None], tl.arange(0, MODEL.RANK_P)[None, :]
    inside = (a < MODEL.ACTIONS) & (k < MODEL.RANK)
    table = tl.load(factors[MODEL.ACTION] + offset[MODEL.ACTION] + a * MODEL.RANK + k, mask=inside, other=0.0)
    values = tl.sum(table * weights[None, :], axis=1)
    return tl.where(tl.arange(0, MODEL.ACTIONS_P) < MODEL.ACTIONS, values, -float("inf"))


@triton.jit
def _descend(factors, moments, offset, gradient, index, step_size, MODE: tl.constexpr, MODEL: tl.constexpr):
    # Dense: every row of the factor moves by its momentum, a block of rows at a time.
    k = tl.arange(0, MODEL.RANK_P)[None, :]
    first, second = moments
    for start in range(0, MODEL.SIZES[MODE], MODEL.SIZES_P[MODE]):
        row = start + tl.arange(0, MODEL.SIZES_P[MODE])[:, None]
        at, inside = offset[MODE] + row * MODEL.RANK + k, (row < MODEL.SIZES[MODE]) & (k < MODEL.RANK)
        g = tl.where(row == index, gradient[None, :], 0.0)
        f = tl.load(factors[MODE] + at, mask=inside, other=0.0)
        m = tl.load(first[MODE] + at, mask=inside, other=0.0)
        u = tl.load(second[MODE] + at, mask=inside, other=1.0)
        f, m, u = adamax(f, m, u, g, step_size)
        tl.store(first[MODE] + at, m, mask=inside)
        tl.store(second[MODE] + at, u, mask=inside)
        tl.store(factors[MODE] + at, f, mask=inside)


@triton.jit(do_not_specialize=["num_steps"])
def train(
    factors, moments, state, parameters, seeds, task_index, task_weights, rates, statistics, clocks, num_steps,
    num_groups, FAMILY: tl.constexpr, MODEL: tl.constexpr,
):  # fmt: skip
    """Consecutive online steps of one run and task: behaviour, environment, and a Gauss–Seidel sweep over the modes.

    Programs are (seed, group). Pointers come as tuples: of factors and state one per mode or field; `moments` first and
    second, each one per mode; `rates` ε and η; `clocks` steps and updates before these, which live on the device, for
    each number would be compiled anew. The weight of a task carries the scale of the loss. Statistics: sums of reward,
    episodes, |δ| and δ² per program.
    """
    program = tl.program_id(0).to(tl.int64)
    group = program % num_groups
    ACTION: tl.constexpr = MODEL.ACTION
    offset = ()
    for mode in tl.static_range(ACTION + 1):
        offset = offset + (program * MODEL.SIZES[mode] * MODEL.RANK,)
    seed = tl.load(seeds + program // num_groups).to(tl.uint64)
    task, weight = tl.load(task_index + group), tl.load(task_weights + group)
    zero, begun, updates = task * 0, tl.load(clocks[0]), tl.load(clocks[1])
    always = zero == 0
    like = weight
    p = load_parameters(parameters, group, FAMILY.PARAMETERS)
    s = load(state, program, always, FAMILY.FIELDS)
    rewards, episodes, absolute, squared = weight * 0.0, weight * 0.0, weight * 0.0, weight * 0.0
    here = places_of(s, like, FAMILY, MODEL)
    for step in range(num_steps):
        now = zero + begun + step
        drawn = words(seed, now, zero, task, EXPLORATION, 0)
        w = _weights(factors, offset, here, task, -1, MODEL)
        q = _action_values(factors, offset, w, MODEL)
        greedy = tl.minimum(tl.argmax(q, axis=0, tie_break_left=True), MODEL.ACTIONS - 1)  # where all is NaN, too
        random = ((drawn[1].to(tl.uint64) * MODEL.ACTIONS) >> 32).to(tl.int32)
        action = tl.where(uniform(drawn[0], like) < tl.load(rates[0] + step), random, greedy)
        u = uniforms(seed, now, zero, task, like, TRAINING, FAMILY.STEP_UNIFORMS)
        s, reward, terminated, truncated = FAMILY.STEP(p, s, action.to(tl.int64), u, like)
        landed = places_of(s, like, FAMILY, MODEL)
        discount = tl.where(terminated, 0.0, weight * 0.0 + MODEL.GAMMA)
        rewards += reward
        episodes += (terminated | truncated).to(rewards.dtype)
        rate = tl.load(rates[1] + step)
        for sweep in range(MODEL.SWEEPS):
            step_size = corrected(rate, zero + updates + step * MODEL.SWEEPS + sweep + 1)
            for mode in tl.static_range(ACTION + 1):
                w = _weights(factors, offset, landed, task, -1, MODEL)
                best = tl.max(_action_values(factors, offset, w, MODEL), axis=0)
                k = tl.arange(0, MODEL.RANK_P)
                chosen = tl.load(
                    factors[ACTION] + offset[ACTION] + action * MODEL.RANK + k, mask=k < MODEL.RANK, other=0.0
                )
                others = _weights(factors, offset, here, task, mode, MODEL)
                if mode == ACTION:
                    cofactor, visited, index = others, chosen, action
                else:
                    cofactor = others * chosen
                    visited = _visited(factors, offset, here, task, mode, MODEL)
                    index = task.to(tl.int32)
                    if not MODEL.HAS_TASK or mode > 0:
                        index = here[mode - MODEL.HAS_TASK]
                error = reward + discount * best - tl.sum(cofactor * visited, axis=0)
                if mode == 0:
                    reported = tl.where(sweep == 0, error, 0.0)
                    absolute += tl.abs(reported)
                    squared += reported * reported
                tl.debug_barrier()
                _descend(factors, moments, offset, -weight * error * cofactor, index, step_size, mode, MODEL)
                tl.debug_barrier()
        if FAMILY.TERMINATES:
            u = uniforms(seed, now, zero, task, like, AUTORESET, FAMILY.RESET_UNIFORMS)
            s = choose(terminated | truncated, FAMILY.RESET(p, u, like), s, FAMILY.FIELDS)
            landed = places_of(s, like, FAMILY, MODEL)
        here = landed
    store(state, program, s, always, FAMILY.FIELDS)
    tl.store(statistics + program * 4, rewards)
    tl.store(statistics + program * 4 + 1, episodes)
    tl.store(statistics + program * 4 + 2, absolute)
    tl.store(statistics + program * 4 + 3, squared)
