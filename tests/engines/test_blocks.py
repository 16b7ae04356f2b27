"""Blocks of rounds in one call: the same numbers, to the last bit, as round by round."""

import types

import families
import pytest
import torch
from problems import PLAIN, experiment

from torchq.engines import blocks, protocols
from torchq.engines.contract import BlockEngine
from torchq.tree import flatten

CASES = {
    "turns": {"env": "pendulum", "preset": "paper", "num_seeds": 3},
    "turns without a task mode": {"env": "pendulum", "preset": "paper", "algo": "clrq"},
    "tensors of their own": {"env": "wireless", "preset": "paper", "algo": "lrq", "eval_every": 2},
    "all together": {"env": "pendulum", "num_envs": 3, "eval_every": 2, "eval_episodes": 3},
    "random starts and steps": {"env": "wireless", "num_envs": 2, "eval_episodes": 2, "dtype": "float64"},
    "episodes that end": {"env": "user-car", "num_envs": 5, "eval_every": 3},
    "episodes that end, in turns": {**PLAIN, "env": "wide", "optimizer": "sgd", "num_envs": 1, "protocol": "online"},
    "without replay": {**PLAIN, "env": "wireless", "num_envs": 3},
    "a memory that is soon full": {"env": "wireless", "replay_capacity": 20, "replay_ratio": 5, "episodes": 7},
    "other steps": {"env": "gridworld", "optimizer": "adam", "update": "block", "task_weights": (1.0, 2.0, 0.5, 1.0)},
    "one run with a large batch": {"env": "pendulum", "num_seeds": 1, "num_envs": 200, "eval_episodes": 2},
    "nothing tested": {"env": "pendulum", "eval_every": 50},
}


def prepared(**options):
    options = {
        "algo": "stlrq",
        "num_seeds": 2,
        "rank": 4,
        "episodes": 50,
        "eval_every": 1,
        "engine": "fused",
        **options,
    }
    return experiment(**options, library=families.library(episode_length=15))


def play(run, state, cuts):
    """Rounds in blocks of the sizes given; the state after them, and all evaluations."""
    found, played = [], 0
    for count in cuts:
        state, evaluations = run.play_block(state, played, count)
        found += evaluations
        played += count
    return state, found


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_blocks_equal_rounds_to_the_last_bit(monkeypatch, options):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    run = prepared(**options)
    assert isinstance(run.engine, BlockEngine)
    own = {name: getattr(run.engine, name) for name in ("train", "greedy_returns", "starts")}
    plain = types.SimpleNamespace(**own)
    assert not isinstance(plain, BlockEngine)
    arguments = run.config, run.rollout, plain, run.initial_state
    state, evaluations = blocks.play(*arguments, 0, 7)
    for cuts in ((7,), (1, 4, 2)):
        ours, found = play(run, run.initial_state, cuts)
        for (name, mine), theirs in zip(flatten(ours).items(), flatten(state).values(), strict=True):
            assert torch.equal(mine, theirs), name
        assert [one.episode for one in found] == [one.episode for one in evaluations]
        for one, other in zip(found, evaluations, strict=True):
            assert torch.equal(one.returns, other.returns)
            assert all(map(torch.equal, one.statistics, other.statistics))
            assert bool(one.finite) == bool(other.finite) is True


def test_a_block_says_at_which_test_a_factor_was_no_longer_finite():
    run = prepared(env="pendulum", preset="paper", learning_rate=1e300)
    _, evaluations = run.play_block(run.initial_state, 0, 4)
    assert not any(one.finite for one in evaluations)


def test_the_state_given_stays_as_it_was():
    run = prepared(env="user-car", num_envs=2)
    given = run.initial_state._replace(replay=())  # What lies in memory after it is no part of a state.
    before = {name: tensor.clone() for name, tensor in flatten(given).items()}
    run.play_block(run.initial_state, 0, 3)
    for name, tensor in flatten(given).items():
        assert torch.equal(tensor, before[name]), name


def test_long_rounds_are_played_in_calls_between_which_signals_are_heard(monkeypatch):
    """As many steps as are short, whatever the round: the same learner as in one call."""
    whole = prepared(env="pendulum", num_envs=3)
    assert protocols.steps_of_a_call(whole.config, whole.rollout) == 15
    expected, _ = whole.play_block(whole.initial_state, 0, 2)
    cut = prepared(env="pendulum", num_envs=3)
    calls = []
    train = cut.engine.train
    monkeypatch.setattr(protocols, "_TRANSITIONS_OF_A_CALL", 7 * 4 * 2 * 2 * (3 + cut.config.replay_batch))
    monkeypatch.setattr(cut.engine, "train", lambda batch, state, rates, first: (
        calls.append((first, len(rates.epsilon))), train(batch, state, rates, first))[1])  # fmt: skip
    state, _ = cut.play_block(cut.initial_state, 0, 2)
    assert calls == [(0, 7), (7, 7), (14, 1), (15, 7), (22, 7), (29, 1)]
    for (name, mine), theirs in zip(flatten(state.learner).items(), flatten(expected.learner).values(), strict=True):
        assert torch.equal(mine, theirs), name
