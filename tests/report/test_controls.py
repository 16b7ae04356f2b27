import json
import re

import numpy as np
import pytest
import torch
from problems import command_line

import torchq
from torchq.cli.evaluate import main
from torchq.quadratic import forms
from torchq.report import controls


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "run"
    flags = ("--algo", "lspi", "--env", "damped-pendulum", "--num-seeds", 2, "--sizes", "30,60")
    assert command_line(*flags, "--out", folder)[0] == 0
    return folder


def test_the_value_is_that_of_the_best_control(study):
    """Against all controls of a fine grid."""
    policy = torchq.load(study).policy
    q = forms.Quadratic(*(part[0] for part in policy.learnt))
    design = policy.cases[0].design
    x = torch.tensor([[0.3, -0.5], [-1.0, 2.0]], dtype=torch.float64)
    phi = policy.cases[0].env.features(x)
    best = policy.act(x, 0)
    for row in range(2):
        u = best[row] + torch.linspace(-20.0, 20.0, 40001, dtype=torch.float64).unsqueeze(-1)
        tilde = u + x[row] @ design.gain.mT
        values = -forms.form(x[row], design.value) + forms.form(phi[row], q.P)
        values = values + 2.0 * tilde @ (q.S.mT @ phi[row]) - forms.form(tilde, q.R)
        assert controls.value(policy, 0, x)[row].item() == pytest.approx(values.max().item(), abs=1e-6)
        assert u[values.argmax()].item() == pytest.approx(best[row].item(), abs=1e-2)


def test_a_page_about_studies_has_values_controls_and_episodes(study, tmp_path):
    code, _, err = command_line(study, "--report", tmp_path, entry=main)
    assert code == 0, err
    text = (tmp_path / "index.html").read_text()
    found = json.loads(re.search(r'id="contents">(.*?)</script>', text, flags=re.DOTALL)[1])
    (run,) = found["runs"]
    assert run["dimensions"] == ["angle, rad", "speed, rad/s"]
    learnt, best = run["episodes"][0], run["optimal"][0]
    assert [axis[0] for axis in learnt["observations"]] == [axis[0] for axis in best["observations"]]
    assert np.abs(np.array(learnt["observations"])[:, -1]).max() < 0.1
    (gap, _) = found["figures"]["studies"]
    expected = [entry["gap"]["median"] for entry in torchq.load(study).summary["by_samples"]]
    assert gap["data"][0]["x"] == [30, 60]
    assert gap["data"][0]["y"] == pytest.approx(expected, rel=1e-4)
