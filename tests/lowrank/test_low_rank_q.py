import numpy as np
import pytest
import torch
from oracles import Adamax, block_update, joint_update

from torchq.lowrank.low_rank_q import LowRankQ
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sharing": "dqn"}, "sharing: expected stlrq, lrq or clrq, got 'dqn'"),
        ({"rank": 0}, "rank, num_tasks: expected at least 1, got 0 and 3"),
        ({"state_sizes": ()}, "state_sizes, action_sizes: expected sizes of at least 1"),
        ({"num_sweeps": 0}, "num_sweeps: expected at least 1, got 0"),
        ({"optimizer": "lion"}, "optimizer: expected one of sgd, adam, adamax, got 'lion'"),
        ({"update_order": "both"}, "update_order: expected joint or block, got 'both'"),
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
