import re

import numpy as np
import pytest
import torch
from oracles import Adamax, block_update, hat_update, joint_update

from torchq.lowrank.low_rank_q import LowRankQ
from torchq.lowrank.tabular_q import TabularQ
from torchq.lowrank.transitions import Transition

GAMMA = 0.9
SHAPES = {"per-dimension": (5, 4), "joint": (7,), "four-dimensions": (3, 2, 4, 2)}


def make(sharing, state_sizes, action_sizes=(3,), num_tasks=3, **options):
    learner = LowRankQ(sharing, state_sizes, action_sizes, num_tasks, rank=4, init_scale=0.7, **options)
    return learner, learner.init(torch.tensor([3, 8]), device="cpu", dtype=torch.float64)


def random_transition(learner, generator, tasks, envs=1):
    shape = (2, tasks, envs)

    def indices():
        return tuple(torch.randint(size, shape, generator=generator) for size in learner.state_sizes)

    action = torch.randint(int(np.prod(learner.action_sizes)), shape, generator=generator)
    reward = torch.randn(shape, generator=generator, dtype=torch.float64)
    return Transition(indices(), action, reward, torch.full(shape, GAMMA, dtype=torch.float64), indices())


def oracle_factors(learner, state, seed, task):
    group = task if learner.groups > 1 else 0
    return [factor[seed, group].numpy().copy() for factor in state.factors]


def oracle_indices(learner, index, action, position, task):
    actions = np.unravel_index(action[position].item(), learner.action_sizes) if action is not None else ()
    prefix = (task,) if learner.has_task_mode else ()
    return (*prefix, *(i[position].item() for i in index), *(int(a) for a in actions))


