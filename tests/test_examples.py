"""The examples, at sizes that take a few seconds."""

import ast

import learn_features
import lyapunov
import numpy as np
import stlrq_single_file
import torch
from problems import ROOT

import torchq


def test_features_are_learnt_through_the_layer(tmp_path, monkeypatch, capsys):
    sizes = {"RUNS": 2, "SAMPLES": 40, "STEPS": 8, "TEST_EPISODES": 3}
    for name, value in sizes.items():
        monkeypatch.setattr(learn_features, name, value)
    learnt = []
    monkeypatch.setattr("sys.argv", ["learn_features.py", "--out", str(tmp_path / "picture.png")])
    original = learn_features.learn
    monkeypatch.setattr(learn_features, "learn", lambda *given: learnt.append(original(*given)) or learnt[-1])
    learn_features.main()
    assert "| φ = (θ, ω, sin wθ) |" in capsys.readouterr().out
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    for one in learnt:
        assert (one.residual <= one.residuals[0]).all()
    assert (learnt[1].paths[-1] != learnt[1].paths[0]).all()


def test_lyapunov_functions_are_cvxpys(monkeypatch, capsys):
    for name, value in {"PAIRS": 40, "COMPARED": 5}.items():
        monkeypatch.setattr(lyapunov, name, value)
    lyapunov.main()
    said = capsys.readouterr().out
    assert "5 of 5 agree whether there is one, and on traces to " in said
    assert float(said.split()[-1]) < 1e-6


def test_the_single_file_learns_what_the_package_learns(tmp_path, capsys):
    """Of the same samples, with the package's default protocol: medians of 8 of its runs, one of the file's."""
    settings = stlrq_single_file.Settings(episodes=40, eval_every=40)
    ours = np.array(stlrq_single_file.train(settings).tolist())
    run = torchq.train(
        algo="stlrq", episodes=settings.episodes, eval_every=settings.eval_every, eval_episodes=8, optimal=False,
        device="cpu", progress=False, out=tmp_path / "run",
    )  # fmt: skip
    theirs = np.median(run.metrics.returns[-1], 0)
    assert capsys.readouterr().out.startswith(" 4,000 samples of each task: return -1")
    assert (np.abs(ours - theirs) < 15).all(), (ours, theirs)
    assert (ours < np.array(stlrq_single_file.OPTIMUM) + 1).all()


def test_the_single_file_has_the_packages_pendulum():
    """The same steps and rewards of the same states."""
    pendulum, generator = torchq.families.make("pendulum"), torch.Generator().manual_seed(0)
    tasks = torchq.families.stack_tasks(pendulum.sample_tasks(), dtype=torch.float32)
    state = pendulum.reset(tasks, torch.rand(1, 4, 5, 1, generator=generator))
    for _ in range(30):
        action = torch.randint(10, (4, 5), generator=generator)
        following, reward = stlrq_single_file.step(torch.stack((state.theta, state.theta_dot), -1)[0], action)
        state, expected, _, _ = pendulum.step(tasks, state, action.unsqueeze(0), torch.empty(1, 4, 5, 0))
        torch.testing.assert_close(reward, expected[0])
        torch.testing.assert_close(following, torch.stack((state.theta, state.theta_dot), -1)[0])


def test_the_single_file_is_short_and_needs_torch_alone():
    text = (ROOT / "examples" / "stlrq_single_file.py").read_text()
    nodes = list(ast.walk(ast.parse(text)))
    found = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    found |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert found == {"argparse", "dataclasses", "math", "torch"}
    assert len(text.splitlines()) <= 150
