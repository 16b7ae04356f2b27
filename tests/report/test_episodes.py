import numpy as np
import pytest
import torch
from PIL import Image
from problems import command_line

import envs
import torchq
from torchq import families
from torchq.cli.evaluate import main
from torchq.report import episodes, video


def down(observation, step):
    return torch.full((len(observation),), 2)


def test_an_episode_ends_where_it_terminates_and_its_rewards_are_its_own():
    env = envs.Gridworld()
    played = episodes.play(env, env.sample_tasks(), lambda x, step: torch.where(x[:, 0] < 4, 2, 1))
    for task, one in zip(env.sample_tasks(), played, strict=True):
        length = len(one.actions)
        assert one.observations.shape == (length + 1, 2)
        assert one.rewards.sum() == -length
        if (task.goal_row, task.goal_column) == (4.0, 4.0):
            assert tuple(one.observations[-1]) == (4.0, 4.0)
            assert length == np.abs(one.observations[0] - 4.0).sum()


def test_equal_seeds_have_the_same_start_and_noise_whatever_is_done():
    env = envs.Wireless(episode_length=20)
    one, other = (
        episodes.play(env, env.sample_tasks(), act, seed=3) for act in (down, lambda x, s: 0 * x[:, 0].long())
    )
    assert (one[0].observations[:, 0] == other[0].observations[:, 0]).all()
    assert (one[0].observations[:, 3] != other[0].observations[:, 3]).any()
    again = episodes.play(env, env.sample_tasks(), down, seed=4)
    assert (one[0].observations[0] != again[0].observations[0]).any()


@pytest.fixture(scope="module")
def gym_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gym") / "run"
    flags = ("--env", "gym:CartPole-v1", "--vary", "length=0.25,0.5", "--episodes", 1, "--num-seeds", 1)
    workers = ("--env-option", "workers=0", "--env-option", "max_episode_steps=30")
    done = command_line("--algo", "stlrq", *flags, *workers, "--device", "cpu", "--out", folder)
    assert done[0] == 0, done[2]
    return folder


def test_environments_of_gymnasium_play_too(gym_run):
    run = torchq.load(gym_run)
    policy = run.policy
    played = episodes.play(
        families.of(run.config), run.tasks.tasks, lambda x, step: policy.act(x, torch.arange(len(x))), seed=5
    )
    for one in played:
        assert one.rewards.sum() == len(one.actions) == len(one.observations) - 1 > 3
        assert (np.abs(one.observations[0]) <= 0.05).all()


@pytest.mark.parametrize("kind", ["gridworld", "gymnasium"])
def test_films_show_the_episode_of_every_task(kind, gym_run, tmp_path):
    pytest.importorskip("pygame") if kind == "gymnasium" else None
    folder = gym_run
    if kind == "gridworld":
        folder = tmp_path / "run"
        flags = ("--env", "gridworld", "--episodes", 1, "--num-seeds", 1, "--engine", "eager", "--out", folder)
        assert command_line("--algo", "stlrq", *flags, "--device", "cpu")[0] == 0
    code, out, err = command_line(folder, "--video", "--out", tmp_path / "films", entry=main)
    assert code == 0, err
    assert out.splitlines()[-1].startswith("videos: ")
    films = sorted((tmp_path / "films").glob("*.gif"))
    assert len(films) == (4 if kind == "gridworld" else 2)
    with Image.open(films[0]) as film:
        assert film.n_frames > 3


def test_what_cannot_be_filmed_is_said_in_one_line(tmp_path, monkeypatch):
    study = ("--algo", "lspi", "--env", "linear-quadratic", "--num-seeds", 1, "--sizes", "20", "--num-tasks", 1)
    assert command_line(*study, "--out", tmp_path / "study")[0] == 0
    code, _, err = command_line(tmp_path / "study", "--video", "--out", tmp_path / "out", entry=main)
    assert (code, err.count("\n")) == (2, 1)
    assert "--video: expected a low-rank or tabular run" in err
    monkeypatch.setattr("matplotlib.animation.FFMpegWriter.isAvailable", lambda: False)
    with pytest.raises(ValueError, match="mp4 needs the program ffmpeg"):
        video._write(tmp_path / "x.mp4", [np.zeros((8, 8, 3), dtype=np.uint8)])
