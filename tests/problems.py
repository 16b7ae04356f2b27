"""Small problems for the tests, and ways to run the programs."""

import contextlib
import functools
import io
import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jaxtyping
import torch

import envs
from torchq import families
from torchq.cli.train import main
from torchq.presets import resolve
from torchq.runs.experiment import prepare

ROOT = Path(__file__).parent.parent

START = """
import sys, torch
torch.set_num_threads(1)
import torchq.runs.training
torchq.runs.training.CHECKPOINT_SECONDS = 0.0
from torchq.cli.train import main
sys.exit(main())
"""


PLAIN = {"features": "cells", "replay_ratio": 0, "target_rate": None, "optimizer": "adamax"}
"""The batched protocol of cells, with one update from each step's own transitions."""

FAMILIES = (
    envs.Pendulum, envs.Wireless, envs.Gridworld, envs.CartPole, envs.MountainCar, envs.Acrobot, envs.Storage
)  # fmt: skip


def library(**constants):
    """How to make the families, with other constants such as shorter episodes."""
    return {family.name: functools.partial(family, **constants) for family in FAMILIES}


def experiment(algo="stlrq", env="gridworld", preset="default", library=None, **overrides):
    config = resolve(algo, env, preset, {"device": "cpu", "engine": "eager", "optimal": False, **overrides})
    return prepare(config, library[env]() if library else families.make(env))


def command_line(*arguments, library=None, entry=main):
    """Exit code, standard output and standard error of a command; a library stands in for the registered families."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        if library:
            stack.enter_context(mock.patch.object(families, "make", lambda name, *_: library[name]()))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        code = entry([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def start_process(*arguments):
    """A real training process that checkpoints after every round."""
    command = [sys.executable, "-c", START, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(folder):
    """What two equal runs must share byte for byte: metrics.csv, the tensors, and the counters but for times."""
    index = json.loads((folder / "checkpoint" / "checkpoint.json").read_bytes())
    tensors = (folder / "checkpoint" / index["tensors"]).read_bytes()
    index = {name: value for name, value in index.items() if "seconds" not in name}
    return (folder / "metrics.csv").read_bytes(), tensors, index


def play(experiment, rounds, state=None, first=0):
    """Some rounds of training; shapes are checked in the first of them only, for it takes most of the time."""
    state = experiment.initial_state if state is None else state
    try:
        with torch.no_grad():
            for episode in range(first, first + rounds):
                state, _ = experiment.play(state, episode)
                jaxtyping.config.update("jaxtyping_disable", True)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    return state
