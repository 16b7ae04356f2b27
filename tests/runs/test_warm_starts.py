"""Warm starts between quadratic Q-functions and Q-tensors."""

import json

import numpy as np
import pytest
import torch
from problems import command_line

import envs
import torchq
from torchq.engines import protocols
from torchq.lowrank import cp
from torchq.presets import resolve
from torchq.quadratic.forms import Quadratic
from torchq.runs import conversion
from torchq.runs.experiment import prepare
from torchq.runs.monte_carlo import make_cases
from torchq.runs.warm_starts import quadratic_starts, start_low_rank


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_quadratic():
    root = normal(3, 3)
    return Quadratic(-root @ root.mT, normal(3, 2, seed=1), torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64))


def test_action_values_are_the_quadratic_form():
    q, phi, deviation, value = some_quadratic(), normal(4, 3, seed=2), normal(4, 2, seed=3), normal(4, seed=4)
    for i, q_value in enumerate(conversion.action_values(q, phi, deviation, value)):
        f, u = phi[i], deviation[i]
        torch.testing.assert_close(q_value, value[i] + f @ q.P @ f + 2 * f @ q.S @ u - u @ q.R @ u)


def test_decomposition_finds_a_low_rank_tensor():
    table = cp.dense([normal(size, 4, seed=size) for size in (4, 7, 6, 5)])
    factors = conversion.decompose(table, 8)
    assert [tuple(factor.shape) for factor in factors] == [(4, 8), (7, 8), (6, 8), (5, 8)]
    assert (cp.dense(factors) - table).norm() < 5e-3 * table.norm()


def test_decomposition_has_no_large_components_that_cancel():
    """θ² and its like are sums of few components that ALS alone would make large."""
    x, y, z = torch.linspace(-1, 1, 20).double(), torch.linspace(-1, 1, 15).double(), torch.linspace(-1, 1, 10).double()
    table = -((x[:, None, None] + y[:, None] + 0.5 * z) ** 2)
    factors = conversion.decompose(table, 12)
    assert (cp.dense(factors) - table).norm() < 5e-3 * table.norm()
    sizes = torch.stack([factor.norm(dim=0) for factor in factors]).prod(0)
    assert sizes.sum() < 6 * table.norm()


def test_compression_keeps_order_and_small_values():
    values = torch.tensor([-1e6, -500.0, -100.0, -99.0, 0.0, 3.0], dtype=torch.float64)
    drawn = conversion.compress(values, 100.0)
    torch.testing.assert_close(drawn[2:], values[2:])
    assert (drawn.diff() > 0).all()
    assert drawn[0] == pytest.approx(-100 * (1 + 4 * torch.log(torch.tensor(10.0).double()).item()))


