"""The case study on one core, at small sizes."""

import dataclasses
import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from problems import command_line, outcome
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import envs
import torchq
from torchq.checkpoint import load_checkpoint
from torchq.cli.evaluate import main
from torchq.config import to_json
from torchq.errors import SolverError
from torchq.presets import resolve
from torchq.quadratic import forms, lqr
from torchq.quadratic.lmi_qli import LMIQLi
from torchq.runs import control_tasks, study
from torchq.runs.study_results import by_samples, events, read_rows

SMALL = ("--env", "damped-pendulum", "--num-seeds", 2, "--sizes", "10,50")


@pytest.fixture(scope="module")
def case():
    env = envs.DampedPendulum()
    task = env.sample_tasks()[0]
    return control_tasks.make_case(env, task, envs.stack_tasks([task]), 0)


def test_more_samples_keep_the_first_rows(case):
    few, many = (control_tasks.dataset(case, 3, size) for size in (7, 40))
    for ours, theirs in zip(many, few, strict=True):
        assert torch.equal(ours[:7], theirs)


def test_data_obey_the_dynamics_and_the_exploring_baseline(case):
    """x⁺ is a noisy image of x; the mean of ũ is that of the exploration, with standard deviation 4."""
    sample = control_tasks.dataset(case, 0, 4000)
    theta, omega = sample.phi[:, 0], sample.phi[:, 1]
    assert (sample.next_phi[:, 0] - theta - case.env.dt * omega).std() < 4 * case.env.noise
    assert abs(sample.deviation.mean()) < 0.2
    assert abs(sample.deviation.std() - 4.0) < 0.15
    assert torch.equal(sample.phi[:, 2], torch.sin(theta))
    assert (sample.reward <= 0).all()


def test_baseline_stabilises_but_the_yardstick_is_better(case):
    gaps = []
    for seed in range(10):
        returns, unstable = control_tasks.test_episode(case, [forms.baseline(3, 1)], seed)
        assert not unstable.any()
        gaps.append(returns[1] - returns[0])
    assert -0.3 < torch.stack(gaps).median() < 0


def test_a_fit_of_the_baseline_repeats_the_baselines_episode(case):
    returns, _ = control_tasks.test_episode(case, [forms.baseline(3, 1)], 5)
    torch.testing.assert_close(returns[2], returns[1])


@pytest.mark.parametrize("algo", ["lmi-ql", "lmi-qli", "lspi"])
def test_fifty_samples_close_most_of_the_baselines_gap_to_the_yardstick(case, algo):
    """Three quarters of it, over three runs: the baseline itself, or one that learns nothing, closes none."""
    config = resolve(algo, "damped-pendulum", "default", {"sizes": (50,)})
    rows = [row for seed in range(3) for row in study.run_seeds(config, [case], None, [seed])[0].rows]
    untrained = [control_tasks.test_episode(case, [forms.baseline(3, 1)], seed)[0] for seed in range(3)]
    before = sum((returns[2] - returns[0]).item() for returns in untrained)
    assert before < -0.2
    assert sum(row.episode_return - row.optimal_return for row in rows) > 0.25 * before
    assert all(row.lower_bound <= row.cost + 1e-6 for row in rows if algo == "lmi-ql")


def test_run_folder_and_report(tmp_path):
    for algo in ("lmi-qli", "lspi"):
        code, out, err = command_line("--algo", algo, *SMALL, "--no-progress", "--out", tmp_path / algo)
        assert code == 0, err
        assert "unstable" in out
    names = {path.name for path in (tmp_path / "lspi").iterdir() if not path.name.startswith("events.")}
    assert names == {"config.json", "metrics.csv", "summary.json", "learning_curve.png", "checkpoint"}
    summary = json.loads((tmp_path / "lspi" / "summary.json").read_text())
    assert [entry["samples"] for entry in summary["by_samples"]] == [10, 50]
    rows = read_rows(tmp_path / "lspi" / "metrics.csv")
    assert len(rows) == 2 * 2
    assert all(
        entry.items() <= ours.items() for entry, ours in zip(by_samples(rows), summary["by_samples"], strict=True)
    )
    assert all(entry["solve_time_s"] > 0 for entry in summary["by_samples"])
    code, out, err = command_line(tmp_path / "lmi-qli", tmp_path / "lspi", "--out", tmp_path / "report", entry=main)
    assert code == 0, err
    assert (tmp_path / "report" / "study.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_shows_what_the_summary_says_once(tmp_path):
    """Also after the end was reached twice."""
    flags = ("--algo", "lspi", *SMALL[2:], "--env", "linear-quadratic", "--num-tasks", 2, "--no-progress")
    assert command_line(*flags, "--out", tmp_path / "run")[0] == 0
    assert command_line("--resume", "--out", tmp_path / "run")[0] == 0
    shown = EventAccumulator(str(tmp_path / "run")).Reload()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())["by_samples"]
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.csv") if row.samples == 50]
    assert {entry["unstable_share"] for entry in summary} == {0.0}
    for tag, value in (
        ("mean_reward", [entry["return"]["median"] for entry in summary]),
        ("gap", [entry["gap"]["median"] for entry in summary]),
        ("gap_q25", [entry["gap"]["q25"] for entry in summary]),
        ("unstable_share", [0.0, 0.0]),
        ("failed_share", [entry["failed_share"] for entry in summary]),
    ):
        points = shown.Scalars(f"eval/{tag}")
        assert [point.step for point in points] == [10, 50]
        assert [point.value for point in points] == pytest.approx(value)
    for task in range(2):
        expected = np.median([row.episode_return for row in rows if row.task == task])
        assert shown.Scalars(f"eval/mean_reward/{task}")[-1].value == pytest.approx(expected)


