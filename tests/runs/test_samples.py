"""Runs of more tasks than are tested."""

import json
import shutil

import numpy as np
import pytest
import torch
from problems import command_line, experiment, library

import torchq
from torchq.engines.select import build
from torchq.presets import resolve
from torchq.runs.metrics import MetricsFile, read_metrics
from torchq.runs.tasks import num_tested

FLAGS = ("--algo", "stlrq", "--env", "pendulum", "--num-seeds", 2, "--num-envs", 1, "--rank", 3, "--replay-ratio", 0,
         "--no-progress", "--device", "cpu")  # fmt: skip
SHORT = library(episode_length=10)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "many"
    given = ("--num-tasks", 1200, "--episodes", 3, "--eval-every", 1, "--engine", "fused", "--out", folder)
    code, out, err = command_line(*FLAGS, *given, library=SHORT)
    assert code == 0, err
    return folder, out


def test_a_sample_is_tested_and_told_of(many):
    folder, out = many
    summary = json.loads((folder / "summary.json").read_text())
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert "1,200 tasks (256 of them tested)" in out
    assert "final return over a sample of 256 of 1,200 tasks: mean" in out
    assert len(rows) == 1 + 3 * 2 * 256
    numbers = summary["tested"]
    assert [int(row.split(",")[3]) for row in rows[1:257]] == numbers == sorted(set(numbers))
    assert (summary["num_tasks"], len(summary["tasks"]), max(numbers) < 1200) == (1200, 256, True)
    assert len(set(np.array(numbers) // 300)) == 4  # From everywhere.
    final = torchq.load(folder).metrics.final_return().mean(0)
    over = summary["over_tasks"]
    assert over["quantiles"]["0.00"] == pytest.approx(final.min())
    assert over["quantiles"]["0.50"] == pytest.approx(np.median(final))
    assert over["worst"][0] == numbers[final.argmin()]
    assert over["best"][0] == numbers[final.argmax()]


def test_a_sampled_run_goes_on_as_if_it_had_not_stopped(many, tmp_path):
    for folder, lengths in ((tmp_path / "cut", (2, 4)), (tmp_path / "whole", (4,))):
        for count in lengths:
            given = ("--resume",) if folder.exists() else (*FLAGS, "--num-tasks", 1200, "--eval-every", 1)
            done = command_line(*given, "--episodes", count, "--out", folder, "--no-progress", library=SHORT)
            assert done[0] == 0, done[2]
    assert (tmp_path / "cut" / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()


@pytest.mark.parametrize(
    ("algo", "options"),
    [
        ("stlrq", {}),
        pytest.param("stlrq", {"task_modes": "linear"}, marks=pytest.mark.slow),
        ("stlrq", {"task_modes": "linear", "held_out": 0.2}),
        ("lrq", {}),
        pytest.param("clrq", {}, marks=pytest.mark.slow),
        ("tabular", {}),
    ],
)
@pytest.mark.parametrize("engine", ["eager", "fused"])
def test_a_sample_returns_what_it_would_among_all(algo, options, engine):
    if algo == "tabular" and engine == "fused":
        pytest.skip("the fused engine has no tables")
    given = {"env": "pendulum", "num_tasks": 20, "num_envs": 2, "num_seeds": 2, "dtype": "float64", "episodes": 4,
             "eval_every": 2, "engine": engine, **options}  # fmt: skip
    given |= {} if algo == "tabular" else {"rank": 3}
    everything = experiment(algo, library=SHORT, **given)
    some = experiment(algo, library=SHORT, eval_tasks=6, **given)
    assert some.task_set.numbers != everything.task_set.numbers
    assert len(some.task_list) == num_tested(some.config) == (10 if "held_out" in options else 6)
    assert len(everything.task_list) == num_tested(everything.config) == 20
    with torch.no_grad():
        state, expected = everything.play_block(everything.initial_state, 0, 4)
        ours, found = some.play_block(some.initial_state, 0, 4)
    numbers = list(some.task_set.numbers)
    assert [one.episode for one in found] == [one.episode for one in expected] == [2, 4]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.returns, other.returns[:, numbers], rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(ours.learner, state.learner, rtol=1e-9, atol=1e-12)


def test_a_policy_is_tested_on_any_tasks(many):
    run = torchq.load(many[0])
    sample = list(run.tasks.numbers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchq.families.make", lambda name, *_: SHORT[name]())
        tested, again = run.evaluate(3), run.evaluate(3, tasks=[sample[5], 7, sample[0]])
    assert (tested.shape, again.shape) == ((2, 256), (2, 3))
    np.testing.assert_allclose(again[:, [0, 2]], tested[:, [5, 0]], rtol=1e-6)
    assert run.policy.num_tasks == 1200
    assert run.policy.act([0.0, 0.0], task=1199) in range(run.policy.learner.action_sizes[0])


def test_evaluate_shows_the_spread(many, tmp_path):
    from torchq.cli.evaluate import main

    code, out, err = command_line(many[0], "--out", tmp_path, entry=main, library=SHORT)
    assert code == 0, err
    assert "and 240 more; --json has all" in out
    assert "over tasks: 0% -" in out
    code, out, _ = command_line(many[0], "--out", tmp_path, "--json", entry=main, library=SHORT)
    assert len(json.loads(out)["runs"][0]["tested"]) == 256


def test_how_many_are_tested_can_be_said(tmp_path):
    code, _, err = command_line(*FLAGS, "--eval-tasks", 1001, "--out", tmp_path / "run")
    assert (code, err.count("\n")) == (2, 1)
    assert "--eval-tasks: expected an integer of at least 1 and at most 1,000" in err
    config = resolve("stlrq", "pendulum", "default", {"num_tasks": 5000, "eval_tasks": 10})
    assert num_tested(config) == 10
    assert num_tested(config.replace(eval_tasks=None)) == 256
    assert num_tested(config.replace(eval_tasks=None, num_tasks=1000)) == 1000
    assert num_tested(config.replace(held_out=0.5)) == 20


def test_metrics_of_tasks_out_of_order_are_refused(tmp_path):
    metrics = MetricsFile(tmp_path, 0)
    metrics.append(1, 10, [0], [3, 9], [[1.0, 2.0]])
    metrics.append(2, 20, [0], [3, 9], [[1.0, 2.0]])
    metrics.close()
    assert read_metrics(tmp_path, 1, 2).returns.shape == (2, 1, 2)
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text().replace("0,3,", "0,10,"))
    with pytest.raises(torchq.TorchqError, match="expected tasks in order, got"):
        read_metrics(tmp_path, 1, 2)


def test_a_trial_of_engines_agrees_on_a_sample():
    run = experiment("stlrq", "pendulum", num_tasks=30, eval_tasks=5, library=SHORT)
    returns = [
        build(run.rollout, name).greedy_returns(
            run.rollout.tested(run.rollout.learner.policy(run.initial_state.learner)),
            run.rollout.reset(run.rollout.test_batch(), 0),
            0,
        )
        for name in ("eager", "fused")
    ]
    assert returns[0].shape == (8, 5, 1)
    torch.testing.assert_close(*returns, rtol=1e-4, atol=1e-3)


def test_a_lost_checkpoint_of_a_large_run_is_told(many, tmp_path):
    folder = shutil.copytree(many[0], tmp_path / "run")
    shutil.rmtree(folder / "checkpoint")
    code, _, err = command_line("--resume", "--out", folder, library=SHORT)
    assert (code, err.count("\n")) == (2, 1)
    assert "has lost it; start a new run" in err
