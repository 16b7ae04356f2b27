"""Settings from files, the list of what there is, progress, and what to type next."""

import json
import re

import pytest
from problems import command_line, outcome

import torchq
from torchq import families
from torchq.config import ENGINES, PRESETS
from torchq.methods import ALGOS


def test_settings_come_from_a_file_or_a_run_and_flags_go_before(tmp_path):
    path, first, second = tmp_path / "a.toml", tmp_path / "first", tmp_path / "second"
    path.write_text(
        'algo = "stlrq"\nnum-seeds = 2\nrank = 4\nepisodes = 2\neval_every = 1\noptimal = false\ndevice = "cpu"\n'
        "tasks = [{mass = 0.2, length = 0.8}, {mass = 0.4, length = 0.6}]\n[env_option]\nnum_actions = 7\n"
    )
    assert command_line("--config", path, "--rank", 5, "--out", first, "--no-progress")[::2] == (0, "")
    assert command_line("--config", first, "--device", "cpu", "--out", second, "--no-progress")[::2] == (0, "")
    one, other = (json.loads((folder / "config.json").read_bytes()) for folder in (first, second))
    assert one == other
    assert (one["rank"], one["num_seeds"], one["env_option"]) == (5, 2, {"num_actions": 7})
    assert outcome(first)[:2] == outcome(second)[:2]
    run = torchq.train(config=first / "config.json", episodes=1, device="cpu", out=tmp_path / "third")
    assert (run.config.rank, run.config.episodes) == (5, 1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.toml", "rnak = 3", "has 'rnak', but there is no such setting; did you mean rank?"),
        ("a.toml", "rank = ", "cannot be read ("),
        ("a.toml", None, "cannot be read ("),
        ("a.txt", "rank = 3", "expected a .toml or .json file, or a run folder, got"),
        ("a.json", "[3]", "expected settings by name in"),
    ],
)
def test_files_of_settings_that_are_none_are_one_line(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    code, _, err = command_line("--algo", "stlrq", "--config", tmp_path / name, "--out", tmp_path / "run")
    assert (code, err.startswith("error: --config: "), err.count("\n")) == (2, True, 1), err
    assert message in err
    assert command_line("--config", tmp_path, "--resume", "--out", tmp_path)[0] == 2


def test_what_there_is_to_choose_from_is_listed():
    code, said, _ = command_line("--list")
    assert code == 0
    for name in (*ALGOS, *ENGINES, *PRESETS, *families.names()):
        assert re.search(rf"^  {name} +\S", said, re.M), name


def test_a_run_ends_with_what_to_type_next(tmp_path):
    _, said, _ = command_line(
        "--algo", "stlrq", "--episodes", 1, "--num-seeds", 1, "--no-optimal", "--out", tmp_path / "a"
    )
    assert said.splitlines()[-1] == f"next: python evaluate.py {tmp_path / 'a'}, or tensorboard --logdir {tmp_path}"
    assert "mass=0.01 kg, length=1 m" in said


def test_a_pipe_gets_lines_of_progress(tmp_path, monkeypatch):
    monkeypatch.setattr("torchq.runs.recorder.LINE_SECONDS", 0.0)
    quick = (
        "--algo",
        "stlrq",
        "--episodes",
        3,
        "--eval-every",
        1,
        "--num-seeds",
        1,
        "--no-optimal",
        "--engine",
        "eager",
    )
    _, said, _ = command_line(*quick, "--out", tmp_path / "a")
    assert re.search(r"^episode 3 of 3: return -[\d.]+, ε [\d.]+, [\d,]+ transitions/s$", said, re.M)
    _, said, _ = command_line(*quick, "--no-progress", "--out", tmp_path / "b")
    assert "episode 3 of 3" not in said
