"""Tasks with continuous controls: their baseline and yardstick, data sets to learn from, and test episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from torchq import philox
from torchq.philox import Purpose
from torchq.quadratic import forms, lqr
from torchq.quadratic.forms import Quadratic, Sample

UNSTABLE_RETURN = -1e3
"""A run is unstable if max|x| in its test episode passes the family's `unstable_state`, or its return −1000."""

_DTYPE = torch.float64


class ControlEnvironment(Protocol):
    """What the study asks of an environment, besides `reset`, `step` and `observe` in batch."""

    episode_length: int
    gamma: float
    noise: float
    exploration_high: tuple[float, float]
    unstable_state: float

    def exploration_std(self, task: Any) -> float:
        """Standard deviation of the exploring control."""
        ...

    def reset(self, tasks: Any, uniforms: Tensor) -> Any:
        """State at the start of a test episode."""
        ...

    def place(self, high: tuple[float, float], uniforms: Tensor) -> Any:
        """States uniform in ±high."""
        ...

    def step(self, tasks: Any, state: Any, control: Tensor, uniforms: Tensor) -> tuple[Any, Tensor, Tensor, Tensor]:
        """State, reward, terminated and truncated after one step."""
        ...

    def observe(self, state: Any) -> Tensor:
        """The state x, (seeds, tasks, envs, dimensions)."""
        ...

    def features(self, observation: Tensor) -> Tensor:
        """φ(x)."""
        ...

    def believed(self, task: Any) -> Any:
        """The parameters that the baseline is designed with."""
        ...

    def cancelling(self, task: Any, observation: Tensor) -> Tensor:
        """Control that cancels the nonlinearity."""
        ...

    def linearised(self, task: Any, *, gravity: bool = True) -> tuple[Tensor, Tensor]:
        """A and B."""
        ...

    def reward_weights(self) -> tuple[Tensor, Tensor]:
        """Q and R."""
        ...


class Design(NamedTuple):
    """Controllers of one task that need a model: the baseline from wrong parameters, the yardstick from the right."""

    value: Tensor
    """P_b: V_b(x) = −xᵀP_b x."""
    gain: Tensor
    """K_b: π_b(x) = −K_b x."""
    yardstick_gain: Tensor
    """K_f: u = (cancelling control) − K_f x."""
    radius: float
    """√γ·ρ(A − BK_b) of the true task near the origin; the baseline stabilises below 1."""


class Case(NamedTuple):
    """One task of a family, ready to collect data from and to test on."""

    env: ControlEnvironment
    task: Any
    """Its parameters as numbers."""
    batch: Any
    """Its parameters as tensors (1, 1)."""
    task_index: int
    design: Design


def make_case(env: ControlEnvironment, task: Any, batch: Any, task_index: int, baseline: str = "lqr") -> Case:
    """A task with its baseline and yardstick, from discounted Riccati equations.

    Args:
        env: the family.
        task: parameters as numbers.
        batch: the same as tensors (1, 1).
        task_index: of the task, which decides its random numbers.
        baseline: "none" has π_b = 0 and V_b = 0.
    """
    Q, R = env.reward_weights()
    A, B = env.linearised(task)
    value, gain = lqr.discounted_riccati(*env.linearised(env.believed(task)), Q, R, env.gamma)
    if baseline == "none":
        value, gain = torch.zeros_like(value), torch.zeros_like(gain)
    _, yardstick = lqr.discounted_riccati(*env.linearised(task, gravity=False), Q, R, env.gamma)
    radius = lqr.discounted_radius(A, B, gain, env.gamma)
    return Case(env, task, batch, task_index, Design(value, gain, yardstick, radius))


def draw(seeds: Tensor, task: int, purpose: Purpose, steps: int, envs: int, count: int) -> Tensor:
    """Uniforms of runs and a task, (steps, seeds, 1, envs, count)."""
    step, env = torch.arange(steps), torch.arange(envs)
    bits = philox.random_bits(seeds, step, purpose, torch.tensor([task]), env, count)
    return philox.uniform(bits, _DTYPE)


