"""Exported policies, in processes without torchq: what they do on 10,000 observations is what the run does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import ROOT, command_line

import torchq
from torchq.cli.main import main
from torchq.errors import UsageError
from torchq.runs.export import FORMATS, Controls, Exported, write

MAKE = "import sys, test_export; test_export.make(sys.argv[1], sys.argv[2:])"
READ = """
import importlib.util, json, sys
form, root, *names = sys.argv[1:]
sys.modules["torchq"] = sys.modules["envs"] = None  # Not to be imported.
if form != "pt2":
    sys.modules["torch"] = None
import numpy as np

def npz(folder):
    spec = importlib.util.spec_from_file_location("reader", folder + "/policy_numpy.py")
    reader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reader)
    return reader.act, None if reader.LEVELS is None else reader.LEVELS.tolist()

def pt2(folder):
    import torch
    extra = {"levels": ""}
    program = torch.export.load(folder + "/policy.pt2", extra_files=extra).module()
    act = lambda x, task: program(torch.from_numpy(x), torch.from_numpy(task)).numpy()
    return act, json.loads(extra["levels"] or "null")

def onnx(folder):
    import onnxruntime
    session = onnxruntime.InferenceSession(folder + "/policy.onnx")
    levels = session.get_modelmeta().custom_metadata_map.get("levels")
    return lambda x, task: session.run(None, {"observation": x, "task": task})[0], json.loads(levels or "null")

found = {}
for name in names:
    given = np.load(f"{root}/{name}/given.npz")
    act, levels = globals()[form](f"{root}/{name}")
    action, few = act(given["x"], given["task"]), act(given["x"][:5], given["task"][:5])
    assert (action.shape, action.dtype) == (given["action"].shape, given["action"].dtype), name
    apart = max(np.abs(action - given["action"]).max(), np.abs(few - given["action"][:5]).max())
    found[name] = {"apart": float(apart), "levels": levels}
