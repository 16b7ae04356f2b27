"""Environments translated to C++ and Triton: step by step the same as in torch, whatever the family."""

import dataclasses
import os
import subprocess
import sys

import families
import pytest
import torch
from problems import PLAIN, ROOT, experiment, play

import envs
from torchq.engines.codegen.trace import TranslationError, trace_family
from torchq.engines.contract import Rates
from torchq.engines.cpu.engine import CppEngine
from torchq.engines.select import build
from torchq.errors import UsageError
from torchq.tree import flatten

FAMILIES = ["pendulum", "wireless", "gridworld", "cartpole", "mountain-car", "acrobot", "user-car", "wide"]
PROTOCOLS = {
    "batched": {"algo": "stlrq", "num_envs": 5, "replay_ratio": 0},
    "online": {**PLAIN, "algo": "lrq", "num_envs": 1, "update": "block"},
}


def run(env, dtype, protocol, **options):
    """A family with more tasks, seeds and environments than one vector holds, and not a multiple of them."""
    return experiment(
        env=env, dtype=dtype, num_seeds=2, rank=3, epsilon_end=1.0,
        library=families.library(episode_length=100),
        **{**protocol, **options},
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
@pytest.mark.parametrize("env", FAMILIES)
def test_every_family_steps_as_in_torch(env, dtype, protocol):
    """400 random steps, each from where eager mode stands: an error of rounding is not let grow, nor hidden by others.

    A step is a discontinuous function in places; what falls on the other side of one is counted, and rare.
    """
    given = run(env, dtype, protocol)
    rollout, state, program = given.rollout, given.initial_state, CppEngine(given.rollout)
    batch, one = rollout.batch(), torch.ones(1, dtype=rollout.dtype)
    tolerance = 2e-6 if dtype == "float32" else 1e-13
    off, count, episodes = 0, 0, 0.0
    draws = rollout.draw(torch.arange(400), torch.arange(rollout.num_tasks))
    for step in range(400):
        found = program.train(batch, state, Rates(one, 1e-9 * one), step)
        env_state, reward, done = in_torch(rollout, state.env, *(field[step] for field in draws))
        for ours, theirs in zip(found.env, env_state, strict=True):
            assert ours.dtype == theirs.dtype
            apart = (ours.double() - theirs.double()).abs() > tolerance * (1 + theirs.double().abs())
            off, count = off + int(apart.sum()), count + apart.numel()
        torch.testing.assert_close(found.statistics.episodes, done.to(reward.dtype).mean(-1))
        torch.testing.assert_close(found.statistics.reward, reward.mean(-1), rtol=1e-4, atol=1e-4)
        state, episodes = state._replace(env=env_state), episodes + float(done.sum())
    assert off <= (2e-4 * count if dtype == "float32" else 0), (off, count)
    assert episodes > 0  # Ends, and starts after them, were seen too.


def in_torch(rollout, env_state, _, action, uniforms, autoreset, *__):
    """A random step of every environment: state, rewards, and whose episode ended."""
    after, reward, terminated, truncated = rollout.env.step(rollout.tasks, env_state, action, uniforms)
    done = terminated | truncated
    if rollout.env.terminates:
        fresh = rollout.env.reset(rollout.tasks, autoreset)
        after = type(after)(*(torch.where(done, new, old) for new, old in zip(fresh, after, strict=True)))
    return after, reward, done


@pytest.mark.parametrize("update", ["joint", "block"])
def test_modes_above_six_learn_too(update):
    """Task, five dimensions and action: blocks of modes beyond the sixth were once left out of the update."""
    options = {"update": update, "num_envs": 3}
    states = [
        play(run("wide", "float64", {"algo": "stlrq", "features": "linear"}, **options, engine=name), 2)
        for name in ("eager", "fused")
    ]
    moved = [
        (after - before).abs().max()
        for after, before in zip(
            states[1].learner.factors,
            run("wide", "float64", {"algo": "stlrq", "features": "linear"}).initial_state.learner.factors,
            strict=True,
        )
    ]
    assert len(moved) == 7
    assert min(moved) > 1e-3
    for theirs, ours in zip(flatten(states[0]).values(), flatten(states[1]).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_family_of_a_user_runs_fused():
    """Thirty lines of torch, no C++: mountain car, trained by the fused engine as by the eager one."""
    given = experiment("stlrq", "user-car", library=families.library(), episodes=10_000, engine="auto", rank=5)
    assert (given.config.engine, given.notes) == ("fused", ())
    eager = experiment("stlrq", "user-car", library=families.library(), rank=5, dtype="float64", num_seeds=2)
    fused = dataclasses.replace(eager, engine=build(eager.rollout, "fused"))
    states = [play(each, 2) for each in (eager, fused)]
    for theirs, ours in zip(flatten(states[0]).values(), flatten(states[1]).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def broken_step(body):
    """A pendulum whose step does something else with its state first."""

    def step(self, tasks, state, action, uniforms):
        theta = body(state.theta, tasks)
        return envs.Pendulum.step(self, tasks, state._replace(theta=theta), action, uniforms)

    return families.broken(step)()


UNTRANSLATABLE = {
    "a matrix product": (lambda x, tasks: (x.unsqueeze(-1) @ tasks.mass).squeeze(-1), r"aten\."),
    "control flow": (lambda x, tasks: x if x.sum() > 0 else -x, "it reads a value|aten.sum"),
    "a value": (lambda x, tasks: x * x.flatten()[0].item(), "aten|it reads a value"),
    "environments that meet": (lambda x, tasks: x - x.mean(-1, keepdim=True), r"aten\.mean\.dim has no scalar form"),
    "a change in place": (lambda x, tasks: x.clone().clamp_(-1, 1), r"aten\.clamp_\.default changes a tensor in place"),
    "a sort": (lambda x, tasks: x.sort().values, r"aten\.sort\.default has no scalar form"),
    "randomness of its own": (lambda x, tasks: x + torch.rand_like(x), r"aten\.rand_like\.default has no scalar form"),
    "a table": (lambda x, tasks: x * torch.arange(3.0).view(3, 1), r"aten\.mul\.Tensor .* a table of constants"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "message"), UNTRANSLATABLE.values(), ids=UNTRANSLATABLE)
def test_what_cannot_be_translated_says_which_operator(body, message):
    env = broken_step(body)
    tasks = envs.stack_tasks(env.sample_tasks(), dtype=torch.float64)
    state = env.reset(tasks, torch.rand(2, 4, 3, 1, dtype=torch.float64))
    with pytest.raises(TranslationError, match=rf"^Broken\.step: ({message})"):
        trace_family(env, tasks, state, torch.float64)


def test_a_family_that_cannot_be_translated_runs_in_eager_mode_and_says_why(monkeypatch):
    from torchq.engines import compiled
    from torchq.engines.contract import UnavailableError

    def unavailable(rollout):
        raise UnavailableError("not in this test")

    monkeypatch.setattr(compiled, "compiled", unavailable)
    family = type(broken_step(lambda x, tasks: x - 0 * x.mean(-1, keepdim=True)))
    library = {"pendulum": family}
    given = experiment("stlrq", "pendulum", library=library, episodes=20_000, engine="auto")
    why = "Broken.step: aten.mean.dim has no scalar form"
    assert given.notes == (f"engine fused passed over: {why}", "engine compile passed over: not in this test")
    assert given.config.engine == "eager"
    with pytest.raises(UsageError, match=rf"^engine: fused does not work here \({why}\); use auto$"):
        experiment("stlrq", "pendulum", library=library, engine="fused")


def test_constants_are_folded_in():
    """Another gravity is another program, and its trajectory that of eager mode."""
    library = {"pendulum": lambda: envs.Pendulum(gravity=9.0, num_actions=7, episode_length=40)}
    eager, fused = (
        experiment(env="pendulum", library=library, dtype="float64", rank=3, engine=e) for e in ("eager", "fused")
    )
    torch.testing.assert_close(play(fused, 1).env.theta, play(eager, 1).env.theta, rtol=1e-9, atol=1e-9)


PARITY = """
import itertools, sys, torch
sys.path[:0] = {paths!r}
torch.set_num_threads(1)
import families, interpreted, jaxtyping
from problems import experiment
from torchq.engines import graph
from torchq.engines.contract import Rates
from torchq.engines.eager import Stepwise
from torchq.engines.gpu.engine import triton_engine
graph.capture = lambda body: (body(), body)[1]
for env, dtype, protocol in itertools.product({envs!r}, ("float32", "float64"), {protocols!r}):
    run = experiment(env=env, dtype=dtype, num_seeds=1, num_tasks=2, rank=2, epsilon_end=1.0,
                     library=families.library(episode_length=6), **protocol)
    rollout, state = run.rollout, run.initial_state
    eager, program, batch = Stepwise(rollout), triton_engine(rollout), rollout.batch()
    one, tolerance = torch.ones(1, dtype=rollout.dtype), 3e-6 if dtype == "float32" else 1e-13
    for step in range({steps!r}):
        ours, state = (engine.train(batch, state, Rates(one, 1e-9 * one), step) for engine in (program, eager))
        for found, expected in zip(ours.env, state.env, strict=True):
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(ours.statistics, state.statistics, rtol=1e-4, atol=1e-4)
    jaxtyping.config.update("jaxtyping_disable", True)  # Shapes have been checked.
    print("equal")
"""


@pytest.mark.parametrize("envs", [FAMILIES[:3], pytest.param(FAMILIES[3:], marks=pytest.mark.slow)], ids=" ".join)
def test_every_family_steps_as_in_torch_in_triton(envs):
    """In the interpreter, which takes long: 400 steps with TORCHQ_TEST_STEPS=400."""
    steps = int(os.environ.get("TORCHQ_TEST_STEPS", 8))
    names = {"envs": envs, "steps": steps, "protocols": list(PROTOCOLS.values())}
    script = PARITY.format(paths=[str(ROOT), str(ROOT / "tests")], **names)
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["equal"] * len(envs) * 2 * len(PROTOCOLS), done.stderr
