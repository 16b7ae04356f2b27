"""From Python as from the shell: `torchq.train`, `torchq.load`, and what they give."""

import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from problems import command_line, library, outcome

import envs
import torchq
import torchq.runs.training
from torchq.errors import CheckpointError, MetricsError, UsageError
from torchq.quadratic import forms
from torchq.runs import control_tasks
from torchq.runs.monte_carlo import make_cases

SMALL = {"env": "gridworld", "episodes": 3, "num_seeds": 2, "optimal": False, "device": "cpu", "progress": False}
ALGOS = ("stlrq", "lrq", "clrq", "tabular")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run of each method on a grid."""
    folder = tmp_path_factory.mktemp("runs")
    given = SMALL | {"env": "wireless", "episodes": 1, "replay_ratio": 1, "replay_batch": 2}
    return {algo: torchq.train(algo=algo, out=folder / algo, **given) for algo in ALGOS}


@pytest.fixture(scope="module")
def quadratic(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "run"
    return torchq.train(algo="lspi", env="pendulum", sizes=[20, 40], num_seeds=2, out=folder, progress=False)


def test_python_and_the_command_line_leave_the_same_bytes(tmp_path):
    run = torchq.train(algo="stlrq", rank=np.int64(4), task_weights=[1, 1, 2, 0.5], out=tmp_path / "a", **SMALL)
    flags = ("--episodes", 3, "--num-seeds", 2, "--no-optimal", "--device", "cpu", "--no-progress")
    more = ("--env", "gridworld", "--rank", 4, "--task-weights", "1,1,2,0.5", "--out", tmp_path / "b")
    assert command_line("--algo", "stlrq", *flags, *more)[0] == 0
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")
    names = "config.json", "checkpoint/checkpoint.json", "summary.json"
    one, other = ([json.loads((tmp_path / x / name).read_text()) for name in names] for x in "ab")
    assert one[0] == other[0]
    assert run.summary == one[2]
    assert run.finished


def test_a_run_is_what_its_files_say(tmp_path):
    run = torchq.train(algo="stlrq", out=str(tmp_path / "run"), **SMALL)
    again = torchq.load(str(tmp_path / "run"))
    assert again.folder == run.folder == tmp_path / "run"
    assert again.config.rank == 10
    assert again.metrics.returns.shape == (3, 2, 4)
    assert again.summary["final_return"]["median"] == np.median(again.metrics.final_return(), axis=0).tolist()


def test_python_resumes_and_extends(tmp_path):
    torchq.train(algo="stlrq", out=tmp_path / "a", **SMALL)
    torchq.train(out=tmp_path / "a", resume=True, episodes=5, progress=False)
    torchq.train(algo="stlrq", out=tmp_path / "b", **(SMALL | {"episodes": 5}))
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")


def test_an_interrupted_run_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupt(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(torchq.runs.recorder.MetricsFile, "append", interrupt)
    with pytest.raises(KeyboardInterrupt) as stopped:
        torchq.train(algo="stlrq", out=tmp_path / "run", **SMALL)
    assert str(stopped.value) == f"interrupted; go on with: resume=True out={tmp_path / 'run'}"
    monkeypatch.undo()
    assert torchq.train(out=tmp_path / "run", resume=True, progress=False).finished


def test_lines_for_the_user_go_to_the_logger(tmp_path, caplog, capsys):
    with caplog.at_level(logging.INFO, logger="torchq"):
        torchq.train(algo="stlrq", out=tmp_path / "run", **SMALL)
    assert caplog.messages[0].startswith("stlrq on gridworld: 2 seeds, 4 tasks, num_envs 4; cpu, engine eager -> ")
    assert capsys.readouterr() == ("", "")


BAD = {
    "no algo": (
        {},
        'algo: expected one of stlrq, lrq, clrq, tabular, lmi-ql, lmi-qli, lspi, got nothing; begin with algo="stlrq"',
    ),
    "unknown": ({"algo": "stlrq", "epsiodes": 3}, "epsiodes: there is no such setting; did you mean episodes?"),
    "type": ({"algo": "stlrq", "rank": "ten"}, "rank: expected an integer of at least 1 and at most 8,192, got 'ten'"),
    "scope": ({"algo": "tabular", "rank": 3}, 'rank: expected only with a low-rank algo, got algo="tabular"'),
    "preset": (
        {"algo": "stlrq", "preset": "paper", "num_envs": 2},
        'num_envs: expected 1 with preset="paper" (tasks take turns), got 2',
    ),
    "every": ({"algo": "stlrq", "episodes": 2, "eval_every": 3}, "eval_every: expected at most episodes=2, got 3"),
    "resume": ({"resume": True}, "resume: expected out with the folder of the run to continue"),
    "family": (
        {"algo": "stlrq", "env": "pendulm"},
        "env: expected one of acrobot, cartpole, damped-pendulum, gridworld, linear-quadratic, mountain-car, pendulum, "
        "storage, wireless, module:Family or gym:ID, got 'pendulm'; did you mean pendulum?",
    ),
    "controls": (
        {"algo": "lspi", "env": "gridworld"},
        'env: expected a family with continuous controls for algo="lspi", but Gridworld has no gamma, noise, '
        "exploration_high, unstable_state, exploration_std, place, features, believed, cancelling, linearised, "
        "reward_weights",
    ),
    "convention": (
        {"algo": "lrq", "lrq_convention": "paper"},
        'lrq_convention: expected only with algo="lrq" preset="paper"',
    ),
}


@pytest.mark.parametrize(("given", "message"), BAD.values(), ids=BAD)
def test_errors_are_in_the_words_of_the_api(tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(torchq.TorchqError) as error:
        torchq.train(**given)
    assert isinstance(error.value, ValueError)
    assert str(error.value) == message
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_a_run_is_refused_in_both_languages(tmp_path):
    torchq.train(algo="stlrq", out=tmp_path, **SMALL)
    with pytest.raises(UsageError, match="already holds a run; continue it with resume=True, or name another"):
        torchq.train(algo="stlrq", out=tmp_path, **SMALL)
    _, _, err = command_line("--algo", "stlrq", "--out", tmp_path)
    assert "already holds a run; continue it with --resume, or name another" in err
    with pytest.raises(UsageError, match=r"rank: expected 10, as in the run to continue, got 3; leave it out"):
        torchq.train(out=tmp_path, resume=True, rank=3)
    with pytest.raises(UsageError, match=r"rnk: there is no such setting; did you mean rank\?"):
        torchq.train(out=tmp_path, resume=True, rnk=3)


def episode_return(run, task, seed=5):
    """Return of a greedy episode, step by step from outside, and what torchq makes of the same random numbers."""
    env = envs.Wireless(episode_length=60)
    tasks = envs.stack_tasks(env.sample_tasks()[task : task + 1])
    numbers = torch.Generator().manual_seed(seed)
    state = env.reset(tasks, torch.rand(1, 1, 3, env.num_reset_uniforms, generator=numbers, dtype=torch.float64))
    total = torch.zeros(3, dtype=torch.float64)
    for _ in range(env.episode_length):
        action = run.policy.act(env.observe(state)[0, 0], task=task)
        uniforms = torch.rand(1, 1, 3, env.num_step_uniforms, generator=numbers, dtype=torch.float64)
        state, reward, _, _ = env.step(tasks, state, action.view(1, 1, -1), uniforms)
        total += reward[0, 0]
    return total


@pytest.mark.parametrize("algo", ALGOS)
def test_the_policy_is_greedy_in_what_was_learnt(runs, algo, generator):
    """Its actions are those of the learner on the same observations, for every task and run."""
    run = torchq.load(runs[algo].folder, run=1)
    low, high = torch.tensor([-3.0, 0.0, 0.0, 0.0]), torch.tensor([3.0, 1.0, 10.0, 10.0])
    observation = low + (high - low) * torch.rand(50, 4, generator=generator)
    policy = run.policy
    index = policy.grid.index(observation)
    for task in range(4):
        expected = policy.learner.lookup(policy.state, index, torch.full((50,), task))[0].argmax(-1)
        assert torch.equal(policy.act(observation, task), expected)
    mixed = torch.arange(50) % 4
    found = policy.act(observation.view(5, 10, 4), mixed.view(5, 10))
    one_by_one = [policy.act(x.numpy(), int(task)) for x, task in zip(observation, mixed, strict=True)]
    assert found.flatten().tolist() == one_by_one
    assert all(type(action) is int for action in one_by_one)
    assert isinstance(policy.act(observation.numpy()), np.ndarray)
    assert isinstance(policy.act(observation[0].tolist()), int)


@pytest.mark.parametrize("algo", ALGOS)
def test_lookup_equals_the_action_values_of_training(runs, algo, generator):
    policy = runs[algo].policy
    index = tuple(torch.randint(size, (1, 4, 6), generator=generator) for size in policy.grid.sizes)
    expected = policy.learner.action_values(policy.state, index)  # (1, tasks, envs, actions)
    task = torch.arange(4).repeat_interleave(6)
    found = policy.learner.lookup(policy.state, tuple(i.flatten() for i in index), task)
    torch.testing.assert_close(found.view_as(expected), expected)


def test_the_policy_plays_as_evaluations_do(tmp_path):
    """Episodes played from outside return what new test episodes do, on average, and more than random actions."""
    given = SMALL | {"env": "wireless", "episodes": 20, "num_seeds": 1, "engine": "fused"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchq.families, "make", lambda name, *_: library(episode_length=60)[name]())
        run = torchq.train(algo="stlrq", out=tmp_path / "run", **given)
        inside = run.evaluate(episodes=100)[0]
    assert inside.shape == (4,)
    outside = [torch.stack([episode_return(run, task, seed) for seed in range(15)]).mean() for task in range(4)]
    assert np.allclose(inside, outside, rtol=0.15)


def test_exploration_takes_random_actions_as_often_as_asked(runs, generator):
    policy = runs["stlrq"].policy
    observation = np.zeros((4000, 4))
    greedy = policy.act(observation[0])
    assert set(policy.act(observation)) == {greedy}
    explored = policy.act(observation, epsilon=0.5, generator=generator)
    assert 0.42 < (explored != greedy).mean() < 0.48  # nine of ten random actions are others
    again = policy.act(observation, epsilon=0.5, generator=torch.Generator().manual_seed(0))
    assert (explored == again).all()
    assert set(policy.act(observation, epsilon=1.0)) == set(range(10))


@pytest.mark.parametrize("algo", ["stlrq", "lrq", "clrq"])
def test_the_q_tensor_holds_the_same_values(runs, algo, generator):
    policy, q = runs[algo].policy, runs[algo].q_tensor
    index = tuple(torch.randint(size, (30,), generator=generator) for size in policy.grid.sizes)
    task = torch.randint(4, (30,), generator=generator)
    expected = policy.learner.lookup(policy.state, index, task)[0]
    found = q.action_values(index, task if q.task_sizes else ())
    torch.testing.assert_close(found.detach(), expected)
    assert q.rank == policy.learner.rank * (4 if algo == "lrq" else 1)


def test_a_study_has_rows_and_a_policy_of_controls(quadratic):
    """The control of the policy is that of the test episodes whose returns the rows hold."""
    assert [row.samples for row in quadratic.rows] == [20, 40] * 8
    run = torchq.load(quadratic.folder, run=1)
    cases = make_cases(run.config, envs.Pendulum())
    learnt = [forms.Quadratic(*(part[task] for part in run.policy.learnt)) for task in range(4)]
    for task, case in enumerate(cases):
        returns, _ = control_tasks.test_episode(case, [learnt[task]], 1)
        (row,) = (row for row in run.rows if (row.task, row.seed, row.samples) == (task, 1, 40))
        assert returns[2].item() == pytest.approx(row.episode_return)
        x = torch.tensor([0.1, -0.3], dtype=torch.float64)
        expected = -(x @ case.design.gain.mT) + forms.greedy_gain(learnt[task]) @ case.env.features(x)
        torch.testing.assert_close(run.policy.act(x, task=task), expected)
        assert np.allclose(run.policy.act(np.stack((x, x)), task=task), expected)


def test_the_table_is_what_the_policy_looks_up(runs, generator):
    run = torchq.load(runs["tabular"].folder, run=1)
    assert run.table.shape == (4, *run.policy.grid.sizes, 10)
    assert run.table.any()
    index = tuple(torch.randint(size, (30,), generator=generator) for size in run.policy.grid.sizes)
    task = torch.randint(4, (30,), generator=generator)
    assert torch.equal(run.table[(task, *index)], run.policy.learner.lookup(run.policy.state, index, task)[0])
    assert not torch.equal(run.table, runs["tabular"].table)


def test_the_quadratics_of_each_size_give_the_returns_of_their_rows(quadratic):
    run = torchq.load(quadratic.folder, run=1)
    assert [part.shape for part in run.quadratic] == [(4, 2, 3, 3), (4, 2, 3, 1), (4, 2, 1, 1)]
    for case in make_cases(run.config, envs.Pendulum()):
        fits = [forms.Quadratic(*(part[case.task_index, size] for part in run.quadratic)) for size in range(2)]
        rows = [row.episode_return for row in run.rows if (row.task, row.seed) == (case.task_index, 1)]
        assert control_tasks.test_episode(case, fits, 1)[0][2:].tolist() == pytest.approx(rows)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda p: p.act([0.0, 1.0]), r"observation: expected 4 numbers, or a batch \(..., 4\), got the shape \(2,\)"),
        (lambda p: p.act([0.0, 1.0, np.nan, 0.0]), "observation: expected finite numbers, got NaN or infinity"),
        (lambda p: p.act(np.zeros(4), task=4), "task: expected numbers from 0 to 3, got 4"),
        (lambda p: p.act(np.zeros(4), task=-1), "task: expected numbers from 0 to 3, got -1"),
        (lambda p: p.act(np.zeros(4), task=1.0), "task: expected numbers from 0 to 3, got 1.0"),
        (
            lambda p: p.act(np.zeros((5, 4)), task=[0, 1]),
            r"task: expected one number, or a batch \(5,\), got",
        ),
        (lambda p: p.act(np.zeros(4), epsilon=2.0), r"epsilon: expected a number from 0 to 1, got 2.0"),
        (lambda p: p.act(np.zeros(4), epsilon="few"), r"epsilon: expected a number from 0 to 1, got 'few'"),
        (lambda p: p.act("high"), r"observation: expected numbers, got 'high'"),
        (lambda p: p.act([[0.0] * 4, [0.0]]), r"observation: expected numbers, got \[\["),
        (lambda p: p.act(np.zeros(4), task=None), r"task: expected numbers from 0 to 3, got None"),
        (lambda p: p.act(np.zeros(4), task="two"), r"task: expected numbers from 0 to 3, got 'two'"),
    ],
)
def test_what_a_policy_cannot_act_on_gets_one_line(runs, act, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        act(runs["stlrq"].policy)


def test_what_a_run_does_not_have_is_said(runs, quadratic, tmp_path):
    for action, kind, message in (
        (
            lambda: torchq.load(tmp_path / "none"),
            UsageError,
            "folder: expected a run folder, but .* does not exist",
        ),
        (lambda: torchq.load(5), UsageError, "folder: expected the path of a run folder, got 5"),
        (lambda: torchq.train(algo="stlrq", out=5), UsageError, "out: expected the path of a folder, got 5"),
        (lambda: runs["stlrq"].evaluate(0), UsageError, "episodes: expected an integer of at least 1, got 0"),
        (lambda: torchq.load(runs["stlrq"].folder, run=0.5), UsageError, "run: expected a number from 0 to 1, got 0.5"),
        (lambda: torchq.load(tmp_path), UsageError, "has no config.json and metrics.csv"),
        (lambda: torchq.load(runs["stlrq"].folder, run=2), UsageError, "run: expected a number from 0 to 1, got 2"),
        (lambda: runs["tabular"].q_tensor, UsageError, "q_tensor: expected a run of stlrq, lrq, clrq, got one of tab"),
        (lambda: quadratic.q_tensor, UsageError, "got one of lspi; use quadratic$"),
        (lambda: quadratic.table, UsageError, "^table: expected a run of tabular, got one of lspi; use quadratic$"),
        (lambda: runs["lrq"].table, UsageError, "^table: expected a run of tabular, got one of lrq; use q_tensor$"),
        (
            lambda: runs["tabular"].quadratic,
            UsageError,
            "^quadratic: expected a run of lmi-ql, lmi-qli, lspi, got one of tabular; use table$",
        ),
        (
            lambda: torchq.runs.run.Run(quadratic.folder, 2).policy,
            CheckpointError,
            "^checkpoint: .* holds 2 runs yet, got run 2$",
        ),
        (lambda: quadratic.metrics, UsageError, "a study of lspi has no learning curve; use rows"),
        (lambda: quadratic.evaluate(3), UsageError, "episodes: expected only with low-rank and tabular runs"),
        (lambda: quadratic.policy.act([0.0, 0.0], epsilon=0.1), UsageError, "epsilon: expected 0 for a policy with"),
        (lambda: runs["stlrq"].rows, MetricsError, "metrics.csv is damaged"),
    ):
        with pytest.raises(kind, match=message):
            action()


def test_a_run_that_was_killed_can_be_loaded(tmp_path, runs):
    folder = tmp_path / "killed"
    folder.mkdir()
    for name in ("config.json", "metrics.csv"):
        (folder / name).write_bytes((runs["stlrq"].folder / name).read_bytes())
    run = torchq.load(folder)
    assert not run.finished
    assert len(run.metrics.returns) == 1
    with pytest.raises(UsageError, match="has not ended; go on with resume=True"):
        _ = run.summary
    with pytest.raises(CheckpointError, match="holds none yet"):
        _ = run.policy


def test_a_script_without_a_guard_is_not_run_again(tmp_path):
    """Where a study has processes of its own, as multiprocessing would."""
    script = "import torchq; print('once'); torchq.train(algo='lspi', num_seeds=4, sizes=[20], progress=False)"
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "once\n"), done.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["lspi-damped-pendulum-1"]


@pytest.mark.parametrize("given", [{"algo": "stlrq", **SMALL}, {"algo": "lspi", "num_seeds": 1, "sizes": [20]}])
def test_training_leaves_the_process_as_it_was(tmp_path, given):
    """A notebook goes on with its threads and its gradients."""
    before = torch.get_num_threads(), torch.is_grad_enabled(), torch.initial_seed(), list(sys.path)
    torch.set_num_threads(2)
    try:
        torchq.train(out=tmp_path / "run", **{**given, "progress": False})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before[0])
    assert (torch.get_num_threads(), torch.is_grad_enabled(), torch.initial_seed(), list(sys.path)) == before
