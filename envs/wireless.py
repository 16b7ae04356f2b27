"""A family of energy-harvesting transmitters that differ in harvest and traffic.      [TLR, §IV]"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import base


class WirelessState(NamedTuple):
    """State of a batch of transmitters."""

    channel_real: Tensor
    """Real part of the channel h."""
    channel_imag: Tensor
    """Imaginary part of the channel h."""
    occupied: Tensor
    """1.0 where the channel is in use by others, else 0.0."""
    queue: Tensor
    """Packets waiting, in [0, 10]."""
    battery: Tensor
    """Energy stored, in [0, 10]."""
    elapsed: Tensor
    """Steps since the reset."""


@dataclass(frozen=True)
class WirelessTask:
    """One transmitter, or many of them as tensors shaped (tasks, 1)."""

    harvest: float | Tensor
    """Energy of one harvest, in units of the battery (capacity 10)."""
    harvest_probability: float | Tensor
    """P_h per slot."""
    arrival: float | Tensor
    """Packets of one arrival, in units of the queue (capacity 10)."""
    arrival_probability: float | Tensor
    """P_a per slot."""


PAPER_TASKS = (
    WirelessTask(0.5, 0.2, 1.0, 0.2),
    WirelessTask(0.5, 0.5, 1.0, 0.2),
    WirelessTask(0.5, 0.5, 1.0, 0.5),
    WirelessTask(3.0, 0.8, 2.0, 0.8),
)


@dataclass(frozen=True)
class Wireless:
    """One device that shares one fading channel and lives on harvested energy.

    ## Observation
    (g, o, q, b): channel gain g = |h|² ≥ 0, occupancy o ∈ {0, 1}, queue q in [0, 10], battery b in [0, 10].
    The bound of g, 50 snr, is passed with probability e⁻⁵⁰.

    ## Action
    Discrete: `num_actions` powers equally spaced in [0, 2]; a power above the battery is cut to it.

    ## Dynamics, one slot
        h′ = √0.7 h + √0.3 √(snr/2) (n₁ + i n₂),   n₁, n₂ ~ N(0, 1),  snr = 5
        o′ = 1 with probability 0.2, whatever o
        b′ = clip(b − p + harvest · Bern(P_h), 0, 10)
        q′ = clip(q − c·[b > 0] + arrival · Bern(P_a), 0, 10),   c = log₂(1 + g p), or 0 where occupied

    Differs from the paper: its transition matrix suggests that an occupied channel stays so with probability 0.8; the
    program behind the published curves draws 0.2 whatever the current state, and so does this one.

    ## Reward
    1.5 ln(1 + b′) − 0.5 q′.

    ## Start
    h = √(snr/2) (n₁ + i n₂), occupied, q = 2, b = 10.

    ## End
    Never terminates; truncated after `episode_length` slots.
    """

    num_actions: int = 10
    episode_length: int = 200
    snr: float = 5.0
    capacity: float = 10.0
    max_power: float = 2.0
    memory: float = 0.7
    occupied_probability: float = 0.2

    name = "wireless"
    terminates = False
    num_reset_uniforms = 2
    num_step_uniforms = 5
    grid_low = (0.0, 0.0, 0.0, 0.0)
    grid_high = (20.0, 1.0, 10.0, 10.0)
    grid_sizes = (20, 2, 10, 10)
    dimensions = (
        base.Dimension(0.0, 20.0, 6, "quadratic"),
        base.Dimension(0.0, 1.0, 2, "category"),
        base.Dimension(0.0, 10.0, 6),
        base.Dimension(0.0, 10.0, 6),
    )
    parameters = (
        base.Dimension(0.5, 3.0, 4),
        base.Dimension(0.2, 0.8, 4),
        base.Dimension(1.0, 2.0, 4),
        base.Dimension(0.2, 0.8, 4),
    )
    observation_names = ("gain", "occupied", "queue", "battery")
    observation_low = (0.0, 0.0, 0.0, 0.0)
    observation_high = (250.0, 1.0, 10.0, 10.0)

    @staticmethod
    def sample_tasks(num_tasks: int | None = None) -> list[WirelessTask]:
        """The paper's four tasks, the first of them, or more: harvest in [0.5, 3], P_h in [0.2, 0.8], arrival in
        [1, 2], P_a in [0.2, 0.8].
        """  # noqa: D205
        if num_tasks is None or num_tasks <= len(PAPER_TASKS):
            return list(PAPER_TASKS[:num_tasks])
        return [WirelessTask(*p) for p in base.spread(num_tasks, (0.5, 0.2, 1.0, 0.2), (3.0, 0.8, 2.0, 0.8))]

    @property
    def action_names(self) -> tuple[str, ...]:
        """The powers."""
        return tuple(f"power {p:.2g}" for p in self.power(torch.arange(self.num_actions), torch.float64).tolist())

    def power(self, action: Tensor, dtype: torch.dtype) -> Tensor:
        """Power that each action asks for."""
        return action.to(dtype) * (self.max_power / (self.num_actions - 1))

    @property
    def action_levels(self) -> list[list[float]]:
        """Power of each action, for policies that are taken away."""
        return self.power(torch.arange(self.num_actions), torch.float64).unsqueeze(-1).tolist()

    def optimal_returns(self, tasks: list[WirelessTask], device: torch.device | str = "cpu") -> list[float]:
        """Expected undiscounted return of an optimal policy for each task, over one episode."""
        from . import optimal

        return [optimal.wireless(self, base.stack_tasks([task], device=device)) for task in tasks]

    def optimal_policy(self, task: WirelessTask) -> base.Policy:
        """What an optimal policy does in one task."""
        from . import optimal_policies

        return optimal_policies.wireless(self, base.stack_tasks([task]))

    def reset(self, tasks: WirelessTask, uniforms: Tensor) -> WirelessState:
        """Stationary channel, occupied, q = 2, full battery; uniforms shaped (seeds, tasks, envs, 2)."""
        dtype = base.dtype_of(tasks)
        first, second = base.normals(uniforms[..., 0].to(dtype), uniforms[..., 1].to(dtype))
        scale = math.sqrt(self.snr / 2.0)
        return WirelessState(
            scale * first,
            scale * second,
            torch.ones_like(first),
            torch.full_like(first, 2.0),
            torch.full_like(first, self.capacity),
            torch.zeros_like(first, dtype=torch.int32),
        )

    def step(
        self, tasks: WirelessTask, state: WirelessState, action: Tensor, uniforms: Tensor
    ) -> tuple[WirelessState, Tensor, Tensor, Tensor]:
        """One slot; uniforms shaped (seeds, tasks, envs, 5): fading (2), occupancy, harvest, arrival."""
        dtype = state.queue.dtype
        fading_1, fading_2, occupancy, harvest, arrival = uniforms.to(dtype).unbind(-1)
        power = torch.minimum(self.power(action, dtype), state.battery)
        gain = state.channel_real**2 + state.channel_imag**2
        rate = torch.log2(1.0 + gain * power) * (1.0 - state.occupied) * (state.battery > 0)
        harvested = tasks.harvest * (harvest < tasks.harvest_probability)
        arrived = tasks.arrival * (arrival < tasks.arrival_probability)
        battery = (state.battery - power + harvested).clamp(0.0, self.capacity)
        queue = (state.queue - rate + arrived).clamp(0.0, self.capacity)
        reward = 1.5 * torch.log(1.0 + battery) - 0.5 * queue
        keep, innovation = math.sqrt(self.memory), math.sqrt((1.0 - self.memory) * self.snr / 2.0)
        first, second = base.normals(fading_1, fading_2, innovation)
        elapsed = state.elapsed + 1
        next_state = WirelessState(
            keep * state.channel_real + first,
            keep * state.channel_imag + second,
            (occupancy < self.occupied_probability).to(dtype),
            queue,
            battery,
            elapsed,
        )
        return next_state, reward, base.never(reward), elapsed >= self.episode_length

    def observe(self, state: WirelessState) -> Tensor:
        """(g, o, q, b), shaped (seeds, tasks, envs, 4)."""
        gain = state.channel_real**2 + state.channel_imag**2
        return torch.stack((gain, state.occupied, state.queue, state.battery), dim=-1)
