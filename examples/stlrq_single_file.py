"""S-TLR-Q in one file of plain PyTorch: four pendulums learn one low-rank Q-tensor.

    python examples/stlrq_single_file.py

Written to be read, without torchq. Equations are those of Rozada et al., "A Tensor Low-Rank Approximation for Value
Functions in Multi-Task Reinforcement Learning" (Asilomar 2024). The Q-functions of tasks m are one tensor of rank K,

    Q[θ, ω, a, m] = Σₖ (φ(θ)ᵀ F_θ)[k] · (φ(ω)ᵀ F_ω)[k] · A[a, k] · T[m, k]                                    (7)

whose factors F_θ, F_ω and A all tasks share, and whose factor T mixes them for each. For transitions (m, s, a, r, s′)
the factors take gradient steps on half the squared TD errors, with the targets held constant,

    δ = r + γ maxₐ′ Q[s′, a′, m] − Q[s, a, m],     min ½ Σ δ²                                  (5b), (9a)–(9c)

Differs from the paper: its φ picks one row, the nearest cell, here it interpolates between two; it uses a transition
once, here stored ones are drawn again; and here a tensor that follows slowly gives the targets, and Adam the steps.
"""

import argparse
import dataclasses
import math

import torch
from torch import Tensor

MASS, LENGTH = torch.tensor([[0.01, 0.1, 0.5, 1.0], [1.0, 1.0, 0.5, 0.5]]).unsqueeze(-1)  # (tasks, 1) each
OPTIMUM = (-105.4, -74.8, -77.5, -94.1)  # By dynamic programming on a fine grid.
TORQUES = torch.linspace(-2.0, 2.0, 10)
STEPS = 100  # of an episode; it does not end earlier.


@dataclasses.dataclass
class Settings:
    """What can be set, each by a flag: --rank 10 --eval_every 5."""

    rank: int = 30  # K
    points: int = 16  # of θ and of ω, between which the factors interpolate
    episodes: int = 50  # of each task
    eval_every: int = 10  # episodes
    learning_rate: float = 0.01  # halved after 10,000 samples of each task, then a third, …
    gamma: float = 0.99
    updates: int = 2  # after each step
    batch: int = 16  # stored transitions of each task in an update, beside the new one
    target_rate: float = 0.005  # by which the tensor of the targets follows at each update
    seed: int = 0


def reset(envs: int, generator: torch.Generator) -> Tensor:
    """Hanging, θ = π, and slow: states (tasks, envs, 2) of θ and ω; θ = 0 is upright."""
    speed = 0.1 * torch.rand(len(MASS), envs, generator=generator)
    return torch.stack((torch.full_like(speed, math.pi), speed), -1)


