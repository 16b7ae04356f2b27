"""Runs in environments of Gymnasium: the command line, going on, failures."""

import json

import numpy as np
import pytest
from problems import command_line, outcome

import torchq
from torchq.errors import UsageError

MACHINE = ("--algo", "stlrq", "--env", "gym:gym_machines:Machine-v0", "--env-option", "workers=0")
SHORT = ("--num-seeds", 2, "--eval-every", 2, "--eval-episodes", 2, "--rank", 4, "--device", "cpu", "--no-progress")
SAME = {"efficiency": 0.9, "wear": 0.1, "volatility": 0.2, "peak": 0.8, "dip": 0.1}
GAINS = ("--vary", "gain=0.5,1.0")


def test_a_run_records_what_it_found_and_can_be_used_again(tmp_path):
    out = tmp_path / "run"
    code, said, err = command_line(*MACHINE, *GAINS, *SHORT, "--episodes", 4, "--out", out)
    assert (code, err) == (0, "")
    assert "engine external" in said
    config = json.loads((out / "config.json").read_bytes())
    assert config["tasks"] == [{"gain": 0.5}, {"gain": 1.0}]
    assert config["env_option"]["ranges"] == {"position.0": [-1.0, 1.0], "position.1": [-1.0, 1.0]}
    run = torchq.load(out)
    assert run.evaluate(2).shape == (2, 2)
    assert run.policy.act(np.zeros(3), task=1) in range(25)
    assert [len(factor) for factor in run.q_tensor.factors] == [3, 12, 12, 5, 5, 2]


def test_settings_of_another_kind_are_one_clear_line():
    for settings, message in (
        (
            {"env": 5},
            "^env: expected the name of a family, gym:ID, or module:NAME of a family in a module of ",
        ),
        ({"tasks": []}, "^tasks: expected at least one task, got none; leave it out for the family's own$"),
    ):
        with pytest.raises(UsageError, match=message):
            torchq.train(algo="stlrq", **settings)


def test_ranges_may_be_said_again_in_part(tmp_path):
    short = (*SHORT, "--episodes", 2, "--ranges", "position.0=-2:2", "--out", tmp_path / "run")
    assert command_line(*MACHINE, *GAINS, *short)[0] == 0
    for ranges in ("position.0=-2:2", "1=-2:2"):
        assert command_line("--resume", "--out", tmp_path / "run", "--ranges", ranges)[::2] == (0, "")
    code, _, err = command_line("--resume", "--out", tmp_path / "run", "--ranges", "1=-3:2")
    assert code == 2
    assert "--env-option: " in err


def test_numpy_and_files_are_recorded_as_numbers_and_whole_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hours = np.arange(24 * 20)
    (tmp_path / "prices.csv").write_text("\n".join(f"{50 + 10 * np.sin(hour / 4) + hour % 7}" for hour in hours))
    run = torchq.train(
        algo="stlrq", env="storage", env_option={"prices": "prices.csv"}, vary={**SAME, "hours": np.array([2.0, 4.0])},
        episodes=1, eval_every=1, num_seeds=1, rank=4, device="cpu", optimal=False, out=tmp_path / "run",
    )  # fmt: skip
    assert run.config.env_option["prices"] == str(tmp_path / "prices.csv")
    (tmp_path / "prices.csv").unlink()  # A run knows its market.
    monkeypatch.chdir("/")
    assert np.isfinite(run.evaluate(2)).all()
    assert torchq.train(out=tmp_path / "run", resume=True, episodes=2).config.env_option == run.config.env_option
    assert [task["hours"] for task in run.summary["tasks"]] == [2.0, 4.0]


