import dataclasses

import pytest
import torch
from problems import experiment, library, play

import envs
from torchq.tree import flatten


@pytest.mark.parametrize(("algo", "env"), [("stlrq", "wireless"), ("lrq", "gridworld"), ("clrq", "pendulum")])
def test_a_run_gives_the_same_result_alone_and_beside_others(algo, env):
    """Equal to 1e-9 over the first 1,000 updates in float64."""
    options = {"dtype": "float64", "rank": 5, "num_envs": 2, "library": library(episode_length=50)}
    together = play(experiment(algo, env, num_seeds=3, seed=4, **options), 20)
    alone = play(experiment(algo, env, num_seeds=1, seed=6, **options), 20)
    for ours, theirs in zip(together.learner.factors, alone.learner.factors, strict=True):
        torch.testing.assert_close(ours[2:], theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("algo", ["stlrq", "lrq", "clrq"])
def test_preset_paper_gives_the_same_bits_alone_and_beside_others(algo):
    options = {"rank": 7, "library": library(episode_length=40)}
    together = play(experiment(algo, "wireless", "paper", num_seeds=3, seed=4, **options), 1)
    alone = play(experiment(algo, "wireless", "paper", num_seeds=1, seed=6, **options), 1)
    for ours, theirs in zip(together.learner.factors, alone.learner.factors, strict=True):
        assert torch.equal(ours[2:], theirs)


def test_more_tasks_do_not_change_the_draws_of_the_first():
    """Tasks that share nothing learn the same whatever tasks are trained beside them."""
    few = play(experiment("lrq", "pendulum", num_tasks=2, dtype="float64", num_seeds=2), 2)
    more = play(experiment("lrq", "pendulum", num_tasks=4, dtype="float64", num_seeds=2), 2)
    for ours, theirs in zip(more.learner.factors, few.learner.factors, strict=True):
        torch.testing.assert_close(ours[:, :2], theirs, rtol=1e-9, atol=1e-9)


def test_terminated_transition_does_not_bootstrap_and_truncated_one_does():
    """A step onto the goal moves Q(s, a) towards −1; the same step cut by the time limit towards −1 + γ max Q."""
    env = dataclasses.replace(envs.Gridworld(), episode_length=1)
    for goal, expected in (((0.0, 1.0), -1.0), ((4.0, 4.0), -1.0 + 0.95 * 7.0)):
        prepared = experiment(
            "tabular", num_seeds=1, num_envs=1, num_tasks=1, epsilon_start=0.0, epsilon_end=0.0, learning_rate=0.5
        )
        tasks = envs.stack_tasks([envs.GridworldTask(*goal)], dtype=torch.float32)
        rollout = dataclasses.replace(prepared.rollout, env=env, tasks=tasks)
        state = prepared.initial_state
        table = torch.zeros_like(state.learner.table).view(25, 4)
        table[1] = 7.0
        table[0, 1] = 1.0
        zero = torch.zeros(1, 1, 1)
        start = envs.gridworld.GridworldState(zero, zero, zero.int())
        draws = rollout.draw(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
        learner, following, statistics, _ = rollout.step(
            rollout.batch(),
            state._replace(learner=state.learner._replace(table=table.view(1, 1, -1)), env=start),
            type(draws)(*(field[0] for field in draws)),
            torch.tensor(0.0),
            torch.tensor(0.5),
        )
        assert learner.table.view(25, 4)[0, 1].item() == pytest.approx(0.5 * 1.0 + 0.5 * expected)
        assert following.elapsed.item() == 0
        assert statistics.episodes.item() == 1


SETTINGS = {
    "tabular": (40, {"learning_rate": 0.2}),
    "lrq": (40, {"learning_rate": 0.05, "learning_rate_half_life": 3e3, "rank": 12, "state_modes": "joint"}),
    "stlrq": (80, {"learning_rate": 0.05, "learning_rate_half_life": 1e4, "rank": 12, "state_modes": "joint"}),
    "clrq": (20, {"learning_rate": 0.03, "rank": 12, "state_modes": "joint"}),
}


def error_on_gridworld(algo):
    """Mean over cells of the largest error of an action value, beside values up to 6."""
    rounds, options = SETTINGS[algo]
    prepared = experiment(algo, num_seeds=2, num_envs=8, epsilon_end=1.0, **options)
    state = play(prepared, rounds)
    cells = torch.arange(25).view(1, 1, 25).expand(2, 4, 25)
    index = (cells // 5, cells % 5) if algo == "tabular" else (cells,)
    values = prepared.rollout.learner.action_values(state.learner, index).view(2, 4, 25, 4)
    exact = prepared.rollout.env.optimal_action_values(prepared.rollout.tasks, 0.95).view(4, 25, 4)
    goals = torch.tensor([[task.goal_row * 5 + task.goal_column] for task in prepared.task_list])
    return (values - exact).abs().amax(-1)[:, torch.arange(25) != goals].mean().item()


@pytest.mark.parametrize(("algo", "tolerance"), [("tabular", 1e-3), ("lrq", 0.2), ("stlrq", 0.5)])
def test_learners_find_the_optimal_values_of_the_gridworld(algo, tolerance):
    assert error_on_gridworld(algo) < tolerance


def test_one_table_for_all_tasks_cannot_serve_four_goals():
    assert error_on_gridworld("clrq") > 2


def test_turns_leave_the_other_tasks_rows_alone():
    """In the online protocol only the row of the task whose turn it is sees a gradient; Adamax moves it alone."""
    prepared = experiment("stlrq", "pendulum", "paper", num_seeds=1, optimizer="sgd", learning_rate=1e-6)
    before = prepared.initial_state.learner.factors[0]
    rollout, state = prepared.rollout, prepared.initial_state
    batch = rollout.batch(2)
    draws = rollout.draw(torch.zeros(1, dtype=torch.int64), batch.task_index)
    seen = type(state.statistics)(*(s[:, 2:3] for s in state.statistics))
    learner, *_ = rollout.step(
        batch,
        state._replace(env=rollout.reset(batch, 0), statistics=seen),
        type(draws)(*(field[0] for field in draws)),
        torch.tensor(1.0),
        torch.tensor(1.0, dtype=torch.float64),
    )
    moved = (learner.factors[0] != before).any(-1).flatten()
    assert moved.tolist() == [False, False, True, False]


def test_permuting_tasks_permutes_the_results(generator):
    """One update: what a task learns does not depend on its number."""
    prepared = experiment("stlrq", "wireless", dtype="float64", num_seeds=2, rank=4)
    learner, order = prepared.rollout.learner, torch.tensor([2, 0, 3, 1])
    state = prepared.initial_state.learner
    factors = (state.factors[0][:, :, order], *state.factors[1:])
    permuted = learner.start(state, factors)
    shape = (2, 4, 3)
    index = tuple(torch.randint(size, shape, generator=generator) for size in learner.state_sizes)
    action = torch.randint(10, shape, generator=generator)
    reward = torch.randn(shape, generator=generator, dtype=torch.float64)
    from torchq import Transition

    def transition(pick):
        return Transition(
            tuple(i[:, pick] for i in index),
            action[:, pick],
            reward[:, pick],
            torch.full(shape, 0.9, dtype=torch.float64),
            tuple(i.flip(-1)[:, pick] for i in index),
        )

    rate = torch.tensor(0.01, dtype=torch.float64)
    ours, _ = learner.update(state, transition(torch.arange(4)), rate)
    theirs, _ = learner.update(permuted, transition(order), rate)
    torch.testing.assert_close(ours.factors[0][:, :, order], theirs.factors[0])
    for a, b in zip(ours.factors[1:], theirs.factors[1:], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("rank", [1, 64])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_extreme_ranks_and_rewards_stay_finite(rank, scale, generator):
    prepared = experiment("stlrq", "pendulum", num_seeds=1, rank=rank)
    learner, state = prepared.rollout.learner, prepared.initial_state.learner
    shape = (1, 4, 2)
    from torchq import Transition

    for _ in range(50):
        index = tuple(torch.randint(size, shape, generator=generator) for size in learner.state_sizes)
        action = torch.randint(10, shape, generator=generator)
        reward = scale * torch.randn(shape, generator=generator)
        state, _ = learner.update(
            state, Transition(index, action, reward, torch.full(shape, 0.9), index), torch.tensor(0.03)
        )
    assert all(torch.isfinite(tensor).all() for tensor in flatten(state).values())


def test_an_experiment_follows_a_configuration_that_replaces_its_own():
    """Its methods read the configuration when they are called: another learning rate and number of test episodes."""
    run = experiment("stlrq", "pendulum", num_seeds=1, library=library(episode_length=20))
    still = dataclasses.replace(run, config=run.config.replace(learning_rate=1e-12, eval_episodes=3))
    before = run.initial_state.learner.factors[1]
    assert (play(run, 1).learner.factors[1] - before).abs().max() > 1e-3
    assert (play(still, 1).learner.factors[1] - before).abs().max() < 1e-6
    seen, original = [], run.engine.greedy_returns

    def watched(learner, env, first_step):
        seen.append(env.elapsed.shape[2])
        return original(learner, env, first_step)

    run.engine.greedy_returns = watched
    for each in (run, still):
        each.evaluate(run.initial_state.learner, 1)
    assert seen == [1, 3]
