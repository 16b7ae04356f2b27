import re

import pytest
from problems import ROOT, command_line

README = (ROOT / "README.md").read_text()


def blocks(mark):
    return re.findall(rf"<!-- {mark} -->\n```\w+\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", blocks("example"), ids=["qtensor", "gymnasium"])
def test_examples_run(code):
    exec(compile(code, "README.md", "exec"), {})


def test_the_loop_has_about_ten_lines():
    assert len(blocks("example")[0].strip().splitlines()) <= 12


def test_commands_are_those_of_the_continuous_integration():
    (train,), (tests,) = blocks("train"), blocks("test")
    assert train.splitlines() == ["pip install -e .", "python train.py --algo stlrq"]
    assert tests.splitlines() == ['pip install -e ".[test]"', "pytest"]
    assert "block test" in (ROOT / ".ci" / "run").read_text()


def test_flags_that_readme_names_exist():
    _, text, _ = command_line("--help")
    known = set(re.findall(r"--[a-z-]+", text)) | {"--json", "--samples", "--logdir", "--check"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) <= known


def test_pictures_that_readme_shows_exist():
    for path in re.findall(r"!\[[^]]*]\(([^)]+)\)", README):
        assert (ROOT / path).exists(), path