def test_a_size_at_which_all_is_unstable_has_shares_alone():
    row = study.Row("", 10, 0, 0, -5000.0, -1.0, -1.1, 1, 0, math.nan, 1.0, math.nan)
    assert dict(events([row], 64)) == {10: {"eval/unstable_share": 1.0, "eval/failed_share": 0.0}}


def test_the_learnt_q_functions_are_kept(tmp_path, case):
    """P, S and R of every run, task and size are in the checkpoint, and give the returns of metrics.csv."""
    assert command_line("--algo", "lspi", *SMALL, "--no-progress", "--out", tmp_path)[0] == 0
    tensors, _ = load_checkpoint(tmp_path / "checkpoint", "lspi")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "learnt.P": (2, 1, 2, 3, 3), "learnt.S": (2, 1, 2, 3, 1), "learnt.R": (2, 1, 2, 1, 1),
    }  # fmt: skip
    fits = [forms.Quadratic(*(tensors[f"learnt.{name}"][1, 0, size] for name in "PSR")) for size in range(2)]
    returns, _ = control_tasks.test_episode(case, fits, 1)
    rows = [row for row in read_rows(tmp_path / "metrics.csv") if row.seed == 1]
    assert returns[2:].tolist() == pytest.approx([row.episode_return for row in rows])


@pytest.mark.parametrize("env", ["pendulum", "linear-quadratic"])
def test_other_families_reach_the_yardstick(tmp_path, env):
    """Both are free of noise near the origin, so that few samples suffice."""
    arguments = ("--env", env, "--num-seeds", 2, "--sizes", "30", "--constraint", "tot", "--no-progress")
    code, _, err = command_line("--algo", "lmi-qli", *arguments, "--out", tmp_path)
    assert (code, err) == (0, "")
    rows = read_rows(tmp_path / "metrics.csv")
    assert [row.task for row in rows] == [0, 1, 2, 3] * 2
    assert all(abs(row.episode_return - row.optimal_return) < 0.02 for row in rows)


def test_the_linear_quadratic_family_has_riccatis_gain(tmp_path):
    env = envs.LinearQuadratic()
    for number, task in enumerate(env.sample_tasks()):
        case = control_tasks.make_case(env, task, envs.stack_tasks([task]), number)
        sample = control_tasks.dataset(case, 0, 40)
        bound = study.value_bound("tot", case.design, 2)
        learnt = LMIQLi(env.gamma, 60).fit(sample, bound).q
        optimal = lqr.discounted_riccati(*env.linearised(task), *env.reward_weights(), env.gamma)[1]
        torch.testing.assert_close(case.design.gain - forms.greedy_gain(learnt), optimal, atol=1e-3, rtol=0)


def test_no_samples_are_what_a_method_begins_with(tmp_path):
    """The baseline's return; without one, that of no control at all."""
    flags = ("--env", "damped-pendulum", "--num-seeds", 3, "--sizes", "0,20", "--no-progress")
    for baseline in ("lqr", "none"):
        out = tmp_path / baseline
        assert command_line("--algo", "lmi-qli", *flags, "--baseline", baseline, "--out", out)[0] == 0
        rows = [row for row in read_rows(out / "metrics.csv") if row.samples == 0]
        assert [row.episode_return for row in rows] == pytest.approx([row.baseline_return for row in rows])
        assert [row.unstable for row in rows] == [baseline == "none"] * 3
        assert not any(row.failed for row in rows)
        assert torchq.load(out).quadratic.P.shape[1] == 2