def datasets(case: Case, seeds: Tensor, size: int) -> Sample:
    """One-step transitions under the exploring baseline, fields (seeds, size, …).

    The first rows do not depend on how many there are. Control and reward come from the true state, x and x⁺ are
    measured with independent noise, and ũ = u + K_b x is that of the measured state.           [LMI, §IV-A]
    """
    env, plan = case.env, case.design
    uniforms = draw(seeds, case.task_index, Purpose.DATASET, 1, size, 10)[0]  # (seeds, 1, size, 10)
    flat = uniforms[:, 0]
    pairs = [philox.normal(flat[..., i], flat[..., i + 1]) for i in (2, 4, 6)]
    normals, extra = torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs])
    state = env.place(env.exploration_high, uniforms[..., :2])
    x = env.observe(state)[:, 0]  # (seeds, size, dimensions)
    control = -forms.linear(x, plan.gain) + env.exploration_std(case.task) * normals[2].unsqueeze(-1)
    following, reward, _, _ = env.step(case.batch, state, control.squeeze(-1).unsqueeze(1), uniforms[..., 8:10])
    x = x + env.noise * torch.stack((normals[0], extra[0]), -1)
    next_x = env.observe(following)[:, 0] + env.noise * torch.stack((normals[1], extra[1]), -1)
    return Sample(
        phi=env.features(x),
        deviation=control + forms.linear(x, plan.gain),
        reward=reward[:, 0],
        next_phi=env.features(next_x),
        value=-forms.form(x, plan.value),
        next_value=-forms.form(next_x, plan.value),
    )


def dataset(case: Case, seed: int, size: int) -> Sample:
    """`datasets` of one run, fields (size, …)."""
    return Sample(*(field[0] for field in datasets(case, torch.tensor([seed]), size)))


def test_episodes(case: Case, fits: Quadratic, seeds: Tensor) -> tuple[Tensor, Tensor]:
    """Returns and stability of the yardstick, the baseline and all fits, from one start and with the same noise.

    Args:
        case: the task.
        fits: of each run, (seeds, fits, …).
        seeds: of the runs, (seeds,).

    Returns:
        Undiscounted returns and whether each was unstable, (seeds, 2 + fits).
    """
    env, plan = case.env, case.design
    gains = forms.greedy_gain(fits)  # (seeds, fits, m, p)
    policies = 2 + gains.shape[1]
    start = draw(seeds, case.task_index, Purpose.EVALUATION_RESET, 1, 1, 2)[0]
    state = env.reset(case.batch, start.expand(-1, -1, policies, -1))
    noise = draw(seeds, case.task_index, Purpose.EVALUATION_STEP, env.episode_length, 1, 2)
    total = torch.zeros(len(seeds), policies, dtype=_DTYPE)
    largest = torch.zeros_like(total)
    for uniforms in noise:
        x = env.observe(state)[:, 0]
        base = -forms.linear(x, plan.gain)
        learnt = base[:, 2:] + forms.linear(env.features(x[:, 2:]), gains)
        yardstick = env.cancelling(case.task, x[:, :1]) - forms.linear(x[:, :1], plan.yardstick_gain)
        control = torch.cat((yardstick, base[:, 1:2], learnt), 1).squeeze(-1).unsqueeze(1)
        state, reward, _, _ = env.step(case.batch, state, control, uniforms.expand(-1, -1, policies, -1))
        total += reward[:, 0]
        largest = torch.maximum(largest, env.observe(state)[:, 0].abs().amax(-1))
    return total, ~((largest <= env.unstable_state) & (total >= UNSTABLE_RETURN))


def test_episode(case: Case, fits: Sequence[Quadratic], seed: int) -> tuple[Tensor, Tensor]:
    """`test_episodes` of one run, (2 + fits,)."""
    stacked = Quadratic(*(torch.stack(parts).unsqueeze(0) for parts in zip(*fits, strict=True)))
    returns, unstable = test_episodes(case, stacked, torch.tensor([seed]))
    return returns[0], unstable[0]
