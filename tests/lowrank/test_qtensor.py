import itertools

import numpy as np
import pytest
import tensorly
import torch
from oracles import action_values
from problems import command_line, experiment, library
from tensorly.decomposition import parafac

from torchq import QTensor, load
from torchq.checkpoint import load_checkpoint
from torchq.tree import unflatten

SHAPES = [((6,), (3,), ()), ((6,), (3,), (2,)), ((4, 5), (3,), (2,)), ((2, 3, 2), (2, 3), (2, 2))]


def indices(sizes, generator, batch=7):
    return tuple(torch.randint(size, (batch,), generator=generator) for size in sizes)


@pytest.mark.parametrize(("states", "actions", "tasks"), SHAPES)
def test_entries_values_and_greedy_actions_agree_with_the_dense_tensor(states, actions, tasks, generator):
    q = QTensor(states, actions, tasks, rank=3, generator=generator, dtype=torch.float64)
    state, action, task = (indices(sizes, generator) for sizes in (states, actions, tasks))
    dense = q.dense()
    assert dense.shape == (*states, *actions, *tasks)
    torch.testing.assert_close(q(state, action, task), dense[(*state, *action, *task)])
    ordered = dense.movedim(tuple(range(len(states), len(states) + len(actions))), tuple(range(-len(actions), 0)))
    expected = ordered[(*state, *task)].flatten(-len(actions) if actions else -1)
    torch.testing.assert_close(q.action_values(state, task), expected)
    greedy = q.greedy_action(state, task)
    best = torch.unravel_index(expected.argmax(-1), actions)
    for ours, theirs in zip((greedy,) if len(actions) == 1 else greedy, best, strict=True):
        assert torch.equal(ours, theirs)


def test_action_values_equal_the_oracle(generator):
    q = QTensor((4, 5), (2, 3), (), rank=3, generator=generator, dtype=torch.float64)
    factors = [factor.detach().numpy() for factor in q.factors]
    for i, j in itertools.product(range(4), range(5)):
        values = q.action_values((torch.tensor(i), torch.tensor(j)))
        np.testing.assert_allclose(values.detach(), action_values(factors, (i, j), (2, 3)), atol=1e-13)


def test_tensorly_works_on_it_and_gives_it_back(generator):
    tensorly.set_backend("pytorch")
    q = QTensor((4, 5), 3, 6, rank=2, generator=generator, dtype=torch.float64)
    cp_tensor = q.to_cp()
    torch.testing.assert_close(tensorly.cp_to_tensor(cp_tensor), q.dense().detach())
    torch.testing.assert_close(tensorly.cp_norm(cp_tensor), q.norm().detach())
    back = QTensor.from_cp(cp_tensor, num_state_modes=2)
    torch.testing.assert_close(back.dense(), q.dense())
    fitted = parafac(q.dense().detach(), rank=2, n_iter_max=500, tol=1e-12, random_state=0, init="svd")
    again = QTensor.from_cp(fitted, num_state_modes=2)
    assert (again.state_sizes, again.action_sizes, again.task_sizes, again.rank) == ((4, 5), (3,), (6,), 2)
    assert (again.dense() - q.dense()).norm() / q.norm() < 1e-4


def test_tensorlys_numpy_back_end_is_served_too(generator):
    q = QTensor((4, 5), 3, 6, rank=2, generator=generator, dtype=torch.float64)
    with tensorly.backend_context("numpy"):
        cp_tensor = q.to_cp()
        np.testing.assert_allclose(tensorly.cp_to_tensor(cp_tensor), q.dense().detach().numpy())
        assert np.shares_memory(cp_tensor.factors[0], q.factors[0].detach().numpy())
        back = QTensor.from_cp(cp_tensor, num_state_modes=2)
    torch.testing.assert_close(back.dense(), q.dense())