def test_studies_by_either_solver_have_one_table(tmp_path):
    flags = ("--env", "damped-pendulum", "--num-seeds", 2, "--sizes", "20,60", "--no-progress")
    for algo in ("lmi-ql", "lmi-qli"):
        tables = []
        for solver in ("torchq", "clarabel"):
            out = tmp_path / f"{algo}-{solver}"
            assert command_line("--algo", algo, *flags, "--solver", solver, "--out", out)[0] == 0
            rows = read_rows(out / "metrics.csv")
            tables.append([(row.samples, row.seed, row.cost, row.episode_return) for row in rows])
        for ours, theirs in zip(*tables, strict=True):
            assert ours == pytest.approx(theirs, rel=2e-3)


def test_failed_solves_are_counted_and_explained(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise SolverError("CLARABEL returned 'infeasible'")

    monkeypatch.setattr("torchq.quadratic.sdp.solve_fitted", refuse)
    flags = ("--algo", "lmi-qli", "--solver", "clarabel", *SMALL, "--sizes", "6,50", "--no-progress")
    code, out, err = command_line(*flags, "--out", tmp_path)
    assert (code, err) == (0, "")
    assert "failed 100.0%" in out
    failures = json.loads((tmp_path / "summary.json").read_text())["failures"]
    assert len(failures) == 4
    expected = "run 0, task 0, 6 samples: CLARABEL returned 'infeasible'; 6 distinct samples interpolate 10 parameters"
    assert failures[0].startswith(expected)
    assert {row.failed for row in read_rows(tmp_path / "metrics.csv")} == {1}


def test_a_baseline_that_does_not_stabilise_is_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr(envs.LinearQuadratic, "believed", staticmethod(lambda task: dataclasses.replace(task, b1=50.0)))
    arguments = ("--algo", "lspi", "--env", "linear-quadratic", "--num-seeds", 1, "--sizes", "30", "--no-progress")
    code, _, err = command_line(*arguments, "--out", tmp_path)
    assert code == 0
    assert "warning: the baseline of task 0 does not stabilise it (√γ·ρ(A_b) = 1." in err


@pytest.mark.parametrize("algo", ["lspi", "lmi-qli"])
def test_a_study_resumes_exactly(algo, tmp_path, monkeypatch):
    import torchq.runs.monte_carlo as module

    monkeypatch.setattr(module, "RUNS_AT_ONCE", 2)
    arguments = ("--algo", algo, *SMALL, "--num-seeds", 3, "--no-progress")
    assert command_line(*arguments, "--out", tmp_path / "quiet")[0] == 0
    original = module.run_seeds

    def stop(config, cases, starts, seeds):
        if 2 in seeds:
            raise KeyboardInterrupt
        return original(config, cases, starts, seeds)

    monkeypatch.setattr(module, "run_seeds", stop)
    assert command_line(*arguments, "--out", tmp_path / "stopped")[0] == 130
    assert load_checkpoint(tmp_path / "stopped" / "checkpoint", algo)[1]["episode"] == 2
    monkeypatch.undo()
    assert command_line("--resume", "--out", tmp_path / "stopped")[0] == 0
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "quiet")


