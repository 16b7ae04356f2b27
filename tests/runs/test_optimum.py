"""Optimal returns are computed once for a family, its constants and a task."""

import pytest
import torch
from families import Counted

import envs
from torchq.runs.optimum import optimal_returns

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHQ_CACHE", str(tmp_path))
    Counted.asked.clear()
    return tmp_path


def test_what_is_known_is_not_computed_again(cache):
    tasks = Counted().sample_tasks(4)
    first = optimal_returns(Counted(), tasks[:2], CPU)
    assert Counted.asked == tasks[:2]
    assert optimal_returns(Counted(), tasks, CPU)[:2] == first
    assert Counted.asked == tasks
    assert optimal_returns(Counted(), tasks[::-1], CPU)[2:] == first[::-1]
    assert Counted.asked == tasks
    assert len(list(cache.iterdir())) == 4


def test_other_constants_tasks_and_sources_are_other_optima(tmp_path, monkeypatch):
    tasks = Counted().sample_tasks(1)
    for env in (Counted(), Counted(size=4), Counted(episode_length=3), Counted()):
        assert optimal_returns(env, tasks, CPU) == envs.Gridworld.optimal_returns(env, tasks)
    assert len(Counted.asked) == 3
    source = tmp_path / "other.py"
    source.write_text("# another version of the family")
    monkeypatch.setattr("torchq.runs.optimum._sources", lambda family: [source])
    optimal_returns(Counted(), tasks, CPU)
    assert len(Counted.asked) == 4


def test_a_damaged_cache_is_computed_again(cache):
    tasks = Counted().sample_tasks(1)
    expected = optimal_returns(Counted(), tasks, CPU)
    for content in ("", "[]", '{"optimal_return": null}'):
        for path in cache.iterdir():
            path.write_text(content)
        assert optimal_returns(Counted(), tasks, CPU) == expected
    assert len(Counted.asked) == 4


def test_a_cache_that_cannot_be_written_costs_only_time(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHQ_CACHE", str(tmp_path / "file" / "below"))
    assert optimal_returns(Counted(), Counted().sample_tasks(1), CPU) == [pytest.approx(-100 / 24)]


def test_a_family_without_a_program_has_no_known_optimum():
    assert optimal_returns(envs.DampedPendulum(), envs.DampedPendulum().sample_tasks(), CPU) is None
