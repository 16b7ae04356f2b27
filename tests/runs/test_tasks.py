"""Which tasks a run trains on and tests, tasks in words, and runs that hold some out."""

import json

import numpy as np
import pytest
import torch
from problems import command_line, experiment, outcome

import envs
import torchq
from torchq.errors import UsageError
from torchq.presets import resolve
from torchq.runs.task_specs import read_tasks
from torchq.runs.tasks import task_set

GRID = "mass=0.05:1:4,length=0.5:1:3"
PENDULUM = envs.Pendulum()


def chosen(env=PENDULUM, **settings):
    given = settings.pop("tasks", None)
    tasks = {} if given is None else {"tasks": read_tasks(given, env)}
    return task_set(resolve("stlrq", env.name, "default", {**tasks, **settings}), env)


def test_words_say_products_of_values_and_ranges():
    tasks = read_tasks("mass=0.01:1:3,length=0.5;1", PENDULUM)
    assert [(task["mass"], task["length"]) for task in tasks] == [
        (0.01, 0.5), (0.01, 1.0), (0.1, 0.5), (0.1, 1.0), (1.0, 0.5), (1.0, 1.0),
    ]  # fmt: skip
    words = "harvest=1:2:3,harvest_probability=0.5,arrival=1,arrival_probability=0.2"
    assert read_tasks(words, envs.Wireless())[1] == {
        "harvest": 1.5, "harvest_probability": 0.5, "arrival": 1.0, "arrival_probability": 0.2,
    }  # fmt: skip


def test_tasks_come_as_objects_and_files_too(tmp_path):
    expected = ({"mass": 0.3, "length": 0.7}, {"mass": 0.4, "length": 0.8})
    (tmp_path / "tasks.json").write_text(json.dumps(expected))
    (tmp_path / "tasks.csv").write_text("length,mass\n0.7,0.3\n0.8,0.4\n")
    given = [envs.PendulumTask(0.3, 0.7), {"mass": 0.4, "length": 0.8}]
    for item in (str(tmp_path / "tasks.json"), tmp_path / "tasks.csv", given, ["mass=0.3,length=0.7", given[1]]):
        assert read_tasks(item, PENDULUM) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("mass=0.3", "expected a value of length too, got mass=0.3"),
        ("mas=0.3,length=1", "expected the parameters mass, length, got 'mas'; did you mean mass?"),
        ("mass=a,length=1", "expected a number or low:high:count, got 'a' in 'mass=a,length=1'"),
        ("mass=0.1:1,length=1", "expected a number or low:high:count, got '0.1:1'"),
        ("mass=0:1:3,length=1", "expected a number or low:high:count, got '0:1:3'"),
        ("mass=nan,length=1", "expected finite numbers, got mass=nan,length=1"),
        ("mass=-1,length=1", "expected mass above 0, got -1"),
        ("mass=1,mass=2,length=1", "expected each parameter once, got mass twice"),
        ("mass=1:2:3:4,length=1", "expected a number or low:high:count, got '1:2:3:4'"),
        ("mass=1:2:99999999999,length=1", "expected a number or low:high:count"),
        (5, "expected tasks such as mass=0.3"),
        ("heavy", "expected tasks such as mass=0.3"),
        ("nowhere.json", "expected a file of tasks, but nowhere.json does not exist"),
        ([], "got none"),
    ],
)
def test_words_that_say_no_task_are_one_line(given, message):
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        read_tasks(given, PENDULUM)


def test_categories_are_whole_and_within_their_range():
    for row in ("100", "1.5"):
        with pytest.raises(UsageError, match="expected goal_row of 0 to 4, whole, got"):
            read_tasks(f"goal_row={row},goal_column=1", envs.Gridworld())


