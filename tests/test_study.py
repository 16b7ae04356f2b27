"""The case study on one core, at small sizes."""

import json

import pytest
import torch
from problems import command_line, outcome

import envs
from torchq import quadratic, study
from torchq.checkpoint import load_checkpoint
from torchq.monte_carlo import by_samples, read_rows
from torchq.presets import resolve
from torchq.report import main

SMALL = ("--env", "damped-pendulum", "--num-seeds", 2, "--sizes", "10,50")


@pytest.fixture(scope="module")
def case():
    env = envs.DampedPendulum()
    task = env.sample_tasks()[0]
    return env, task, envs.stack_tasks([task]), study.design(env, task)


def test_more_samples_keep_the_first_rows(case):
    env, _, tasks, plan = case
    few, many = (study.dataset(env, tasks, plan, 3, 0, size) for size in (7, 40))
    for ours, theirs in zip(many, few, strict=True):
        assert torch.equal(ours[:7], theirs)


def test_data_obey_the_dynamics_and_the_exploring_baseline(case):
    """x⁺ is a noisy image of x; the mean of ũ is that of the exploration, with standard deviation 4."""
    env, _, tasks, plan = case
    sample = study.dataset(env, tasks, plan, 0, 0, 4000)
    theta, omega = sample.phi[:, 0], sample.phi[:, 1]
    assert (sample.next_phi[:, 0] - theta - env.dt * omega).std() < 4 * env.noise
    assert abs(sample.deviation.mean()) < 0.2
    assert abs(sample.deviation.std() - 4.0) < 0.15
    assert torch.equal(sample.phi[:, 2], torch.sin(theta))
    assert (sample.reward <= 0).all()


def test_baseline_stabilises_but_the_yardstick_is_better(case):
    env, task, tasks, plan = case
    gaps = []
    for seed in range(10):
        returns, unstable = study.test_episode(env, tasks, task, plan, [quadratic.baseline(3, 1)], seed, 0)
        assert not unstable.any()
        gaps.append(returns[1] - returns[0])
    assert -0.3 < torch.stack(gaps).median() < 0


def test_a_fit_of_the_baseline_repeats_the_baselines_episode(case):
    env, task, tasks, plan = case
    returns, _ = study.test_episode(env, tasks, task, plan, [quadratic.baseline(3, 1)], 5, 0)
    torch.testing.assert_close(returns[2], returns[1])


@pytest.mark.parametrize("algo", ["lmi-ql", "lmi-qli", "lspi"])
def test_fifty_samples_come_close_to_the_yardstick(case, algo):
    env, task, tasks, _ = case
    config = resolve(algo, "damped-pendulum", "default", {"sizes": (50,)})
    rows = [row for seed in range(3) for row in study.run_seed(config, env, [tasks], [task], seed)]
    gaps = sorted(row.episode_return - row.optimal_return for row in rows)
    assert gaps[1] > -0.1
    assert all(row.lower_bound <= row.cost + 1e-6 for row in rows if algo == "lmi-ql")


def test_run_folder_and_report(tmp_path):
    for algo in ("lmi-qli", "lspi"):
        code, out, err = command_line("--algo", algo, *SMALL, "--no-progress", "--out", tmp_path / algo)
        assert code == 0, err
        assert "unstable" in out
    names = {path.name for path in (tmp_path / "lspi").iterdir()}
    assert names == {"config.json", "metrics.csv", "summary.json", "learning_curve.png", "checkpoint"}
    summary = json.loads((tmp_path / "lspi" / "summary.json").read_text())
    assert [entry["samples"] for entry in summary["by_samples"]] == [10, 50]
    rows = read_rows(tmp_path / "lspi" / "metrics.csv")
    assert len(rows) == 2 * 2
    assert by_samples(rows) == summary["by_samples"]
    code, out, err = command_line(tmp_path / "lmi-qli", tmp_path / "lspi", "--out", tmp_path / "report", entry=main)
    assert code == 0, err
    assert (tmp_path / "report" / "study.png").read_bytes().startswith(b"\x89PNG")


def test_a_study_resumes_exactly(tmp_path, monkeypatch):
    import torchq.monte_carlo as module

    arguments = ("--algo", "lspi", *SMALL, "--num-seeds", 3, "--no-progress")
    assert command_line(*arguments, "--out", tmp_path / "quiet")[0] == 0
    original = module.run_seed

    def stop(config, env, stacked, task_list, seed):
        if seed == 2:
            raise KeyboardInterrupt
        return original(config, env, stacked, task_list, seed)

    monkeypatch.setattr(module, "run_seed", stop)
    with pytest.raises(SystemExit) as interrupted:
        command_line(*arguments, "--out", tmp_path / "stopped")
    assert interrupted.value.code == 130
    assert load_checkpoint(tmp_path / "stopped" / "checkpoint", "lspi")[1]["episode"] == 2
    monkeypatch.setattr(module, "run_seed", original)
    assert command_line("--resume", "--out", tmp_path / "stopped")[0] == 0
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "quiet")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--algo", "lmi-ql", "--rank", 3), "--rank: expected only with --algo stlrq, lrq, clrq, tabular"),
        (("--algo", "stlrq", "--sizes", "10"), "--sizes: expected only with --algo lmi-ql, lmi-qli, lspi"),
        (("--algo", "lmi-ql", "--env", "pendulum"), "--env, --preset: expected damped-pendulum and default"),
        (("--algo", "lmi-ql", "--sizes", "50,10"), "--sizes: expected increasing sizes, got 50,10"),
        (
            ("--algo", "stlrq", "--env", "damped-pendulum"),
            "--env: expected pendulum, wireless, gridworld with --algo stlrq",
        ),
    ],
)
def test_bad_input_gets_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = command_line(*arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not list(tmp_path.iterdir())