def test_a_quadratic_is_fitted_exactly_and_its_control_block_kept_positive():
    q, phi, deviation, value = some_quadratic(), normal(60, 3, seed=2), normal(60, 2, seed=3), normal(60, seed=4)
    found = conversion.fit_quadratic(conversion.action_values(q, phi, deviation, value), phi, deviation, value, 1e-4)
    for ours, theirs in zip(found, q, strict=True):
        torch.testing.assert_close(ours, theirs)
    upside_down = conversion.action_values(q._replace(R=-q.R), phi, deviation, value)
    found = conversion.fit_quadratic(upside_down, phi, deviation, value, 1e-4)
    assert torch.linalg.eigvalsh(found.R).min() == pytest.approx(1e-4)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A quadratic run and a low-rank run on the pendulum family."""
    folder = tmp_path_factory.mktemp("runs")
    quick = ("--num-seeds", 2, "--no-progress")
    assert (
        command_line("--algo", "lmi-qli", "--env", "pendulum", *quick, "--sizes", "20", "--out", folder / "quadratic")[
            0
        ]
        == 0
    )
    few = ("--episodes", 2, "--engine", "eager", "--no-optimal", "--rank", 6)
    assert command_line("--algo", "stlrq", *quick, *few, "--out", folder / "stlrq")[0] == 0
    return folder


def experiment(algo, source, **flags):
    config = resolve(
        algo, "pendulum", "default", {"num_seeds": 3, "engine": "eager", "warm_start": str(source), **flags}
    )
    return prepare(config.replace(device="cpu"), envs.Pendulum(), start_low_rank)


@pytest.mark.parametrize(("algo", "flags"), [
    ("stlrq", {}), ("stlrq", {"state_modes": "joint"}), ("lrq", {}),
])  # fmt: skip
def test_the_tensor_starts_where_the_quadratics_ended(runs, algo, flags):
    """From 20 samples a task near upright, the greedy policy swings all pendulums up before any training."""
    warm = experiment(algo, runs / "quadratic", **flags)
    with torch.no_grad():
        returns = warm.evaluate(warm.initial_state.learner, 0).median(0).values
    assert (returns > torch.tensor([-135.0, -95.0, -105.0, -130.0])).all(), returns


def test_shared_factors_start_from_the_mean_of_the_tasks(runs):
    run = experiment("clrq", runs / "quadratic")
    warm, cold = (
        run.initial_state.learner,
        run.rollout.learner.init(run.rollout.seeds, device="cpu", dtype=torch.float32),
    )
    assert [factor.shape for factor in warm.guide.factors] == [factor.shape for factor in cold.factors]
    assert cp.dense([factor[0, 0] for factor in warm.guide.factors]).mean() < -10


def test_a_guide_leaves_the_learners_values_cold_and_without_its_margin_they_are_the_start(runs):
    run, values = (experiment("stlrq", runs / "quadratic", guide_margin=margin) for margin in (6.0, 0.0))
    cold = run.rollout.learner.init(run.rollout.seeds, device="cpu", dtype=torch.float32)
    guided, alone = run.initial_state.learner, values.initial_state.learner
    assert all(map(torch.equal, guided.factors, cold.factors))
    assert all(map(torch.equal, guided.guide.factors, alone.factors))
    assert alone.guide == ()


def test_a_run_of_the_same_kind_goes_on_with_its_rates_and_with_other_tasks(runs, tmp_path):
    few = ("--num-seeds", 2, "--episodes", 1, "--engine", "eager", "--no-optimal", "--no-progress", "--rank", 6)
    tasks = ("--task", "mass=0.11;0.3,length=1")
    code, _, err = command_line("--algo", "stlrq", *few, *tasks, "--warm-start", runs / "stlrq", "--out", tmp_path)
    assert (code, err) == (0, "")
    run = torchq.load(tmp_path)
    assert run.config.samples_before == 200
    found = experiment("stlrq", runs / "stlrq", rank=6, tasks=run.config.tasks, samples_before=200)
    whole = experiment("stlrq", runs / "stlrq", rank=6).initial_state.learner.factors
    ours = found.initial_state.learner.factors
    assert torch.equal(ours[0][:, :, 0], whole[0][:, :, 1])  # 0.11 kg and 1 m are near the second of the paper's.
    assert torch.equal(ours[1], whole[1])
    rates = protocols.turn_rates(found.config, found.rollout, 0, 0)
    assert rates.epsilon[0].item() == pytest.approx(0.998**200)
    assert rates.learning_rate[0].item() == pytest.approx(0.01 / (1 + 200 / 10_000))


def test_a_run_of_the_same_kind_hands_its_factors_over(runs):
    warm = experiment("stlrq", runs / "stlrq", rank=6).initial_state.learner.factors
    assert torch.equal(warm[1][2], warm[1][0])
    assert not torch.equal(warm[1][1], warm[1][0])


def test_training_from_a_warm_start_records_it_and_resumes(runs, tmp_path):
    few = ("--num-seeds", 2, "--episodes", 2, "--engine", "eager", "--no-optimal", "--no-progress")
    code, _, err = command_line("--algo", "stlrq", *few, "--warm-start", runs / "quadratic", "--out", tmp_path)
    assert (code, err) == (0, "")
    assert json.loads((tmp_path / "config.json").read_text())["warm_start"] == str(runs / "quadratic")
    code, _, err = command_line("--resume", "--out", tmp_path, "--episodes", 4, "--no-progress")
    assert (code, err) == (0, "")


def test_what_is_evaluated_is_what_was_tested(runs, tmp_path):
    """With several updates a step, whose number the guide's margin follows."""
    command_line("--algo", "stlrq", "--num-seeds", 2, "--episodes", 3, "--engine", "eager", "--no-optimal", "--no-progress",
                 "--replay-ratio", 4, "--guide-samples", 1000, "--guide-margin", 1000, "--warm-start",
                 runs / "quadratic", "--out", tmp_path)  # fmt: skip
    run = torchq.load(tmp_path)
    assert run.policy.state.guide.margin == pytest.approx(700.0)
    assert np.abs(run.evaluate(2) - run.metrics.returns[-1]).max() < 100


