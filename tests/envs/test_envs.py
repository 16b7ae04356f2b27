import math

import gymnasium
import numpy as np
import pytest
import torch
from problems import library

import envs
from envs.pendulum import PendulumState
from torchq import philox

FAMILIES = library()


def uniforms(shape, step=0, count=1):
    seeds, tasks, copies = (torch.arange(n) for n in shape)
    bits = philox.random_bits(seeds, torch.tensor([step]), 0, tasks, copies, count)[0]
    return philox.uniform(bits, torch.float64)


def test_pendulum_steps_agree_with_gymnasium_from_the_same_state(generator):
    env, reference = envs.Pendulum(), gymnasium.make("Pendulum-v1").unwrapped
    reference.reset(seed=0)
    params = env.sample_tasks(6)
    tasks = envs.stack_tasks(params)
    theta = (torch.rand(50, generator=generator, dtype=torch.float64) * 2 - 1) * math.pi
    speed = (torch.rand(50, generator=generator, dtype=torch.float64) * 2 - 1) * 8
    state = PendulumState(*(x.expand(1, 6, 50) for x in (theta, speed)), torch.zeros(1, 6, 50, dtype=torch.int32))
    for action in range(env.num_actions):
        following, reward, terminated, truncated = env.step(tasks, state, torch.full((1, 6, 50), action), theta)
        assert not terminated.any()
        assert not truncated.any()
        torque = np.linspace(-2, 2, 10)[action]
        for m, task in enumerate(params):
            reference.m, reference.l = task.mass, task.length
            for n in range(0, 50, 7):
                reference.state = np.array([theta[n], speed[n]])
                _, their_reward, _, _, _ = reference.step(np.array([torque]))
                new_theta, new_speed = reference.state
                wrapped = (new_theta + math.pi) % (2 * math.pi) - math.pi
                np.testing.assert_allclose(following.theta[0, m, n], wrapped, atol=1e-12)
                np.testing.assert_allclose(following.theta_dot[0, m, n], new_speed, atol=1e-12)
                np.testing.assert_allclose(reward[0, m, n], their_reward - (0.1 - 0.001) * torque**2, atol=1e-12)


@pytest.mark.parametrize("env", [
    envs.UprightPendulum(), envs.UprightPendulum(angle_weight=3.0, speed_weight=5.0, control_weight=7.0),
    envs.DampedPendulum(angle_weight=3.0, speed_weight=5.0, control_weight=7.0),
    envs.LinearQuadratic(control_weight=7.0),
])  # fmt: skip
def test_rewards_have_the_weights_that_riccati_is_given(env):
    """−(xᵀQx + uᵀRu) in every control family."""
    tasks = envs.stack_tasks(env.sample_tasks(1))
    state = env.reset(tasks, uniforms((1, 1, 10), count=env.num_reset_uniforms))
    control = 2 * uniforms((1, 1, 10), 1)[..., 0] - 1
    _, reward, _, _ = env.step(tasks, state, control, uniforms((1, 1, 10), 2, env.num_step_uniforms))
    x, u = env.observe(state), control.unsqueeze(-1)
    Q, R = env.reward_weights()
    torch.testing.assert_close(reward, -((x @ Q * x).sum(-1) + (u @ R * u).sum(-1)))


@pytest.mark.parametrize(
    ("name", "power"), [("angle_weight", math.pi**2), ("speed_weight", 0.25), ("control_weight", 4)]
)
def test_each_weight_of_the_pendulum_has_its_term(name, power):
    """Hanging with 0.5 rad/s under 2 N·m, one weight at 10 and the others at 0."""
    weights = {"angle_weight": 0.0, "speed_weight": 0.0, "control_weight": 0.0, name: 10.0}
    env, one = envs.Pendulum(**weights), torch.ones(1, 1, 1, dtype=torch.float64)
    state = PendulumState(math.pi * one, 0.5 * one, 0 * one.int())
    _, reward, _, _ = env.step(envs.stack_tasks(env.sample_tasks(1)), state, torch.full((1, 1, 1), 9), one)
    assert reward.item() == pytest.approx(-10.0 * power)


def test_pendulum_starts_hanging_on_the_last_grid_row():
    env = envs.Pendulum()
    state = env.reset(envs.stack_tasks(env.sample_tasks()), uniforms((2, 4, 3)))
    assert (state.theta == math.pi).all()
    assert (state.theta_dot >= 0).all()
    assert (state.theta_dot < 0.1).all()
    from torchq import Grid

    assert (Grid.cells(env.grid_low, env.grid_high, env.grid_sizes).index(env.observe(state))[0] == 19).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_episodes_are_truncated_at_their_length_and_not_before(name):
    env = FAMILIES[name]()
    tasks = envs.stack_tasks(env.sample_tasks())
    state = env.reset(tasks, uniforms((1, 4, 2), count=env.num_reset_uniforms))
    ended = torch.zeros(1, 4, 2, dtype=torch.bool)
    for step in range(env.episode_length):
        noise = uniforms((1, 4, 2), step, env.num_step_uniforms)
        state, _, terminated, truncated = env.step(tasks, state, torch.zeros(1, 4, 2, dtype=torch.int64), noise)
        ended |= terminated
        assert not (terminated & truncated).any()
        assert (truncated == (step == env.episode_length - 1))[~ended].all()


