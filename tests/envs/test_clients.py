"""What others wrote works on our families, by their ids: `pip install "torchq[clients]"`, then `pytest -m slow`."""

import gymnasium
import numpy as np
import pytest
import torch

import envs

PENDULUM = "torchq/Pendulum-v0"
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_stable_baselines3_trains_on_one_by_its_id():
    sb3 = pytest.importorskip("stable_baselines3")
    model = sb3.DQN("MlpPolicy", f"envs:{PENDULUM}", learning_starts=100, seed=0).learn(400)
    assert model.predict(np.zeros(2, dtype=np.float32))[0] in range(10)
    sb3.PPO("MlpPolicy", PENDULUM, n_steps=128, seed=0).learn(256)


def test_torchrl_collects_from_one_and_from_many():
    torchrl = pytest.importorskip("torchrl.envs")
    assert torchrl.GymEnv(PENDULUM).rollout(5)["observation"].shape == (5, 2)
    batch = gymnasium.make_vec(PENDULUM, 4, "vector_entry_point", autoreset_mode="SameStep")
    assert torchrl.GymWrapper(batch).rollout(5)["observation"].shape == (4, 5, 2)


def test_skrl_wraps_many():
    wrappers = pytest.importorskip("skrl.envs.wrappers.torch")
    env = wrappers.wrap_env(gymnasium.make_vec(PENDULUM, 4, "vector_entry_point"))
    env.reset()
    observation, reward, *_ = env.step(torch.zeros(4, 1, dtype=torch.int64))
    assert (observation.shape, reward.shape) == ((4, 2), (4, 1))


def test_record_video_writes_an_episode(tmp_path):
    pytest.importorskip("moviepy")
    env = gymnasium.wrappers.RecordVideo(gymnasium.make(PENDULUM, render_mode="rgb_array"), str(tmp_path))
    env.reset(seed=0)
    while not any(env.step(0)[2:4]):
        pass
    env.close()
    assert [path.suffix for path in tmp_path.iterdir()].count(".mp4") == 1
    assert envs.gymnasium.IDS[PENDULUM] == "pendulum:Pendulum"


def test_rewards_of_mo_gymnasium_are_weighed_by_the_task(tmp_path):
    pytest.importorskip("mo_gymnasium")
    tasks = [{"reward_weights__0": 1.0, "reward_weights__1": w} for w in (0.0, 1.0)]
    family = envs.GymTasks("mo_gymnasium:deep-sea-treasure-v0", tasks, episode_length=20, workers=0)
    simulators = family.open(family.sample_tasks(), 1, 1)
    simulators.reset(np.zeros(2, dtype=int), np.ones(2, dtype=bool))
    simulators.start(np.array([[1], [1]]), np.ones(2, dtype=bool))  # Down, to the smallest treasure.
    assert np.diff(simulators.finish().reward) == pytest.approx(-1.0)  # The second reward is −1 a step.


def test_contexts_of_carl_are_tasks():
    pytest.importorskip("carl")
    tasks = [{"contexts__0__length": length} for length in (0.25, 1.0)]
    family = envs.GymTasks("carl:carl/CARLCartPole-v0", tasks, obs_context_features=[], workers=0)
    found = [family._made(task) for task in tasks]
    for env in found:
        env.reset(seed=0)
    assert [env.unwrapped.length for env in found] == [0.25, 1.0]
