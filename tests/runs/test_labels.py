import types
from pathlib import Path

from torchq.presets import resolve
from torchq.runs.labels import differences, labels


def run(algo, folder, **settings):
    return types.SimpleNamespace(config=resolve(algo, "pendulum", "default", settings), folder=Path(folder))


def test_runs_have_the_shortest_names_that_tell_them_apart():
    assert labels([run("stlrq", "a/x"), run("lrq", "b/x")]) == ["S-TLR-Q", "LR-Q"]
    assert labels([run("stlrq", "a/x", rank=5), run("stlrq", "a/y", rank=10), run("lrq", "a/z")]) == [
        "S-TLR-Q, rank 5", "S-TLR-Q, rank 10", "LR-Q",
    ]  # fmt: skip
    changed = {"rank": 5, "gamma": 0.9, "learning_rate": 0.1}
    assert labels([run("lrq", "a/x"), run("lrq", "a/y", **changed)]) == ["x", "y"]
    assert labels([run("lrq", "a/x"), run("lrq", "a/y")]) == ["x", "y"]
    assert labels([run("lrq", "a/x"), run("lrq", "b/x")]) == ["a/x", "b/x"]


def test_studies_are_named_by_their_penalty():
    assert labels([run("lmi-ql", "a"), run("lmi-ql", "b", penalty="data")]) == [
        "LMI-QL, penalty trace", "LMI-QL, penalty data",
    ]  # fmt: skip


def test_differences_leave_out_where_a_run_computes():
    rows = differences([run("stlrq", "a", rank=5, device="cpu").config, run("stlrq", "b").config])
    assert rows == [("rank", ["5", "30"])]