def test_wireless_slot_by_hand():
    """Free channel, battery 1 below the power asked for, harvest and arrival both come."""
    env = envs.Wireless()
    tasks = envs.stack_tasks([envs.WirelessTask(3.0, 0.8, 2.0, 0.8)])
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    state = envs.wireless.WirelessState(one, 2 * one, 0 * one, 5 * one, 1 * one, (0 * one).int())
    noise = torch.tensor([0.5, 0.25, 0.1, 0.79, 0.79], dtype=torch.float64).view(1, 1, 1, 5)
    state, reward, _, _ = env.step(tasks, state, torch.full((1, 1, 1), 9), noise)
    battery, queue = 1 - 1 + 3, 5 - math.log2(1 + 5 * 1) + 2
    radius = math.sqrt(-2 * math.log(0.5))
    np.testing.assert_allclose(state.battery.item(), battery)
    np.testing.assert_allclose(state.queue.item(), queue)
    np.testing.assert_allclose(reward.item(), 1.5 * math.log(1 + battery) - 0.5 * queue)
    np.testing.assert_allclose(state.channel_imag.item(), math.sqrt(0.7) * 2 + math.sqrt(0.3 * 2.5) * radius)
    assert state.occupied.item() == 1


def test_wireless_sends_nothing_on_an_occupied_channel_or_an_empty_battery():
    env = envs.Wireless()
    tasks = envs.stack_tasks([envs.WirelessTask(0.5, 0.0, 1.0, 0.0)])
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    noise = torch.full((1, 1, 1, 5), 0.5, dtype=torch.float64)
    for occupied, battery in ((1.0, 5.0), (0.0, 0.0)):
        state = envs.wireless.WirelessState(one, one, occupied * one, 4 * one, battery * one, (0 * one).int())
        state, _, _, _ = env.step(tasks, state, torch.full((1, 1, 1), 9), noise)
        assert state.queue.item() == 4


def test_wireless_channel_is_stationary_with_mean_gain_snr():
    env = envs.Wireless()
    tasks = envs.stack_tasks(env.sample_tasks(1), dtype=torch.float64)
    shape = (1, 1, 20000)
    state = env.reset(tasks, uniforms(shape, count=2))
    first = env.observe(state)[..., 0]
    previous = state.channel_real
    for step in range(1, 6):
        before = state.channel_real
        state, *_ = env.step(tasks, state, torch.zeros(shape, dtype=torch.int64), uniforms(shape, step, 5))
    gain = env.observe(state)[..., 0]
    assert abs(first.mean() - 5) < 0.15
    assert abs(gain.mean() - 5) < 0.15
    correlation = torch.corrcoef(torch.stack([before.flatten(), state.channel_real.flatten()]))[0, 1]
    assert abs(correlation - math.sqrt(0.7)) < 0.02
    assert abs(state.occupied.mean() - 0.2) < 0.01
    assert previous.std() > 1


def test_gridworld_values_satisfy_the_bellman_equation():
    env, gamma = envs.Gridworld(), 0.9
    params = env.sample_tasks(7)
    q = env.optimal_action_values(envs.stack_tasks(params), gamma)
    assert q.shape == (7, 5, 5, 4)
    moves = [(-1, 0), (0, 1), (1, 0), (0, -1)]
    for m, task in enumerate(params):
        for row in range(5):
            for column in range(5):
                for action, (down, right) in enumerate(moves):
                    i, j = min(4, max(0, row + down)), min(4, max(0, column + right))
                    at_goal = (i, j) == (task.goal_row, task.goal_column)
                    expected = -1 + (0 if at_goal else gamma * q[m, i, j].max().item())
                    assert abs(q[m, row, column, action].item() - expected) < 1e-12


def test_gridworld_never_starts_on_its_goal():
    env = envs.Gridworld(size=2)
    params = env.sample_tasks(4)
    state = env.reset(envs.stack_tasks(params), uniforms((1, 4, 500)))
    for m, task in enumerate(params):
        cells = set(zip(state.row[0, m].tolist(), state.column[0, m].tolist(), strict=True))
        assert len(cells) == 3
        assert (task.goal_row, task.goal_column) not in cells


@pytest.mark.parametrize("name", FAMILIES)
def test_thousands_of_tasks_are_a_prefix_stable_spread(name):
    env = FAMILIES[name]()
    many = env.sample_tasks(4096)
    assert len(many) == 4096
    assert env.sample_tasks(100) == many[:100]
    assert env.sample_tasks(3) == env.sample_tasks()[:3]
    tasks = envs.stack_tasks(many)
    assert all(value.shape == (4096, 1) for value in vars(tasks).values())


@pytest.mark.parametrize("name", FAMILIES)
def test_environments_are_independent_of_their_neighbours(name, generator):
    """One (seed, task, env) alone does what it does in the batch."""
    env = FAMILIES[name]()
    params = env.sample_tasks()
    tasks, alone = envs.stack_tasks(params), envs.stack_tasks(params[2:3])
    action = torch.randint(env.num_actions, (2, 4, 3), generator=generator)
    start, noise = uniforms((2, 4, 3), 0, env.num_reset_uniforms), uniforms((2, 4, 3), 1, env.num_step_uniforms)
    batch = env.step(tasks, env.reset(tasks, start), action, noise)
    part = (slice(1, 2), slice(2, 3), slice(0, 1))
    single = env.step(alone, env.reset(alone, start[part]), action[part], noise[part])
    for ours, theirs in zip((*batch[0], *batch[1:]), (*single[0], *single[1:]), strict=True):
        torch.testing.assert_close(ours[part], theirs, rtol=0, atol=1e-14)
