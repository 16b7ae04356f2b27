"""The estimate of a run's memory, against what is really allocated, and its messages."""

import subprocess
import sys

import pytest
import torch
from problems import PLAIN, ROOT, experiment

from torchq.errors import UsageError
from torchq.runs import memory
from torchq.tree import flatten


@pytest.mark.parametrize("options", [
    {}, {"algo": "lrq", "env": "wireless"}, {"optimizer": "sgd"}, {"algo": "tabular"},
    {"dtype": "float64", "num_tasks": 50},
])  # fmt: skip
def test_the_learners_share_is_its_tensors_twice(options):
    prepared = experiment(**{"env": "pendulum", "num_seeds": 3, **options})
    state = flatten(prepared.initial_state.learner).values()
    stored = sum(tensor.numel() * tensor.element_size() for tensor in state if tensor.is_floating_point())
    need = memory.needed(prepared.config, prepared.rollout, "eager")
    assert need.learner == 2 * stored


PEAK = """
import sys, torch
sys.path[:0] = {paths!r}
torch.set_num_threads(1)
from problems import experiment, library, play
from torchq.runs import memory
def peak():  # Of this program alone: rusage's peak is that of the process it was forked from, too.
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines["VmHWM"].split()[0]) * 1024
options = dict(env="pendulum", num_seeds=2, library=library(episode_length=2), **{options!r})
play(experiment(num_envs=10, **options), 1)
before = peak()
run = experiment(num_envs={num_envs!r}, **options)
play(run, 1)
need = memory.needed(run.config, run.rollout, run.config.engine)
print(peak() - before, need.learner + need.replay + {num_envs!r} * need.per_env)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems measure memory otherwise")
@pytest.mark.parametrize(
    ("options", "num_envs"), [({}, 20_000), ({"engine": "fused"}, 200_000), ({"algo": "tabular"}, 200_000)]
)
def test_a_run_takes_what_is_estimated(options, num_envs):
    """The peak of a process, less what it needed before: between a quarter of the estimate and a tenth above."""
    script = PEAK.format(paths=[str(ROOT), str(ROOT / "tests")], options=options, num_envs=num_envs)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    taken, estimated = map(int, done.stdout.split())
    assert 0.25 * estimated < taken < 1.1 * estimated


def run(num_envs=4, num_seeds=8, num_tasks=None, **options):
    sizes = {"num_envs": num_envs, "num_seeds": num_seeds, "num_tasks": num_tasks}
    return experiment("stlrq", "pendulum", **{**PLAIN, **sizes, **options})


def test_replay_takes_what_memory_allows_and_the_run_says_so(monkeypatch):
    """Two runs of four tasks: 28 bytes a transition, and a quarter more slots; half of what is free."""
    given = {"num_seeds": 2, "replay_ratio": 1, "replay_capacity": 1000, "num_envs": 1}
    whole = run(**given)
    assert whole.config.replay_capacity == 1000
    assert whole.initial_state.replay.shape == (2, 4, 1250, 7)
    assert whole.about_replay == (
        "replay: 1 update a step, from 1 new and 16 stored transitions of each task, drawn from the latest 50% of each "
        "task's, at most 1,000 (0.3 MiB)"
    )
    monkeypatch.setattr(memory, "available", lambda device: 2 * 500 * 8 * 35)
    monkeypatch.setattr(memory, "too_large", lambda *given: {})
    short = run(**given)
    assert short.config.replay_capacity == 500
    assert short.initial_state.replay.numel() * 4 <= memory.available(None)
    assert "not 1,000: that is what memory allows" in short.about_replay


def test_too_many_environments_are_refused_with_what_would_fit():
    prepared = run()
    config, rollout = prepared.config, prepared.rollout
    need = memory.needed(config, rollout, "eager")
    memory.too_large(config, rollout, need.learner + 4 * need.per_env)
    with pytest.raises(UsageError, match=r"num_envs: .*are free; up to 2 would fit"):
        memory.too_large(config, rollout, need.learner + 3 * need.per_env - 1)


def test_too_many_seeds_or_tasks_are_refused_with_what_would_fit():
    prepared = run()
    need = memory.needed(prepared.config, prepared.rollout, "eager")
    each = (need.learner + need.per_env) // 8
    with pytest.raises(UsageError, match=r"num_seeds: .* with num_envs=1, up to 3 would fit"):
        memory.too_large(prepared.config, prepared.rollout, 3 * each + 8)
    with pytest.raises(UsageError, match=r"num_tasks, rank: .* 50.0% of these tasks times this rank would fit"):
        memory.too_large(prepared.config, prepared.rollout, each // 2)


def test_a_round_of_many_environments_counts_as_theirs():
    """Where a round is more than a quarter of the memory, each environment takes room of its own in it."""
    given = {"replay_ratio": 1, "replay_capacity": 100, "num_seeds": 2, "features": "linear", "episodes": 1000}
    few, many = (run(num_envs=count, **given) for count in (10, 30))
    one, other = (memory.needed(each.config, each.rollout, "eager") for each in (few, many))
    assert one == other
    for each in (few, many):
        stored = each.initial_state.replay.numel() * 4
        own = each.config.num_envs * 100 * 2 * 4 * 7 * 4  # steps, seeds, tasks, numbers, bytes
        assert stored == own + 100 * 2 * 4 * 7 * 4
    with pytest.raises(UsageError, match=r"num_envs: .*are free; up to 5 would fit"):
        memory.too_large(few.config, few.rollout, one.learner + one.replay + 6 * one.per_env - 1)


def test_a_machine_that_does_not_say_is_trusted():
    prepared = run()
    memory.too_large(prepared.config, prepared.rollout, None)


def test_the_machine_says():
    free = memory.available(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50


def test_a_run_that_cannot_fit_is_refused_before_it_allocates():
    with pytest.raises(UsageError, match="num_envs: expected a run that fits in memory, but this one needs about"):
        run(num_envs=1 << 24, num_seeds=4096)
