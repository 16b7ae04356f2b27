"""A run goes on only beside the metrics.csv that it wrote, and a refusal changes nothing."""

import shutil

import pytest
from problems import command_line

FLAGS = ("--algo", "stlrq", "--env", "gridworld", "--num-seeds", 1, "--engine", "eager", "--device", "cpu",
         "--no-optimal", "--no-progress", "--eval-every", 1)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        assert command_line(*FLAGS, "--seed", seed, "--episodes", 3, "--out", home / str(seed))[0] == 0
    return home


FAULTS = {
    "of another run": lambda text, other: other,
    "a return edited": lambda text, other: text.replace("-", "-1", 1),
    "a row lost": lambda text, other: "\n".join(text.split("\n")[:3] + text.split("\n")[4:]),
    "cut short": lambda text, other: text[: len(text) // 2],
    "empty": lambda text, other: "",
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_another_file_is_refused_and_left_as_it_is(fault, runs, tmp_path):
    folder = shutil.copytree(runs / "0", tmp_path / "run")
    path = folder / "metrics.csv"
    path.write_text(fault(path.read_text(), (runs / "1" / "metrics.csv").read_text()))
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    code, _, err = command_line("--resume", "--episodes", 5, "--out", folder, "--no-progress")
    assert (code, err.count("\n")) == (2, 1)
    assert f"checkpoint: {path} is not what was written beside it" in err
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_rows_after_the_checkpoint_are_written_again(runs, tmp_path):
    folder = shutil.copytree(runs / "0", tmp_path / "run")
    with (folder / "metrics.csv").open("a") as file:
        file.write("4,800,0,0,-3\n4,8")
    code, _, err = command_line("--resume", "--episodes", 5, "--out", folder, "--no-progress")
    assert code == 0, err
    assert command_line(*FLAGS, "--episodes", 5, "--out", tmp_path / "whole")[0] == 0
    assert (folder / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()
