"""The families as Gymnasium's environments, one at a time and as vector environments."""

import json

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import envs
from envs import base
from envs.gymnasium import IDS
from envs.vector_env import FamilyVectorEnv

PENDULUM = "torchq/Pendulum-v0"


def vector(name=PENDULUM, num_envs=6, **given):
    return gymnasium.make_vec(name, num_envs=num_envs, vectorization_mode="vector_entry_point", **given)


@pytest.mark.filterwarnings("ignore:.*(recommend using a symmetric and normalized space|value is -?infinity)")
@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("name", IDS)
def test_registered_environments_pass_the_checker_and_end_at_their_limit(name, context):
    env = gymnasium.make(name, context=context, render_mode="rgb_array")
    check_env(env.unwrapped)
    observation, info = env.reset(seed=1)
    again, _ = env.reset(seed=1)
    np.testing.assert_array_equal(observation, again)
    assert set(info["task"]) == set(vars(env.unwrapped.task))
    steps = 0
    ended = False
    while not ended:
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        assert env.observation_space.contains(observation)
        ended, steps = terminated or truncated, steps + 1
    assert steps <= env.spec.max_episode_steps
    picture = env.render()
    assert (picture.shape, picture.dtype) == ((320, 320, 3), np.uint8)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1


def test_pictures_follow_the_state():
    env = gymnasium.make(PENDULUM, render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    for _ in range(10):
        env.step(9)
    assert (before != env.render()).any()


def test_tasks_are_numbers_names_or_dataclasses_and_may_change_at_a_reset():
    env = gymnasium.make(PENDULUM, task={"mass": 0.3, "length": 0.7}, num_actions=5)
    assert (env.action_space.n, env.unwrapped.task) == (5, envs.PendulumTask(0.3, 0.7))
    assert gymnasium.make(PENDULUM, task=np.int64(2)).unwrapped.task == envs.PendulumTask(0.5, 0.5)
    spec = json.loads(env.spec.to_json())
    assert spec["kwargs"]["task"] == {"mass": 0.3, "length": 0.7}
    again = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert again.unwrapped.task == env.unwrapped.task
    env.reset(seed=0, options={"task": {"mass": 1.0, "length": 1.0}})
    assert env.unwrapped.task.mass == 1.0
    context = gymnasium.make(PENDULUM, task={"mass": 0.3, "length": 0.7}, context=True)
    np.testing.assert_allclose(context.reset(seed=0)[0][2:], [0.3, 0.7])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task": 4}, "task: expected a number from 0 to 3, got 4"),
        ({"task": {"mass": 1.0}}, "task: expected the parameters mass, length, got {'mass': 1.0}"),
        ({"task": "heavy"}, "task: expected a number, PendulumTask or a mapping of its parameters, got 'heavy'"),
        ({"render_mode": "human"}, "render_mode: expected rgb_array or None, got 'human'"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*render_modes.*")
def test_what_is_no_task_or_mode_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        gymnasium.make(PENDULUM, **given)
    with pytest.raises(ValueError, match=message):
        vector(**given)


@pytest.mark.parametrize("action", [10, -1, 2.5, np.array([1, 2]), True])
def test_actions_that_there_are_not_are_refused(action):
    env = gymnasium.make(PENDULUM)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action: expected a whole number from 0 to 9"):
        env.step(action)
    batch = vector(num_envs=2)
    batch.reset(seed=0)
    with pytest.raises(ValueError, match="actions: expected"):
        batch.step(np.array([action, action]))


@pytest.mark.parametrize(
    "task", [{"mass": -1.0, "length": 1.0}, {"mass": np.nan, "length": 1.0}, {"mass": "a", "length": 1}]
)
def test_tasks_that_cannot_be_are_refused(task):
    env = gymnasium.make(PENDULUM)
    with pytest.raises(ValueError, match=r"^task: expected "):
        gymnasium.make(PENDULUM, task=task)
    with pytest.raises(ValueError, match=r"^task: expected "):
        env.reset(seed=0, options={"task": task})


def test_controls_keep_to_their_space():
    env = gymnasium.make("torchq/LinearQuadratic-v0")
    env.reset(seed=0)
    env.step(np.array([10.0], np.float32))
    with pytest.raises(ValueError, match=r"^action: expected one control between -10 and 10, got"):
        env.step(np.array([11.0]))


def test_the_time_limit_is_the_one_that_wrappers_see():
    def length(env):
        env.reset(seed=0)
        steps = 1
        while not any(env.step(0)[2:4]):
            steps += 1
        return steps

    assert length(gymnasium.make(PENDULUM)) == gymnasium.spec(PENDULUM).max_episode_steps == 100
    assert length(gymnasium.make(PENDULUM, max_episode_steps=130)) == 130
    assert length(gymnasium.make(PENDULUM, episode_length=30)) == 30
    assert length(envs.gymnasium.make(PENDULUM)) == 100
    with pytest.raises(
        ValueError, match=r"^episode_length: give max_episode_steps=130 in its place, for more than 100$"
    ):
        gymnasium.make(PENDULUM, episode_length=130)
    batch = vector(max_episode_steps=7, autoreset_mode="SameStep")
    batch.reset(seed=0)
    assert [bool(batch.step(np.zeros(6, int))[3].any()) for _ in range(8)] == [False] * 6 + [True, False]


def test_copies_step_as_each_would_alone():
    tasks = [{"mass": 0.1, "length": 1.0}, {"mass": 1.0, "length": 0.5}]
    batch = vector(num_envs=6, tasks=tasks)
    observation, _ = batch.reset(seed=3)
    family, alone = envs.Pendulum(), base.stack_tasks([envs.PendulumTask(**tasks[n % 2]) for n in range(6)])
    state = type(batch.unwrapped._state)(*batch.unwrapped._state)
    state = type(state)(state.theta.double(), state.theta_dot.double(), state.elapsed)
    for step in range(5):
        actions = (np.arange(6) + step) % 10
        observation, reward, terminated, truncated, _ = batch.step(actions)
        state, expected, *_ = family.step(alone, state, torch.from_numpy(actions).view(1, 6, 1), None)
        np.testing.assert_allclose(reward, expected.flatten(), rtol=1e-4)
        np.testing.assert_allclose(observation, family.observe(state)[0, :, 0], rtol=1e-3, atol=1e-4)
    assert (observation.dtype, reward.shape, terminated.dtype, truncated.dtype) == (np.float32, (6,), bool, bool)
    assert batch.observation_space.contains(observation)


def run(mode, steps=12, **given):
    """Rewards, ends and elapsed steps of copies whose episodes have five steps."""
    batch = vector(num_envs=3, episode_length=5, autoreset_mode=mode, **given)
    batch.reset(seed=0)
    seen = []
    for _ in range(steps):
        _, reward, terminated, truncated, info = batch.step(np.zeros(3, int))
        seen.append((reward, terminated | truncated, info, batch.unwrapped._state.elapsed.flatten().tolist()))
    return seen


def test_a_step_after_the_end_starts_the_next_episode():
    seen = run("NextStep")
    assert [bool(done.all()) for _, done, _, _ in seen] == [False] * 4 + [True] + [False] * 5 + [True, False]
    assert seen[5][0].tolist() == [0.0] * 3  # The step that resets pays nothing.
    assert seen[5][3] == [0] * 3


def test_the_next_episode_starts_with_the_step_that_ends_one():
    seen = run(AutoresetMode.SAME_STEP)
    assert [bool(done.all()) for _, done, _, _ in seen][4::5] == [True, True]
    info = seen[4][2]
    assert info["_final_obs"].all()
    assert not seen[3][2]["_final_obs"].any()
    assert info["final_obs"].shape == (3, 2)
    assert seen[4][3] == [0] * 3
    assert (seen[4][0] != 0).all()


def test_nothing_starts_by_itself_where_resets_are_disabled():
    batch = vector(num_envs=3, episode_length=5, autoreset_mode="Disabled")
    batch.reset(seed=0)
    for _ in range(5):
        batch.step(np.zeros(3, int))
    with pytest.raises(gymnasium.error.ResetNeeded, match="reset_mask"):
        batch.step(np.zeros(3, int))
    before = batch.unwrapped._observed(batch.unwrapped._state).clone()
    observation, _ = batch.reset(options={"reset_mask": np.array([True, False, True])})
    assert batch.unwrapped._state.elapsed.flatten().tolist() == [0, 5, 0]
    np.testing.assert_array_equal(observation[1], before[1])


def test_copies_take_a_seed_each_and_nothing_else():
    batch = vector()
    first, _ = batch.reset(seed=[1, 2, 3, 4, 5, 6])
    assert np.array_equal(first, batch.reset(seed=np.arange(1, 7))[0])
    assert not np.array_equal(first, batch.reset(seed=[1, 2, 3, 4, 5, 7])[0])
    for seed in ([1, 2], [1.5] * 6, "abcdef"):
        with pytest.raises(ValueError, match=r"^seed: expected a whole number, or one for each of 6 copies"):
            batch.reset(seed=seed)
    batch.step(np.zeros(6, int))
    assert np.array_equal(batch.reset(seed=3, options={"reset_mask": None})[0], batch.reset(seed=3)[0])
    with pytest.raises(ValueError, match=r"^tasks: expected at least one, got none$"):
        vector(tasks=[])


def test_controls_that_are_not_finite_are_refused():
    batch = gymnasium.make_vec("torchq/LinearQuadratic-v0", 2, vectorization_mode="vector_entry_point")
    batch.reset(seed=0)
    batch.step(np.zeros((2, 1)))
    with pytest.raises(ValueError, match=r"^actions: expected controls between -10 and 10, got"):
        batch.step(np.array([[0.0], [np.nan]]))


def test_arrays_share_the_memory_of_the_tensors_and_torch_gets_these():
    batch = FamilyVectorEnv(envs.Pendulum(), 4, output="torch", context=True)
    observation, _ = batch.reset(seed=0)
    assert (type(observation), observation.shape) == (torch.Tensor, (4, 4))
    _, reward, *_ = batch.step(torch.zeros(4, dtype=torch.int64))
    assert isinstance(reward, torch.Tensor)
    tensor = torch.zeros(3)
    array = FamilyVectorEnv(envs.Pendulum(), 1)._given(tensor)
    tensor[1] = 5.0
    assert array[1] == 5.0


def test_equal_seeds_give_equal_episodes_and_pictures_come_one_each():
    first, second = (vector("torchq/Wireless-v0", num_envs=5, render_mode="rgb_array") for _ in range(2))
    np.testing.assert_array_equal(first.reset(seed=1)[0], second.reset(seed=1)[0])
    actions = np.arange(5)
    np.testing.assert_array_equal(first.step(actions)[0], second.step(actions)[0])
    assert (first.reset(seed=2)[0] != second.reset(seed=3)[0]).any()
    assert [picture.shape for picture in first.render()] == [(320, 320, 3)] * 5


@pytest.mark.filterwarnings("ignore")
def test_wrappers_of_gymnasium_work_on_both(tmp_path):
    batch = gymnasium.wrappers.vector.RecordEpisodeStatistics(vector(episode_length=5))
    batch.reset(seed=0)
    infos = [batch.step(np.zeros(6, int))[4] for _ in range(6)]
    assert any("episode" in info for info in infos)
    env = gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make(PENDULUM))
    env.reset(seed=0)
    assert [env.step(0)[4] for _ in range(100)][-1]["episode"]["l"] == 100