def test_what_ends_early_when_it_is_repeated_starts_again(tmp_path, monkeypatch, caplog):
    """Episodes that are longer in the first process than in the second, in which one of them raises, too."""
    import gym_machines

    for count, second in ((9, lambda self: 1), (1, lambda self: {}["worn out"])):
        out = tmp_path / f"run{len(caplog.records)}"
        with monkeypatch.context() as patch:
            patch.setattr(gym_machines.Machine, "life", lambda self: 20, raising=False)
            assert command_line(*MACHINE, *GAINS, *SHORT, "--episodes", 2, "--out", out)[0] == 0
        with monkeypatch.context() as patch:
            calls = []

            def life(self, second=second, calls=calls, count=count):
                calls.append(1)
                return second(self) if len(calls) <= count else 20

            patch.setattr(gym_machines.Machine, "life", life, raising=False)
            assert command_line("--resume", "--episodes", 4, "--out", out)[0] == 0
        assert "do not come out where they were" in caplog.records[-1].message


def test_a_run_that_goes_on_equals_one_that_was_never_interrupted(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    command_line(*MACHINE, *GAINS, *SHORT, "--episodes", 6, "--out", whole)
    command_line(*MACHINE, *GAINS, *SHORT, "--episodes", 2, "--out", parts)
    code, _, err = command_line(*GAINS, "--env-option", "workers=0", "--episodes", 6, "--out", parts, "--resume")
    assert (code, err) == (0, "")
    assert outcome(whole)[:2] == outcome(parts)[:2]


def test_an_environment_that_cannot_be_restored_says_so_and_goes_on(tmp_path, monkeypatch, caplog):
    import gym_machines

    monkeypatch.setattr(gym_machines.Machine, "life", lambda self: 15)  # Each stands five steps into its second life.
    unseeded = (*MACHINE, "--env-option", "seeded=false", "--env-option", "goal=-1", *GAINS, *SHORT)
    command_line(*unseeded, "--episodes", 2, "--out", tmp_path / "run")
    code, _, _ = command_line("--episodes", 4, "--out", tmp_path / "run", "--resume")
    assert code == 0
    assert "4 of 4 environments do not come out where they were" in caplog.text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((*MACHINE, *GAINS, "--tasks", "gain=1"), "--vary: expected none with --tasks, which says the tasks too"),
        ((*MACHINE, "--vary", "gain"), "--vary: expected words such as length=0.25,0.5,1.0, got 'gain'"),
        ((*MACHINE, "--vary", "gian=1,2"), "--env: gym_machines:Machine-v0 cannot be made: expected a keyword"),
        ((*MACHINE, "--ranges", "position.0=1:-1"), "--ranges: expected low < high of each dimension, got [1.0, -1.0]"),
        ((*MACHINE, "--ranges", "1=-3:inf"), "--ranges: expected low < high of each dimension, got [-3.0, inf] of '1'"),
        ((*MACHINE, "--vary", "lambda=1,2"), "--tasks: expected parameters such as length=0.5, got lambda"),
        ((*MACHINE, "--env-option", "ranges=abc"), "--ranges: expected a mapping such as"),
        ((*MACHINE, "--ranges", "x"), "--ranges: expected words such as 1=-3:3,velocity=0:2, got ('x',)"),
        ((*MACHINE, "--ranges", "speed=0:1"), "--ranges: expected dimensions position.0, position.1, got 'speed'"),
        ((*MACHINE, "--num-tasks", 3), "--num-tasks: expected at most 1, as many as are given, got 3"),
        ((*MACHINE, "--engine", "eager"), "--engine: expected auto, external or compile with --env gym:ID, got eager"),
        ((*MACHINE[:4], "--env-option", "workers"), "--env-option: expected words such as num_actions=20, got"),
        (("--algo", "stlrq", "--env", "gym:Nothing-v0"), "--env: Nothing-v0 cannot be made: expected an environment"),
        (("--algo", "stlrq", "--ranges", "0=1:2"), "--ranges: expected only with --env gym:ID, got --env pendulum"),
        (("--algo", "stlrq", "--env-option", "num_actions=1"), "num_actions to be a whole number of at least 2, got 1"),
        (
            ("--algo", "stlrq", "--env-option", "num_actions=abc"),
            "expected a number for num_actions, such as 10, got 'abc'",
        ),
        (("--algo", "stlrq", "--env-option", "episode_length=0"), "to be a whole number of at least 1, got 0"),
        (("--algo", "stlrq", "--env-option", "num_action=3"), "got 'num_action'; did you mean num_actions?"),
    ],
)
def test_bad_input_is_one_clear_line(flags, message, tmp_path):
    code, _, err = command_line(*flags, "--episodes", 1, "--out", tmp_path / "run")
    assert (code, err.count("\n")) == (2, 1), err
    assert message in err
    assert not (tmp_path / "run").exists()


