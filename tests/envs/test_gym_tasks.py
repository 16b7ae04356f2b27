"""Families out of environments of Gymnasium: spaces, parameters, live simulators, exact optima."""

import gymnasium
import numpy as np
import pytest
import torch
from gym_machines import Machine, TwoAims
from gymnasium import spaces

from envs import base, building, transition_tables
from envs.gym_tasks import GymTasks
from envs.simulators import SimulatorError
from envs.spaces import Actions, axes, flat

MACHINE = "gym_machines:Machine-v0"
EVERYWHERE = {"1": (-3, 3), "3": (-3, 3)}


class Unplugged(gymnasium.Env):
    observation_space, action_space = spaces.Box(-np.inf, np.inf, (1,)), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        raise OSError("no cable")


def test_an_observation_is_its_numbers_in_order():
    space = spaces.Dict(
        {
            "a": spaces.Box(np.array([0.0, -np.inf]), np.array([1.0, np.inf]), dtype=np.float64),
            "b": spaces.Tuple((spaces.Discrete(4, start=2), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2))),
        }
    )
    found = axes(space)
    assert [axis.name for axis in found] == ["a.0", "a.1", "b.0", "b.1.0", "b.1.1", "b.2.0", "b.2.1"]
    assert [(axis.low, axis.high) for axis in found[2:]] == [(2, 5), (0, 1), (0, 2), (0, 1), (0, 1)]
    assert [axis.category for axis in found] == [False, False, *[True] * 5]
    assert [axis.bounded for axis in found[:2]] == [True, False]
    observation = {"a": np.array([0.5, 9.0]), "b": (3, np.array([1, 2]), np.array([0, 1]))}
    assert flat(space, observation) == [0.5, 9.0, 3, 1, 2, 0, 1]


def test_actions_are_levels_between_the_bounds_or_the_discrete_ones():
    box = Actions(spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 1.0]), dtype=np.float64))
    assert box.sizes == (5, 5)
    assert box(np.array([0, 4])).tolist() == [-2.0, 1.0]
    assert box(np.array([3, 1])).tolist() == [1.0, 0.25]
    assert Actions(spaces.Discrete(3, start=1))(np.array([2])) == 3
    assert Actions(spaces.MultiDiscrete([2, 3])).sizes == (2, 3)


@pytest.mark.parametrize(
    ("space", "levels", "message"),
    [
        (spaces.Text(3), None, "expected actions of Discrete, MultiDiscrete, MultiBinary or Box"),
        (spaces.Box(-np.inf, np.inf, (1,)), None, "expected actions between bounds"),
        (spaces.Box(-1, 1, (1,)), 1, "levels: expected an integer of at least 2, got 1"),
    ],
)
def test_actions_that_cannot_be_tabulated_are_named(space, levels, message):
    with pytest.raises(ValueError, match=message):
        Actions(space, levels)


def test_attributes_and_what_follows_from_them_are_set_before_the_constructor_is_done():
    family = GymTasks("CartPole-v1", [{"length": 0.25}, {"length": 1.0, "gravity": 5.0}][:1], workers=0)
    env = family._made({"length": 0.25}).unwrapped
    assert (env.length, env.polemass_length) == (0.25, 0.1 * 0.25)
    assert env.total_mass == pytest.approx(1.1)
    acrobot = GymTasks("Acrobot-v1", [{"LINK_LENGTH_1": 1.5}], workers=0)._made({"LINK_LENGTH_1": 1.5}).unwrapped
    assert (acrobot.LINK_LENGTH_1, type(acrobot).LINK_LENGTH_1) == (1.5, 1.5)
    assert gymnasium.make("Acrobot-v1").unwrapped.LINK_LENGTH_1 == 1.0
    machine = GymTasks(MACHINE, [{"gain": 3.0, "drag": 0.5}], workers=0)._made({"gain": 3.0, "drag": 0.5}).unwrapped
    assert (machine.gain, machine.push, machine.drag) == (3.0, pytest.approx(0.6), 0.5)


