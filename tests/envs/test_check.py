"""The checker of families: ours pass it, and each fault is one line with its remedy."""

import dataclasses

import pytest
import torch
from families import LogWireless, MountainCar, Wide
from problems import command_line

import envs
from envs.check import find_faults
from torchq import families
from torchq.cli.main import main

OURS = [families.make(name) for name in families.names()] + [envs.UprightPendulum(), MountainCar(), Wide()]


@pytest.mark.parametrize("family", [*OURS, LogWireless()], ids=lambda family: type(family).__name__)
def test_our_families_keep_the_contract(family):
    envs.check_family(family)


def pendulum(**changed):
    """The pendulum with other attributes or methods."""
    return dataclasses.dataclass(frozen=True)(type("Changed", (envs.Pendulum,), changed))()


def stepping(change):
    """The pendulum whose step is changed afterwards: change(state, reward, terminated, truncated)."""

    def step(self, tasks, state, action, uniforms):
        return change(*envs.Pendulum.step(self, tasks, state, action, uniforms))

    return pendulum(step=step)


def in_place(self, tasks, state, action, uniforms):
    state.theta_dot.mul_(0.5)
    return envs.Pendulum.step(self, tasks, state, action, uniforms)


def off_device(self, tasks, state, action, uniforms):
    following, reward, *ends = envs.Pendulum.step(self, tasks, state, action, uniforms)
    return following, reward * torch.arange(4, dtype=reward.dtype).sign().clamp(1, 1), *ends


def steered(self, tasks, state, action, uniforms):
    following, reward, *ends = envs.Pendulum.step(self, tasks, state, action, uniforms)
    return following, torch.linalg.matrix_exp(reward.unsqueeze(-1).unsqueeze(-1))[..., 0, 0], *ends


class NoState:
    pass


def reading(self, tasks, state, action, uniforms):
    if state.theta.max() > 100.0:
        raise ValueError("far off")
    return envs.Pendulum.step(self, tasks, state, action, uniforms)


FAULTS = {
    "no observe": (type("Bare", (), {"name": "bare"})(), "observe: expected an attribute of Bare, got none"),
    "not frozen": (type("Loose", (envs.Pendulum,), {"__dataclass_params__": None})(), "expected a frozen dataclass"),
    "too few tasks": (pendulum(sample_tasks=staticmethod(lambda n=None: [envs.PendulumTask(1, 1)])), "expected 3 tasks"),
    "reward of another type": (stepping(lambda s, r, a, b: (s, r.double(), a, b)), "step: reward: expected torch.float32"),
    "reward of another shape": (stepping(lambda s, r, a, b: (s, r.sum(-1), a, b)), "step: reward: expected a tensor of"),
    "ends that are numbers": (stepping(lambda s, r, a, b: (s, r, a.float(), b)), "step: terminated: expected torch.bool"),
    "grid of another size": (pendulum(grid_low=(0.0,)), "grid_low: expected 2 values, one for each number"),
    "grid upside down": (pendulum(grid_low=(9.0, 9.0)), "grid: expected low < high"),
    "not a number": (stepping(lambda s, r, a, b: (s, r / 0, a, b)), "expected finite observations and rewards"),
    "beyond its bounds": (pendulum(observation_high=(3.2, 0.5)), "expected number 1 between -8 and 0.5"),
    "never truncated": (stepping(lambda s, r, a, b: (s, r, a, b & ~b)), "truncated: expected at step 100"),
    "both ends": (stepping(lambda s, r, a, b: (s, r, b, b)), "expected truncated to be false where terminated is true"),
    "terminates after all": (stepping(lambda s, r, a, b: (s, r, b, ~b & b)), "terminates: expected True"),
    "steps not counted": (stepping(lambda s, r, a, b: (s._replace(elapsed=0 * s.elapsed), r, a, b)), "elapsed to grow"),
    "in place": (pendulum(step=in_place), "step: expected its arguments to stay as they were; use x = x + 1"),
    "own random numbers": (stepping(lambda s, r, a, b: (s, r + torch.rand(()), a, b)), "equal results from equal"),
    "a value that is read": (pendulum(step=reading), "device: expected no value to be read, as `if` and `.item()` do"),
    "mean over the batch": (stepping(lambda s, r, a, b: (s, r - r.mean(), a, b)), "expected seeds not to depend on each"),
    "mean over copies": (stepping(lambda s, r, a, b: (s, r - r.mean(-1, True), a, b)), "environments not to depend"),
    "another device": (pendulum(step=off_device), "device: expected tensors on the device of the tasks"),
    "no translation": (pendulum(step=steered), "translation: Changed.step: aten."),
    "raises": (pendulum(reset=lambda *_: 1 / 0), "shapes: its code fails: ZeroDivisionError: division by zero (test_check.py, line "),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_a_line_that_says_what_to_do(fault):
    family, expected = FAULTS[fault]
    found = find_faults(family)
    assert any(expected in line for line in found), found
    assert not any("\n" in line for line in found)
    with pytest.raises(envs.FamilyError):
        envs.check_family(family)


def test_a_new_family_passes_and_trains_fused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, said, err = command_line("new-family", "water_tank.py", entry=main)
    assert (code, err) == (0, "")
    assert "torchq check-family water_tank:WaterTank" in said
    assert command_line("check-family", "water_tank:WaterTank", entry=main)[:2] == (
        0, "water_tank:WaterTank keeps the contract of families\n",
    )  # fmt: skip
    code, said, err = command_line(
        "train", "--algo", "stlrq", "--env", "water_tank:WaterTank", "--episodes", 2, "--engine", "fused", "--num-seeds",
        1, "--device", "cpu", "--no-progress", entry=main,
    )  # fmt: skip
    assert (code, err) == (0, "")
    code, _, err = command_line("new-family", "water_tank.py", entry=main)
    assert (code, err) == (2, "error: FILE.py: water_tank.py exists already; name another, nothing is overwritten\n")
    for name, message in (
        ("my-tank.py", "expected the name of a Python module"), ("torch.py", "there is a module torch already"),
        ("state.py", "expected a name that makes a class of its own"), ("_1.py", "expected a name that makes a class"),
    ):  # fmt: skip
        code, _, err = command_line("new-family", name, entry=main)
        assert (code, message in err, err.count("\n")) == (2, True, 1), err
        assert not (tmp_path / name).exists()
    for name, message in (
        ("water_tank", "yours is perhaps water_tank:WaterTank"), ("gym:CartPole-v1", "which Gymnasium checks"),
    ):  # fmt: skip
        code, _, err = command_line("check-family", name, entry=main)
        assert (code, err.startswith("error: MODULE:FAMILY: "), message in err) == (2, True, True), err
    assert command_line("new-family", "nowhere/tank.py", entry=main)[0] == 2


def test_faults_are_told_by_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faulty.py").write_text("import envs\nclass Faulty(envs.Pendulum):\n    grid_low = (1.0,)\n")
    code, said, err = command_line("check-family", "faulty:Faulty", entry=main)
    assert code == 2
    assert said == "grid_low: expected 2 values, one for each number of the observation, got (1.0,)\n"
    assert err == "error: faulty:Faulty: 1 fault; see above\n"
