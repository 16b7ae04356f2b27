"""Compiled steps, in a process of their own: the shape checks of the other tests do not compile."""

import contextlib
import subprocess
import sys

import pytest
import torch
from problems import ROOT, command_line

import torchq.engines.torch_settings

PARITY = """
import sys, torch
sys.path[:0] = {paths!r}
torch.set_num_threads(1)
from problems import library, play, experiment
from torchq.tree import flatten
options = dict(algo={algo!r}, env="wireless", preset={preset!r}, num_seeds=2, rank=5, dtype="float64",
               library=library(episode_length={length}), **{more!r})
states = [flatten(play(experiment(**options, engine=name), 1)) for name in ("eager", "compile")]
for name, eager in states[0].items():
    torch.testing.assert_close(states[1][name], eager, rtol=1e-9, atol=1e-9)
print("equal")
"""


@pytest.mark.parametrize(
    ("algo", "preset", "length", "more"),
    [
        ("stlrq", "default", 200, {"replay_ratio": 1, "task_modes": "linear", "num_tasks": 6, "held_out": 0.3}),
        ("clrq", "paper", 50, {}),
    ],
)
def test_compiled_steps_equal_eager_ones_over_200_steps(algo, preset, length, more):
    script = PARITY.format(paths=[str(ROOT), str(ROOT / "tests")], algo=algo, preset=preset, length=length, more=more)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "equal\n", done.stderr


STUBBORN = """
import sys, types
sys.path[:0] = {paths!r}
import envs, families
from problems import command_line, experiment
def body(self, tasks, state, action, uniforms):
    if state.theta.sum() > 1e9:
        raise ValueError("far off")
    return envs.Pendulum.step(self, tasks, state, action, uniforms)
class Stubborn(families.broken(body)):
    pass
run = experiment("stlrq", "pendulum", library={{"pendulum": Stubborn}}, episodes=20_000, engine="auto")
print(run.config.engine, *run.notes, sep="\\n")
print(command_line("--algo", "stlrq", "--env", "__main__:Stubborn", "--engine", "compile", "--out", {out!r})[2], end="")
"""


def test_what_dynamo_cannot_trace_is_one_line(tmp_path):
    """Control flow that reads a value: neither fused nor compiled, and said in a line each."""
    script = STUBBORN.format(paths=[str(ROOT), str(ROOT / "tests")], out=str(tmp_path / "run"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    engine, fused, compiled, refused = done.stdout.splitlines()
    assert engine == "eager"
    assert fused == "engine fused passed over: Stubborn.step: aten.sum.default has no scalar form"
    assert compiled.startswith("engine compile passed over: ")
    assert refused.startswith("error: --engine: compile does not work here (")


def test_deterministic_runs_ask_pytorch_for_a_fixed_order(tmp_path, monkeypatch):
    seen = []

    @contextlib.contextmanager
    def watched(*given):
        seen.append(given)
        yield

    monkeypatch.setattr(torchq.engines.torch_settings, "deterministic", watched)
    quick = ("--algo", "stlrq", "--num-seeds", 1, "--episodes", 1, "--no-optimal", "--no-progress", "--device", "cpu")
    for name, flags in (("plain", ()), ("fixed", ("--deterministic",))):
        code, _, err = command_line(*quick, *flags, "--out", tmp_path / name)
        assert (code, err) == (0, "")
    assert seen == [(False, "cpu"), (True, "cpu")]
    monkeypatch.undo()
    for wanted, device in ((False, "cuda"), (True, "cpu"), (True, "cuda")):
        with torchq.engines.torch_settings.deterministic(wanted, device):
            assert torch.are_deterministic_algorithms_enabled() == (wanted and device == "cuda")
    assert not torch.are_deterministic_algorithms_enabled()
    assert (tmp_path / "plain" / "metrics.csv").read_bytes() == (tmp_path / "fixed" / "metrics.csv").read_bytes()
