import torch
from problems import experiment, library, play

from torchq.tree import flatten


def test_evaluation_never_disturbs_training():
    """Training with an evaluation after every round gives the same bits as training without."""
    prepared = experiment("stlrq", "pendulum", num_seeds=2)
    quiet = play(prepared, 4)
    state = prepared.initial_state
    for episode in range(4):
        state = play(prepared, 1, state, episode)
        with torch.no_grad():
            prepared.evaluate(state.learner, episode)
    for ours, theirs in zip(flatten(state).values(), flatten(quiet).values(), strict=True):
        assert torch.equal(ours, theirs)


def test_evaluation_of_an_optimal_policy_returns_the_optimum():
    prepared = experiment("tabular", num_seeds=2, eval_episodes=400)
    exact = prepared.rollout.env.optimal_action_values(prepared.rollout.tasks, 0.95)
    table = exact.reshape(1, 4, -1).expand(2, -1, -1).contiguous()
    returns = prepared.evaluate(prepared.initial_state.learner._replace(table=table), 1)
    assert returns.shape == (2, 4)
    assert (returns + 100 / 24).abs().max() < 0.3


def test_numbers_decide_the_draws():
    prepared = experiment("tabular", "wireless", num_seeds=2)
    policy = prepared.initial_state.learner
    first, again, other = (prepared.evaluate(policy, number) for number in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_snapshots_of_turns_are_the_policies_at_the_end_of_each_turn():
    """Joined snapshots give each task the values that its own snapshot gives."""
    prepared = experiment("stlrq", "wireless", "paper", num_seeds=2, rank=3, library=library(episode_length=30))
    learner = prepared.rollout.learner
    with torch.no_grad():
        state, joined = prepared.play(prepared.initial_state, 0)
    index = tuple(torch.zeros(2, 4, 1, dtype=torch.int64) for _ in range(4))
    values = learner.action_values(joined, index)
    final = learner.action_values(state.learner, index)
    torch.testing.assert_close(values[:, 3], final[:, 3])
    assert not torch.allclose(values[:, 0], final[:, 0])
