import json
import shutil

import numpy as np
import pytest
from problems import command_line

from torchq.cli.evaluate import main
from torchq.runs.metrics import read_metrics


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for algo in ("stlrq", "tabular"):
        arguments = ("--algo", algo, "--env", "gridworld", "--episodes", 3, "--num-seeds", 2, "--device", "cpu")
        assert command_line(*arguments, "--out", folder / algo)[0] == 0
    return folder


def evaluate(*arguments):
    return command_line(*arguments, entry=main)


def test_table_and_picture_come_from_the_run_folders(runs, tmp_path):
    code, out, err = evaluate(runs / "stlrq", runs / "tabular", "--out", tmp_path)
    assert code == 0, err
    lines = out.splitlines()
    assert len(lines) == 1 + 2 * 4 + 2
    assert lines[0].split() == ["run", "task", "median", "[", "q25,", "q75]", "optimum", "gap"]
    assert (tmp_path / "learning_curves.png").read_bytes().startswith(b"\x89PNG")


def test_json_agrees_with_metrics(runs, tmp_path):
    code, out, _ = evaluate(runs / "stlrq", "--json", "--out", tmp_path)
    assert code == 0
    (row,) = json.loads(out)["runs"]
    final = read_metrics(runs / "stlrq", 2, 4).final_return()
    assert row["final_return"]["median"] == pytest.approx(np.median(final, axis=0).tolist())
    assert row["gap"] == pytest.approx([m + 100 / 24 for m in row["final_return"]["median"]])
    assert row["finished"]


def test_new_episodes_are_played_from_the_checkpoint(runs, tmp_path):
    arguments = (runs / "stlrq", "--json", "--out", tmp_path, "--episodes", 5)
    first, again = (json.loads(evaluate(*arguments)[1])["runs"][0]["final_return"] for _ in range(2))
    assert first == again
    recorded = json.loads(evaluate(*arguments[:4])[1])["runs"][0]["final_return"]
    assert recorded != first


def test_an_unfinished_run_is_said_to_be_so(runs, tmp_path):
    folder = tmp_path / "unfinished"
    folder.mkdir()
    for name in ("config.json", "metrics.csv"):
        (folder / name).write_bytes((runs / "stlrq" / name).read_bytes())
    code, out, _ = evaluate(folder, "--out", tmp_path / "report")
    assert code == 0
    assert "unfinished: 600 samples" in out


def copy(run, folder):
    return shutil.copytree(run, folder)


def lose_a_row(folder):
    lines = (folder / "metrics.csv").read_text().splitlines(keepends=True)
    (folder / "metrics.csv").write_text("".join(lines[:5] + lines[6:]))


def keep_half_an_evaluation(folder):
    lines = (folder / "metrics.csv").read_text().splitlines(keepends=True)
    (folder / "metrics.csv").write_text("".join(lines[:6]))


def empty_summary(folder):
    (folder / "summary.json").write_text("[1]")


@pytest.mark.parametrize("damage", [lose_a_row, keep_half_an_evaluation, empty_summary])
def test_damaged_runs_are_named_and_not_shown(runs, tmp_path, damage):
    folder = copy(runs / "stlrq", tmp_path / "run")
    damage(folder)
    code, out, err = evaluate(folder, "--out", tmp_path / "report")
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_any_folder_name_can_be_drawn(runs, tmp_path):
    folder = copy(runs / "stlrq", tmp_path / "q$x_{$")
    assert evaluate(folder, "--out", tmp_path / "report")[0] == 0


def test_huge_seeds_keep_apart(tmp_path):
    arguments = ("--algo", "stlrq", "--env", "gridworld", "--episodes", 1, "--num-seeds", 3, "--seed", 2**62 - 5)
    assert command_line(*arguments, "--no-optimal", "--device", "cpu", "--out", tmp_path / "run")[0] == 0
    assert read_metrics(tmp_path / "run", 3, 4).returns.shape == (1, 3, 4)


def test_bad_input_gets_one_line(runs, tmp_path):
    for arguments, message in (
        ((tmp_path / "none",), "does not exist"),
        ((tmp_path,), "has no config.json"),
        ((), "Missing argument"),
        (
            (runs / "stlrq", "--episodes", 0),
            "--episodes: expected an integer of at least 1 and at most",
        ),
        ((runs / "stlrq", "--jsno"), "--jsno: no such flag; did you mean --json?"),
    ):
        code, _, err = evaluate(*arguments)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1


def test_a_run_can_be_seen_as_it_stood_earlier(runs, tmp_path):
    arguments = (runs / "stlrq", "--json", "--out", tmp_path, "--samples")
    (row,) = json.loads(evaluate(*arguments, 450)[1])["runs"]
    expected = read_metrics(runs / "stlrq", 2, 4).returns[:2].mean(0)
    assert row["samples_per_task"] == 400
    assert row["final_return"]["median"] == pytest.approx(np.median(expected, axis=0).tolist())
    code, _, err = evaluate(*arguments, 100)
    assert (code, err.count("\n")) == (2, 1)
    assert "--samples: expected at least 200" in err
