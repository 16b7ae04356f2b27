"""Help by topic, and of a choice."""

import os
import re
import shlex
import subprocess
import sys

import pytest
from problems import ROOT, command_line

from torchq import config, families
from torchq.cli.flags import options
from torchq.cli.help import EXAMPLES, GROUPS
from torchq.cli.main import main
from torchq.cli.train import command
from torchq.presets import resolve


def said(*arguments):
    code, out, err = command_line(*arguments, "--help")
    assert (code, err) == (0, "")
    return " ".join(out.split())


def test_every_flag_is_under_one_topic():
    names = [name for group in GROUPS.values() for name in group]
    assert sorted(names) == sorted({*(param.name for param in options(families.names())), "help"})


def test_help_alone_shows_every_flag_with_the_defaults_of_the_table():
    text = said()
    assert all(f"{heading}:" in text for heading in (*GROUPS, "Examples"))
    assert "Other:" not in text
    assert {"--" + name.replace("_", "-") for name in config.flags()} <= set(re.findall(r"--[a-z-]+", text))
    assert "80 (acrobot); 30 (cartpole, pendulum, pendulum paper)" in text


@pytest.mark.parametrize(
    ("algo", "env", "preset"),
    [("lrq", "wireless", "paper"), ("stlrq", "gym:CartPole-v1", "default"), ("tabular", "gridworld", "default")],
)
def test_a_choice_shows_its_defaults_and_its_flags_alone(algo, env, preset):
    text, wanted = said("--algo", algo, "--env", env, "--preset", preset), resolve(algo, env, preset, {})
    assert f"Flags and defaults of --algo {algo} --env {env} --preset {preset};" in text
    for name, flag in (("gamma", "--gamma"), ("episodes", "--episodes"), ("num_seeds", "--num-seeds")):
        found = re.search(rf"{flag} (?:INTEGER|NUMBER) .*?\[default: ([^\]]+)\]", text)
        assert found, name
        assert found[1] == str(getattr(wanted, name))
    assert ("--rank INTEGER" in text) == (algo != "tabular")
    assert ("--lrq-convention {" in text) == (algo == "lrq")
    assert "--sizes" not in text.partition("Examples:")[0]


def test_a_part_of_a_choice_is_completed():
    assert "of --algo lspi --env damped-pendulum --preset default;" in said("--algo", "lspi")
    assert "of --algo stlrq --env acrobot --preset default;" in said("--env=acrobot")


def test_a_choice_that_there_is_not_is_one_line():
    for arguments, message in (
        (("--algo", "stlq"), "--algo: expected one of stlrq, lrq, .*; did you mean stlrq\\?"),
        (("--env", "acrobot", "--preset", "paper"), "--preset: expected default for --env acrobot"),
    ):
        code, _, err = command_line(*arguments, "--help")
        assert (code, err.count("\n")) == (2, 1)
        assert re.match(f"error: {message}", err)


def test_examples_are_understood():
    for flags in EXAMPLES:
        if "--help" not in flags:
            assert command("train.py").make_context("train.py", shlex.split(flags)).params


def test_every_command_has_help():
    for name in ("train", "evaluate", "export"):
        code, out, _ = command_line(name, "--help", entry=main)
        assert code == 0
        assert f"Usage: torchq {name} " in out
    assert "torchq train --algo stlrq\n" in command_line("train", "--help", entry=main)[1]


def test_a_terminal_without_greek_letters_gets_question_marks():
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    command = [sys.executable, ROOT / "train.py", "--help"]
    done = subprocess.run(command, capture_output=True, env=environment, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Step size ? at the start" in done.stdout
