"""A family of batteries that buy and sell electricity at hourly prices, and differ in device and market."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import base, price_series


class StorageState(NamedTuple):
    """State of a batch of batteries."""

    charge: Tensor
    """Energy stored, as a share of the capacity, in [0, 1]."""
    deviation: Tensor
    """Of the price from what is usual at this hour, in standard deviations, in [−4, 4]."""
    elapsed: Tensor
    """Hours since the reset, which is at midnight."""


@dataclass(frozen=True)
class StorageTask:
    """One battery in one market, or many of them as tensors shaped (tasks, 1)."""

    hours: float | Tensor
    """Capacity over power: hours to sell a full battery at full power but for losses ("a four-hour battery")."""
    efficiency: float | Tensor
    """Round trip: MWh sold per MWh bought."""
    wear: float | Tensor
    """What a MWh bought, and a MWh sold, takes from the battery's life, as a share of the price level."""
    volatility: float | Tensor
    """Standard deviation of the price from what is usual at its hour, as a share of the level."""
    peak: float | Tensor
    """Height of the daily profile, as a share of the level; with a price file, as a multiple of its own profile."""
    dip: float | Tensor
    """Depth of the dip around noon that solar power brings, as a share of the level."""

    @classmethod
    def of(
        cls,
        *,
        capacity: float,
        power: float,
        efficiency: float,
        wear: float,
        level: float,
        volatility: float,
        peak: float,
        dip: float = 0.0,
    ) -> StorageTask:
        """A battery of `capacity` MWh and `power` MW whose wear is in EUR/MWh, where prices have a mean of `level`
        EUR/MWh. Its returns times capacity · level / 10 are EUR.
        """  # noqa: D205
        return cls(capacity / power, efficiency, wear / level, volatility, peak, dip)


def _bump(middle: float, width: float) -> list[float]:
    """A bell over the hours of a day, whose highest point is 1."""
    apart = [min(abs(hour - middle), 24 - abs(hour - middle)) for hour in range(24)]
    return [math.exp(-0.5 * (distance / width) ** 2) for distance in apart]


def _centred(values: list[float]) -> tuple[float, ...]:
    """The same with mean 0."""
    return tuple(value - sum(values) / len(values) for value in values)


PEAKS = _centred([0.75 * a + b - 0.5 * c for a, b, c in zip(_bump(8, 1.8), _bump(19, 2.2), _bump(3, 2.5), strict=True)])
"""Usual prices by the hour, but for the level: peaks of the morning and the evening, and a valley at night."""
DIP = _centred([-value for value in _bump(13, 2.3)])
"""What much solar power does to them."""


