"""The rules of the house, read from the imports."""

import ast
import subprocess
import sys

import pytest
from problems import ROOT

LEVELS = [
    {"errors", "td", "cp", "grid", "exploration", "random", "optim", "versions", "quadratic", "conic"},
    {"transitions", "checkpoint", "engine", "lqr", "sdp", "backends", "excitation"},
    {"qtensor", "learners", "layers", "warmstart"},
    {
        "rollout",
        "evaluation",
        "protocols",
        "training",
        "logging",
        "plotting",
        "presets",
        "flags",
        "cli",
        "experiment",
        "execution",
        "runfolder",
        "study",
        "study_results",
        "transfer",
        "fused",
        "graph",
        "memory",
        "monte_carlo",
        "report",
    },
]
HEAVY = {
    "gymnasium",
    "matplotlib",
    "tensorly",
    "tensorboard",
    "scipy",
    "cvxpy",
    "cvxpylayers",
    "diffcp",
    "clarabel",
    "moreau",
    "tqdm",
}


def imports(path, *, top_only=False):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(package):
    return sorted((ROOT / package).rglob("*.py"))


def level(module):
    return next(i for i, names in enumerate(LEVELS) if module in names)


def test_torchq_and_envs_never_import_each_other():
    for package, other in (("torchq", "envs"), ("envs", "torchq")):
        for path in files(package):
            assert not [name for name in imports(path) if name.split(".")[0] == other], path


def test_imports_of_torchq_only_point_down():
    for path in files("torchq"):
        parts = path.relative_to(ROOT / "torchq").parts
        if parts == ("__init__.py",):
            continue
        own = level(parts[0].removesuffix(".py"))
        for name in imports(path):
            pieces = name.split(".")
            if pieces[0] == "torchq" and len(pieces) > 1:
                assert level(pieces[1]) <= own, f"{path} imports {name}"
                assert own > 0 or pieces[1] == "errors", f"{path} is mathematics and imports {name}"


def test_learners_never_import_each_other():
    for path in files("torchq/learners"):
        if path.name != "__init__.py":
            names = {name.split(".")[2] for name in imports(path) if name.startswith("torchq.learners.")}
            assert names <= {"base"}, path


def test_heavy_packages_are_imported_where_they_are_used():
    for path in files("torchq"):
        assert not {name.split(".")[0] for name in imports(path, top_only=True)} & HEAVY, path


def test_importing_torchq_loads_no_heavy_package():
    # torch itself loads tqdm.
    script = f"import sys, torchq; print(sorted({HEAVY - {'tqdm'}!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", ["train.py", "evaluate.py"])
def test_programs_are_thin(name):
    assert len((ROOT / name).read_text().splitlines()) <= 100


def test_files_are_short():
    for path in [*files("torchq"), *files("envs")]:
        assert len(path.read_text().splitlines()) <= 320, path
