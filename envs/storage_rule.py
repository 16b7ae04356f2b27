"""What batteries earn by rules of thumb that are tuned to each of them: the yardstick of what is learnt.

Two rules that operators use, and the better one for each battery. *Thresholds*: buy at full power below one price, sell
at full power above another, else rest (as in Sioshansi et al., Estimating the value of electricity storage in PJM,
Energy Economics 2009, what a battery earns is the spread of its prices). *Hours*: buy in the hours that are usually
cheapest, sell in those that are usually dearest. The thresholds are quantiles of the battery's own prices; which, and
how many hours, is chosen for each battery among all pairs of `SHARES` and `COUNTS` by its mean return over episodes of
which all pairs see the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from . import base

if TYPE_CHECKING:
    from .storage import Storage, StorageState, StorageTask

SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
"""Of all hours, those with the lowest prices and those with the highest."""
COUNTS = (1, 2, 3, 4, 5, 6, 8, 10)
"""Of a day's hours, the cheapest and the dearest."""
CHUNK = 1 << 18
"""Batteries times episodes times rules that are played at once."""

Policy = Callable[["StorageState"], Tensor]


class Rules(NamedTuple):
    """The rule of each battery, as tensors shaped (tasks, 1): resting where a rule has no say."""

    buy_below: Tensor
    """Prices over level."""
    sell_above: Tensor
    buy_hours: Tensor
    """(tasks, 1, 24), true where it buys whatever the price."""
    sell_hours: Tensor

    def policy(self, env: Storage, tasks: StorageTask) -> Policy:
        """What to do in a state."""

        def act(state: StorageState) -> Tensor:
            hour = state.elapsed % 24
            price = env.price(tasks, state.deviation, hour)
            at = int(hour.flatten()[0])  # All episodes begin at midnight.
            buy = (price < self.buy_below) | self.buy_hours[..., at]
            sell = (price > self.sell_above) | self.sell_hours[..., at]
            return torch.where(buy, env.num_actions - 1, torch.where(sell, 0, env.num_actions // 2))

        return act


def play(env: Storage, tasks: StorageTask, policy: Policy, uniforms: Tensor) -> Tensor:
    """Returns of one episode of a policy in each environment, (1, tasks, envs).

    Args:
        env: the family.
        tasks: stacked.
        policy: from a state to actions.
        uniforms: of the start and of each hour, (1 + hours, 1, tasks, envs, 2).
    """
    state = env.reset(tasks, uniforms[0])
    total = torch.zeros_like(state.charge)
    for step in range(env.episode_length):
        state, reward, _, _ = env.step(tasks, state, policy(state), uniforms[1 + step])
        total += reward
    return total


def draws(env: Storage, num_tasks: int, episodes: int, seed: int) -> Tensor:
    """Random numbers of some episodes, the same ones for every battery."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(1 + env.episode_length, 1, 1, episodes, 2, generator=generator)
    return drawn.expand(-1, -1, num_tasks, -1, -1)


def tune(env: Storage, tasks: Sequence[StorageTask], episodes: int = 16, seed: int = 1) -> list[Rules]:
    """The best rule of each battery, in parts of as many as are played at once."""
    at_once = max(1, CHUNK // (episodes * len(SHARES) ** 2))
    return [_tune(env, tasks[first : first + at_once], episodes, seed) for first in range(0, len(tasks), at_once)]


def joined(parts: Sequence[Rules]) -> Rules:
    """The rules of all parts."""
    return Rules(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


def _tune(env: Storage, given: Sequence[StorageTask], episodes: int, seed: int) -> Rules:
    tasks, uniforms = base.stack_tasks(given, dtype=torch.float32), draws(env, len(given), episodes, seed)
    prices, usual = _prices(env, tasks, uniforms)
    quantiles = torch.quantile(prices, torch.tensor([*SHARES, *(1.0 - share for share in SHARES)]), dim=1)
    low, high = quantiles.unsqueeze(-1).chunk(2)
    never, no_hours = torch.full_like(low[0], torch.inf), torch.zeros(len(given), 1, 24, dtype=torch.bool)
    cheap = usual.argsort(1).argsort(1).unsqueeze(1)
    pairs = list(product(range(len(SHARES)), repeat=2))
    by_price = [Rules(low[i], high[j], no_hours, no_hours) for i, j in pairs]
    by_hour = [
        Rules(-never, never, cheap < COUNTS[i], cheap >= 24 - COUNTS[j]) for i, j in pairs if COUNTS[i] + COUNTS[j] < 25
    ]
    best: Rules | None = None
    most = torch.full_like(never, -torch.inf)
    for rules in (by_price, by_hour):
        joined = Rules(*(torch.stack(parts, dim=1).flatten(1, 2) for parts in zip(*rules, strict=True)))
        joined = Rules(*(part.repeat_interleave(episodes, dim=1) for part in joined))
        found = play(env, tasks, joined.policy(env, tasks), uniforms.repeat(1, 1, 1, len(rules), 1))
        mean, which = found.view(len(given), len(rules), episodes).mean(-1).max(1, keepdim=True)
        rows = torch.arange(len(given))
        chosen = Rules(*(torch.stack(parts, dim=1)[rows, which[:, 0]] for parts in zip(*rules, strict=True)))
        better = mean > most
        best = chosen if best is None else Rules(*(
            torch.where(better.view(-1, 1, 1) if new.dim() == 3 else better, new, old)
            for new, old in zip(chosen, best, strict=True)))  # fmt: skip
        most = torch.maximum(mean, most)
    assert best is not None
    return best


def _prices(env: Storage, tasks: StorageTask, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Prices over level that batteries meet, (tasks, hours), and the usual ones of a day, (tasks, 24)."""
    state = env.reset(tasks, uniforms[0])
    rest, met = torch.full_like(state.charge, env.num_actions // 2, dtype=torch.int64), []
    for step in range(env.episode_length):
        met.append(env.price(tasks, state.deviation, state.elapsed % 24)[0])
        state, *_ = env.step(tasks, state, rest, uniforms[1 + step])
    none = torch.zeros_like(state.charge[..., :1])
    usual = [env.price(tasks, none, torch.full_like(none, hour))[0, :, 0] for hour in range(24)]
    return torch.cat(met, dim=1), torch.stack(usual, dim=1)
