"""The Triton programs of both protocols: in the interpreter on the CPU, and on the GPU where there is one."""

import functools
import os
import subprocess
import sys
import types

import pytest
import torch
from problems import ROOT, experiment, library, play

import envs
from torchq.engines.gpu import online
from torchq.tree import flatten

OTHER = types.SimpleNamespace(**vars(library()))
OTHER.FAMILIES = {**OTHER.FAMILIES, "pendulum": functools.partial(envs.Pendulum, gravity=9.0)}

# In a process of its own, for Triton looks at the environment when it is imported.
PARITY = """
import sys, torch
sys.path[:0] = {paths!r}
torch.set_num_threads(1)
from problems import experiment, library, play
from torchq.engines import evaluation, fused, graph, protocols
from torchq.tree import flatten
from torchq.engines.gpu import online
def play_again(body):
    body()
    return body
graph.capture = play_again
short = library(episode_length={steps!r})
graph.MAX_STEPS = 2
run = experiment({algo!r}, {env!r}, {preset!r}, library=short, rank=5, num_seeds=1, dtype={dtype!r}, **{options!r})
assert online.obstacle(run.rollout) is None, online.obstacle(run.rollout)
from torchq.engines.select import build
engine, state = build(run.rollout, "fused", on_gpu=True), run.initial_state
if protocols.takes_turns(run.config, run.rollout):
    state, policy = protocols.turns_round(
        run.config, run.rollout, short.select_tasks, run.rollout.tasks, state, 0, engine.advance)
    policy = run.rollout.learner.join(policy)
else:
    state = protocols.batched_round(run.config, run.rollout, run.rollout.tasks, state, 0, engine.advance)
    policy = state.learner
tolerance = 1e-9 if {dtype!r} == "float64" else 1e-4
for (name, eager), ours in zip(flatten(play(run, 1)).items(), flatten(state).values(), strict=True):
    torch.testing.assert_close(ours, eager, rtol=tolerance, atol=tolerance, msg=lambda text: name + ": " + text)
expected, found = (evaluation.evaluate(run.rollout, run.rollout.tasks, policy, 1, 3, play)
                   for play in (None, engine.greedy))
torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
print("equal")
"""


@pytest.mark.parametrize(
    ("algo", "env", "preset", "dtype", "options"),
    [
        ("stlrq", "pendulum", "paper", "float64", {"num_tasks": 2, "task_weights": (1.0, 0.5)}),
        ("lrq", "wireless", "paper", "float64", {"num_tasks": 2, "lrq_convention": "matched-epsilon-one-update"}),
        ("stlrq", "pendulum", "default", "float64", {"num_tasks": 2, "num_envs": 70, "task_weights": (1.0, 0.5)}),
        ("stlrq", "pendulum", "default", "float64", {"num_tasks": 5, "num_envs": 3}),
        ("clrq", "wireless", "default", "float32", {"num_tasks": 2, "num_envs": 3}),
    ],
)
def test_triton_programs_equal_eager_steps(algo, env, preset, dtype, options):
    steps = int(os.environ.get("TORCHQ_TEST_STEPS", 4))
    names = {"steps": steps, "algo": algo, "env": env, "preset": preset, "dtype": dtype, "options": options}
    script = PARITY.format(paths=[str(ROOT), str(ROOT / "tests")], **names)
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algo": "tabular", "env": "pendulum"}, "it needs stlrq, lrq or clrq"),
        ({"env": "gridworld"}, "gridworld has no step in Triton"),
        ({"env": "pendulum", "library": OTHER}, "its step has the default constants of pendulum"),
        ({"env": "pendulum", "optimizer": "sgd"}, "it needs plain Adamax steps and one action mode"),
        ({"env": "pendulum", "update": "block"}, "blocks of modes need --num-envs 1"),
        ({"env": "pendulum", "state_modes": "joint"}, "joint updates need state modes of at most 256 rows"),
    ],
)
def test_what_it_cannot_run_is_said(options, message, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert online.obstacle(experiment(**options).rollout) == message


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    problem = experiment("stlrq", "pendulum", "paper").rollout
    assert online.obstacle(problem) == "Triton needs a GPU, got cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("preset", ["default", "paper"])
@pytest.mark.parametrize(("algo", "env"), [("stlrq", "pendulum"), ("lrq", "wireless"), ("clrq", "wireless")])
def test_triton_programs_equal_eager_steps_on_the_gpu(algo, env, preset):
    options = {"num_seeds": 3, "library": library(episode_length=100), "device": "cuda", "dtype": "float64"}
    states = [play(experiment(algo, env, preset, **options, engine=name), 2) for name in ("eager", "fused")]
    for theirs, ours in zip(flatten(states[0]).values(), flatten(states[1]).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


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
from torchq.engines import fused, protocols
from torchq.engines.gpu import batched_kernels, online_kernels
online_kernels.train = Compiled(online_kernels.train)
batched_kernels.play, batched_kernels.descend = Compiled(batched_kernels.play), Compiled(batched_kernels.descend)
short = library(episode_length=1)
for env, preset in (("pendulum", "paper"), ("wireless", "default")):
    run = experiment("stlrq", env, preset, library=short, rank=8, num_seeds=1, num_tasks=1)
    advance = fused.triton_program(run.rollout).train
    state = run.initial_state
    if protocols.takes_turns(run.config, run.rollout):
        protocols.turns_round(run.config, run.rollout, short.select_tasks, run.rollout.tasks, state, 0, advance)
    else:
        protocols.batched_round(run.config, run.rollout, run.rollout.tasks, state, 0, advance)
"""


def test_kernels_compile_for_a_gpu_that_is_not_there():
    script = COMPILE.format(paths=[str(ROOT), str(ROOT / "tests")])
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["True"] * (1 + 1 + 6), done.stderr
