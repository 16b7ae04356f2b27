import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata

import pytest
from problems import ROOT

import torchq


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dynamic"] == ["version"]
    assert torchq.__version__ == metadata.version("torchq")
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


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What a wheel of the repository brings, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_a_wheel_brings_every_source(installed):
    for package in ("torchq", "envs"):
        sources = {path.relative_to(ROOT) for end in ("py", "h", "cpp") for path in (ROOT / package).rglob(f"*.{end}")}
        brought = {path.relative_to(installed) for path in (installed / package).rglob("*") if path.is_file()}
        assert sources
        assert sources <= brought


def test_a_wheel_alone_trains(installed, tmp_path):
    """In a process that sees the wheel and not the repository; the fused engine finds its C++ there."""
    script = (
        f"import sys; sys.path.insert(0, {str(installed)!r}); import torchq; from torchq.cli.train import main; "
        f"assert torchq.__file__.startswith({str(installed)!r}), torchq.__file__; "
        "sys.exit(main(['--algo', 'stlrq', '--episodes', '1', '--num-seeds', '1', '--engine', 'fused', "
        "'--no-optimal', '--no-progress', '--out', 'run']))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").exists()
