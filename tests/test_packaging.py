import tomllib
from importlib import metadata

from problems import ROOT

import torchq


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == torchq.__version__ == metadata.version("torchq")
    assert f"## {torchq.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_public_names_exist():
    for name in torchq.__all__:
        assert hasattr(torchq, name)


def test_nothing_unexpected_lies_at_the_root():
    expected = {
        "pyproject.toml", "torchq", "envs", "train.py", "evaluate.py", "tests", "README.md", "benchmarks", "LICENSE",
        "CHANGELOG.md", "examples",
    }  # fmt: skip
    made = {"runs", "report", "build", "dist"}
    names = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert {name for name in names if not name.endswith(".egg-info")} - made == expected
