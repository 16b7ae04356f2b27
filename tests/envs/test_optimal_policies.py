"""What is drawn as optimal earns what is called optimal."""

import pytest
import torch

import envs
from envs import base


def earned(env, task, episodes):
    """Mean return of the family's optimal policy."""
    act = env.optimal_policy(task)
    tasks = base.stack_tasks([task])
    generator = torch.Generator().manual_seed(0)

    def uniforms(count):
        return torch.rand(1, 1, episodes, count, generator=generator, dtype=torch.float64)

    state = env.reset(tasks, uniforms(env.num_reset_uniforms))
    total, alive = torch.zeros(1, 1, episodes, dtype=torch.float64), torch.ones(1, 1, episodes, dtype=torch.bool)
    for step in range(env.episode_length):
        action = act(env.observe(state)[0, 0], step).view(1, 1, -1)
        state, reward, terminated, _ = env.step(tasks, state, action, uniforms(env.num_step_uniforms))
        total, alive = total + torch.where(alive, reward, 0.0), alive & ~terminated
    return total.mean().item()


@pytest.mark.parametrize(
    ("family", "episodes", "within"),
    [
        (envs.Pendulum, 20, 0.01),
        (envs.Wireless, 400, 0.03),
        (envs.Gridworld, 2000, 0.03),
        (envs.MountainCar, 200, 0.03),
    ],
)
def test_optimal_policies_earn_the_optimal_return(family, episodes, within):
    env = family()
    for task in env.sample_tasks()[1:3]:
        (optimum,) = env.optimal_returns([task])
        assert earned(env, task, episodes) == pytest.approx(optimum, rel=within)
