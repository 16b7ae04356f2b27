"""The Triton programs of both protocols: in the interpreter on the CPU, and on the GPU where there is one."""

import os
import subprocess
import sys

import pytest
import torch
from problems import PLAIN, ROOT, experiment, library, play

from torchq.engines.contract import Rates, UnavailableError
from torchq.engines.gpu.engine import triton_engine
from torchq.tree import flatten

# In a process of its own, for Triton looks at the environment when it is imported.
PARITY = """
import dataclasses, sys, torch
sys.path[:0] = {paths!r}
torch.set_num_threads(1)
import interpreted
from families import library
from problems import experiment, play
from torchq.engines import graph
from torchq.engines.gpu.engine import triton_engine
from torchq.tree import flatten
def play_again(body):
    body()
    return body
graph.capture = play_again
graph.MAX_STEPS = 2
short = library(episode_length={steps!r})
for algo, env, preset, dtype, options in {cases!r}:
    run = experiment(algo, env, preset, library=short, rank=5, num_seeds=1, dtype=dtype, eval_episodes=3, **options)
    if run.initial_state.learner.guide:
        learner = run.initial_state.learner
        factors = tuple(torch.randn(f.shape, dtype=f.dtype) for f in learner.guide.factors)
        learner = learner._replace(guide=learner.guide._replace(factors=factors))
        run = dataclasses.replace(run, initial_state=run.initial_state._replace(learner=learner))
    fused = dataclasses.replace(run, engine=triton_engine(run.rollout))
    tolerance = 1e-9 if dtype == "float64" else 1e-4
    expected, state = play(run, 1), play(fused, 1)
    for (name, eager), ours in zip(flatten(expected).items(), flatten(state).values(), strict=True):
        torch.testing.assert_close(ours, eager, rtol=tolerance, atol=tolerance, msg=lambda text: name + ": " + text)
    policy = run.rollout.learner.policy(expected.learner)
    returns = [one.evaluate(policy, 1) for one in (run, fused)]
    torch.testing.assert_close(returns[1], returns[0], rtol=tolerance, atol=tolerance)
    print("equal")
"""

CASES = {
    "online": [
        ("stlrq", "pendulum", "paper", "float64", {"num_tasks": 2, "task_weights": (1.0, 0.5)}),
        ("lrq", "wireless", "paper", "float64", {"num_tasks": 2, "lrq_convention": "matched-epsilon-one-update"}),
        ("lrq", "gridworld", "default", "float32", {"num_tasks": 2, "num_envs": 1, "update": "block"}),
    ],
    "replay": [
        ("stlrq", "pendulum", "default", "float64", {"num_tasks": 2, "replay_batch": 3, "task_weights": (1.0, 0.5)}),
        ("stlrq", "pendulum", "default", "float64", {
            "num_tasks": 1, "num_envs": 401, "replay_batch": 3, "replay_ratio": 1, "replay_recent": 0.7}),
        ("lrq", "wireless", "default", "float32", {
            "num_tasks": 2, "replay_ratio": 1, "replay_batch": 20, "replay_capacity": 2}),
        ("stlrq", "log-wireless", "default", "float64", {"num_tasks": 1, "replay_ratio": 1}),
        ("clrq", "gridworld", "default", "float64", {
            "num_tasks": 2, "num_envs": 3, "replay_ratio": 5, "replay_batch": 2, "target_rate": 0.1,
            "optimizer": "adam"}),
    ],
    "task modes": [
        ("stlrq", "pendulum", "default", "float64", {
            "num_tasks": 5, "task_modes": "linear", "held_out": 0.4, "replay_batch": 3}),
        ("stlrq", "pendulum", "default", "float64", {**PLAIN, "task_modes": "product", "num_envs": 70}),
    ],
    "guide": [
        ("stlrq", "pendulum", "default", "float64", {
            "num_tasks": 2, "replay_batch": 3, "warm_start": "elsewhere", "guide_samples": 6.0, "guide_margin": 1.0,
            "epsilon_start": 0.1}),
        ("lrq", "pendulum", "default", "float64", {
            **PLAIN, "num_tasks": 2, "warm_start": "elsewhere", "guide_samples": 10.0}),
    ],
    "batched": [
        ("stlrq", "pendulum", "default", "float64", {
            **PLAIN, "num_tasks": 2, "num_envs": 70, "task_weights": (1.0, 0.5)}),
        ("stlrq", "pendulum", "default", "float64", {**PLAIN, "num_tasks": 5, "num_envs": 3}),
        ("clrq", "wireless", "default", "float32", {**PLAIN, "num_tasks": 2, "num_envs": 3}),
        ("stlrq", "gridworld", "default", "float64", {"num_tasks": 2, "num_envs": 3}),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "cases", [pytest.param(cases, marks=pytest.mark.slow if name == "replay" else ()) for name, cases in CASES.items()],
    ids=CASES,
)  # fmt: skip
def test_triton_programs_equal_eager_steps(cases):
    steps = int(os.environ.get("TORCHQ_TEST_STEPS", 4))
    script = PARITY.format(paths=[str(ROOT), str(ROOT / "tests")], steps=steps, cases=cases)
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["equal"] * len(cases), done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algo": "tabular", "env": "pendulum"}, "it needs stlrq, lrq or clrq"),
        ({"env": "pendulum", "optimizer": "sgd"}, "it needs plain Adam or Adamax steps and one action mode"),
        ({"env": "pendulum", "update": "block", "num_envs": 2}, "blocks of modes need `num_envs=1`"),
        ({"env": "pendulum", "update": "block"}, "blocks of modes need cells, without replay and target tensor"),
        ({"env": "gridworld", "update": "block", "num_envs": 1, "optimizer": "adam"}, "blocks of modes need Adamax"),
        ({"env": "pendulum", "state_modes": "joint"}, "joint updates need state modes of at most 256 rows"),
    ],
)
def test_what_it_cannot_run_is_said(options, message, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(UnavailableError, match=f"^{message}$"):
        triton_engine(experiment(**options).rollout)


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UnavailableError, match="Triton needs a GPU, got cpu"):
        triton_engine(experiment("stlrq", "pendulum", "paper").rollout)


