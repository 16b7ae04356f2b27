"""Stored transitions: where they lie, which are drawn, and that they come back as they were."""

import pytest
import torch
from problems import experiment, library, play

from torchq import philox
from torchq.lowrank import replay
from torchq.lowrank.replay import Replay
from torchq.lowrank.transitions import Transition


def transition(generator, envs=3):
    shape = (2, 4, envs)
    rows, action = torch.randint(5, shape, generator=generator), torch.randint(7, shape, generator=generator)
    place, after, reward = (torch.rand(shape, generator=generator) for _ in range(3))
    return Transition((rows, place), action, reward, 0.9 * (reward > 0.5), (rows.flip(-1), after))


def test_transitions_come_back_as_they_were(generator):
    memory, stored = torch.zeros(2, 4, 10, replay.width(2)), transition(generator)
    assert replay.store(memory, torch.tensor([7, 0, 3]), stored) is memory
    slots = torch.tensor([3, 7, 7, 0]).expand(2, 4, 4)
    back = replay.recall(memory, slots, stored)
    for ours, theirs in zip(back, stored, strict=True):
        for one, other in zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs)]:
            assert one.dtype == other.dtype
            assert torch.equal(one, other[..., [2, 0, 0, 1]])
    assert not memory[:, :, [1, 2, 4, 5, 6, 8, 9]].any()


def test_two_batches_are_joined_along_their_environments(generator):
    first, second = transition(generator, 3), transition(generator, 5)
    both = replay.joined(first, second)
    both.check(2, 4, 2)
    assert torch.equal(both.next_state_index[1][..., 3:], second.next_state_index[1])
    assert torch.equal(both.action[..., :3], first.action)


@pytest.mark.parametrize(
    ("count", "capacity", "recent", "expected"),
    [(10, 5000, 1.0, 10), (10, 5000, 0.1, 10), (9000, 5000, 1.0, 5000), (9000, 5000, 0.5, 4500),
     (9001, 5000, 0.5, 4501), (3000, 5000, 0.1, 1000), (3000, 700, 0.1, 700)],
)  # fmt: skip
def test_what_is_drawn_from_is_the_latest_share_but_a_thousand(count, capacity, recent, expected):
    assert Replay(1, 1, capacity, recent).available(torch.tensor([count])).item() == expected


def test_draws_are_uniform_over_what_is_available():
    """Three environments, 20 steps, 40 of 60 drawn from, 50 slots: numbers 20 to 59, and each as often."""
    kept, step = Replay(1, 1, 40), torch.tensor([19])
    bits = philox.random_bits(torch.arange(1000), step, 8, torch.arange(4), torch.arange(20), 1)
    slots = kept.drawn(bits, step, 3, 50)
    assert slots.shape == bits.shape
    counts = torch.bincount(slots.flatten(), minlength=50)
    expected = sorted(number % 50 for number in range(20, 60))
    assert torch.nonzero(counts).flatten().tolist() == expected
    assert (counts[expected] - 2000).abs().max() < 6 * 2000**0.5
    assert kept.own(step, 3, 50).tolist() == [[57 % 50, 58 % 50, 59 % 50]]


def test_stored_transitions_are_those_that_were_played():
    """Every number of the memory after two rounds: each next place is the next place, but where an episode ends."""
    run = experiment("stlrq", "pendulum", num_seeds=2, num_envs=2, episodes=5, library=library(episode_length=6))
    state = play(run, 2)
    number = torch.arange(24).view(2, 6, 2)  # (rounds, steps, envs)
    memory = state.replay[:, :, number]  # (seeds, tasks, rounds, steps, envs, width)
    here, after, (action, reward, discount) = memory[..., :2], memory[..., 2:4], memory[..., 4:].unbind(-1)
    assert torch.equal(after[:, :, :, :-1], here[:, :, :, 1:])
    assert (after[:, :, 0, -1] != here[:, :, 1, 0]).any()
    assert ((action >= 0) & (action < 10) & (action == action.round())).all()
    assert (reward < 0).all()
    assert (discount == torch.tensor(0.99)).all()
    assert not state.replay[:, :, 24:].any()


@pytest.mark.parametrize(
    ("argument", "value"), [("ratio", 0), ("batch", 0), ("capacity", 0), ("recent", 0.0), ("recent", 1.5)]
)
def test_wrong_arguments_are_named(argument, value):
    with pytest.raises(ValueError, match=argument):
        Replay(**{"ratio": 1, "batch": 1, "capacity": 1, argument: value})