@pytest.mark.parametrize("algo", ["lmi-ql", "lmi-qli", "lspi"])
def test_a_run_does_not_depend_on_those_beside_it(case, algo):
    """To the last digit, for any number of them."""
    config = resolve(algo, "damped-pendulum", "default", {"sizes": (12, 40)})
    for seed, ours in enumerate(study.run_seeds(config, [case], None, range(5))):
        (alone,) = study.run_seeds(config, [case], None, [seed])
        assert str(ours.rows) == str(alone.rows)  # NaN is equal to itself there.
        assert all((x == y).all() for x, y in zip(ours.learnt, alone.learnt, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--algo", "lmi-ql", "--rank", 3), "--rank: expected only with a low-rank algo, got --algo lmi-ql"),
        (("--algo", "stlrq", "--sizes", "10"), "--sizes: expected only with --algo lmi-ql, lmi-qli, lspi"),
        (
            ("--algo", "lmi-ql", "--env", "wireless"),
            "--env: expected a family with continuous controls for --algo lmi-ql, but Wireless has no gamma",
        ),
        (("--algo", "lmi-ql", "--sizes", "50,10"), "--sizes: expected increasing sizes, got 50,10"),
        (
            ("--algo", "stlrq", "--env", "damped-pendulum"),
            "--env: expected a family with discrete actions and a grid for --algo stlrq, but DampedPendulum has no num",
        ),
    ],
)
def test_bad_input_gets_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = command_line(*arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("env", ["moon", "gridworld"])
def test_resume_of_a_study_on_an_environment_without_controls_is_one_line(tmp_path, env):
    values = {**to_json(resolve("lspi", "damped-pendulum", "default", {})), "env": env}
    (tmp_path / "config.json").write_text(json.dumps(values))
    code, _, err = command_line("--resume", "--out", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    known = "acrobot, cartpole, damped-pendulum, gridworld, linear-quadratic, mountain-car, pendulum, storage, wireless"
    known += ", module:Family or gym:ID"
    messages = {
        "moon": f"--env: expected one of {known}, got 'moon'",
        "gridworld": "--env: expected a family with continuous controls for --algo lspi, but Gridworld has no gamma",
    }
    assert messages[env] in err


SEVERAL = ("--env", "damped-pendulum", "--sizes", "12", "--no-progress")


@pytest.mark.parametrize("algo", ["lmi-ql", "lmi-qli"])
def test_equal_commands_give_equal_bytes_and_run_i_is_run_i_alone(tmp_path, algo):
    """Whatever a process solved before, and, from four runs on, however many processes share them."""
    few, count, rows = (("--iterations", 3), 4, {}) if algo == "lmi-qli" else ((), 3, {})
    for name, more in {
        "all": ("--num-seeds", count), "first": ("--num-seeds", 2), "again": ("--num-seeds", 2),
        "last": ("--num-seeds", count - 2, "--seed", 2),
    }.items():  # fmt: skip
        assert command_line("--algo", algo, *SEVERAL, *few, *more, "--out", tmp_path / name)[0] == 0
        rows[name] = (tmp_path / name / "metrics.csv").read_text().splitlines()[1:]
    assert outcome(tmp_path / "first") == outcome(tmp_path / "again")
    assert rows["all"] == rows["first"] + rows["last"]


def test_a_fit_does_not_depend_on_what_was_solved_before(case):
    config = resolve("lmi-ql", "damped-pendulum", "default", {"sizes": (10, 40)})
    first, _, again = (study.run_seeds(config, [case], None, [seed])[0] for seed in (1, 0, 1))
    assert first.rows == again.rows
    assert all(map(np.array_equal, first.learnt, again.learnt))


def test_a_killed_study_resumes_to_the_same_bytes(tmp_path):
    arguments = ("--algo", "lmi-qli", *SEVERAL, "--iterations", 3, "--num-seeds", 3)
    assert command_line(*arguments, "--out", tmp_path / "quiet")[0] == 0
    script = (
        "import sys, torchq.runs.monte_carlo as m; m.CHECKPOINT_SECONDS = 0.0; from torchq.cli.train import main\n"
        "if __name__ == '__main__': sys.exit(main())"
    )
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, tmp_path / "script.py", *arguments, "--out", tmp_path / "killed"]
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    index = tmp_path / "killed" / "checkpoint" / "checkpoint.json"
    while process.poll() is None and not index.exists():
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert command_line("--resume", "--out", tmp_path / "killed")[0] == 0
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "quiet")


def test_runs_leave_no_files_open(tmp_path):
    """More runs than a process may open files: none of their results may hold one."""
    script = (
        "import resource, sys; from torchq.cli.train import main\n"
        "if __name__ == '__main__':\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96))\n"
        f"    sys.exit(main(['--algo', 'lspi', '--iterations', '1', '--sizes', '10', '--num-seeds', '60',\n"
        f"                   '--no-progress', '--out', {str(tmp_path / 'run')!r}]))"
    )
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run([sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(read_rows(tmp_path / "run" / "metrics.csv")) == 60


def rows_with(**fields):
    row = study.Row("", 10, 0, 0, -4.0, -3.9, -4.1, 0, 0, 0.1, 0.01, 0.005)._replace(**fields)
    return [row._replace(samples=size, seed=seed) for seed in range(3) for size in (10, 50)]


DRAWN = {
    "all unstable": {"unstable": 1, "episode_return": -2000.0},
    "not a number": {"episode_return": math.nan, "cost": math.nan, "optimal_return": math.nan},
    "infinite baseline": {"baseline_return": -math.inf},
    "a better baseline": {"baseline_return": -3.0},
}


@pytest.mark.parametrize("fields", DRAWN.values(), ids=DRAWN)
def test_any_study_can_be_drawn(tmp_path, fields):
    """In a process of its own, for a logarithmic axis of nothing looks for its ticks for ever."""
    script = (
        "import sys; from math import nan, inf; from pathlib import Path; from torchq.runs.study import Row\n"
        "from torchq.runs.study_results import plot_study\n"
        f"plot_study({{'a': {rows_with(**fields)!r}}}, Path({str(tmp_path / 'x.png')!r}))"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=60)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    table = by_samples(rows_with(**fields))
    json.dumps(table, allow_nan=False)
    assert (table[0]["gap"]["median"] is None) == ("episode_return" in fields)


def test_a_study_whose_runs_are_all_unstable_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(envs.DampedPendulum, "unstable_state", 0.0)
    code, out, err = command_line("--algo", "lspi", *SMALL, "--no-progress", "--out", tmp_path)
    assert (code, err) == (0, "")
    assert "unstable 100.0%" in out
    assert json.loads((tmp_path / "summary.json").read_text())["final_return"]["median"] == [None]
