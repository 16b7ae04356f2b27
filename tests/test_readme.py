import re

from pages import PAGES, blocks
from problems import ROOT

README = PAGES["README.md"]


def marked(mark):
    return [block.text for block in blocks(README) if block.mark == mark]


def test_readme_is_a_page():
    assert len(README.splitlines()) <= 120
    assert len(re.findall(r"^\| .*`python ", README, flags=re.MULTILINE)) <= 10
    assert README.count("\n![") >= 1


def test_every_result_has_a_command_and_a_commit_beside_it():
    table = README[README.index("| what | number | command | commit |") :].split("\n\n")[0].splitlines()[2:]
    assert len(table) >= 5
    for line in table:
        assert re.search(r"\d.* \| `python [^`]+` \| [0-9a-f]{7}\+? \|$", line), line


def test_commands_are_those_of_the_continuous_integration():
    (train,), (tests,) = marked("train"), marked("test")
    assert train.splitlines() == ["pip install -e .", "python train.py --algo stlrq"]
    assert tests.splitlines() == ['pip install -e ".[test]"', "pytest"]
    assert "block test" in (ROOT / ".ci" / "run").read_text()


def test_the_loop_over_transitions_has_about_ten_lines():
    (loop,) = [block.text for block in blocks(PAGES["docs/index.md"]) if "QTensor(" in block.text]
    assert len(loop.strip().splitlines()) <= 12