def test_iterations_start_from_a_q_tensor(runs, tmp_path):
    config = resolve("lmi-qli", "pendulum", "default", {"warm_start": str(runs / "stlrq")})
    starts = quadratic_starts(config, make_cases(config, envs.Pendulum()), envs.Pendulum())
    assert [tuple(part.shape) for part in starts] == [(2, 4, 3, 3), (2, 4, 3, 1), (2, 4, 1, 1)]
    assert (torch.linalg.eigvalsh(starts.R) > 0).all()
    arguments = ("--env", "pendulum", "--num-seeds", 2, "--sizes", "20", "--iterations", 1, "--no-progress")
    assert command_line("--algo", "lmi-qli", *arguments, "--out", tmp_path / "cold")[0] == 0
    assert (
        command_line("--algo", "lmi-qli", *arguments, "--warm-start", runs / "stlrq", "--out", tmp_path / "warm")[0]
        == 0
    )
    assert (tmp_path / "cold" / "metrics.csv").read_bytes() != (tmp_path / "warm" / "metrics.csv").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--algo", "tabular", "--warm-start", "quadratic"), "--warm-start: expected only with --algo stlrq, lrq, clrq or lmi-qli"),
        (("--algo", "stlrq", "--env", "wireless", "--warm-start", "quadratic"), "expected a run of lmi-ql or lmi-qli or lspi or stlrq on wireless, got lmi-qli on pendulum"),
        (("--algo", "lrq", "--warm-start", "stlrq"), "got stlrq on pendulum"),
        (("--algo", "stlrq", "--rank", 6, "--features", "cells", "--warm-start", "stlrq"), "--features: expected linear, as in the run of --warm-start, got cells; use the source's"),
        (("--algo", "stlrq", "--rank", 7, "--warm-start", "stlrq"), "--rank: expected 6, as in the run of --warm-start, got 7; use the source's"),
        (("--algo", "stlrq", "--num-tasks", 3, "--warm-start", "quadratic"), "expected a run with 3 tasks, got 4; use --num-tasks 4"),
        (("--algo", "stlrq", "--task-modes", "linear", "--warm-start", "quadratic"), "--task-modes: expected table with --warm-start from lmi-qli, got linear"),
        (("--algo", "stlrq", "--task", "mass=0.3;0.4,length=0.5;1", "--warm-start", "quadratic"), "--tasks: expected mass=0.01,length=1, as in the run of --warm-start, got mass=0.3,length=0.5 as task 0"),
        (("--algo", "clrq", "--held-out", 0.25, "--warm-start", "quadratic"), "--held-out, --test-tasks: expected none with --warm-start from lmi-qli"),
        (("--algo", "stlrq", "--warm-start", "nothing"), "--warm-start: expected a run folder, but nothing does not exist"),
        (("--algo", "lmi-qli", "--warm-start", "stlrq"), "--warm-start: expected a family that low-rank learners know too, such as pendulum"),
    ],
)  # fmt: skip
def test_a_source_that_does_not_fit_gets_one_line(runs, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(runs)
    code, _, err = command_line(*arguments, "--out", tmp_path / "run")
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not (tmp_path / "run").exists()
