"""The case study of [LMI]: quadratic learners on data sets of growing size, beside the yardstick and the baseline."""

from __future__ import annotations

import time
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from torchq import philox
from torchq.config import Config
from torchq.philox import Purpose
from torchq.quadratic import excitation, forms, lqr
from torchq.quadratic.forms import Fit, Quadratic, Sample
from torchq.quadratic.lmi_ql import LMIQL
from torchq.quadratic.lmi_qli import LMIQLi
from torchq.quadratic.lspi import LSPI

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


class Row(NamedTuple):
    """One line of metrics.csv: one run, task and size."""

    episode: str
    samples: int
    seed: int
    task: int
    episode_return: float
    optimal_return: float
    """Of the yardstick, feedback linearisation with LQR, from the same start and with the same noise."""
    baseline_return: float
    unstable: int
    failed: int
    penalty_weight: float
    cost: float
    lower_bound: float


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


def make_case(env: ControlEnvironment, task: Any, batch: Any, task_index: int) -> Case:
    """A task with its baseline and yardstick, from discounted Riccati equations.

    Args:
        env: the family.
        task: parameters as numbers.
        batch: the same as tensors (1, 1).
        task_index: of the task, which decides its random numbers.
    """
    Q, R = env.reward_weights()
    A, B = env.linearised(task)
    value, gain = lqr.discounted_riccati(*env.linearised(env.believed(task)), Q, R, env.gamma)
    _, yardstick = lqr.discounted_riccati(*env.linearised(task, gravity=False), Q, R, env.gamma)
    radius = lqr.discounted_radius(A, B, gain, env.gamma)
    return Case(env, task, batch, task_index, Design(value, gain, yardstick, radius))


def draw(seed: int, task: int, purpose: Purpose, steps: int, envs: int, count: int) -> Tensor:
    """Uniforms of one run and task, (steps, 1, 1, envs, count)."""
    step, env = torch.arange(steps), torch.arange(envs)
    bits = philox.random_bits(torch.tensor([seed]), step, purpose, torch.tensor([task]), env, count)
    return philox.uniform(bits, _DTYPE)


def dataset(case: Case, seed: int, size: int) -> Sample:
    """One-step transitions under the exploring baseline; the first rows do not depend on how many there are.

    Control and reward come from the true state, x and x⁺ are measured with independent noise, and ũ = u + K_b x is that
    of the measured state.                                                                  [LMI, §IV-A]
    """
    env, plan = case.env, case.design
    uniforms = draw(seed, case.task_index, Purpose.DATASET, 1, size, 10)[0]
    normals = torch.stack([philox.normal(uniforms[0, 0, :, i], uniforms[0, 0, :, i + 1])[0] for i in (2, 4, 6)])
    extra = torch.stack([philox.normal(uniforms[0, 0, :, i], uniforms[0, 0, :, i + 1])[1] for i in (2, 4)])
    state = env.place(env.exploration_high, uniforms[..., :2])
    x = env.observe(state)[0, 0]
    control = -(x @ plan.gain.mT) + env.exploration_std(case.task) * normals[2].unsqueeze(-1)
    following, reward, _, _ = env.step(case.batch, state, control.view(1, 1, -1), uniforms[..., 8:10])
    x = x + env.noise * torch.stack((normals[0], extra[0]), -1)
    next_x = env.observe(following)[0, 0] + env.noise * torch.stack((normals[1], extra[1]), -1)
    return Sample(
        phi=env.features(x),
        deviation=control + x @ plan.gain.mT,
        reward=reward[0, 0],
        next_phi=env.features(next_x),
        value=-forms.form(x, plan.value),
        next_value=-forms.form(next_x, plan.value),
    )