def test_whole_numbers_stay_whole_and_keywords_may_be_nested():
    lake = [{"is_slippery": 0.0}, {"is_slippery": 1.0}]
    family = GymTasks("FrozenLake-v1", lake, map_name="4x4", workers=0)
    dry, wet = family.optimal_returns(family.sample_tasks())
    assert (dry, wet) == (1.0, pytest.approx(0.7442, abs=1e-4))
    from envs.building import _put

    keywords = {}
    _put(keywords, ["contexts", "0", "length"], 0.3)
    _put(keywords, ["contexts", "0", "gravity"], 9.0)
    assert keywords == {"contexts": {0: {"length": 0.3, "gravity": 9.0}}}


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("CartPol-v1", {}, "expected an environment that Gymnasium knows, got 'CartPol-v1'; did you mean CartPole-v1"),
        ("no_such_module:A-v0", {}, "needs the module no_such_module, which is not found"),
        ("CartPole-v1", {"tasks": [{"lenght": 1.0}]}, "attribute of CartPoleEnv, got 'lenght'; did you mean length"),
        ("CartPole-v1", {"ranges": {"7": (0, 1)}}, "ranges: expected dimensions 0, 1, 2, 3, got '7'"),
        ("gym_machines:Odd-v0", {}, "expected observations of Box, Discrete, .*, got Text"),
        ("CartPole-v1", {"points": 1}, "points: expected an integer of at least 2, got 1"),
        ("CartPole-v1", {"colour": 1}, "CartPole-v1 cannot be made: TypeError: .*colour"),
        ([Machine, TwoAims], {}, "expected observations of the same space in all tasks"),
        ([Machine], {"tasks": [{}, {}]}, "tasks: expected one for each of 1 environments, got 2"),
        ("CartPole-v1", {"ranges": "abc"}, "ranges: expected a mapping such as .*, got 'abc'"),
        ("CartPole-v1", {"ranges": {"1": (-3, np.inf)}}, "ranges: expected two finite numbers, low < high, of 1"),
        ("CartPole-v1", {"ranges": {"1": 3}}, "ranges: expected two finite numbers, low < high, of 1, got 3"),
        ("CartPole-v1", {"tasks": [{"length": 1.0}, {"gravity": 5.0}]}, "tasks: expected length of each, got gravity"),
        ([Machine, Machine], {"tasks": [{"a": 1.0}, {"a": 1.0}]}, "tasks: expected values that tell the environments"),
        ([Unplugged], {}, "gym-tasks fails in a random run: OSError: no cable"),
        (
            "CartPole-v1",
            {"tasks": [{"length": 1.0}], "length": 2.0},
            "no constants among the parameters, got length",
        ),
        ([], {}, "source: expected an id or at least one environment, got none"),
    ],
)
def test_what_is_no_family_is_one_clear_line(source, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        GymTasks(source, **options)
    assert "\n" not in str(caught.value)


def test_unbounded_dimensions_take_their_range_from_a_random_run_that_is_the_same_each_time():
    one, other = (GymTasks("CartPole-v1", workers=0) for _ in range(2))
    assert one.resolved == other.resolved
    assert len([note for note in one.notes if "has no bounds" in note]) == 2
    assert one.ranges["1"][0] < -1 < 1 < one.ranges["1"][1]
    given = GymTasks("CartPole-v1", ranges={"1": (-3, 3), "3": (-4, 4)}, workers=0)
    assert given.notes == []
    assert (given.grid_low[1], given.grid_high[3]) == (-3.0, 4.0)


def open_machines(workers, **options):
    family = GymTasks(MACHINE, [{"gain": 0.5}, {"gain": 1.0}], workers=workers, **options)
    return family, family.open(family.sample_tasks(), num_seeds=2, num_envs=3)


@pytest.mark.parametrize("workers", [0, 2, 5])
def test_simulators_step_as_each_environment_would_alone(workers):
    family, simulators = open_machines(workers)
    seeds, everyone = np.arange(100, 112), np.ones(12, dtype=bool)
    try:
        observed = simulators.reset(seeds, everyone)
        alone = [family._made({"gain": gain}) for _ in range(2) for gain in (0.5, 1.0) for _ in range(3)]
        expected = [flat(family.space, env.reset(seed=int(seed))[0]) for env, seed in zip(alone, seeds, strict=True)]
        np.testing.assert_array_equal(observed, expected)
        some = np.arange(12) % 3 != 1
        for step in range(4):
            actions = (np.arange(24).reshape(12, 2) + step) % 5
            simulators.start(actions, some)
            stepped = simulators.finish()
            for number in np.flatnonzero(some):
                now, reward, terminated, truncated, _ = alone[number].step(family.actions(actions[number]))
                assert stepped.observation[number].tolist() == flat(family.space, now)
                assert stepped.reward[number] == reward
                assert (stepped.terminated[number], stepped.truncated[number]) == (terminated, truncated)
        np.testing.assert_array_equal(stepped.observation[~some], np.array(expected)[~some])
    finally:
        simulators.close()


def push(simulators, count, steps):
    for _ in range(steps):
        simulators.start(np.zeros((count, 2), dtype=int), np.ones(count, dtype=bool))
        simulators.finish()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("fail", "message"),
    [
        ("raise", r"task gain=0.5: step\(\) failed: KeyError: 'no such"),
        ("nan", "gave an observation that is not finite"),
        ("reward", "gave the reward nan"),
        ("shape", r"expected an observation of Box.*, got one of the shape \(3,\)"),
        ("end", r"step\(\) failed: ValueError: gave terminated nan, expected True or False"),
        ("die", r"a worker process of task .* died \(exit code -9\): killed"),
    ],
)
def test_an_environment_that_fails_is_one_line_that_names_it(workers, fail, message):
    if fail == "die" and not workers:
        pytest.skip("it would end this process")
    _, simulators = open_machines(workers, fail=fail)
    simulators.reset(np.arange(12), np.ones(12, dtype=bool))
    try:
        with pytest.raises(SimulatorError, match=message) as caught:
            push(simulators, 12, 8)
        assert "\n" not in str(caught.value)
    finally:
        simulators.close()