def step(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Gymnasium's pendulum: next states and rewards of all tasks and environments at once."""
    (theta, speed), torque = state.unbind(-1), TORQUES[action]
    reward = -(theta**2 + 0.1 * speed**2 + 0.1 * torque**2)
    push = 15.0 / LENGTH * torch.sin(theta) + 3.0 / (MASS * LENGTH**2) * torque
    speed = (speed + 0.05 * push).clamp(-8.0, 8.0)
    theta = torch.remainder(theta + 0.05 * speed + math.pi, 2 * math.pi) - math.pi
    return torch.stack((theta, speed), -1), reward


def features(state: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """φ(θ) and φ(ω), (tasks, envs, points): hat functions, of which two neighbours are not zero. θ is periodic."""
    number = torch.arange(points)
    theta = ((state[..., :1] / (2 * math.pi) + 0.5) * points - number).abs()
    speed = ((state[..., 1:] / 16.0 + 0.5) * (points - 1) - number).abs()
    return (1 - torch.minimum(theta, points - theta)).relu(), (1 - speed).relu()


def action_values(factors: list[Tensor], phi: tuple[Tensor, Tensor]) -> Tensor:
    """Q[s, ·, m] of states (tasks, envs): (tasks, envs, actions).                                           (7)"""
    f_theta, f_speed, actions, tasks = factors
    weights = (phi[0] @ f_theta) * (phi[1] @ f_speed) * tasks.unsqueeze(1)  # (tasks, envs, rank)
    return weights @ actions.T


@torch.no_grad()
def greedy_returns(factors: list[Tensor], points: int, generator: torch.Generator, episodes: int = 32) -> Tensor:
    """Mean return of greedy episodes, one number a task."""
    state, total = reset(episodes, generator), torch.zeros(len(MASS), episodes)
    for _ in range(STEPS):
        state, reward = step(state, action_values(factors, features(state, points)).argmax(-1))
        total += reward
    return total.mean(1)


def draw(memory: tuple[Tensor, ...], count: int, batch: int, generator: torch.Generator) -> list[Tensor]:
    """The newest of `count` stored transitions of each task, and a batch from the latest half, or the latest 1,000."""
    first = min(count // 2, max(0, count - 1000))
    stored = torch.randint(first, count, (len(MASS), batch), generator=generator)
    index = torch.cat((torch.full((len(MASS), 1), count - 1), stored), 1)
    return [part[torch.arange(len(MASS)).unsqueeze(1), index] for part in memory]  # (tasks, 1 + batch, …)


def train(settings: Settings) -> Tensor:
    """Greedy returns after the last episode, one a task."""
    generator = torch.Generator().manual_seed(settings.seed)
    sizes = (settings.points, settings.points, len(TORQUES), len(MASS))
    factors = [(0.1 * torch.randn(size, settings.rank, generator=generator)).requires_grad_() for size in sizes]
    target = [factor.detach().clone() for factor in factors]
    optimizer = torch.optim.Adam(factors)
    samples = settings.episodes * STEPS  # of each task
    room = (len(MASS), samples)
    memory = torch.zeros(*room, 2), torch.zeros(room, dtype=torch.int64), torch.zeros(room), torch.zeros(*room, 2)
    for count in range(1, samples + 1):
        if count % STEPS == 1:
            state = reset(1, generator)
        with torch.no_grad():
            action = action_values(factors, features(state, settings.points)).argmax(-1)  # (tasks, 1)
        explores = torch.rand(action.shape, generator=generator) < max(0.01, 0.998**count)
        action = torch.where(explores, torch.randint(len(TORQUES), action.shape, generator=generator), action)
        following, reward = step(state, action)
        for part, value in zip(memory, (state, action, reward, following), strict=True):
            part[:, count - 1] = value[:, 0]
        state = following
        optimizer.param_groups[0]["lr"] = settings.learning_rate / (1 + count / 10_000)
        for _ in range(settings.updates):
            s, a, r, s_next = draw(memory, count, settings.batch, generator)
            with torch.no_grad():
                best = action_values(target, features(s_next, settings.points)).amax(-1)
            q = action_values(factors, features(s, settings.points)).gather(-1, a.unsqueeze(-1)).squeeze(-1)
            td_error = r + settings.gamma * best - q  # (5b); nothing terminates, so every target bootstraps
            optimizer.zero_grad()
            (0.5 * td_error.square().sum()).backward()  # (9a)–(9c), of all factors by one error
            optimizer.step()
            with torch.no_grad():
                for slow, factor in zip(target, factors, strict=True):
                    slow.lerp_(factor, settings.target_rate)
        if count % (STEPS * settings.eval_every) == 0 or count == samples:
            returns = greedy_returns(target, settings.points, generator)
            print(f"{count:6,} samples of each task: return " + " / ".join(f"{one:.0f}" for one in returns.tolist()))
    return returns


def main() -> None:
    """Train with the settings of the command line, and print the returns beside the optimum."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for field in dataclasses.fields(Settings):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default, help="number")
    torch.set_num_threads(1)  # The tensors are small.
    returns = train(Settings(**vars(parser.parse_args())))
    print("task  mass  length   return  optimum")
    for task, value in enumerate(returns.tolist()):
        print(f"{task:4}  {MASS[task].item():4.2f}  {LENGTH[task].item():6.2f}  {value:7.1f}  {OPTIMUM[task]:7.1f}")


if __name__ == "__main__":
    main()