@pytest.mark.parametrize("action_sizes", [(3,), (2, 3)])
@pytest.mark.parametrize("state_sizes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("sharing", ["stlrq", "lrq", "clrq"])
def test_chain_of_online_updates_equals_oracle(sharing, state_sizes, action_sizes, generator):
    """One update to 1e-12, 400 chained ones to 1e-9: tasks in turn, except lrq whose tasks run side by side."""
    sweeps = 4 if sharing == "lrq" else 1
    learner, state = make(sharing, state_sizes, action_sizes, update_order="block", loss_scale=2.0, num_sweeps=sweeps)
    tasks = learner.num_tasks if sharing == "lrq" else 1
    chains = {}
    for seed in range(2):
        for task in range(tasks):
            factors = oracle_factors(learner, state, seed, task)
            chains[seed, task] = factors, Adamax(factors, 0.01)
    length = 400 // sweeps if action_sizes == (3,) and state_sizes != (3, 2, 4, 2) else 20
    for count in range(length):
        number = None if sharing == "lrq" else count // 7 % learner.num_tasks
        transition = random_transition(learner, generator, tasks)
        state, _ = learner.update(
            state,
            transition,
            torch.tensor(0.01, dtype=torch.float64),
            None if number is None else torch.tensor([number]),
        )
        for (seed, task), (factors, optimizer) in chains.items():
            where = (seed, task, 0)
            name = task if number is None else number
            indices = oracle_indices(learner, transition.state_index, transition.action, where, name)
            following = oracle_indices(learner, transition.next_state_index, None, where, name)
            for _ in range(sweeps):
                reward = transition.reward[where].item()
                block_update(factors, optimizer, indices, following, reward, GAMMA, action_sizes)
            for ours, theirs in zip(oracle_factors(learner, state, seed, task), factors, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 if count == 0 else 1e-9)


@pytest.mark.parametrize("envs", [1, 3, 40])
@pytest.mark.parametrize("sharing", ["stlrq", "lrq", "clrq"])
def test_batched_update_equals_sum_over_its_transitions(sharing, envs, generator):
    """Small modes and up to 120 transitions a batch: every row is hit many times, and nothing is lost."""
    weights = (1.0, 0.25, 3.0)
    learner, state = make(sharing, (3, 2), task_weights=weights)
    chains = {}
    groups = [[task] for task in range(3)] if sharing == "lrq" else [[0, 1, 2]]
    for seed in range(2):
        for group in groups:
            factors = oracle_factors(learner, state, seed, group[0])
            chains[seed, group[0]] = factors, Adamax(factors, 0.02), group
    for _ in range(5):
        transition = random_transition(learner, generator, 3, envs)
        state, _ = learner.update(state, transition, torch.tensor(0.02, dtype=torch.float64))
        for (seed, first), (factors, optimizer, group) in chains.items():
            batch = [
                (
                    oracle_indices(learner, transition.state_index, transition.action, (seed, task, env), task),
                    oracle_indices(learner, transition.next_state_index, None, (seed, task, env), task),
                    transition.reward[seed, task, env].item(),
                    task,
                )
                for task in group
                for env in range(envs)
            ]
            joint_update(factors, optimizer, batch, GAMMA, (3,), weights)
            for ours, theirs in zip(oracle_factors(learner, state, seed, first), factors, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11)


def test_interpolated_updates_with_a_target_tensor_equal_the_oracle(generator):
    """Places between rows, in one mode after the last; a target tensor that follows by a tenth."""
    learner, state = make("stlrq", (5, 4), target_rate=0.1)
    assert all(torch.equal(mean, factor) for mean, factor in zip(state.target, state.factors, strict=True))
    chains = []
    for seed in range(2):
        factors = oracle_factors(learner, state, seed, 0)
        chains.append((factors, [factor.copy() for factor in factors], Adamax(factors, 0.02)))
    for _ in range(6):
        whole = random_transition(learner, generator, 3, 4)

        def places(shape=whole.reward.shape):
            between = 5 * torch.rand(shape, generator=generator, dtype=torch.float64)
            return between, torch.randint(4, shape, generator=generator)

        transition = whole._replace(state_index=places(), next_state_index=places())
        state, _ = learner.update(state, transition, torch.tensor(0.02, dtype=torch.float64))
        for seed, (factors, target, optimizer) in enumerate(chains):
            batch = [
                (
                    (task, *(p[seed, task, env].item() for p in transition.state_index),
                     transition.action[seed, task, env].item()),
                    (task, *(p[seed, task, env].item() for p in transition.next_state_index)),
                    transition.reward[seed, task, env].item(),
                )
                for task in range(3) for env in range(4)
            ]  # fmt: skip
            hat_update(factors, target, optimizer, batch, GAMMA, 3)
            for mean, factor in zip(target, factors, strict=True):
                mean += 0.1 * (factor - mean)
            for ours, theirs in zip(oracle_factors(learner, state, seed, 0), factors, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11)
            kept = oracle_factors(learner, learner.policy(state), seed, 0)
            for ours, theirs in zip(kept, target, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11)


def test_the_lookup_of_one_task_is_its_column_between_rows_too(generator):
    for sharing in ("stlrq", "lrq", "clrq"):
        learner, state = make(sharing, (5, 4))
        places = (
            5 * torch.rand(6, generator=generator, dtype=torch.float64),
            torch.randint(4, (6,), generator=generator),
        )
        found = learner.lookup(state, places, torch.tensor([0, 1, 2, 0, 1, 2]))
        whole = learner.action_values(state, tuple(place.expand(2, 3, 6) for place in places))
        for env in range(6):
            torch.testing.assert_close(found[:, env], whole[:, env % 3, env])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_rate": 0.0}, "target_rate: expected a number above 0 and at most 1, got 0.0"),
        ({"sharing": "dqn"}, "sharing: expected one of stlrq, lrq, clrq, got 'dqn'"),
        ({"rank": 0}, "rank, num_tasks: expected at least 1, got 0 and 3"),
        ({"state_sizes": ()}, "state_sizes, action_sizes: expected sizes of at least 1"),
        ({"num_sweeps": 0}, "num_sweeps: expected at least 1, got 0"),
        ({"optimizer": "lion"}, "optimizer: expected one of sgd, adam, adamax, got 'lion'"),
        ({"update_order": "both"}, "update_order: expected one of joint, block, got 'both'"),
        ({"task_weights": (1.0,)}, "task_weights: expected 3 weights, got 1"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LowRankQ(
            **{"sharing": "stlrq", "state_sizes": (4,), "action_sizes": (2,), "num_tasks": 3, "rank": 2, **options}
        )


def test_lrq_refuses_a_single_task(generator):
    learner, state = make("lrq", (4,))
    with pytest.raises(ValueError, match="task: expected None, because the tasks of lrq learn side by side"):
        learner.action_values(state, (torch.zeros(2, 1, 1, dtype=torch.int64),), torch.tensor([1]))


MISSHAPEN = {
    "one task of three": (lambda t: cut(t, slice(0, 1)), "reward: expected the shape (2 seeds, 3 tasks, envs)"),
    "another number of seeds": (lambda t: cut(t, slice(None), slice(0, 1)), "got (1, 3, 4)"),
    "flat indices": (
        lambda t: t._replace(state_index=tuple(i.flatten() for i in t.state_index)),
        "state_index: expected the shape (2 seeds, 3 tasks, envs), alike in all fields, got (24,)",
    ),
    "flat": (lambda t: type(t)(*(flatten(field) for field in t)), "reward: expected the shape"),
    "an action for all": (lambda t: t._replace(action=t.action[..., :1]), "action: expected"),
    "a number": (lambda t: t._replace(discount=torch.tensor(0.9)), "discount: expected"),
    "a mode too few": (
        lambda t: t._replace(next_state_index=t.next_state_index[:1]),
        "next_state_index: expected 2 tensors, one per state mode, got 1",
    ),
}


def cut(transition, tasks, seeds=slice(None)):
    return type(transition)(
        *(tuple(i[seeds, tasks] for i in x) if isinstance(x, tuple) else x[seeds, tasks] for x in transition)
    )


def flatten(field):
    return tuple(i.flatten() for i in field) if isinstance(field, tuple) else field.flatten()


@pytest.mark.parametrize("sharing", ["stlrq", "lrq", "clrq", "tabular"])
@pytest.mark.parametrize(("damage", "message"), MISSHAPEN.values(), ids=MISSHAPEN)
def test_batches_that_would_broadcast_are_refused(sharing, damage, message, generator):
    learner = TabularQ((4, 5), 3, 3) if sharing == "tabular" else LowRankQ(sharing, (4, 5), (3,), 3, rank=2)
    state = learner.init(torch.arange(2), device="cpu", dtype=torch.float64)
    shape = (2, 3, 4)
    rows, following = (tuple(torch.randint(n, shape, generator=generator) for n in (4, 5)) for _ in range(2))
    reward = torch.randn(shape, generator=generator, dtype=torch.float64)
    whole = Transition(rows, torch.randint(3, shape, generator=generator), reward, 0.9 + 0 * reward, following)
    learner.update(state, whole, torch.tensor(0.1))
    with pytest.raises(ValueError, match=re.escape(message)):
        learner.update(state, damage(whole), torch.tensor(0.1))


def test_a_batch_of_the_task_named_is_taken(generator):
    learner = LowRankQ("stlrq", (4,), (3,), 3, rank=2)
    state = learner.init(torch.arange(2), device="cpu", dtype=torch.float64)
    index, reward = torch.zeros(2, 1, 1, dtype=torch.int64), torch.ones(2, 1, 1, dtype=torch.float64)
    one = Transition((index,), index, reward, reward, (index,))
    learner.update(state, one, torch.tensor(0.1), torch.tensor([2]))
    with pytest.raises(ValueError, match=r"expected the shape \(2 seeds, 3 tasks, envs\), alike in all fields, got"):
        learner.update(state, one, torch.tensor(0.1))