def test_several_rewards_are_weighed_by_the_task():
    tasks = [{"reward_weights__0": 1.0, "reward_weights__1": 0.0}, {"reward_weights__0": 0.5, "reward_weights__1": 2.0}]
    family = GymTasks("gym_machines:TwoAims-v0", tasks, workers=0)
    simulators = family.open(family.sample_tasks(), 1, 1)
    simulators.reset(np.arange(2), np.ones(2, dtype=bool))
    simulators.start(np.array([[0], [1]]), np.ones(2, dtype=bool))
    assert simulators.finish().reward.tolist() == [1.0, 4.0]
    unweighed = GymTasks("gym_machines:TwoAims-v0", workers=0)
    simulators = unweighed.open(unweighed.sample_tasks(), 1, 1)
    simulators.reset(np.arange(1), np.ones(1, dtype=bool))
    simulators.start(np.array([[0]]), np.ones(1, dtype=bool))
    with pytest.raises(SimulatorError, match=r"gave 2 rewards for 0 weights; name a weight for each: reward_weights.0"):
        simulators.finish()


def test_seeds_of_episodes_are_whole_numbers_in_two_halves():
    family = GymTasks(MACHINE, workers=0)
    tasks = base.stack_tasks(family.sample_tasks(), dtype=torch.float32)
    state = family.reset(tasks, torch.tensor([0.5, 0.25]).view(1, 1, 1, 2))
    assert state.seed.item() == (1 << 31) + (1 << 14)
    assert state.actions.shape == (1, 1, 1, 20)