@pytest.mark.gpu
@pytest.mark.parametrize("preset", ["default", "paper"])
@pytest.mark.parametrize(("algo", "env"), [("stlrq", "pendulum"), ("lrq", "wireless"), ("clrq", "wireless")])
def test_triton_programs_equal_eager_steps_on_the_gpu(algo, env, preset):
    options = {"num_seeds": 3, "library": library(episode_length=100), "device": "cuda", "dtype": "float64"}
    states = [play(experiment(algo, env, preset, **options, engine=name), 2) for name in ("eager", "fused")]
    for theirs, ours in zip(flatten(states[0]).values(), flatten(states[1]).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.parametrize("more", [PLAIN, {}], ids=["cells", "replay"])
def test_single_precision_is_near_eager_mode_on_the_gpu(more):
    """Its sums are products of three tf32 parts."""
    options = {"num_seeds": 2, "num_envs": 512, "device": "cuda", **more}
    runs = [experiment("stlrq", "pendulum", **options, engine=name) for name in ("eager", "fused")]
    states = [run.engine.train(run.rollout.batch(), run.initial_state, rates(1, torch.float32), 0) for run in runs]
    for theirs, ours in zip(states[0].learner.factors, states[1].learner.factors, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


REPLAY = {"replay_batch": 100, "replay_ratio": 2, "target_rate": 0.1, "optimizer": "adam"}


@pytest.mark.gpu
@pytest.mark.parametrize("more", [{}, REPLAY], ids=["preset", "replay"])
@pytest.mark.parametrize("env", ["cartpole", "mountain-car", "acrobot", "storage", "gridworld"])
def test_every_family_trains_as_in_eager_mode_on_the_gpu(env, more):
    """Short enough that rounding does not grow into other actions."""
    options = {"num_seeds": 2, "num_tasks": 3, "episodes": 2, "device": "cuda", "dtype": "float64", **more}
    runs = [experiment("stlrq", env, **options, engine=name) for name in ("eager", "fused")]
    states = [run.engine.train(run.rollout.batch(), run.initial_state, rates(20), 0) for run in runs]
    for theirs, ours in zip(flatten(states[0]).values(), flatten(states[1]).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    returns = [run.evaluate(run.rollout.learner.policy(states[0].learner), 1) for run in runs]
    torch.testing.assert_close(returns[1], returns[0], rtol=1e-6, atol=1e-6)


def rates(steps, dtype=torch.float64):
    """Of so many steps on the GPU."""
    return Rates(*(torch.full((steps,), value, device="cuda", dtype=dtype) for value in (0.5, 1e-3)))


COMPILE = """
import sys, torch
sys.path[:0] = {paths!r}
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

class AnH100:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)
    def get_current_device(self):
        return 0
    def get_current_stream(self, device=None):
        return 0

class Compiled:
    def __init__(self, kernel):
        self.kernel = kernel
    def __getitem__(self, grid):
        return lambda *given, **options: self.check(self.kernel.warmup(*given, grid=grid, **options).asm)
    def check(self, asm):
        # A Python number would come as a float and round gamma in double precision.
        print(len(asm["cubin"]) > 0 and ".param .f32" not in asm["ptx"])

driver.set_active(AnH100())
from problems import experiment, library
from torchq.engines.gpu import batched_kernels, engine, online_kernels
online_kernels.train = Compiled(online_kernels.train)
for name in ("play", "learn", "descend", "greedy"):
    setattr(batched_kernels, name, Compiled(getattr(batched_kernels, name)))
engine.GraphEngine = lambda rollout, inner, name: inner
engine._checked = lambda rollout: rollout.learner  # It would say that there is no GPU.
options = dict(library=library(episode_length=1), rank=8, num_seeds=1, num_tasks=1)
for algo, env, preset, more in {runs!r}:
    run = experiment(algo, env, preset, **options, **more)
    made = engine.triton_engine(run.rollout)
    batch, state = run.rollout.batch(0 if preset == "paper" else None), run.initial_state
    from torchq.engines.contract import Rates
    one = torch.ones(1, dtype=run.rollout.dtype)
    made.train(batch, state, Rates(one, one), 0)
    made.greedy_returns(state.learner, state.env, 0)
"""

RUNS = [
    ("stlrq", "pendulum", "paper", {}), ("stlrq", "wireless", "default", {}), ("stlrq", "gridworld", "default", {}),
    ("lrq", "gridworld", "default", {"num_envs": 1, "update": "block", "dtype": "float64"}),
]  # fmt: skip


def test_kernels_compile_for_a_gpu_that_is_not_there():
    script = COMPILE.format(paths=[str(ROOT), str(ROOT / "tests")], runs=RUNS)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["True"] * (2 + (2 + 2 * 2) + (2 + 1) + 2), done.stderr
