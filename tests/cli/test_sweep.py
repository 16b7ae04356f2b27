import json

import pytest
from problems import command_line, outcome

from torchq.cli import sweep
from torchq.errors import Interrupted

GOOD = ("--env", "gridworld", "--episodes", 2, "--num-seeds", 1, "--device", "cpu", "--engine", "eager")


def test_a_sweep_is_the_runs_that_one_would_type(tmp_path):
    flags = ("--algo", "stlrq", *GOOD)
    code, out, err = command_line(*flags, "--sweep", "rank=2,5", "--sweep", "gamma=0.9,0.99", "--out", tmp_path / "s")
    assert code == 0, err
    names = sorted(path.name for path in (tmp_path / "s").iterdir())
    assert names == ["rank=2,gamma=0.9", "rank=2,gamma=0.99", "rank=5,gamma=0.9", "rank=5,gamma=0.99"]
    assert command_line(*flags, "--rank", 5, "--gamma", 0.9, "--out", tmp_path / "one")[0] == 0
    assert outcome(tmp_path / "one") == outcome(tmp_path / "s" / "rank=5,gamma=0.9")
    table = out.partition("return minus optimum")[2].splitlines()
    scores = [float(line.split()[-1]) for line in table[1:5]]
    assert scores == sorted(scores, reverse=True)
    assert f"next: python evaluate.py {tmp_path / 's'}/* --report {tmp_path / 's-report'}" in out


def test_methods_can_be_swept(tmp_path):
    assert command_line(*GOOD, "--sweep", "algo=stlrq,tabular", "--out", tmp_path)[0] == 0
    algos = [
        json.loads((tmp_path / f"algo={name}" / "config.json").read_text())["algo"] for name in ("stlrq", "tabular")
    ]
    assert algos == ["stlrq", "tabular"]


def test_a_sweep_goes_on_where_it_stopped(tmp_path):
    flags = ("--algo", "stlrq", *GOOD, "--out", tmp_path)
    assert command_line(*flags, "--sweep", "rank=2,3")[0] == 0
    before = (tmp_path / "rank=2" / "summary.json").stat().st_mtime_ns
    code, out, err = command_line(*flags, "--sweep", "rank=2,3,4", "--resume")
    assert code == 0, err
    assert (tmp_path / "rank=2" / "summary.json").stat().st_mtime_ns == before
    assert (tmp_path / "rank=4" / "summary.json").exists()
    assert "rank=2" in out
    code, _, err = command_line(*flags, "--sweep", "rank=2,3")
    assert (code, err.count("\n")) == (2, 1)
    assert "already holds a run" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("rnak=5,10",), "expected a flag of one value, got 'rnak'; did you mean rank?"),
        (("rank",), "expected NAME=A,B,C, such as rank=5,10,30, got 'rank'"),
        (("rank=5,-1",), "rank: expected an integer of at least 1"),
        (("rank=5,5",), "expected values that differ"),
        (("episodes=2,3",), "expected values of episodes in one place"),
        (("update=block,jiont",), "update: expected one of joint, block, got 'jiont'; did you mean joint?"),
        (("deterministic=maybe",), "expected yes or no for deterministic"),
        (("tasks=a.csv",), "expected a flag of one value, got 'tasks'"),
    ],
)
def test_what_cannot_be_swept_is_one_line(words, message, tmp_path):
    flags = [part for word in words for part in ("--sweep", word)]
    code, _, err = command_line("--algo", "stlrq", *GOOD, *flags, "--out", tmp_path / "x")
    assert (code, err.count("\n")) == (2, 1), err
    assert err.startswith("error: --sweep: ")
    assert message in err
    assert not (tmp_path / "x").exists()


def test_a_wrong_setting_is_told_before_the_first_run(tmp_path):
    code, _, err = command_line("--algo", "stlrq", *GOOD, "--sweep", "preset=default,paper", "--out", tmp_path / "x")
    assert code == 2
    assert err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_ctrl_c_says_how_to_go_on_with_all_of_them(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise Interrupted("interrupted; go on with: `resume=True`")

    monkeypatch.setattr(sweep, "launch", interrupted)
    code, _, err = command_line("--algo", "stlrq", *GOOD, "--sweep", "rank=2,3", "--out", tmp_path / "s")
    assert (code, err.lstrip()) == (
        130,
        f"interrupted; go on with: the same command, --resume --out {tmp_path / 's'}\n",
    )
