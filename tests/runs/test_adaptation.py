"""New tasks from a run of others: what they start from, what learns, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from problems import command_line, outcome, start_process

import envs
import torchq
from torchq.errors import UsageError
from torchq.runs.adaptation import adapted_config, known_rows, nearest, read_source, start_rows
from torchq.runs.task_specs import read_tasks

GRID = "mass=0.1:1:3,length=0.5:1:3"
NEW = "mass=0.3;0.4,length=0.7"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Trained runs: a row per task, and a mode per parameter."""
    folder = tmp_path_factory.mktemp("adapt")
    quick = (
        "--num-seeds",
        2,
        "--task",
        GRID,
        "--episodes",
        60,
        "--eval-every",
        30,
        "--no-optimal",
        "--engine",
        "fused",
    )
    for modes in ("table", "linear"):
        code, _, err = command_line("--algo", "stlrq", *quick, "--task-modes", modes, "--out", folder / modes)
        assert (code, err) == (0, "")
    return folder


def adapt(*arguments):
    code, out, err = command_line("--no-progress", "--no-optimal", *arguments)
    assert code == 0, err
    return out, err


def tensors(folder):
    return torchq.load(folder)._tensors()


@pytest.mark.parametrize("modes", ["table", "linear"])
def test_new_tasks_swing_up_from_the_first_and_only_their_rows_learn(runs, tmp_path, modes):
    adapt("--adapt-from", runs / modes, "--task", NEW, "--out", tmp_path / "new", "--episodes", 8)
    run = torchq.load(tmp_path / "new")
    assert run.metrics.returns.shape == (8, 2, 2)
    assert (np.median(run.metrics.returns, 1) > -130).all()
    source = read_source(runs / modes, envs.Pendulum())
    for name, factor in zip(("1", "2", "3"), known_rows(source)[1], strict=True):
        assert torch.equal(tensors(tmp_path / "new")[f"learner.factors.{name}"], factor)
    assert run.summary["samples_per_task"] == 800
    assert run.policy.act([3.0, 0.0], task=1) in range(10)


def test_where_steps_are_random_the_last_fit_is_taken(tmp_path):
    quick = ("--num-seeds", 2, "--episodes", 3, "--engine", "eager", "--no-optimal", "--num-tasks", 6)
    assert command_line("--algo", "stlrq", "--env", "wireless", *quick, "--out", tmp_path / "known")[0] == 0
    new = "harvest=1,harvest_probability=0.5,arrival=1.5,arrival_probability=0.3"
    adapt("--adapt-from", tmp_path / "known", "--task", new, "--episodes", 2, "--out", tmp_path / "new")
    found = tensors(tmp_path / "new")
    assert torch.equal(found["learner.fit.best"], found["learner.factors.0"][:, 0])
    assert found["learner.fit.starts"].shape == (2, 1, 1, 16)


def test_three_lines_from_python(runs, tmp_path):
    run = torchq.train(
        adapt_from=runs / "linear", tasks={"mass": 0.3, "length": 0.7}, episodes=2, out=tmp_path / "a", optimal=False
    )
    assert run.policy.act([3.0, 0.0]) in range(10)
    assert run.config.env == "pendulum"


def test_tasks_never_trained_on_are_played_at_once(runs):
    tasks = [{"mass": 0.3, "length": 0.7}, {"mass": 1.0, "length": 0.75}]
    linear, table = (torchq.load(runs / kind) for kind in ("linear", "table"))
    observations = torch.tensor([[3.1, 0.0], [0.1, 0.2], [-2.0, 5.0]])
    known = 7  # 1 kg and 0.75 m.
    for run in (linear, table):
        policy = run.policy_on(tasks)
        assert torch.equal(policy.act(observations, task=1), run.policy.act(observations, task=known))
        with pytest.raises(UsageError, match="task: expected numbers from 0 to 1"):
            policy.act(observations, task=2)
    source = read_source(runs / "table", envs.Pendulum())
    row = known_rows(source)[0][:1, nearest(source.tasks.tasks, [envs.PendulumTask(0.3, 0.7)], envs.Pendulum())]
    assert torch.equal(table.policy_on(tasks).state.factors[0][:, 0, :1], row)
    with pytest.raises(UsageError, match="tasks: expected the parameters mass, length"):
        linear.policy_on("weight=1,length=1")


def test_a_known_task_starts_from_its_own_row_and_another_from_the_nearest(runs):
    env = envs.Pendulum()
    source = read_source(runs / "table", env)
    known, _ = known_rows(source)
    tasks = [envs.PendulumTask(1.0, 0.75), envs.PendulumTask(0.3, 0.51)]
    rows = start_rows(source, known, tasks, env)
    assert torch.equal(rows[0][:, 0], known[:, 7])
    assert torch.equal(rows[0][:, 1], known[:, 3])  # 0.316 kg: nearest in the logarithm of the mass.
    assert nearest(source.tasks.tasks, tasks, env).tolist() == [7, 3]
    assert [row.shape for row in rows] == [(2, 2, 30)] * 5