@dataclass(frozen=True)
class Storage:
    """One battery that takes prices as they come: it buys where electricity is cheap and sells where it is dear.

    ## Observation
    (s, z, h): charge s as a share of the capacity, [0, 1]; deviation z of this hour's price from what is usual at the
    hour, in standard deviations, [−4, 4]; hour of the day h ∈ {0, …, 23}. The price of the hour is known when its
    action is chosen; the next ones are not.

    ## Action
    Discrete: `num_actions` powers equally spaced from selling to buying at full power; the middle one rests. Buying is
    cut where the battery is full, and selling where it is empty.

    ## Dynamics, one hour, with η₁ = √efficiency in each direction
        s′ = s + η₁ · bought − sold / η₁,   bought, sold ≤ 1 / hours per MWh of capacity
        price / level = 1 + peak · P_h + dip · D_h + volatility · z
        z′ = clip(φ z + √(1 − φ²) n, −4, 4),   n ~ N(0, 1)

    Prices are a usual day and a deviation that returns to it, as in the first model of Lucia and Schwartz (Electricity
    prices and power derivatives, Review of Derivatives Research 2002), here by the hour; they can be negative. P and D
    are `profile` and `dip_profile`, of mean 0: peaks in the morning and in the evening, and the dip of solar power
    (Hirth, The market value of variable renewables, Energy Economics 2013). No weeks, seasons or spikes (Weron,
    Electricity price forecasting, International Journal of Forecasting 2014, reviews what there is besides). Money for
    each MWh that goes through is the simplest account of wear; Xu et al. (Factoring the cycle aging cost of batteries
    participating in electricity markets, IEEE Trans. Power Systems 2018) count cycles by their depth.

    ## Reward
    10 · [price / level · (sold − bought) − wear · (sold + bought) + η₁ · P₀ · (s′ − s)]: money of the hour, and the
    change of what the charge would bring at P₀, the usual price of midnight over level, so that what is left at the
    end, which is at midnight, is not lost. The unit is a tenth of a full battery at the mean price: times
    capacity · level / 10 it is EUR. Money grows with capacity and level, so that tasks need neither.

    ## Start
    Midnight, half full, z ~ N(0, 1).

    ## End
    Never terminates; truncated after `episode_length` hours, a week.

    Args:
        prices: a CSV file of hourly prices, see `price_series`. Its mean, deviation, persistence and daily profile take
            the place of `level`, `volatility`, `persistence` and `profile`. Tasks are spread around these: a task with
            the file's `volatility`, a peak of 1 and no dip meets its prices. From the command line:
            `--env storage --env-option prices=prices.csv`.
        market: what the file says, once it is read; a run that goes on takes it from there.
        persistence: φ.
        level: EUR/MWh, for those who want money; nothing here depends on it.
        volatility: the middle of the tasks', more or less; each task has its own.
    """

    num_actions: int = 5
    episode_length: int = 168
    prices: str | None = None
    persistence: float = 0.9
    level: float = 80.0
    volatility: float = 0.25
    profile: tuple[float, ...] = PEAKS
    dip_profile: tuple[float, ...] = DIP
    market: tuple[Any, ...] = ()

    name = "storage"
    terminates = False
    num_reset_uniforms = 2
    num_step_uniforms = 2
    grid_low = (0.0, -3.0, 0.0)
    grid_high = (1.0, 3.0, 23.0)
    grid_sizes = (10, 10, 24)
    dimensions = (
        base.Dimension(0.0, 1.0, 7),
        base.Dimension(-3.0, 3.0, 7),
        base.Dimension(0.0, 23.0, 24, "category"),
    )
    observation_names = ("charge", "price, deviation", "hour")
    parameter_units = ("h", "", "", "", "", "")
    observation_low = (0.0, -4.0, 0.0)
    observation_high = (1.0, 4.0, 23.0)

    def __post_init__(self) -> None:
        for name in ("profile", "dip_profile"):
            if len(getattr(self, name)) != 24:
                raise ValueError(f"{name}: expected a number for each of 24 hours, got {len(getattr(self, name))}")
        if self.prices is None:
            return
        found = price_series.PriceModel(*self.market) if self.market else price_series.read(self.prices)
        for name, value in found._asdict().items():
            object.__setattr__(self, name, tuple(value) if name == "profile" else value)

    @property
    def resolved(self) -> dict[str, Any]:
        """Arguments that give this family again, whatever becomes of the file of prices."""
        if self.prices is None:
            return {}
        return {"market": [getattr(self, name) for name in price_series.PriceModel._fields]}

    @property
    def parameters(self) -> tuple[base.Dimension, ...]:
        """Range of each parameter of a task."""
        low, high = self._box()
        kinds = ("log", *("continuous",) * 5)
        points = (5, 3, 3, 4, 4, 4)
        rows = zip(low, high, points, kinds, strict=True)
        return tuple(base.Dimension(*row) for row in rows)  # type: ignore[arg-type]

    def _box(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Lowest and highest parameters of the family.

        From 1 to 8 hours; from 70% (flow batteries) to 95% (lithium-ion) efficient; wear from 2% to 20% of the price
        level: 200 EUR/kWh over 5,000 cycles are 20 EUR/MWh, in and out.
        """
        peak = (0.5, 1.6) if self.prices else (0.15, 0.5)
        volatility = 0.5 * self.volatility, 1.6 * self.volatility
        low, high = zip((1.0, 8.0), (0.7, 0.95), (0.02, 0.2), volatility, peak, (0.0, 0.5), strict=True)
        return low, high

    def sample_tasks(self, num_tasks: int | None = None) -> list[StorageTask]:
        """Four batteries that differ much, the first of them, or more, spread over the ranges of `parameters`."""
        low, high = self._box()
        if num_tasks is None or num_tasks <= len(CONTRASTS):
            points = [
                [a + share * (b - a) for share, a, b in zip(shares, low, high, strict=True)] for shares in CONTRASTS
            ]
            return [StorageTask(*point) for point in points[:num_tasks]]
        spread = base.spread(num_tasks, (math.log(low[0]), *low[1:]), (math.log(high[0]), *high[1:]))
        return [StorageTask(math.exp(point[0]), *point[1:]) for point in spread]

    def optimal_returns(self, tasks: list[StorageTask], device: torch.device | str = "cpu") -> list[float]:
        """Expected undiscounted return of an optimal policy for each task, over one episode."""
        from . import storage_optimal

        return storage_optimal.returns(self, tasks, device)

    def rate(self, action: Tensor, dtype: torch.dtype) -> Tensor:
        """What each action asks for, from −1 (sell at full power) to 1 (buy)."""
        return action.to(dtype) * (2.0 / (self.num_actions - 1)) - 1.0

    @property
    def action_levels(self) -> list[list[float]]:
        """Rate of each action, for policies that are taken away."""
        return self.rate(torch.arange(self.num_actions), torch.float64).unsqueeze(-1).tolist()

    def price(self, tasks: StorageTask, deviation: Tensor, hour: Tensor) -> Tensor:
        """Price over level."""
        usual, dip = (torch.full_like(deviation, table[0]) for table in (self.profile, self.dip_profile))
        for number in range(1, 24):
            usual = torch.where(hour == number, self.profile[number], usual)
            dip = torch.where(hour == number, self.dip_profile[number], dip)
        return 1.0 + tasks.peak * usual + tasks.dip * dip + tasks.volatility * deviation

    def reset(self, tasks: StorageTask, uniforms: Tensor) -> StorageState:
        """Half full at midnight; uniforms shaped (seeds, tasks, envs, 2)."""
        dtype = base.dtype_of(tasks)
        deviation, _ = base.normals(uniforms[..., 0].to(dtype), uniforms[..., 1].to(dtype))
        deviation = deviation.clamp(-4.0, 4.0)
        return StorageState(torch.full_like(deviation, 0.5), deviation, torch.zeros_like(deviation, dtype=torch.int32))

    def step(
        self, tasks: StorageTask, state: StorageState, action: Tensor, uniforms: Tensor
    ) -> tuple[StorageState, Tensor, Tensor, Tensor]:
        """One hour; uniforms shaped (seeds, tasks, envs, 2), for the next price."""
        charge, deviation, elapsed = state
        dtype = charge.dtype
        one_way = tasks.efficiency**0.5
        asked = self.rate(action, dtype) / tasks.hours
        bought = torch.minimum(asked.clamp(min=0.0), (1.0 - charge) / one_way)
        sold = torch.minimum((-asked).clamp(min=0.0), charge * one_way)
        after = (charge + one_way * bought - sold / one_way).clamp(0.0, 1.0)
        price = self.price(tasks, deviation, elapsed % 24)
        money = price * (sold - bought) - tasks.wear * (sold + bought)
        at_midnight = 1.0 + tasks.peak * self.profile[0] + tasks.dip * self.dip_profile[0]
        reward = 10.0 * (money + one_way * at_midnight * (after - charge))
        innovation = math.sqrt(1.0 - self.persistence**2)
        first, _ = base.normals(uniforms[..., 0].to(dtype), uniforms[..., 1].to(dtype), innovation)
        deviation = (self.persistence * deviation + first).clamp(-4.0, 4.0)
        elapsed = elapsed + 1
        return (
            StorageState(after, deviation, elapsed),
            reward,
            base.never(reward),
            elapsed >= self.episode_length,
        )

    def observe(self, state: StorageState) -> Tensor:
        """(s, z, h), shaped (seeds, tasks, envs, 3)."""
        hour = (state.elapsed % 24).to(state.charge.dtype)
        return torch.stack((state.charge, state.deviation, hour), dim=-1)


CONTRASTS = (
    (0.0, 0.9, 0.3, 0.8, 0.8, 0.2),
    (0.15, 0.9, 0.6, 0.2, 0.4, 0.9),
    (0.45, 0.6, 0.1, 0.5, 1.0, 0.0),
    (1.0, 0.1, 0.0, 0.3, 0.5, 0.7),
)
"""The default tasks, as shares of the family's ranges."""