def test_a_failure_in_the_middle_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("torchq.runs.training.CHECKPOINT_SECONDS", 0.0)
    import gym_machines

    calls = {"count": 0}
    step = gym_machines.Machine.step

    def failing(self, action):
        calls["count"] += 1
        if calls["count"] > 300:
            raise OSError("the cable is out")
        return step(self, action)

    monkeypatch.setattr(gym_machines.Machine, "step", failing)
    out = tmp_path / "run"
    code, _, err = command_line(*MACHINE, *GAINS, *SHORT, "--episodes", 9, "--out", out)
    assert code == 2
    assert err == (
        "error: training stopped: task gain=0.5: step() failed: OSError: the cable is out "
        f"(test_gym_runs.py, line {failing.__code__.co_firstlineno + 3}); go on with: --resume "
        f"--out {out}\n"
    )
    monkeypatch.undo()
    assert command_line("--out", out, "--resume")[0] == 0


def test_constants_of_a_family_are_recorded_and_used(tmp_path):
    out = tmp_path / "run"
    flags = ("--algo", "stlrq", "--env-option", "num_actions=5", "--env-option", "episode_length=30", "--episodes", 2)
    assert command_line(*flags, *SHORT, "--vary", "mass=0.1,0.2", "--vary", "length=1", "--out", out)[0] == 0
    run = torchq.load(out)
    assert run.config.env_option == {"num_actions": 5, "episode_length": 30}
    assert [len(factor) for factor in run.q_tensor.factors][-2:] == [5, 2]
    assert run.summary["tasks"] == [{"mass": 0.1, "length": 1.0}, {"mass": 0.2, "length": 1.0}]
    python = torchq.train(
        algo="stlrq", env_option={"num_actions": 5, "episode_length": 30}, vary={"mass": [0.1, 0.2], "length": 1},
        episodes=2, num_seeds=2, eval_every=2, eval_episodes=2, rank=4, device="cpu", out=tmp_path / "python",
    )  # fmt: skip
    assert np.array_equal(python.metrics.returns, run.metrics.returns)


def test_a_table_of_transitions_gives_the_optimum_beside_the_curve(tmp_path):
    flags = ("--algo", "stlrq", "--env", "gym:FrozenLake-v1", "--vary", "is_slippery=0,1", "--env-option", "workers=0")
    assert command_line(*flags, *SHORT, "--episodes", 2, "--out", tmp_path / "run")[0] == 0
    assert torchq.load(tmp_path / "run").summary["optimal_return"] == [1.0, pytest.approx(0.7442, abs=1e-4)]


def test_a_family_given_as_an_object_loads_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "import envs, gym_machines\nmachines = envs.GymTasks([gym_machines.Machine], episode_length=20, workers=0)\n"
    (tmp_path / "plant.py").write_text(text)
    flags = ("--algo", "stlrq", "--env", "plant:machines", *SHORT, "--episodes", 2, "--out", "run")
    assert command_line(*flags)[0] == 0
    assert torchq.load("run").evaluate(1).shape == (2, 1)
    assert command_line("--resume", "--out", "run", "--episodes", 4)[0] == 0