def test_places_between_rows_give_weighted_means_and_gradients_into_both(generator):
    q = QTensor((4, 5), 3, 2, rank=3, generator=generator, dtype=torch.float64)
    whole, task = torch.tensor([3, 0, 2]), torch.tensor([1, 0, 1])
    place = torch.tensor([0.25, 3.5, 4.0], dtype=torch.float64)  # 4.0 is the last row.
    below, above = (q.action_values((whole, rows), task) for rows in (torch.tensor([0, 3, 4]), torch.tensor([1, 4, 0])))
    w = (place - place.floor()).unsqueeze(-1)
    torch.testing.assert_close(q.action_values((whole, place), task), (1 - w) * below + w * above)

    def function(place, *factors):
        return torch.func.functional_call(
            q, {f"factors.{i}": factor for i, factor in enumerate(factors)}, ((whole, place), whole - whole, task)
        )

    inside = torch.tensor([0.25, 3.5, 1.75], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (inside, *q.factors))


def test_any_optimiser_trains_it_in_a_plain_loop(generator):
    target = QTensor((5, 4), 3, 2, rank=2, generator=generator).dense().detach()
    q = QTensor((5, 4), 3, 2, rank=4, generator=generator)
    optimizer = torch.optim.Adam(q.parameters(), lr=0.05)
    where = tuple(torch.cartesian_prod(*(torch.arange(size) for size in target.shape)).unbind(-1))
    for _ in range(400):
        loss = (q(where[:2], where[2], where[3]) - target[where]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3 * target.square().mean()


def test_gradients_of_entries_pass_gradcheck(generator):
    q = QTensor((3, 2), 2, 2, rank=2, generator=generator, dtype=torch.float64)
    state, action, task = indices((3, 2), generator), indices((2,), generator)[0], indices((2,), generator)[0]

    def entries(*factors):
        return torch.func.functional_call(q, {f"factors.{i}": f for i, f in enumerate(factors)}, (state, action, task))

    assert torch.autograd.gradcheck(entries, tuple(factor.detach().requires_grad_() for factor in q.factors))


def test_moves_and_saves_like_any_module(generator):
    q = QTensor((3, 2), 2, 4, rank=2, generator=generator)
    twin = QTensor((3, 2), 2, 4, rank=2)
    twin.load_state_dict(q.state_dict())
    assert torch.equal(twin.dense(), q.dense())
    assert q.to(torch.float64).dense().dtype == torch.float64
    assert q.to("meta").dense().device.type == "meta"


def test_sizes_may_be_numpy_integers():
    assert QTensor(np.int64(4), np.int64(3), (np.int64(2),), rank=1).dense().shape == (4, 3, 2)


def test_building_from_factors_leaves_the_global_generator_alone():
    cp_tensor = QTensor(4, 3, rank=2).to_cp()
    before = torch.get_rng_state()
    QTensor.from_cp(cp_tensor, num_state_modes=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_entries_start_at_unit_scale(generator):
    for rank in (1, 30):
        q = QTensor((20, 20), 10, 8, rank=rank, generator=generator)
        assert 0.2 < q.dense().std() < 5


def test_rebalancing_in_place_keeps_the_tensor(generator):
    q = QTensor(5, 3, 2, rank=2, generator=generator, dtype=torch.float64)
    before = q.dense().detach()
    with torch.no_grad():
        q.factors[0].mul_(1e4)
    torch.testing.assert_close(q.rebalance_().dense().detach(), 1e4 * before)


@pytest.mark.parametrize("algo", ["stlrq", "lrq", "clrq"])
def test_a_trained_run_becomes_a_qtensor(tmp_path, algo):
    """The same action values as the learner that was trained."""
    arguments = ("--algo", algo, "--env", "wireless", "--episodes", 1, "--num-seeds", 2, "--engine", "eager")
    assert command_line(*arguments, "--out", tmp_path / "run", library=library(episode_length=3))[0] == 0
    experiment_ = experiment(algo, "wireless", num_seeds=2)
    tensors, _ = load_checkpoint(tmp_path / "run" / "checkpoint", algo)
    state = unflatten(experiment_.initial_state._replace(replay=()), tensors).learner
    state = experiment_.rollout.learner.policy(state)
    index = tuple(torch.full((2, 4, 1), 1) for _ in range(4))
    expected = experiment_.rollout.learner.action_values(state, index)[1, 2, 0]
    q = QTensor.from_run(tmp_path / "run", run=1, task=2 if algo == "lrq" else None)
    assert q.task_sizes == ((4,) if algo == "stlrq" else ())
    task = torch.tensor(2) if algo == "stlrq" else ()
    torch.testing.assert_close(q.action_values(tuple(torch.tensor(1) for _ in range(4)), task).detach(), expected)
    with pytest.raises(ValueError, match="run: expected a number from 0 to 1, got 2"):
        QTensor.from_run(tmp_path / "run", run=2)


@pytest.mark.parametrize("algo", ["stlrq", "lrq", "clrq"])
@pytest.mark.parametrize("more", [(), ("--state-modes", "joint")], ids=["per dimension", "joint"])
def test_a_run_with_several_action_modes_becomes_the_tensor_that_it_loads_as(tmp_path, algo, more):
    machine = ("--env", "gym:gym_machines:Machine-v0", "--env-option", "workers=0", "--vary", "gain=0.5,1")
    short = ("--episodes", 1, "--num-seeds", 2, "--rank", 3, "--device", "cpu", "--out", tmp_path / "a")
    assert command_line("--algo", algo, *machine, *more, *short)[::2] == (0, "")
    whole = load(tmp_path / "a", run=1).q_tensor
    for task in range(2):
        q = QTensor.from_run(tmp_path / "a", run=1, task=task if algo == "lrq" else None)
        assert q.action_sizes == (5, 5)
        assert q.state_sizes == ((432,) if more else (3, 12, 12))
        dense = q.dense() if algo != "stlrq" else q.dense()[..., task]
        expected = whole.dense() if algo == "clrq" else whole.dense()[..., task]
        torch.testing.assert_close(dense, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: QTensor(5, 3, rank=0), "rank: expected at least 1, got 0"),
        (lambda: QTensor((5, 0), 3, rank=1), r"state_sizes: expected 1 or more sizes of at least 1, got \(5, 0\)"),
        (lambda: QTensor(5, (), rank=1), r"action_sizes: expected 1 or more sizes of at least 1, got \(\)"),
        (
            lambda: QTensor(5, 3, 2, rank=1)(torch.zeros(1, dtype=int), torch.zeros(1, dtype=int)),
            "task: expected 1 index tensors, one per mode, got 0",
        ),
        (
            lambda: QTensor.from_cp(QTensor(5, 3, rank=1).to_cp(), num_state_modes=3),
            r"expected at least 4 modes \(states, actions, tasks\), got 2",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_indices_may_be_of_any_integer_type(kind, generator):
    q = QTensor((4, 5), 3, 6, rank=2, generator=generator, dtype=torch.float64)
    state, action, task = (indices(sizes, generator) for sizes in ((4, 5), (3,), (6,)))
    small = [[one.to(kind) for one in group] for group in (state, action, task)]
    assert torch.equal(q(*small), q(state, action, task))
    assert torch.equal(q.action_values(small[0], small[2]), q.action_values(state, task))


@pytest.mark.parametrize("wrong", [-1, 3])
def test_rows_that_there_are_not_are_refused(wrong):
    q = QTensor(4, 3, rank=2)
    with pytest.raises(
        IndexError, match=rf"^action: expected indices from 0 to 2, got {min(0, wrong)} to {max(0, wrong)}$"
    ):
        q(torch.tensor([0, 1]), torch.tensor([0, wrong]))
    with pytest.raises(ValueError, match=r"^state: expected whole numbers, or places between rows, got torch.bool$"):
        q(torch.tensor([True, False]), torch.tensor([0, 1]))


def test_gradients_of_each_sample_come_by_vmap(generator):
    q = QTensor((4, 5), 3, 6, rank=2, generator=generator, dtype=torch.float64)
    parameters = dict(q.named_parameters())
    first, second, action, task = (torch.randint(size, (7,), generator=generator) for size in (4, 5, 3, 6))

    def entry(parameters, *index):
        return torch.func.functional_call(q, parameters, (index[:2], index[2], index[3]))

    each = torch.func.vmap(torch.func.grad(entry), (None, 0, 0, 0, 0))(parameters, first, second, action, task)
    q(torch.stack((first, second)).unbind(), action, task).sum().backward()
    for name, parameter in parameters.items():
        assert each[name].shape == (7, *parameter.shape)
        torch.testing.assert_close(each[name].sum(0), parameter.grad)
