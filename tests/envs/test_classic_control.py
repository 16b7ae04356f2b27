"""Cart with a pole, mountain car and acrobot against Gymnasium's own, state by state."""

import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import AcrobotEnv, CartPoleEnv, MountainCarEnv
from problems import experiment, play

import envs
from envs.optimal_car import mountain_car
from torchq.tree import flatten

COUNT = 10_000
WIDE = {  # Random states: as wide as each state can be, and beyond the ends of an episode.
    "cartpole": (CartPoleEnv, (-2.5, -4.0, -0.22, -4.0), (2.5, 4.0, 0.22, 4.0)),
    "mountain-car": (MountainCarEnv, (-1.2, -0.07), (0.6, 0.07)),
    "acrobot": (AcrobotEnv, tuple(-math.pi * x for x in (1, 1, 4, 9)), tuple(math.pi * x for x in (1, 1, 4, 9))),
}  # fmt: skip
FAMILIES = {family.name: family() for family in (envs.CartPole, envs.MountainCar, envs.Acrobot)}
OTHER = {
    "cartpole": envs.CartPoleTask(gravity=3.0, cart_mass=2.0, pole_mass=0.3, length=0.8, force=7.0),
    "mountain-car": envs.MountainCarTask(force=0.0015, gravity=0.002),
    "acrobot": envs.AcrobotTask(length_1=0.7, length_2=1.3, mass_1=1.2, mass_2=0.6),
}


def theirs(name, task):
    """Gymnasium's environment with the parameters of a task."""
    env = WIDE[name][0]()
    if name == "cartpole":
        env.gravity, env.masscart, env.masspole = task.gravity, task.cart_mass, task.pole_mass
        env.length, env.force_mag = task.length, task.force
        env.total_mass, env.polemass_length = task.cart_mass + task.pole_mass, task.pole_mass * task.length
    elif name == "mountain-car":
        env.force, env.gravity = task.force, task.gravity
    else:
        env.LINK_LENGTH_1, env.LINK_LENGTH_2 = task.length_1, task.length_2
        env.LINK_MASS_1, env.LINK_MASS_2 = task.mass_1, task.mass_2
        env.LINK_COM_POS_1, env.LINK_COM_POS_2 = task.length_1 / 2, task.length_2 / 2
    return env


@pytest.mark.parametrize("other", [False, True], ids=["default", "other task"])
@pytest.mark.parametrize("name", FAMILIES)
def test_steps_rewards_and_ends_are_gymnasiums(name, other):
    family, source = FAMILIES[name], np.random.default_rng(0)
    task = OTHER[name] if other else family.sample_tasks(1)[0]
    reference = theirs(name, task) if other else WIDE[name][0]()
    reference.reset(seed=0)
    states = source.uniform(*WIDE[name][1:], (COUNT, len(WIDE[name][1])))
    actions = source.integers(family.num_actions, size=COUNT)
    elapsed = source.integers(family.episode_length, size=COUNT)
    fields = torch.from_numpy(states.T.copy()).view(-1, 1, 1, COUNT)
    template = family.reset(envs.stack_tasks([task]), torch.zeros(1, 1, 1, family.num_reset_uniforms))
    start = type(template)(*fields, torch.from_numpy(elapsed).int().view(1, 1, -1))
    after, reward, terminated, truncated = family.step(
        envs.stack_tasks([task]), start, torch.from_numpy(actions).view(1, 1, -1), fields[0]
    )
    found, expected = torch.stack(after[:-1], -1)[0, 0].numpy(), np.empty_like(states)
    rewards, ends = np.empty(COUNT), np.empty(COUNT, dtype=bool)
    for i in range(COUNT):
        reference.state = tuple(states[i]) if name == "mountain-car" else states[i].copy()
        if name == "cartpole":
            reference.steps_beyond_terminated = None
        _, rewards[i], ends[i], _, _ = reference.step(int(actions[i]))
        expected[i] = reference.state
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(reward[0, 0].numpy(), rewards)
    np.testing.assert_array_equal(terminated[0, 0].numpy(), ends)
    assert 20 < ends.sum() < COUNT - 20
    limit = gymnasium.spec({"cartpole": "CartPole-v1", "mountain-car": "MountainCar-v0", "acrobot": "Acrobot-v1"}[name])
    np.testing.assert_array_equal(truncated[0, 0].numpy(), (elapsed + 1 >= limit.max_episode_steps) & ~ends)
    assert (after.elapsed[0, 0].numpy() == elapsed + 1).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_starts_are_in_gymnasiums_range(name, generator):
    family, reference = FAMILIES[name], WIDE[name][0]()
    uniforms = torch.rand(1, 1, 2000, family.num_reset_uniforms, dtype=torch.float64, generator=generator)
    ours = torch.stack(family.reset(envs.stack_tasks(family.sample_tasks(1)), uniforms)[:-1], -1)[0, 0].numpy()
    samples = []
    for seed in range(2000):
        reference.reset(seed=seed)
        samples.append(np.array(reference.state, dtype=np.float64))
    spread = np.ptp(samples, axis=0)
    for found, expected in ((ours.min(0), np.min(samples, 0)), (ours.max(0), np.max(samples, 0))):
        np.testing.assert_allclose(found, expected, atol=0.01 * spread.max())


def test_hills_have_their_valley_and_their_slope():
    """What Gymnasium cannot vary: without motor a car at rest stays in the valley of its hill, and slides beside it."""
    family, task = FAMILIES["mountain-car"], envs.MountainCarTask(hill=2.0)
    place = torch.tensor([-math.pi / 4, -math.pi / 4 + 0.1], dtype=torch.float64).view(1, 1, 2)
    start = envs.mountain_car.MountainCarState(place, 0 * place, torch.zeros(1, 1, 2, dtype=torch.int32))
    after, *_ = family.step(envs.stack_tasks([task]), start, torch.ones(1, 1, 2, dtype=torch.int64), place)
    expected = torch.tensor([0.0, -0.0025 * math.sin(0.2)], dtype=torch.float64)
    torch.testing.assert_close(after.velocity[0, 0], expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_first_task_is_gymnasiums_and_every_parameter_has_a_range(name):
    family = FAMILIES[name]
    first, *others = family.sample_tasks()
    assert [first] == family.sample_tasks(1)
    assert first == type(first)()
    assert len(others) == 3
    many = family.sample_tasks(1000)
    for dimension, field in zip(family.parameters, vars(first), strict=True):
        assert all(dimension.low <= getattr(task, field) <= dimension.high for task in many)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_fused_engine_learns_them_as_eager_mode_does(name):
    library = {name: lambda: type(FAMILIES[name])(episode_length=60)}
    runs = [
        experiment("stlrq", name, library=library, engine=engine, num_seeds=2, rank=5, num_envs=3, dtype="float64")
        for engine in ("eager", "fused")
    ]
    eager, fused = (flatten(play(run, 2)) for run in runs)
    for field, expected in eager.items():
        torch.testing.assert_close(fused[field], expected, rtol=1e-8, atol=1e-8, msg=lambda text, at=field: at + text)


def test_the_optimum_of_the_mountain_car_is_that_of_finer_grids():
    """On Gymnasium's task −97.7 on a grid of 1801 × 1401."""
    task = envs.stack_tasks([envs.MountainCarTask()])
    coarse, fine = (mountain_car(FAMILIES["mountain-car"], task, *size) for size in ((451, 351), (901, 701)))
    assert coarse == pytest.approx(-97.72, abs=0.5)
    assert fine == pytest.approx(-97.72, abs=0.1)