print(json.dumps(found))
"""
SHORT = (
    "--episodes", 3, "--eval-every", 3, "--num-seeds", 1, "--no-optimal", "--device", "cpu", "--engine", "auto",
    "--env-option", "episode_length=30",
)  # fmt: skip
TABLE, NEW = "mass=0.1:1:3,length=0.5:1:3", "mass=0.3,length=0.7"
RUNS = {
    "table": ("stlrq", "pendulum"),
    "cells": ("stlrq", "pendulum", "--features", "cells"),
    "joint": ("stlrq", "gridworld", "--state-modes", "joint"),
    "categories": ("stlrq", "wireless", "--dtype", "float64"),
    "linear": ("stlrq", "pendulum", "--task-modes", "linear", "--tasks", TABLE, "--held-out", 0.3),
    "product": ("stlrq", "pendulum", "--task-modes", "product", "--tasks", TABLE),
    "adapted": ("stlrq", None, "--adapt-from", "linear", "--task", NEW),
    "grown": ("stlrq", None, "--adapt-from", "table", "--task", NEW, "--grow"),
    "lrq": ("lrq", "pendulum", "--preset", "paper"),
    "clrq": ("clrq", "wireless"),
    "actions": ("stlrq", "gym:gym_machines:Machine-v0", "--env-option", "workers=0", "--vary", "gain=0.5,1"),
    "tabular": ("tabular", "gridworld"),
    "tabular32": ("tabular", "pendulum", "--features", "linear"),
    "tabular64": ("tabular", "wireless", "--features", "linear", "--dtype", "float64"),
}
STUDIES = {
    "lmi-ql": ("lmi-ql", "damped-pendulum", "--num-tasks", 2),
    "lmi-qli": ("lmi-qli", "linear-quadratic"),
    "lspi": ("lspi", "pendulum"),
}
NAMES = [*RUNS, *STUDIES]


def train(name, root):
    """The run of a name, and beside it observations and what it does there."""
    algo, env, *more = (RUNS | STUDIES)[name]
    more = [root / value / "run" if value in ("table", "linear") and name in ("adapted", "grown") else value
            for value in more]  # fmt: skip
    own = ("--sizes", 60, "--num-seeds", 1) if name in STUDIES else SHORT
    (root / name).mkdir()
    start = ("--algo", algo, *(("--env", env) if env else ()))
    code, _, err = command_line(*start, *more, *own, "--no-progress", "--out", root / name / "run")
    assert code == 0, err
    policy, generator = torchq.load(root / name / "run").policy, np.random.default_rng(0)
    if name in STUDIES:
        x = generator.uniform(-3, 3, (10_000, 2))
        task = generator.integers(len(policy.cases), size=len(x))
        action = np.choose(task[:, None], [policy.act(x, number) for number in range(len(policy.cases))])
    else:
        low, high = (np.array([getattr(mode, end) for mode in policy.grid.modes]) for end in ("low", "high"))
        x = generator.uniform(low - 0.1 * (high - low), high + 0.1 * (high - low), (10_000, len(low)))
        x = x.astype(str(policy.dtype).removeprefix("torch."))
        task = generator.integers(policy.num_tasks, size=len(x))
        action = policy.act(x, task)
    assert len(np.unique(action)) > 1
    np.savez(root / name / "given.npz", x=x, task=task, action=action)


def make(root, names):
    """Runs and all their forms."""
    for name in names:
        folder = Path(root) / name
        train(name, folder.parent)
        for form in FORMATS:
            if form != ".npz" or name in RUNS:
                code, said, err = command_line("export", folder / "run", folder / f"policy{form}", entry=main)
                assert (code, err) == (0, ""), err
                sys.stdout.write(said)


def process(program, *arguments, path=None):
    command = [sys.executable, *([] if path else ["-I"]), "-c", program, *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": path} if path else None
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "names", [pytest.param(NAMES[:8], marks=pytest.mark.slow), NAMES[8:]], ids=["with a task mode", "others"]
)
def test_each_form_of_each_kind_of_run_does_what_the_run_does(names, tmp_path):
    """All in few processes: each costs seconds, and the shape checks of this one cannot be traced."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "runs")))
    said = process(MAKE, tmp_path, *names, path=path)
    if "lmi-ql" in names:
        assert "observation (batch, 4) float32, task (batch,) int64 -> action (batch,) int64; tasks are 0 to 3" in said
        assert "(batch, 2) float64, task (batch,) int64 -> control (batch, 1) float64; tasks are 0 to 1" in said
    for form in FORMATS:
        found = json.loads(process(READ, form[1:], tmp_path, *(n for n in names if n in RUNS or form != ".npz")))
        assert all(one["apart"] == 0 if name in RUNS else one["apart"] < 1e-9 for name, one in found.items()), found
        levels = {name: one["levels"] for name, one in found.items()}
        if "actions" in names:
            assert levels["actions"][:6] == [[-1, -1], [-1, -0.5], [-1, 0], [-1, 0.5], [-1, 1], [-0.5, -1]]
            assert levels["tabular"] is None
        else:
            np.testing.assert_allclose(levels["table"], np.linspace(-2, 2, 10)[:, None])


def test_what_cannot_be_exported_is_one_line(tmp_path):
    study, run = tmp_path / "study", tmp_path / "run"
    short = ("--num-seeds", 1, "--no-progress", "--out")
    command_line("--algo", "lmi-qli", "--sizes", 20, *short, study)
    command_line("--algo", "stlrq", "--env", "gridworld", "--episodes", 1, "--no-optimal", *short, run)
    (tmp_path / "there.npz").write_text("mine")
    for arguments, message in (
        (
            (study, tmp_path / "a.npz"),
            "FILE: expected .onnx or .pt2 for a quadratic learner, whose features φ are a program, got",
        ),
        ((run, tmp_path / "a.txt"), "FILE: expected a file that ends in .onnx, .pt2, .npz, got"),
        ((run, tmp_path / "there.npz"), "exists already; name another, nothing is overwritten"),
        ((run, tmp_path / "no" / "a.npz"), "expected a file in a folder that exists"),
        ((run, tmp_path / "a.npz", "--index", 1), "--index: expected a number from 0 to 0, got 1"),
        ((tmp_path / "nowhere", tmp_path / "a.npz"), "nowhere"),
    ):
        code, _, err = command_line("export", *arguments, entry=main)
        assert (code, err.count("\n")) == (2, 1), err
        assert message in err
    assert (tmp_path / "there.npz").read_text() == "mine"


def test_features_that_cannot_be_traced_are_one_line(tmp_path):
    program = Controls(lambda x: x if x.sum() > 0 else -x, torch.ones(1, 1, 2), torch.ones(1, 1, 2))
    made = Exported(program, 1, 2, torch.float64, "control", "(batch, 1) float64", None)
    with pytest.raises(UsageError, match=r"^folder: its family's features φ are not what torch.export takes \(.+\)$"):
        write(made, tmp_path / "a.pt2")
