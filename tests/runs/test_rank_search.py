"""An automatic rank: when it grows, when it stops, and what it is not for."""

import pytest
import torch
from problems import command_line

import envs
import torchq
from torchq.errors import UsageError
from torchq.presets import resolve
from torchq.runs import rank_search

ERRORS = {8: 10.0, 15: 5.0, 30: 4.0, 60: 3.8}


@pytest.mark.parametrize(("errors", "chosen", "pilots"), [
    (ERRORS, 30, 4), ({**ERRORS, 15: 9.0}, 8, 2), ({**ERRORS, 60: 1.0}, 60, 4), ({**ERRORS, 30: 4.3}, 15, 3),
])  # fmt: skip
def test_the_rank_grows_for_as_long_as_the_error_falls_by_15_percent(errors, chosen, pilots, monkeypatch):
    asked, lines = [], []
    monkeypatch.setattr(rank_search, "_error", lambda config, env: asked.append(config) or errors[config.rank])
    config = resolve("stlrq", "pendulum", "default", {})
    assert rank_search.search_rank(config, envs.Pendulum(), lines.append) == chosen
    assert [pilot.rank for pilot in asked] == list(rank_search.RANKS[:pilots])
    assert {(pilot.episodes, pilot.eval_every) for pilot in asked} == {(30, 10)}
    assert len(lines) == pilots


def test_pilots_measure_the_error_of_their_last_third():
    config = resolve("stlrq", "gridworld", "default", {"episodes": 6, "eval_every": 2, "num_seeds": 2, "device": "cpu",
                                                       "engine": "eager"})  # fmt: skip
    with torch.no_grad():
        error = rank_search._error(config, envs.Gridworld())
    assert 0.0 < error < 100.0


def test_a_run_with_an_automatic_rank_says_which_and_goes_on_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_search, "_SAMPLES", 300)
    arguments = ["--algo", "stlrq", "--rank", "auto", "--num-seeds", 2, "--engine", "eager", "--no-optimal", "--out",
                 tmp_path / "run"]  # fmt: skip
    code, out, err = command_line(*arguments, "--episodes", 1)
    assert (code, err) == (0, "")
    assert "rank 8: mean squared TD error" in out
    rank = torchq.load(tmp_path / "run").config.rank
    assert f"rank {rank} it is" in out
    assert command_line(*arguments, "--episodes", 2, "--resume")[0] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algo": "tabular", "env": "gridworld"}, "rank: expected only with a low-rank algo"),
        ({"algo": "stlrq", "warm_start": "elsewhere"}, "rank: expected that of the run to start from, got auto"),
    ],
)
def test_where_there_is_no_rank_to_choose_it_is_said(settings, message):
    with pytest.raises(UsageError, match=message):
        torchq.train(rank="auto", **settings)
