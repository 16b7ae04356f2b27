import pytest
from problems import library

import envs

REFERENCE = {
    "pendulum": (-105.4, -74.8, -77.5, -94.1),
    "wireless": (661.8, 690.8, 628.8, 502.6),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_dynamic_programming_agrees_with_finer_grids(name):
    """Within 1.5% of the returns measured on a 721×401 grid, and on 24 × 41 × 81 points."""
    env = library()[name]()
    assert env.optimal_returns(env.sample_tasks()) == pytest.approx(REFERENCE[name], rel=0.015)


def test_gridworld_optimum_is_the_mean_distance():
    env = envs.Gridworld(size=3)
    distances = {(0, 1): 1, (0, 2): 2, (1, 0): 1, (1, 1): 2, (1, 2): 3, (2, 0): 2, (2, 1): 3, (2, 2): 4}
    assert env.optimal_returns(env.sample_tasks(1)) == pytest.approx([-sum(distances.values()) / 8])


def test_the_optimum_follows_the_step_of_the_family():
    """An environment is written once: what its step does to reward and state, the dynamic program sees."""

    class Generous(envs.Wireless):
        def step(self, *given):
            after, reward, terminated, truncated = super().step(*given)
            return after, 3.0 * reward, terminated, truncated

    class Leaking(envs.Wireless):
        def step(self, tasks, state, action, uniforms):
            after, *rest = super().step(tasks, state, action, uniforms)
            return after._replace(battery=0.5 * after.battery), *rest

    tasks = envs.Wireless.sample_tasks(1)
    plain, generous, leaking = (env(episode_length=20).optimal_returns(tasks)[0] for env in (
        envs.Wireless, Generous, Leaking))  # fmt: skip
    assert generous == pytest.approx(3.0 * plain)
    assert leaking < plain - 1.0
    light, heavy = (envs.Pendulum(episode_length=20, control_weight=weight) for weight in (0.0, 10.0))
    tasks = light.sample_tasks(1)
    assert light.optimal_returns(tasks)[0] > heavy.optimal_returns(tasks)[0]
