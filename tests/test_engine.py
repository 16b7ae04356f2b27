"""Compiled steps, in a process of their own: the shape checks of the other tests do not compile."""

import subprocess
import sys

import pytest
import torch
from problems import ROOT, command_line

import torchq.cli.train

PARITY = """
import sys, torch
sys.path[:0] = {paths!r}
torch.set_num_threads(1)
from problems import library, play, experiment
from torchq.tree import flatten
options = dict(algo={algo!r}, env="wireless", preset={preset!r}, num_seeds=2, rank=5, dtype="float64",
               library=library(episode_length={length}))
states = [flatten(play(experiment(**options, engine=name), 1)) for name in ("eager", "compile")]
for name, eager in states[0].items():
    torch.testing.assert_close(states[1][name], eager, rtol=1e-9, atol=1e-9)
print("equal")
"""


@pytest.mark.parametrize(("algo", "preset", "length"), [("stlrq", "default", 200), ("clrq", "paper", 50)])
def test_compiled_steps_equal_eager_ones_over_200_steps(algo, preset, length):
    script = PARITY.format(paths=[str(ROOT), str(ROOT / "tests")], algo=algo, preset=preset, length=length)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "equal\n", done.stderr


def test_deterministic_runs_ask_pytorch_for_a_fixed_order(tmp_path, monkeypatch):
    seen, original = [], torchq.cli.train.train

    def watched(*given, **options):
        seen.append(torch.are_deterministic_algorithms_enabled())
        return original(*given, **options)

    monkeypatch.setattr(torchq.cli.train, "train", watched)
    quick = ("--algo", "stlrq", "--num-seeds", 1, "--episodes", 1, "--no-optimal", "--no-progress")
    for name, flags in (("plain", ()), ("fixed", ("--deterministic",))):
        code, _, err = command_line(*quick, *flags, "--out", tmp_path / name)
        assert (code, err) == (0, "")
    assert seen == [False, True]
    assert not torch.are_deterministic_algorithms_enabled()
    assert (tmp_path / "plain" / "metrics.csv").read_bytes() == (tmp_path / "fixed" / "metrics.csv").read_bytes()