def test_growing_moves_what_tasks_share_and_steps_alone_do_not(runs, tmp_path):
    for name, more in {"grow": ["--grow"], "steps": ["--fit", "semi-gradient"]}.items():
        adapt("--adapt-from", runs / "table", "--task", NEW, "--out", tmp_path / name, "--episodes", 3, *more)
    before = known_rows(read_source(runs / "table", envs.Pendulum()))[1][0]
    grown, stepped = (tensors(tmp_path / name) for name in ("grow", "steps"))
    assert not torch.equal(grown["learner.factors.1"], before)
    assert torch.equal(stepped["learner.factors.1"], before)
    assert not torch.equal(stepped["learner.factors.0"], stepped["learner.factors.0"][:, :, [1, 0]])


@pytest.mark.parametrize("engine", ["eager", "fused"])
def test_a_killed_adaptation_ends_the_same(runs, tmp_path, engine):
    arguments = [
        "--adapt-from",
        str(runs / "table"),
        "--task",
        NEW,
        "--episodes",
        8,
        "--no-optimal",
        "--engine",
        engine,
    ]
    adapt(*arguments, "--out", tmp_path / "whole")
    process = start_process(*arguments, "--out", tmp_path / "killed", "--no-progress")
    while process.poll() is None and not (tmp_path / "killed" / "checkpoint" / "checkpoint.json").exists():
        pass
    process.kill()
    process.communicate()
    adapt("--resume", "--out", tmp_path / "killed")
    assert outcome(tmp_path / "killed")[:2] == outcome(tmp_path / "whole")[:2]


def test_an_adapted_run_is_read_as_what_it_keeps(runs, tmp_path):
    adapt("--adapt-from", runs / "table", "--task", NEW, "--episodes", 3, "--out", tmp_path / "new")
    run, found = torchq.load(tmp_path / "new"), tensors(tmp_path / "new")
    assert not torch.equal(found["learner.fit.best"], found["learner.factors.0"][:, 0])  # What is played next.
    best = found["learner.fit.best"][0]
    assert torch.equal(run.q_tensor.factors[-1], best)
    assert torch.equal(torchq.QTensor.from_run(tmp_path / "new").factors[-1], best)
    assert torch.equal(known_rows(read_source(tmp_path / "new", envs.Pendulum()))[0][0], best)
    assert torch.equal(run.policy_on(read_tasks(NEW, envs.Pendulum())).state.factors[0][0, 0], best)
    np.testing.assert_allclose(run.evaluate(3), run.metrics.returns[-1], rtol=0.1)


def test_fits_to_a_memory_that_runs_over_resume_exactly(runs, tmp_path):
    arguments = ("--adapt-from", runs / "table", "--task", "mass=0.4,length=0.7", "--replay-capacity", 400)
    adapt(*arguments, "--episodes", 9, "--out", tmp_path / "whole")
    adapt(*arguments, "--episodes", 7, "--out", tmp_path / "part")
    adapt("--resume", "--out", tmp_path / "part", "--episodes", 9)
    whole, part = (tensors(tmp_path / name) for name in ("whole", "part"))
    assert all(torch.equal(tensor, part[name]) for name, tensor in whole.items())


def test_rows_that_learn_by_steps_are_the_same_in_every_engine(runs, tmp_path):
    for engine in ("eager", "fused"):
        adapt("--adapt-from", runs / "linear", "--task", NEW, "--fit", "semi-gradient", "--episodes", 1, "--engine",
              engine, "--out", tmp_path / engine)  # fmt: skip
    ours, theirs = (tensors(tmp_path / engine) for engine in ("fused", "eager"))
    for name, tensor in ours.items():
        if name.startswith("learner.factors"):
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-3)


def transitions(count=400, **changes):
    """Of one pendulum, from random torques."""
    env, task = envs.Pendulum(), envs.stack_tasks([envs.PendulumTask(0.3, 0.7)])
    generator = torch.Generator().manual_seed(1)
    state = env.reset(task, torch.rand(1, 1, count, 1, generator=generator).double())
    state = state._replace(theta=(6 * torch.rand(1, 1, count, generator=generator) - 3).double())
    action = torch.randint(10, (1, 1, count), generator=generator)
    after, reward, terminated, _ = env.step(task, state, action, torch.rand(1, 1, count, 0))
    arrays = {"observation": env.observe(state), "action": action, "reward": reward,
              "next_observation": env.observe(after), "terminated": terminated}  # fmt: skip
    return {name: array[0, 0].numpy() for name, array in arrays.items()} | changes


