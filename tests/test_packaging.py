import ast
import re
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
    assert project["dynamic"] == ["version", "readme"]
    assert torchq.__version__ == metadata.version("torchq")
    assert f"## {torchq.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_public_names_exist():
    for name in torchq.__all__:
        assert hasattr(torchq, name)


def test_nothing_unexpected_lies_at_the_root():
    expected = {
        "pyproject.toml", "torchq", "envs", "train.py", "evaluate.py", "tests", "README.md", "benchmarks", "LICENSE",
        "CHANGELOG.md", "CONTRIBUTING.md", "examples", "docs", "mkdocs.yml",
    }  # fmt: skip
    made = {"runs", "report", "build", "dist", "site"}
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


SNIPPET = """
import numpy as np
import torchq

run = torchq.train(algo="stlrq", env="pendulum", episodes=50, out="runs/a")
action: int = run.policy.act(np.zeros(2), task=2)
median: list[float] = run.summary["final_return"]["median"]
q: torchq.QTensor = torchq.load("runs/a").q_tensor
curves: np.ndarray = run.metrics.returns.mean(0)
wrong: int = run.metrics
"""


def test_types_reach_those_who_use_the_package(tmp_path):
    """A strict check of code that imports it, with one mistake, from another folder."""
    (tmp_path / "snippet.py").write_text(SNIPPET)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(ROOT / ".mypy_cache"), "snippet.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    errors = [line for line in done.stdout.splitlines() if "error" in line]
    assert errors[:-1] == [
        'snippet.py:10: error: Incompatible types in assignment (expression has type "Metrics", variable has type '
        '"int")  [assignment]'
    ], done.stdout


def test_a_wheel_brings_commands_families_and_types(installed):
    (info,) = installed.glob("*.dist-info")
    entries = (info / "entry_points.txt").read_text()
    assert "torchq = torchq.__main__:main" in entries
    assert "pendulum = envs.pendulum:Pendulum" in entries
    assert (installed / "torchq" / "py.typed").exists()
    text = (info / "METADATA").read_text()
    assert f"Version: {torchq.__version__}" in text
    assert "Requires-Dist: clarabel" in text


def test_the_readme_of_a_wheel_stands_alone(installed):
    """On a package index nothing lies beside it: no pictures, and no links but those to other places."""
    (info,) = installed.glob("*.dist-info")
    readme = (info / "METADATA").read_text().partition("\n\n")[2]
    text = (ROOT / "README.md").read_text()
    assert "](docs/" in text
    assert "![" in text
    assert readme.startswith("# torchq\n")
    assert "Where to go" in readme
    assert "![" not in readme
    assert "<img" not in readme
    assert "reproduced: one panel" not in readme
    assert re.findall(r"\]\((?!https:)[^)]*\)", readme) == []
    assert "| Results, Speed |" in readme


def test_every_package_that_is_imported_is_declared():
    """By the core, or by an extra for what only an extra needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = [name for group in ("layers", "moreau") for name in project["optional-dependencies"][group]]
    declared = {re.split(r"[><=]", name)[0] for name in (*project["dependencies"], *optional)}
    own = {"torchq", "envs", "triton", "PIL"}  # triton comes with torch where there are GPUs; PIL is pillow's
    found = set()
    for path in (*(ROOT / "torchq").rglob("*.py"), *(ROOT / "envs").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    assert found - set(sys.stdlib_module_names) - own - {name.replace("-", "_") for name in declared} == set()


def test_a_wheel_alone_trains_where_envs_is_another_package(installed, tmp_path):
    """Train, load, act and evaluate, in a process that sees the wheel and not the repository."""
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").write_text("mine = 1")
    script = f"""
import sys
sys.path[:0] = ["", {str(installed)!r}]
import envs, torchq
from torchq.cli.main import main
assert envs.mine == 1
assert torchq.__file__.startswith({str(installed)!r}), torchq.__file__
small = ["--episodes", "2", "--num-seeds", "2", "--env", "gridworld", "--no-progress", "--device", "cpu"]
assert main(["train", "--algo", "stlrq", *small, "--out", "a"]) == 0
run = torchq.load("a")
assert run.evaluate(episodes=2).shape == (2, 4)
assert run.policy.act([[0.0, 1.0]] * 3, task=2).shape == (3,)
assert main(["evaluate", "a", "--episodes", "2"]) == 0
"""
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


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
