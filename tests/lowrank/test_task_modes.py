"""Task modes: made-up rows of tasks against sums by hand, and learning against one tensor on longer observations."""

import pytest
import torch
from torch import Tensor

from torchq.lowrank import task_modes
from torchq.lowrank.low_rank_q import LowRankQ
from torchq.lowrank.modes import Mode
from torchq.lowrank.task_modes import Between, Levels, TaskModes
from torchq.lowrank.transitions import Transition

MODES = TaskModes(("mass", "length"), (Between(Mode(0.1, 10.0, 3, "log")), Levels((0.5, 0.7, 1.0))))
PARAMETERS = torch.tensor([[0.1, 0.5], [1.0, 0.7], [5.0, 0.7], [10.0, 1.0]], dtype=torch.float64)


def factors(generator, sizes=(3, 3), rank=4, seeds=2):
    return [torch.randn(seeds, 1, size, rank, generator=generator, dtype=torch.float64) for size in sizes]


def by_hand(found: list[Tensor], places) -> Tensor:
    """T[m, k] number by number."""
    seeds, rank, tasks = found[0].shape[0], found[0].shape[-1], len(places[0])
    table = torch.ones(seeds, 1, tasks, rank, dtype=torch.float64)
    for factor, place in zip(found, places, strict=True):
        for m in range(tasks):
            low = int(place[m])
            share = float(place[m]) - low
            for k in range(rank):
                for s in range(seeds):
                    upper = factor[s, 0, low + 1, k] if share else 0.0
                    table[s, 0, m, k] *= (1 - share) * factor[s, 0, low, k] + share * upper
    return table


def test_places_are_rows_or_between_points():
    mass, length = MODES.places(PARAMETERS)
    torch.testing.assert_close(mass, torch.tensor([0.0, 1.0, 1.69897, 2.0], dtype=torch.float64), atol=1e-6, rtol=0)
    assert length.tolist() == [0, 1, 1, 2]
    assert length.dtype == torch.int64


def test_parameters_without_a_row_or_beyond_the_ends_are_named():
    assert MODES.unknown((0.1, 0.5)) == []
    assert MODES.unknown((0.05, 0.6)) == ["mass", "length"]
    assert MODES.unknown((10.0001, 1.0)) == ["mass"]


def test_rows_of_tasks_are_products_of_their_parameters_rows(generator):
    found, places = factors(generator), MODES.places(PARAMETERS)
    torch.testing.assert_close(task_modes.compose(found, places), by_hand(found, places))


def test_the_chain_rule_gives_the_gradients_of_the_parameters_modes(generator):
    found, places = factors(generator), MODES.places(PARAMETERS)
    for factor in found:
        factor.requires_grad_()
    table = task_modes.compose(found, places)
    gradient = torch.randn(table.shape, generator=generator, dtype=torch.float64)
    expected = torch.autograd.grad(table, found, gradient)
    spread = task_modes.spread(gradient, [factor.detach() for factor in found], places)
    for ours, theirs in zip(spread, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("update_order", ["joint", "block"])
def test_learning_is_that_of_one_tensor_whose_observations_begin_with_the_parameters(update_order, generator):
    """The oracle knows nothing of tasks: clrq, with the parameters as two more dimensions of the observation."""
    options = {"action_sizes": (3,), "num_tasks": 4, "rank": 5, "update_order": update_order, "target_rate": 0.1,
               "optimizer": "adam"}  # fmt: skip
    ours = LowRankQ("stlrq", (5, 4), task_sizes=MODES.sizes, **options)
    theirs = LowRankQ("clrq", (*MODES.sizes, 5, 4), **options)
    seeds, places = torch.tensor([3, 8]), MODES.places(PARAMETERS)
    state = ours.init(seeds, device="cpu", dtype=torch.float64)._replace(task_places=places)
    other = theirs.start(theirs.init(seeds, device="cpu", dtype=torch.float64), state.factors)
    prefix = tuple(place.view(1, -1, 1).expand(2, 4, 6) for place in places)
    for step in range(20):
        here, landed = (
            (torch.randint(5, (2, 4, 6), generator=generator), 3 * torch.rand(2, 4, 6, generator=generator).double())
            for _ in range(2)
        )
        action = torch.randint(3, (2, 4, 6), generator=generator)
        reward = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
        discount, rate = torch.full_like(reward, 0.9), torch.tensor(0.05, dtype=torch.float64)
        state, error = ours.update(state, Transition(here, action, reward, discount, landed), rate)
        longer = Transition((*prefix, *here), action, reward, discount, (*prefix, *landed))
        other, expected = theirs.update(other, longer, rate)
        torch.testing.assert_close(error, expected, msg=f"step {step}")
    for name in ("factors", "target"):
        for mine, oracle in zip(getattr(state, name), getattr(other, name), strict=True):
            torch.testing.assert_close(mine, oracle)
    values = ours.action_values(ours.policy(state), here)
    torch.testing.assert_close(values, theirs.action_values(theirs.policy(other), (*prefix, *here)))


def test_a_policy_has_a_row_for_tasks_that_never_learn(generator):
    learner = LowRankQ("stlrq", (5,), (3,), 3, 4, task_sizes=MODES.sizes)
    state = learner.init(torch.tensor([1]), device="cpu", dtype=torch.float64)
    state = state._replace(task_places=MODES.places(PARAMETERS))
    table = learner.policy(state).factors[0]
    assert table.shape == (1, 1, 4, 4)
    torch.testing.assert_close(table, by_hand(list(state.factors[:2]), state.task_places))


def test_the_modes_of_parameters_begin_near_one():
    learner = LowRankQ("stlrq", (50,), (3,), 3, 200, task_sizes=(30, 40), init_scale=0.1)
    mass, length, state, _ = learner.init(torch.tensor([1]), device="cpu", dtype=torch.float64).factors
    for factor, mean, deviation in ((mass, 1.0, 0.3), (length, 1.0, 0.3), (state, 0.0, 0.1)):
        assert factor.mean().item() == pytest.approx(mean, abs=0.02)
        assert factor.std().item() == pytest.approx(deviation, rel=0.05)


def test_task_modes_are_for_stlrq():
    with pytest.raises(ValueError, match="task_sizes, only_tasks: expected only with stlrq, got clrq"):
        LowRankQ("clrq", (5,), (3,), 3, 4, task_sizes=(2, 2))
