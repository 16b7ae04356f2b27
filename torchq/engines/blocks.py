"""Blocks of rounds with their tests, played in one call where an engine can: about a second's worth at a time."""

from __future__ import annotations

import torch

from torchq import tree
from torchq.config import Config
from torchq.engines.contract import (
    Block,
    BlockEngine,
    Engine,
    Evaluation,
    Rates,
    RunState,
    Statistics,
)
from torchq.engines.evaluation import evaluate, mean
from torchq.engines.protocols import fits, play_round, steps_of_a_call, takes_turns, turn_rates
from torchq.engines.rollout import Rollout
from torchq.philox import Purpose


def play(
    config: Config, rollout: Rollout, engine: Engine, state: RunState, first: int, count: int
) -> tuple[RunState, list[Evaluation]]:
    """Consecutive rounds, and an evaluation after every `eval_every` of them and after the last of the run.

    Args:
        config: hyper-parameters.
        rollout: what is trained.
        engine: that plays; one that can plays all of them in one call, where that is short and all tasks are tested.
        state: before; its statistics are those since the evaluation before.
        first: rounds played before.
        count: how many to play.
    """
    short = takes_turns(config, rollout) or steps_of_a_call(config, rollout) == rollout.env.episode_length
    if isinstance(engine, BlockEngine) and short and not fits(config) and rollout.test_rows is None:
        return _play_block(config, rollout, engine, state, first, count)
    evaluations = []
    for episode in range(first + 1, first + count + 1):
        state, policy = play_round(config, rollout, engine, state, episode - 1)
        if _evaluates(config, episode):
            returns = evaluate(rollout, engine, policy, episode, config.eval_episodes)
            finite = tree.all_finite(tree.flatten(state.learner))
            evaluations.append(Evaluation(episode, returns, state.statistics, finite))
            state = state._replace(statistics=_nothing(rollout))
    return state, evaluations


def _evaluates(config: Config, episode: int) -> bool:
    return episode == config.episodes or episode % config.eval_every == 0


def _nothing(rollout: Rollout) -> Statistics:
    return Statistics.zeros(len(rollout.seeds), rollout.num_tasks, rollout.device, rollout.dtype)


def _play_block(
    config: Config, rollout: Rollout, engine: BlockEngine, state: RunState, first: int, count: int
) -> tuple[RunState, list[Evaluation]]:
    rounds = range(first, first + count)
    block = prepare_block(config, rollout, engine, rounds)
    played = engine.play(block, state)
    statistics, evaluations = state.statistics, []
    for episode, seen, test in zip(rounds, played.statistics, block.test.tolist(), strict=True):
        statistics = statistics.plus(*seen.unbind(-1))
        if test >= 0:
            returns = mean(played.returns[test])
            evaluations.append(Evaluation(episode + 1, returns, statistics, played.finite[test]))
            statistics = _nothing(rollout)
    return state._replace(learner=played.learner, env=played.env, statistics=statistics), evaluations


def prepare_block(config: Config, rollout: Rollout, engine: BlockEngine, rounds: range) -> Block:
    """Everything that rounds need: rates, random starts, and which are tested.

    Each round's are computed by themselves: the last digit of a function of many numbers at once can depend on how many
    there are, and a run must not depend on how its rounds are cut into blocks.
    """
    env, in_turns = rollout.env, takes_turns(config, rollout)
    length, turns = env.episode_length, rollout.num_tasks if in_turns else 1
    rates = [turn_rates(config, rollout, episode, turn) for episode in rounds for turn in range(turns)]
    tested = [episode + 1 for episode in rounds if _evaluates(config, episode + 1)]
    number = {episode: test for test, episode in enumerate(tested)}
    test = [number.get(episode + 1, -1) for episode in rounds]
    starts = None
    if in_turns or not env.terminates:
        starts = engine.starts(rollout.batch(), Purpose.RESET, list(rounds), config.num_envs)
    return Block(
        rounds.start,
        turns,
        Rates(*(torch.cat(parts).view(len(rounds), turns, length) for parts in zip(*rates, strict=True))),
        starts,
        torch.tensor(test, dtype=torch.int64),
        engine.starts(rollout.test_batch(), Purpose.EVALUATION_RESET, tested, config.eval_episodes),
    )