def test_the_optimum_of_a_table_is_that_of_a_simulated_optimal_policy():
    env = gymnasium.make("CliffWalking-v1")
    assert transition_tables.optimal_return(env, 100) == -13.0
    assert transition_tables.optimal_return(gymnasium.make("CartPole-v1"), 100) is None
    lake = gymnasium.make("FrozenLake-v1", is_slippery=False)
    assert transition_tables.optimal_return(lake, 6) == 1.0
    assert transition_tables.optimal_return(lake, 5) == 0.0  # The goal is six steps away.


def reward_of(family, action=0, tasks=None):
    simulators = family.open(tasks or family.sample_tasks()[:1], 1, 1)
    simulators.reset(np.zeros(1, dtype=int), np.ones(1, dtype=bool))
    simulators.start(np.array([[action]]), np.ones(1, dtype=bool))
    return simulators.finish().reward.tolist()


def test_a_table_that_is_not_followed_gives_no_optimum():
    lake = gymnasium.make("FrozenLake-v1", is_slippery=True)
    assert transition_tables.optimal_return(lake, 100) is not None
    assert transition_tables.optimal_return(gymnasium.wrappers.TransformReward(lake, lambda r: r - 0.1), 100) is None
    taxi = gymnasium.make("Taxi-v4", fickle_passenger=True)
    assert transition_tables.optimal_return(taxi, 20) is None
    lake.unwrapped.P = {0: {"left": []}}
    assert transition_tables.optimal_return(lake, 100) is None


def test_limits_mappings_and_defaults_of_an_environment_are_kept():
    assert GymTasks("CartPole-v1", max_episode_steps=60, ranges=EVERYWHERE).episode_length == 60
    gymnasium.register("Nested-v0", lambda contexts: Machine(**contexts[0]), kwargs={"contexts": {0: {"goal": 0.7}}})
    made = building.build("Nested-v0", {"contexts__0__gain": 2.0}, {}, 5).unwrapped
    assert (made.gain, made.goal) == (2.0, 0.7)
    family = GymTasks("Nested-v0", contexts={"0": {"gain": 3.0}})
    assert family._made({}).unwrapped.gain == 3.0


def test_weights_go_by_their_numbers_whatever_their_order():
    for names in (("reward_weights__1", "reward_weights__0"), ("reward_weights__0", "reward_weights__1")):
        task = {name: {"reward_weights__0": 10.0, "reward_weights__1": 0.0}[name] for name in names}
        assert reward_of(GymTasks("gym_machines:TwoAims-v0", [task], workers=0)) == [10.0]
    gap = GymTasks("gym_machines:TwoAims-v0", [{"reward_weights__0": 1.0, "reward_weights__2": 1.0}], workers=0)
    with pytest.raises(ValueError, match=r"expected reward_weights.0, reward_weights.1 and so on"):
        gap.open(gap.sample_tasks(), 1, 1)


def test_parameters_reach_an_environment_with_all_their_digits():
    family = GymTasks(MACHINE, [{"gain": 1 / 3}, {"gain": 1.0}], workers=0)
    rounded = [family.task_type(gain=0.333333), family.task_type(gain=0.7)]
    assert [family._nearest(vars(task)) for task in rounded] == [{"gain": 1 / 3}, {"gain": 0.7}]
    listed = GymTasks([Machine, Machine], [{"gain": 1 / 3}, {"gain": 1.0}], episode_length=20, workers=0)
    assert listed.episode_length == 20
    simulators = listed.open([listed.task_type(gain=0.333333)], 1, 1)
    assert simulators.reset(np.zeros(1, dtype=int), np.ones(1, dtype=bool)).shape == (1, 3)


def test_a_process_that_is_gone_does_not_keep_the_others_from_closing():
    _, simulators = open_machines(2)
    simulators.reset(np.arange(12), np.ones(12, dtype=bool))
    processes = simulators._vector.processes
    processes[0].kill()
    processes[0].join()
    simulators.close()
    assert not any(process.is_alive() for process in processes)
