"""The estimate of a run's memory, against what is really allocated, and its messages."""

import pytest
import torch
from problems import experiment

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


def test_an_environment_takes_no_more_than_estimated():
    """State, draws and the largest temporary of an eager step: the products behind the action values."""
    prepared = experiment(env="pendulum", num_envs=500, num_seeds=2)
    per_env = memory.needed(prepared.config, prepared.rollout, "eager").per_env
    state = sum(tensor.numel() * tensor.element_size() for tensor in flatten(prepared.initial_state.env).values())
    draws = prepared.rollout.draw(torch.arange(1), torch.arange(4))
    drawn = sum(tensor.numel() * tensor.element_size() for tensor in draws)
    products = 2 * 4 * 500 * prepared.config.rank * 10 * 4
    assert state + drawn + products < 500 * per_env < 4 * (state + drawn + products)


def run(num_envs=4, num_seeds=8, num_tasks=None, **options):
    return experiment("stlrq", "pendulum", num_envs=num_envs, num_seeds=num_seeds, num_tasks=num_tasks, **options)


def test_too_many_environments_are_refused_with_what_would_fit():
    prepared = run()
    config, rollout = prepared.config, prepared.rollout
    need = memory.needed(config, rollout, "eager")
    memory.too_large(config, rollout, need.learner + 4 * need.per_env)
    with pytest.raises(UsageError, match=r"--num-envs: .*are free; up to 2 would fit"):
        memory.too_large(config, rollout, need.learner + 3 * need.per_env - 1)


def test_too_many_seeds_or_tasks_are_refused_with_what_would_fit():
    prepared = run()
    need = memory.needed(prepared.config, prepared.rollout, "eager")
    each = (need.learner + need.per_env) // 8
    with pytest.raises(UsageError, match=r"--num-seeds: .* with --num-envs 1, up to 3 would fit"):
        memory.too_large(prepared.config, prepared.rollout, 3 * each + 8)
    with pytest.raises(UsageError, match=r"--num-tasks, --rank: .* 50.0% of these tasks times this rank would fit"):
        memory.too_large(prepared.config, prepared.rollout, each // 2)


def test_a_machine_that_does_not_say_is_trusted():
    prepared = run()
    memory.too_large(prepared.config, prepared.rollout, None)


def test_the_machine_says():
    free = memory.available(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50


def test_a_run_that_cannot_fit_is_refused_before_it_allocates():
    with pytest.raises(UsageError, match="--num-envs: expected a run that fits in memory, but this one needs about"):
        run(num_envs=1 << 24, num_seeds=4096)