def test_files_that_hold_no_tasks_are_one_line(tmp_path):
    path = tmp_path / "tasks.json"
    for text, message in (
        ("[", "cannot be read"),
        ("{}", "expected a list of objects"),
        ('[{"mass": "x", "length": 1}]', "expected numbers"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            read_tasks(str(path), PENDULUM)


def test_tables_are_read_as_spreadsheets_write_them(tmp_path):
    """A mark at the start, capitals in the name, spaces, semicolons, a semicolon at the end of words."""
    expected = ({"mass": 0.2, "length": 0.8}, {"mass": 0.4, "length": 0.6})
    for content in ("\ufeffmass,length\n0.2,0.8\n0.4,0.6\n", "mass ; length\n0.2;0.8\n\n0.4; 0.6\n"):
        path = tmp_path / "tasks.CSV"
        path.write_text(content, encoding="utf-8")
        assert read_tasks(path, PENDULUM) == expected
    assert read_tasks("mass=0.2,length=0.8;mass=0.4,length=0.6;", PENDULUM) == expected
    path.write_text("mass,length\n0.2,0.8\n0.4\n")
    with pytest.raises(UsageError, match="line 3 has 1 cells for 2 columns"):
        read_tasks(path, PENDULUM)
    with pytest.raises(UsageError, match=r"got mass=\[0.2, 0.3\],length=1; a product of values is vary"):
        read_tasks({"mass": [0.2, 0.3], "length": 1}, PENDULUM)


def test_a_quarter_of_a_grid_is_held_out_and_no_value_with_it():
    found = chosen(tasks="mass=0.05:1:8,length=0.5:1:8", task_modes="linear", held_out=0.25)
    assert (found.num_trained, len(found.held_out)) == (48, 16)
    for name in ("mass", "length"):
        assert len({getattr(task, name) for task in found.trained}) == 8
    assert {*found.trained}.isdisjoint(found.held_out)
    again = chosen(tasks="mass=0.05:1:8,length=0.5:1:8", task_modes="linear", held_out=0.25, seed=7)
    assert again.tasks == found.tasks


def test_tasks_that_share_no_value_are_held_out_where_learners_interpolate():
    found = chosen(num_tasks=12, task_modes="linear", held_out=0.5)
    assert (found.num_trained, len(found.tasks)) == (6, 12)
    with pytest.raises(UsageError, match="held_out: expected a share that leaves every value"):
        chosen(num_tasks=12, task_modes="product", held_out=0.5)


def test_tasks_to_test_may_be_named_and_lie_anywhere():
    named = read_tasks("mass=0.3;2,length=0.7", PENDULUM)
    found = chosen(tasks=GRID, test_tasks=named, task_modes="linear")
    assert (found.num_trained, len(found.held_out)) == (12, 2)
    assert found.modes == chosen(tasks=GRID, task_modes="linear").modes
    assert found.places("cpu", torch.float64)[0][-1] == 3.0  # 2 kg is taken at the end, 1 kg.
    with pytest.raises(UsageError, match="test_tasks: expected values of the tasks that learn with task_modes"):
        chosen(tasks=GRID, test_tasks=named, task_modes="product")
    with pytest.raises(UsageError, match="test_tasks: expected task_modes product or linear, got table"):
        chosen(tasks=GRID, test_tasks=named)


def test_modes_span_the_tasks_with_no_more_points_than_they_have_values():
    linear = chosen(tasks=GRID, task_modes="linear").modes
    assert linear.sizes == (4, 3)
    assert chosen(num_tasks=100, task_modes="linear").modes.sizes == (8, 5)
    assert chosen(tasks="mass=0.3,length=0.5:1:3", task_modes="linear").modes.sizes == (1, 3)
    assert chosen(task_modes="product").modes.sizes == (4, 2)
    assert chosen().modes is None
    goals = chosen(envs.Gridworld(), num_tasks=9, task_modes="linear")
    assert goals.places("cpu", torch.float32)[0].dtype == torch.int64  # Cells are categories.


def test_equal_masses_share_a_row_and_others_lie_between():
    found = chosen(tasks="mass=0.01:1:3,length=0.5", task_modes="linear")
    assert found.places("cpu", torch.float64)[0].tolist() == pytest.approx([0.0, 1.0, 2.0])
    levels = chosen(task_modes="product").places("cpu", torch.float64)
    assert [place.tolist() for place in levels] == [[0, 1, 2, 3], [1, 1, 0, 0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"held_out": 0.25}, "held_out: expected `?task_modes`? product or linear"),
        ({"task_modes": "linear", "held_out": 1.0}, "held_out: expected a share"),
        ({"tasks": GRID, "num_tasks": 3}, "num_tasks: expected none with tasks, which names 12"),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(settings, message):
    with pytest.raises(UsageError, match=message):
        chosen(**settings)


@pytest.mark.parametrize("options", [{"task_modes": "linear"}, {"held_out": 0.3}])
def test_the_papers_protocol_knows_rows_alone(options):
    with pytest.raises(UsageError, match="expected only with preset"):
        resolve("stlrq", "pendulum", "paper", options)


def test_held_out_tasks_are_tested_and_never_trained_on():
    """Held out, or not there at all: the tasks that learn learn the same, byte for byte."""
    options = {"tasks": read_tasks(GRID, PENDULUM), "task_modes": "linear", "num_seeds": 2, "rank": 4, "episodes": 2,
               "engine": "fused"}  # fmt: skip
    whole = experiment(env="pendulum", held_out=0.25, **options)
    trained = tuple(vars(task) for task in whole.task_set.trained)
    alone = experiment(env="pendulum", **{**options, "tasks": trained})
    states = [run.play_block(run.initial_state, 0, 2) for run in (whole, alone)]
    for ours, theirs in zip(states[0][0].learner.factors, states[1][0].learner.factors, strict=True):
        assert torch.equal(ours, theirs)
    assert states[0][1][-1].returns.shape == (2, 12)
    assert torch.equal(states[0][1][-1].returns[:, :9], states[1][1][-1].returns)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held") / "run"
    code, out, err = command_line(
        "--algo", "stlrq", "--task", GRID, "--task-modes", "linear", "--held-out", 0.25, "--episodes", 6,
        "--eval-every", 2, "--num-seeds", 2, "--engine", "fused", "--out", folder,
    )  # fmt: skip
    assert code == 0, err
    return folder, out


def test_a_run_says_how_its_held_out_tasks_do(run):
    folder, out = run
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["held_out"] == [9, 10, 11]
    assert summary["samples_per_task"] * 9 * 2 == summary["transitions"]
    returns = torchq.load(folder).metrics.returns
    assert returns.shape == (3, 2, 12)
    held = returns.mean(0)[:, 9:]
    assert summary["held_out_return"]["median"] == pytest.approx(np.median(held))
    assert summary["held_out_return"]["worst"] == pytest.approx(held.min())
    assert "3 tasks held out, all runs: median" in out


def test_named_tasks_are_tested_and_resumed(tmp_path):
    arguments = ["--algo", "stlrq", "--num-tasks", 5, "--test-task", "mass=3,length=0.7", "--task-modes", "linear",
                 "--num-seeds", 2, "--no-optimal", "--out", tmp_path / "run"]  # fmt: skip
    code, _, err = command_line(*arguments, "--episodes", 2)
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith("task mass=3,length=0.7 lies beyond what is trained on: extrapolates, with mass taken")
    assert command_line("--resume", "--out", tmp_path / "run", "--episodes", 4)[0] == 0
    run = torchq.load(tmp_path / "run")
    assert run.metrics.returns.shape[1:] == (2, 6)
    assert run.summary["held_out"] == [5]
    assert run.policy.act([3.0, 0.1], task=5) in range(10)


def test_it_goes_on_as_if_it_had_not_stopped(run, tmp_path):
    folder, _ = run
    arguments = ["--algo", "stlrq", "--task", GRID, "--task-modes", "linear", "--held-out", 0.25, "--eval-every", 2,
                 "--num-seeds", 2, "--engine", "fused", "--out", tmp_path / "run"]  # fmt: skip
    assert command_line(*arguments, "--episodes", 4)[0] == 0
    assert command_line(*arguments, "--episodes", 6, "--resume")[0] == 0
    assert outcome(tmp_path / "run")[:2] == outcome(folder)[:2]  # Stored transitions are cut where runs stop.


def test_its_policies_and_tensors_have_every_task(run):
    folder, _ = run
    loaded = torchq.load(folder)
    assert loaded.policy.act([3.0, 0.1], task=11) in range(10)
    assert loaded.q_tensor.task_sizes == (12,)
    modes = torchq.QTensor.from_run(folder)
    assert modes.task_sizes == (4, 3)
    places = tuple(place[11:] for place in loaded.tasks.places("cpu", torch.float32))
    values = modes.action_values((torch.tensor([3.5]), torch.tensor([2.25])), places)
    row = loaded.q_tensor.action_values((torch.tensor([3.5]), torch.tensor([2.25])), torch.tensor([11]))
    torch.testing.assert_close(values, row)
    assert loaded.evaluate(episodes=2).shape == (2, 12)
