import pytest
import torch
from problems import experiment

from torchq.config import from_json, resolve, to_json
from torchq.engines.protocols import schedule, takes_turns


def test_paper_protocol_is_the_authors():
    for env, rank, gamma, floor, decay, episodes in (
        ("pendulum", 30, 0.99, 0.1, 0.99999, 2000),
        ("wireless", 50, 0.9, 0.001, 0.9999, 500),
    ):
        config = resolve("stlrq", env, "paper", {})
        assert (config.rank, config.gamma, config.episodes) == (rank, gamma, episodes)
        assert (config.epsilon_start, config.epsilon_end, config.epsilon_decay) == (1.0, floor, decay)
        assert (config.learning_rate, config.learning_rate_half_life) == (0.01, None)
        assert (config.optimizer, config.update, config.loss_scale, config.init_scale) == ("adamax", "block", 2.0, 0.1)
        assert (config.num_envs, config.eval_every, config.eval_episodes, config.dtype) == (1, 1, 1, "float64")


@pytest.mark.parametrize(
    ("algo", "convention", "sweeps", "clock"),
    [
        ("stlrq", "paper", 1, 4),
        ("clrq", "paper", 1, 4),
        ("lrq", "paper", 4, 1),
        ("lrq", "matched-epsilon", 4, 4),
        ("lrq", "matched-epsilon-one-update", 1, 4),
    ],
)
def test_conventions_of_lrq(algo, convention, sweeps, clock):
    """Updates per transition, and ticks of the exploration clock per sample of each of four tasks."""
    overrides = {"lrq_convention": convention} if algo == "lrq" else {}
    config = resolve(algo, "wireless", "paper", overrides)
    assert (config.num_sweeps, config.epsilon_clock(4)) == (sweeps, clock)


def test_tasks_that_share_take_turns_and_others_play_side_by_side():
    for algo, turns in (("stlrq", True), ("clrq", True), ("lrq", False), ("tabular", False)):
        prepared = experiment(algo, "pendulum", "paper", num_seeds=1)
        assert takes_turns(prepared.config, prepared.rollout) is turns
        prepared = experiment(algo, "pendulum", num_seeds=1)
        assert not takes_turns(prepared.config, prepared.rollout)


def test_one_clock_ticks_through_the_turns():
    """The third task's turn in the second episode begins after six episodes of transitions."""
    prepared = experiment("stlrq", "wireless", "paper", num_seeds=1)
    rates = schedule(prepared.config, prepared.rollout, 200, (1 * 4 + 2) * 200, 1)
    expected = 0.9999 ** torch.arange(1200, 1400, dtype=torch.float64)
    torch.testing.assert_close(rates.epsilon, expected)
    assert rates.learning_rate.unique().tolist() == [0.01]


def test_configuration_survives_json():
    config = resolve("stlrq", "wireless", "default", {"task_weights": (1.0, 2.0, 0.5, 1.0)})
    assert from_json({**to_json(config), "versions": {}, "git_commit": None}) == config
