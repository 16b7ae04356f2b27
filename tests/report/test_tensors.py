"""What a page multiplies is what the policy knows."""

import base64

import numpy as np
import pytest
import torch
from problems import command_line

import torchq
from torchq.report import tensors

KINDS = {
    "stlrq": ("stlrq", "pendulum"),
    "cells": ("stlrq", "pendulum", "--features", "cells"),
    "joint": ("stlrq", "gridworld", "--features", "cells", "--state-modes", "joint"),
    "task modes": ("stlrq", "pendulum", "--num-tasks", 6, "--task-modes", "linear"),
    "lrq": ("lrq", "pendulum"),
    "clrq": ("clrq", "gridworld"),
    "tabular": ("tabular", "pendulum"),
}


def numbers(text, *shape):
    return np.frombuffer(base64.b64decode(text), dtype="<f4").reshape(shape).astype(np.float64)


def values(shown, place, task):
    """Q(s, ·, m) as the page computes it."""
    sizes = [len(axis) for axis in shown["axes"]]
    if not shown["rank"]:
        table = numbers(shown["table"], -1, *sizes, shown["num_actions"])
        return table[(task, *place)]
    weights = numbers(shown["tasks"], -1, shown["rank"])[task]
    for factor in shown["factors"]:
        row = np.ravel_multi_index([place[d] for d in factor["dims"]], [sizes[d] for d in factor["dims"]])
        weights = weights * numbers(factor["rows"], -1, shown["rank"])[row]
    return numbers(shown["actions"], -1, shown["rank"]) @ weights


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_page_has_the_values_of_the_policy(kind, tmp_path):
    algo, env, *flags = kind
    arguments = ("--algo", algo, "--env", env, "--episodes", 2, "--num-seeds", 1, "--engine", "eager", "--no-optimal")
    assert command_line(*arguments, "--device", "cpu", "--out", tmp_path / "run", *flags)[0] == 0
    policy = torchq.load(tmp_path / "run").policy
    tasks = [0, 2, 3]
    shown = tensors.described(policy, tasks)
    generator = np.random.default_rng(0)
    for _ in range(20):
        place = tuple(int(generator.integers(len(axis))) for axis in shown["axes"])
        task = int(generator.integers(len(tasks)))
        x = torch.tensor([[axis[i] for axis, i in zip(shown["axes"], place, strict=True)]], dtype=torch.float64)
        index = policy.grid.index(x.to(policy.dtype))
        expected = policy.learner.lookup(policy.state, index, torch.tensor([tasks[task]]))[0, 0].double().numpy()
        np.testing.assert_allclose(values(shown, place, task), expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


def test_what_would_fill_the_page_is_left_out(tmp_path, monkeypatch):
    arguments = ("--algo", "tabular", "--env", "gridworld", "--episodes", 1, "--num-seeds", 1, "--engine", "eager")
    assert command_line(*arguments, "--device", "cpu", "--out", tmp_path / "run")[0] == 0
    monkeypatch.setattr(tensors, "MAX_NUMBERS", 99)
    assert tensors.described(torchq.load(tmp_path / "run").policy, [0]) is None
