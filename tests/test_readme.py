import re
from pkgutil import resolve_name

import pytest
from problems import ROOT, command_line

from torchq.cli.evaluate import main as evaluate
from torchq.cli.train import main as train

README = (ROOT / "README.md").read_text()
OWN_TASKS = (ROOT / "docs" / "own-tasks.md").read_text()
TEXTS = README + OWN_TASKS


def blocks(mark, text=README):
    return re.findall(rf"<!-- {mark} -->\n```\w+\n(.*?)```", text, flags=re.DOTALL)


NAMES = ["train", "tasks", "qtensor", "gymnasium", "own gymnasium", "out"]


@pytest.mark.parametrize("code", blocks("example", TEXTS), ids=NAMES)
def test_examples_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def test_the_loop_has_about_ten_lines():
    assert len(blocks("example")[2].strip().splitlines()) <= 12


def test_commands_are_those_of_the_continuous_integration():
    (train,), (tests,) = blocks("train"), blocks("test")
    assert train.splitlines() == ["pip install -e .", "python train.py --algo stlrq"]
    assert tests.splitlines() == ['pip install -e ".[test]"', "pytest"]
    assert "block test" in (ROOT / ".ci" / "run").read_text()


def test_flags_that_readme_names_exist():
    _, text, _ = command_line("--help")
    known = set(re.findall(r"--[a-z-]+", text)) | {
        "--json",
        "--samples",
        "--logdir",
        "--check",
        "--dry-run",
        "--engines",
        "--batches",
        "--marks",
        "--tasks",
        "--no-deps",
    }
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXTS)) <= known


def test_files_that_readme_links_or_names_exist():
    linked = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    named = re.findall(r"`((?:torchq|envs|benchmarks|examples|tests)/[\w./-]*)`", TEXTS)
    commands = re.findall(r"python ((?:[\w-]+/)*[\w-]+\.py)", README)
    assert min(len(linked), len(named), len(commands)) >= 3
    for path in (*linked, *named, *commands):
        assert (ROOT / path).exists(), path


def test_names_that_readme_gives_exist():
    names = set(re.findall(r"`((?:torchq|envs)(?:\.\w+)+)[`(]", TEXTS))
    assert len(names) >= 2
    for name in names:
        assert resolve_name(name) is not None


def test_commands_of_readme_are_understood(monkeypatch):
    """Every `python train.py …` or `python evaluate.py …` without a placeholder parses."""
    commands = {
        (program, tuple(rest.split()))
        for program, rest in re.findall(r"python (train|evaluate)\.py ([^`\n]*)", TEXTS)
        if not re.search(r"[A-Z…]{2,}|…", rest)
    }
    assert len(commands) >= 2
    for program, arguments in commands:
        command = [*arguments, "--nonsense"]  # Read last, so that nothing runs: all else is accepted before.
        _, _, err = command_line(*command, entry={"train": train, "evaluate": evaluate}[program])
        assert err.startswith("error: --nonsense: no such flag"), (arguments, err)