def test_episode(case: Case, fits: list[Quadratic], seed: int) -> tuple[Tensor, Tensor]:
    """Returns and stability of the yardstick, the baseline and all fits, from one start and with the same noise.

    Returns:
        Undiscounted returns and whether each was unstable, (2 + fits,).
    """
    env, plan = case.env, case.design
    policies = 2 + len(fits)
    gains = torch.stack([forms.greedy_gain(q) for q in fits])
    start = draw(seed, case.task_index, Purpose.EVALUATION_RESET, 1, 1, 2)[0]
    state = env.reset(case.batch, start.expand(-1, -1, policies, -1))
    noise = draw(seed, case.task_index, Purpose.EVALUATION_STEP, env.episode_length, 1, 2)
    total, largest = torch.zeros(policies, dtype=_DTYPE), torch.zeros(policies, dtype=_DTYPE)
    for uniforms in noise:
        x = env.observe(state)[0, 0]
        base = -(x @ plan.gain.mT)
        learnt = base[2:] + (gains @ env.features(x[2:]).unsqueeze(-1)).squeeze(-1)
        yardstick = env.cancelling(case.task, x[:1]) - x[:1] @ plan.yardstick_gain.mT
        control = torch.cat((yardstick, base[1:2], learnt)).view(1, 1, policies)
        state, reward, _, _ = env.step(case.batch, state, control, uniforms.expand(-1, -1, policies, -1))
        total += reward[0, 0]
        largest = torch.maximum(largest, env.observe(state)[0, 0].abs().amax(-1))
    return total, ~((largest <= env.unstable_state) & (total >= UNSTABLE_RETURN))


def fit(config: Config, gamma: float, sample: Sample, bound: Tensor, start: Quadratic | None = None) -> Fit:
    """Fit of the configured learner; only `lmi-qli` begins at a `start`."""
    if config.algo == "lmi-ql":
        return LMIQL(gamma, config.penalty).fit(sample, bound)
    if config.algo == "lmi-qli":
        return LMIQLi(gamma, config.iterations).fit(sample, bound, start)
    return LSPI(gamma, config.iterations).fit(sample, bound)


def value_bound(constraint: str, plan: Design, p: int) -> Tensor:
    """B of the programs: zero for `dev`, EᵀP_bE with x = Eφ for `tot`; the first features are x."""
    bound = torch.zeros(p, p, dtype=_DTYPE)
    if constraint == "tot":
        n = len(plan.value)
        bound[:n, :n] = plan.value
    return bound


class Outcome(NamedTuple):
    """What one run of the study leaves."""

    rows: list[Row]
    """By task, then by size."""
    learnt: list[np.ndarray]
    """P, S and R, (tasks, sizes, …)."""
    seconds: np.ndarray
    """Wall time of each fit, (tasks, sizes)."""
    failures: list[str]
    """One line for each failed solve."""
    findings: list[str]
    """What the diagnosis says of each task's largest data set."""


def run_seed(config: Config, cases: list[Case], starts: Quadratic | None, seed: int) -> Outcome:
    """All sizes of one run, for each task.

    Args:
        config: learner and sizes.
        cases: the tasks.
        starts: where `lmi-qli` begins, (starts, tasks, …); run s takes number s modulo their count. None: the baseline.
        seed: of the run.
    """
    torch.set_num_threads(1)
    rows, fits, seconds, failures, findings = [], [], [], [], []
    for case in cases:
        everything = dataset(case, seed, max(config.sizes))
        bound = value_bound(config.constraint, case.design, everything.phi.shape[1])
        start = None if starts is None else Quadratic(*(part[seed % len(part), case.task_index] for part in starts))
        case_fits: list[Fit] = []
        for size in config.sizes:
            begun = time.perf_counter()
            case_fits.append(fit(config, case.env.gamma, Sample(*(x[:size] for x in everything)), bound, start))
            seconds.append(time.perf_counter() - begun)
        where = f"run {seed}, task {case.task_index}"
        failures += [
            f"{where}, {n} samples: {f.failure}" for n, f in zip(config.sizes, case_fits, strict=True) if f.failed
        ]
        constraint = "tot" if config.algo == "lspi" else config.constraint  # LSPI keeps to none.
        said = excitation.diagnose(everything, case.env.gamma, constraint=constraint)
        findings += [f"{where}, {max(config.sizes)} samples: {sentence}" for sentence in said]
        rows += _rows(config, case, case_fits, seed)
        fits += case_fits
    shape = (len(cases), len(config.sizes))
    learnt = [torch.stack(parts).unflatten(0, shape).numpy() for parts in zip(*(f.q for f in fits), strict=True)]
    return Outcome(rows, learnt, np.array(seconds).reshape(shape), failures, findings)


def _rows(config: Config, case: Case, fits: list[Fit], seed: int) -> list[Row]:
    returns, unstable = test_episode(case, [f.q for f in fits], seed)
    optimal, base = returns[:2].tolist()
    return [
        Row("", size, seed, case.task_index, value, optimal, base, int(fell), int(f.failed), f.penalty_weight, f.cost,
            f.lower_bound)
        for size, f, value, fell in zip(config.sizes, fits, returns[2:].tolist(), unstable[2:].tolist(), strict=True)
    ]  # fmt: skip
