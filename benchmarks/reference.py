"""S-TLR-Q as it is usually written: one transition at a time, autograd and torch.optim, on the pendulum family.

    python benchmarks/reference.py

The same algorithm as `--preset paper`: one Adamax step per factor and transition, Gauss–Seidel. Prints transitions/s.
"""

from __future__ import annotations

import math
import random
import time

import torch

TASKS = ((0.01, 1.0), (0.1, 1.0), (0.5, 0.5), (1.0, 0.5))
POINTS, ACTIONS, EPISODE = 20, 10, 100
GAMMA, LEARNING_RATE, EPSILON = 0.99, 0.01, 0.5


def rows(theta: float, speed: float) -> tuple[int, int]:
    """Grid points of a state."""
    first = round((theta + math.pi) / (2 * math.pi) * (POINTS - 1))
    second = round((min(max(speed, -5.0), 5.0) + 5.0) / 10.0 * (POINTS - 1))
    return min(max(first, 0), POINTS - 1), second


def step(mass: float, length: float, theta: float, speed: float, action: int) -> tuple[float, float, float]:
    """Angle, speed and reward after one step."""
    torque = -2.0 + action * 4.0 / (ACTIONS - 1)
    reward = -(theta**2 + 0.1 * speed**2 + 0.1 * torque**2)
    acceleration = 15.0 / length * math.sin(theta) + 3.0 * torque / (mass * length**2)
    speed = min(max(speed + 0.05 * acceleration, -8.0), 8.0)
    return (theta + 0.05 * speed + math.pi) % (2 * math.pi) - math.pi, speed, reward


@torch.enable_grad()
def transitions_per_second(rank: int = 30, seconds: float = 5.0) -> float:
    """Rate of training on one thread, over about this many seconds."""
    torch.set_default_dtype(torch.float64)
    factors = [torch.nn.Parameter(0.1 * torch.randn(size, rank)) for size in (len(TASKS), POINTS, POINTS, ACTIONS)]
    optimizers = [torch.optim.Adamax([factor], lr=LEARNING_RATE) for factor in factors]

    def values(task: int, i: int, j: int) -> torch.Tensor:
        return factors[3] @ (factors[0][task] * factors[1][i] * factors[2][j])

    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        task = (count // EPISODE) % len(TASKS)
        if count % EPISODE == 0:
            theta, speed = math.pi, 0.1 * random.random()
        i, j = rows(theta, speed)
        with torch.no_grad():
            action = random.randrange(ACTIONS) if random.random() < EPSILON else int(values(task, i, j).argmax())
        theta, speed, reward = step(*TASKS[task], theta, speed, action)
        for optimizer in optimizers:
            with torch.no_grad():
                target = reward + GAMMA * values(task, *rows(theta, speed)).max()
            loss = (target - values(task, i, j)[action]) ** 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        count += 1
    torch.set_default_dtype(torch.float32)
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"{transitions_per_second():.0f} transitions/s")
