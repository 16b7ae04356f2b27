"""The engine of environments in other processes: what it computes, and where it goes on."""

import subprocess
import sys

import gymnasium
import pytest
import torch
from gym_machines import Machine
from problems import ROOT

from envs.gym_tasks import GymTasks
from envs.spaces import flat
from torchq.engines.contract import UnavailableError
from torchq.engines.external import ExternalEngine, _listed
from torchq.errors import UsageError
from torchq.lowrank.exploration import epsilon_greedy
from torchq.lowrank.transitions import Transition
from torchq.presets import resolve
from torchq.runs.experiment import prepare

TASKS = ({"gain": 0.5}, {"gain": 1.0})


def machines(**overrides):
    family = GymTasks("gym_machines:Machine-v0", TASKS, workers=0)
    given = {"device": "cpu", "tasks": TASKS, "num_seeds": 2, "num_envs": 1, "dtype": "float64", "optimal": False}
    return prepare(resolve("stlrq", "gym:gym_machines:Machine-v0", "default", {**given, **overrides}), family)


def slow_twin(experiment, num_steps):
    """Factors after some steps of a loop over environments, with each update one step late."""
    rollout, state, family = experiment.rollout, experiment.initial_state, experiment.rollout.env
    batch = rollout.batch()
    made = [[family._made(task) for task in TASKS] for _ in range(2)]
    seeds = state.env.seed

    def restart(env, seed):
        return flat(family.space, env.reset(seed=int(seed))[0])

    now = torch.tensor([[[restart(made[s][m], seeds[s, m, 0])] for m in range(2)] for s in range(2)]).double()
    learner, memory, late = state.learner, state.replay, None
    rates = (rate[:num_steps] for rate in rates_of(experiment))
    drawn = rollout.draw(torch.arange(num_steps), batch.task_index, memory.shape[2])
    for step, (epsilon, rate) in enumerate(zip(*rates, strict=True)):
        draws = type(drawn)(*(field[step] for field in drawn))
        index = rollout.grid.index(now)
        values = rollout.learner.action_values(learner, index)
        action = epsilon_greedy(values, epsilon, draws.explore, draws.random_action)
        if late is not None:
            learner, memory, _ = rollout.learn(learner, memory, *late, batch.task)
        following, reward, discount = now.clone(), torch.zeros(2, 2, 1).double(), torch.zeros(2, 2, 1).double()
        fresh = rollout.env.reset(batch.tasks, draws.autoreset).seed
        restarted = now.clone()
        for s in range(2):
            for m in range(2):
                levels = torch.tensor([action[s, m, 0] // 5, action[s, m, 0] % 5]).numpy()
                observation, r, terminated, truncated, _ = made[s][m].step(family.actions(levels))
                following[s, m, 0] = torch.tensor(flat(family.space, observation)).double()
                reward[s, m, 0], discount[s, m, 0] = r, rollout.gamma * (not terminated)
                restarted[s, m] = following[s, m]
                if terminated or truncated:
                    restarted[s, m, 0] = torch.tensor(restart(made[s][m], fresh[s, m, 0])).double()
        late = Transition(index, action, reward, discount, rollout.grid.index(following)), draws, rate
        now = restarted
    return rollout.learn(learner, memory, *late, batch.task)[0]


def rates_of(experiment):
    from torchq.engines.protocols import turn_rates

    return turn_rates(experiment.config, experiment.rollout, 0, 0)


@torch.no_grad()
def test_it_learns_as_a_slow_loop_whose_updates_come_one_step_late():
    experiment = machines(epsilon_decay=0.9)
    state, _ = experiment.play(experiment.initial_state, 0)
    experiment.close()
    expected = slow_twin(machines(epsilon_decay=0.9), 20)
    moved = 0.0
    for ours, theirs, cold in zip(
        state.learner.factors, expected.factors, experiment.initial_state.learner.factors, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        moved += (ours - cold).abs().sum().item()
    assert moved > 1.0
    assert state.statistics.episodes.min() >= 1.0


@torch.no_grad()
def test_it_goes_on_from_a_state_in_other_processes():
    one, other = machines(), machines()
    middle = one.initial_state
    for episode in range(4):
        middle, _ = one.play(middle, episode)
    assert middle.env.elapsed.max() > 0  # Some are in the middle of an episode.
    memory = middle.replay.clone()
    end, _ = one.play(middle, 4)
    again, _ = other.play(middle._replace(replay=memory), 4)
    for ours, theirs in zip(end.env, again.env, strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(end.learner.factors, again.learner.factors, strict=True):
        assert torch.equal(ours, theirs)
    one.close()
    other.close()


@torch.no_grad()
def test_tests_do_not_disturb_training_and_end_with_each_episode():
    experiment = machines()
    state, policy = experiment.play(experiment.initial_state, 0)
    returns = experiment.evaluate(policy, 1)
    assert returns.shape == (2, 2)
    assert (returns < 0).all()
    torch.testing.assert_close(experiment.evaluate(policy, 1), returns)
    undisturbed = machines()
    middle, _ = undisturbed.play(undisturbed.initial_state, 0)
    for ours, theirs in zip(
        experiment.play(state, 1)[0].learner.factors, undisturbed.play(middle, 1)[0].learner.factors, strict=True
    ):
        assert torch.equal(ours, theirs)
    experiment.close()
    undisturbed.close()


COMPILED = """
import sys, torch
sys.path[:0] = {paths!r}
torch.set_num_threads(1)
from test_external import machines
with torch.no_grad():
    plain, compiled = machines(), machines(engine="compile")
    assert (plain.engine.name, compiled.engine.name) == ("external", "compile")
    found = (run.play(run.initial_state, 0)[0].learner.factors for run in (plain, compiled))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
print("equal")
"""


@pytest.mark.slow
def test_what_is_compiled_learns_alike():
    script = COMPILED.format(paths=[str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "engines")])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "equal\n", done.stderr


def test_each_dimension_of_the_action_is_a_mode():
    assert machines().rollout.learner.sizes == (2, 3, 12, 12, 5, 5)


def test_other_engines_and_families_are_refused():
    with pytest.raises(UsageError, match="engine: expected auto, external or compile with env="):
        machines(engine="fused")
    from problems import experiment

    with pytest.raises(UnavailableError, match="only environments outside of PyTorch"):
        ExternalEngine(experiment().rollout)


def test_parameters_are_decimals_again_after_rounding():
    family = GymTasks([lambda: Machine(), lambda: Machine()], [{"mass": 0.1}, {"mass": 1 / 3}], workers=0)
    from envs import base

    tasks = _listed(base.stack_tasks(family.sample_tasks(), dtype=torch.float32), 6)
    assert [task.mass for task in tasks] == [0.1, pytest.approx(1 / 3, rel=1e-6)]
    assert gymnasium.spec("Machine-v0").max_episode_steps == 20