def test_rows_are_fitted_to_a_file_of_transitions_first(runs, tmp_path):
    np.savez(tmp_path / "data.npz", **transitions())
    one = ("--task", "mass=0.3,length=0.7", "--episodes", 1)
    for name, more in {"with": ["--data", tmp_path / "data.npz"], "without": []}.items():
        adapt("--adapt-from", runs / "table", *one, *more, "--out", tmp_path / name)
    ours, theirs = (tensors(tmp_path / name)["learner.fit.starts"] for name in ("with", "without"))
    assert torch.equal(ours[:, 1], theirs[:, 0])
    assert not torch.equal(ours[:, 0], theirs[:, 0])
    assert (torchq.load(tmp_path / "with").metrics.returns > -200).all()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"reward": np.ones(3)}, "expected finite numbers shaped (400,) as reward, got (3,)"),
        ({"action": np.full(400, 10)}, "expected action from 0 to 9, got others"),
        ({"reward": np.full(400, np.nan)}, "expected finite numbers shaped (400,) as reward"),
        ({"task": np.ones(400)}, "expected task from 0 to 0, got others"),
    ],
)
def test_files_that_do_not_hold_transitions_are_one_line(runs, tmp_path, arrays, message):
    np.savez(tmp_path / "data.npz", **transitions(**arrays))
    code, _, err = command_line(
        "--adapt-from", runs / "table", "--task", "mass=0.3,length=0.7", "--data", tmp_path / "data.npz",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert (code, err.count("\n")) == (2, 1)
    assert f"--data: {message}" in err


def test_data_are_for_fits_alone(runs, tmp_path):
    with pytest.raises(UsageError, match="data: expected only with fit"):
        adapted_config({"adapt_from": str(runs / "table"), "num_tasks": 2, "data": "x.npz", "grow": True})


def test_a_file_without_the_arrays_is_one_line(runs, tmp_path):
    for content in (b"nonsense", b"", b"PK\x03\x04 damaged", None):
        if content is not None:
            (tmp_path / "data.npz").write_bytes(content)
        else:
            np.savez(tmp_path / "data.npz", observation=np.ones((3, 2)))
        code, _, err = command_line(
            "--adapt-from", runs / "table", "--task", NEW, "--data", tmp_path / "data.npz", "--out", tmp_path / "run"
        )
        assert (code, err.count("\n")) == (2, 1)
        assert "--data: expected an .npz file with observation, action, reward" in err


def test_tasks_beyond_what_was_trained_on_are_said(runs, tmp_path):
    _, err = adapt("--adapt-from", runs / "linear", "--task", "mass=2,length=0.7", "--episodes", 1, "--out", tmp_path)
    assert "task mass=2,length=0.7 lies beyond what is trained on" in err
    assert "extrapolates, with mass taken at the nearest end" in err


BAD = {
    "no tasks": ({}, "tasks: expected new tasks with adapt_from"),
    "another family": ({"num_tasks": 2, "env": "wireless"}, "env: expected pendulum, as in the run to adapt from, got"),
    "other features": ({"num_tasks": 2, "features": "cells"}, "features: expected linear, as in the run to adapt from"),
    "another rank": ({"num_tasks": 2, "rank": 7}, "rank: expected 30"),
    "another algo": ({"num_tasks": 2, "algo": "lrq"}, "algo: expected stlrq with adapt_from, got lrq"),
    "modes": ({"num_tasks": 2, "task_modes": "linear"}, "task_modes: expected table with adapt_from, got linear"),
    "growing by fits": ({"num_tasks": 2, "grow": True, "fit": "least-squares"}, "grow: expected none with fit="),
    "nothing stored": ({"num_tasks": 2, "replay_ratio": 0}, "replay_ratio: expected at least 1 with fit="),
}  # fmt: skip


@pytest.mark.parametrize(("given", "message"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_one_line(runs, given, message):
    with pytest.raises(UsageError, match=message):
        adapted_config({"adapt_from": str(runs / "table"), **given})


def test_sources_that_cannot_be_adapted_are_one_line(runs, tmp_path):
    with pytest.raises(UsageError, match=r"adapt_from: expected a run folder, but .* does not exist"):
        adapted_config({"adapt_from": str(tmp_path / "nothing"), "num_tasks": 2})
    shutil.copytree(runs / "table", tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "algo": "clrq"}))
    with pytest.raises(UsageError, match="adapt_from: expected a run of stlrq, got one of clrq"):
        adapted_config({"adapt_from": str(tmp_path / "other"), "num_tasks": 2})
    for name in ("grow", "data"):
        with pytest.raises(UsageError, match=f"{name}: expected only with adapt_from"):
            torchq.train(algo="stlrq", **{name: True if name == "grow" else "x.npz"})
