"""Exported policies, each in a fresh process without torchq: the same actions on 10,000 observations."""

import os
import subprocess
import sys

import numpy as np
import pytest
from problems import ROOT, command_line

import torchq
from torchq.cli.main import main

PATHS = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
READERS = {
    "npz": "import policy_numpy; found = policy_numpy.act(given['x'], given['task']); "
           "assert 'torch' not in sys.modules",
    "pt2": "import torch; program = torch.export.load(folder + '/policy.pt2').module(); "
           "found = program(torch.from_numpy(given['x']), torch.from_numpy(given['task'])).numpy()",
    "onnx": "import onnxruntime; session = onnxruntime.InferenceSession(folder + '/policy.onnx'); "
            "found = session.run(['action'], {'observation': given['x'], 'task': given['task']})[0]; "
            "assert 'torch' not in sys.modules",
}  # fmt: skip
SCRIPT = """
import sys, numpy as np
folder = {folder!r}
sys.path.insert(0, folder)
given = np.load(folder + "/given.npz")
{reader}
assert "torchq" not in sys.modules
assert found.shape == given["action"].shape
print((found != given["action"]).sum(), len(set(found.tolist())))
"""
RUNS = {
    "stlrq": ("stlrq", "pendulum", "--rank", 8),
    "log and categories": ("stlrq", "wireless", "--rank", 5),
    "a tensor each": ("lrq", "wireless", "--preset", "paper"),
    "task modes": ("stlrq", "pendulum", "--task-modes", "linear", "--num-tasks", 9, "--held-out", 0.3),
    "table": ("tabular", "gridworld"),
    "action modes": ("stlrq", "gym:gym_machines:Machine-v0", "--env-option", "workers=0", "--vary", "gain=0.5,1"),
}


@pytest.mark.parametrize("name", RUNS)
def test_each_form_gives_the_same_actions(name, tmp_path):
    algo, env, *more = RUNS[name]
    folder = tmp_path / "run"
    short = ("--episodes", 4, "--num-seeds", 2, "--no-optimal", "--no-progress", "--device", "cpu", "--eval-every", 4)
    code, _, err = command_line("--algo", algo, "--env", env, *more, *short, "--out", folder)
    assert code == 0, err
    policy, generator = torchq.load(folder).policy, np.random.default_rng(0)
    low, high = (np.array([getattr(mode, end) for mode in policy.grid.modes]) for end in ("low", "high"))
    x = generator.uniform(low - 0.1 * (high - low), high + 0.1 * (high - low), (10_000, len(low)))
    x = x.clip(low, None) if name == "log and categories" else x
    x = x.astype(str(policy.dtype).removeprefix("torch."))
    task = generator.integers(policy.num_tasks, size=len(x))
    np.savez(tmp_path / "given.npz", x=x, task=task, action=policy.act(x, task))
    forms = {"stlrq": READERS, "log and categories": ["npz", "onnx"], "a tensor each": ["npz", "pt2"]}.get(
        name, ["npz"]
    )
    for form in forms:
        # In a process of its own: the shape checks of this one cannot be traced.
        command = [sys.executable, "-m", "torchq", "export", str(folder), str(tmp_path / f"policy.{form}")]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": PATHS})
        assert (done.returncode, done.stderr) == (0, "")
        assert f"observation (batch, {len(low)})" in done.stdout
        script = SCRIPT.format(folder=str(tmp_path), reader=READERS[form])
        done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        different, actions = map(int, done.stdout.split())
        assert different == 0
        assert actions > 1


def test_what_cannot_be_exported_is_one_line(tmp_path):
    study, run = tmp_path / "study", tmp_path / "run"
    short = ("--num-seeds", 1, "--no-progress", "--out")
    command_line("--algo", "lmi-qli", "--sizes", 20, *short, study)
    command_line("--algo", "stlrq", "--env", "gridworld", "--episodes", 1, "--no-optimal", *short, run)
    (tmp_path / "there.npz").write_text("mine")
    for arguments, message in (
        ((study, tmp_path / "a.npz"), "RUN: expected a run with a tensor, got a study of a quadratic learner"),
        ((run, tmp_path / "a.txt"), "--out: expected a file that ends in .onnx, .pt2, .npz, got"),
        ((run, tmp_path / "there.npz"), "exists already; name another, nothing is overwritten"),
        ((run, tmp_path / "no" / "a.npz"), "expected a file in a folder that exists"),
        ((run, tmp_path / "a.npz", "--index", 1), "--index: expected a number from 0 to 0, got 1"),
        ((tmp_path / "nowhere", tmp_path / "a.npz"), "nowhere"),
    ):
        code, _, err = command_line("export", *arguments, entry=main)
        assert (code, err.count("\n")) == (2, 1), err
        assert message in err
    assert (tmp_path / "there.npz").read_text() == "mine"
