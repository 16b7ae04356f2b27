"""The graph engine: its buffers, by a capture that plays the steps again; its graphs where there is a GPU."""

import pytest
import torch
from problems import experiment, library, play

from torchq.engines import evaluation, graph, protocols
from torchq.errors import UsageError
from torchq.tree import flatten

SHORT = library(episode_length=60)
CASES = [
    ("stlrq", "pendulum", "default", {"rank": 4}), ("stlrq", "wireless", "paper", {"rank": 4}),
    ("lrq", "wireless", "paper", {"rank": 4}), ("tabular", "gridworld", "default", {}),
    ("stlrq", "wireless", "default", {"rank": 4, "task_weights": (1.0, 2.0, 3.0, 0.5)}),
]  # fmt: skip


def replayed(algo, env, preset, device, **options):
    """Eager and graph experiments, and the program."""
    options = {"num_seeds": 2, "dtype": "float64", "library": SHORT, "device": device} | options
    eager = experiment(algo, env, preset, **options)
    program = graph.GraphProgram(
        eager.problem, protocols.stepwise(eager.problem, eager.problem.step), evaluation.greedy_step
    )
    other = experiment(algo, env, preset, **options)
    return eager, other, program


@pytest.mark.parametrize(("algo", "env", "preset", "options"), CASES)
def test_replays_equal_eager_steps(algo, env, preset, options, monkeypatch):
    def play_again(body):
        body()  # As a capture would, so that leaving the state alone is tested too.
        return body

    monkeypatch.setattr(graph, "capture", play_again)
    eager, other, program = replayed(algo, env, preset, "cpu", **options)
    expected = play(eager, 2)
    state = play(with_program(other, program), 2)
    for (name, theirs), ours in zip(flatten(expected).items(), flatten(state).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
    for number in (1, 2):
        returns = evaluation.evaluate(eager.problem, eager.tasks, expected.learner, number, 3, program.greedy)
        torch.testing.assert_close(
            returns, evaluation.evaluate(eager.problem, eager.tasks, expected.learner, number, 3)
        )


def with_program(prepared, program):
    """The experiment with its rounds played by a program."""
    config, problem, tasks = prepared.config, prepared.problem, prepared.tasks

    def round_of(state, episode):
        if protocols.takes_turns(config, problem):
            select = SHORT.select_tasks
            return protocols.turns_round(config, problem, select, tasks, state, episode, program.train)
        return protocols.batched_round(config, problem, tasks, state, episode, program.train), None

    return prepared._replace(play=round_of)


def test_it_says_that_it_needs_a_gpu():
    with pytest.raises(UsageError, match=r"--engine: graph does not work here \(CUDA graphs need a GPU, got cpu\)"):
        experiment(engine="graph")


@pytest.mark.parametrize("steps", [1, 7, 50, 100, 200, 53])
def test_graphs_divide_an_episode(steps):
    assert steps % graph._block(steps) == 0
    assert graph._block(100) == graph._block(200) == 25


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("algo", "env", "preset", "options"), CASES)
def test_graphs_equal_eager_steps_on_the_gpu(algo, env, preset, options, monkeypatch):
    monkeypatch.setattr(
        "torchq.engines.compiling.compile_obstacle", lambda device: "shapes are checked in this process"
    )
    options = {"num_seeds": 2, "dtype": "float64", "library": SHORT, "device": "cuda"} | options
    states = [play(experiment(algo, env, preset, **options, engine=name), 3) for name in ("eager", "graph")]
    for theirs, ours in zip(flatten(states[0]).values(), flatten(states[1]).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
