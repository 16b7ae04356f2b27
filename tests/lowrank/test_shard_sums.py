import dataclasses
import threading

import pytest
import torch
from problems import experiment

from torchq.lowrank.shard_sums import ShardSums, in_pairs
from torchq.lowrank.transitions import Transition
from torchq.tree import flatten

TASKS, ENVS = 12, 3


class Together:
    """Ranks that are threads of this process."""

    def __init__(self, count):
        self.count, self.barrier, self.sent = count, threading.Barrier(count), [None] * count

    def of(self, index):
        outer = self

        class Rank:
            count = outer.count

            def exchange(self, sent, received):
                outer.sent[index] = sent.clone()
                outer.barrier.wait()
                received.copy_(torch.cat(outer.sent))
                outer.barrier.wait()

        return Rank()


def transition(learner, seeds, generator):
    shape = (seeds, TASKS, ENVS)

    def rows(size):
        return torch.randint(size, shape, generator=generator)

    draw = torch.randn(shape, generator=generator, dtype=torch.float64)
    places = [tuple(rows(size) for size in learner.state_sizes) for _ in range(2)]
    return Transition(places[0], rows(learner.action_sizes[0]), draw, torch.full_like(draw, 0.9), places[1])


@pytest.mark.parametrize("algo", ["stlrq", "clrq"])
@pytest.mark.parametrize("options", [{}, {"task_modes": "linear"}, {"update": "block"}])
@pytest.mark.parametrize(("count", "bounds"), [(1, (0, 3, 6, 9, 12)), (2, (0, 3, 6)), (4, (0, 3))])
def test_ranks_together_learn_what_one_alone_does(algo, options, count, bounds):
    if algo == "clrq" and "task_modes" in options:
        pytest.skip("clrq has no task modes")
    prepared = experiment(algo, "pendulum", num_tasks=TASKS, num_envs=ENVS, num_seeds=2, dtype="float64", **options)
    learner, state, each = prepared.rollout.learner, prepared.initial_state.learner, TASKS // count
    seen = transition(learner, 2, torch.Generator().manual_seed(1))
    rate = torch.tensor(0.1, dtype=torch.float64)
    expected, _ = learner.update(state, seen, rate)
    together, found = Together(count), [None] * count

    def play(rank):
        own = slice(rank * each, (rank + 1) * each)

        def part(name, tensor):
            rows = name.startswith(("factors.0", "moments.0", "target.0")) and learner.has_task_mode
            return tensor[:, :, own] if rows and not learner.task_sizes else tensor

        mine = dataclasses.replace(learner, num_tasks=each, sums=ShardSums(bounds, together.of(rank)))
        before = type(state)(*(_mapped(getattr(state, name), name, part, own) for name in state._fields))
        here = Transition(*(tuple(x[:, own] for x in f) if isinstance(f, tuple) else f[:, own] for f in seen))
        found[rank] = flatten(mine.update(before, here, rate)[0]._replace(task_places=()))

    threads = [threading.Thread(target=play, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, tensor in flatten(expected._replace(task_places=())).items():
        rows = name.startswith(("factors.0", "moments.0", "target.0")) and learner.has_task_mode
        ours = [one[name] for one in found]
        if not (rows and not learner.task_sizes):
            assert all(torch.equal(one, ours[0]) for one in ours), name
        joined = torch.cat(ours, 2) if rows and not learner.task_sizes else ours[0]
        torch.testing.assert_close(joined, tensor, rtol=0, atol=1e-12)


def _mapped(field, prefix, part, own):
    from torchq.tree import mapped

    if prefix == "task_places":
        return tuple(place[own] for place in field)
    return mapped(field, part, prefix)


def test_sums_in_pairs_of_pairs_are_those_of_their_halves():
    terms = list(torch.rand(8, 5, dtype=torch.float64).unbind())
    halves = [in_pairs(terms[:4]), in_pairs(terms[4:])]
    assert torch.equal(in_pairs(terms), in_pairs(halves))
    assert torch.equal(in_pairs(terms[:4]), (terms[0] + terms[1]) + (terms[2] + terms[3]))
