"""The rules of the house, read from the imports."""

import ast
import shutil
import subprocess
import sys

import pytest
from problems import ROOT

# What each folder of torchq may import besides itself; modules of the root are what everything may use.
BELOW = {
    "": set(),
    "lowrank": {""},
    "semidefinite": {""},
    "quadratic": {"", "semidefinite"},
    "engines": {"", "lowrank"},
    "runs": {"", "lowrank", "semidefinite", "quadratic", "engines"},
    "report": {"", "lowrank", "quadratic", "engines", "runs"},
    "cli": {"", "lowrank", "quadratic", "engines", "runs", "report"},
}
HEAVY = {
    "gymnasium",
    "jinja2",
    "matplotlib",
    "plotly",
    "tensorly",
    "tensorboard",
    "scipy",
    "cvxpy",
    "cvxpylayers",
    "diffcp",
    "clarabel",
    "moreau",
    "loky",
    "tqdm",
}


ABOVE_ALL = {"torchq.__main__"}
"""Begins a command, so it may import anything."""


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


def modules():
    """Dotted name of every module of torchq but the package's own, with its path."""
    for path in files("torchq"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name != "torchq" and name not in ABOVE_ALL:
            yield name, path


def folder(name):
    """First folder below torchq of a module's dotted name."""
    parts = name.split(".")
    return parts[1] if len(parts) > 2 or parts[1] in BELOW else ""


def imported_modules():
    """Of every module the modules of torchq that it imports, anywhere in the file."""
    known = dict(modules())
    return {
        name: {
            found if found in known else found.rpartition(".")[0]
            for found in imports(path)
            if found in known or found.rpartition(".")[0] in known
        }
        for name, path in known.items()
    }


def test_torchq_and_envs_never_import_each_other():
    for package, other in (("torchq", "envs"), ("envs", "torchq")):
        for path in files(package):
            assert not [name for name in imports(path) if name.split(".")[0] == other], path


def test_imports_point_down_folder_by_folder():
    for name, found in imported_modules().items():
        own = folder(name)
        for other in found:
            assert folder(other) in BELOW[own] | {own}, f"{name} imports {other}"


def test_modules_never_import_in_circles():
    remaining = {name: found - {name} for name, found in imported_modules().items()}
    while free := [name for name, found in remaining.items() if not found & remaining.keys()]:
        for name in free:
            del remaining[name]
    assert not remaining


def test_folders_export_nothing_again():
    """A folder's __init__ says what it is for; names have one home."""
    for path in files("torchq"):
        if path.name == "__init__.py" and path.parent.name != "torchq":
            assert [type(node) for node in ast.parse(path.read_text()).body] == [ast.Expr], path


def test_learners_never_import_each_other():
    learners = {"lowrank.low_rank_q", "lowrank.tabular_q", "quadratic.lmi_ql", "quadratic.lmi_qli", "quadratic.lspi"}
    names = {f"torchq.{name}" for name in learners}
    found = imported_modules()
    assert names <= found.keys()
    for name in names:
        assert not found[name] & names - {name}, name


def test_heavy_packages_are_imported_where_they_are_used():
    for path in files("torchq"):
        assert not {name.split(".")[0] for name in imports(path, top_only=True)} & HEAVY, path


@pytest.mark.parametrize("module", ["torchq", "torchq.cli.train", "torchq.quadratic.layers"])
def test_importing_loads_no_heavy_package(module):
    """Nor the compiler of torch, which takes a second. Torch itself loads tqdm."""
    heavy = {*HEAVY, "torch._dynamo"} - {"tqdm"}
    script = f"import sys, {module}; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", ["train.py", "evaluate.py"])
def test_programs_are_thin(name):
    assert len((ROOT / name).read_text().splitlines()) <= 100


def test_files_are_short():
    for path in [*files("torchq"), *files("envs")]:
        assert len(path.read_text().splitlines()) <= 300, path


VIOLATIONS = {
    "worlds that meet": ("torchq/runs/x.py", "import envs", test_torchq_and_envs_never_import_each_other),
    "families that know torchq": ("envs/x.py", "from torchq import tree", test_torchq_and_envs_never_import_each_other),
    "upwards": ("torchq/lowrank/x.py", "from torchq.runs import folder", test_imports_point_down_folder_by_folder),
    "upwards inside a function": (
        "torchq/engines/x.py", "def f():\n    import torchq.cli.train", test_imports_point_down_folder_by_folder),
    "from one world to the other": (
        "torchq/quadratic/x.py", "from torchq.lowrank.cp import dense", test_imports_point_down_folder_by_folder),
    "a folder without a place": ("torchq/magic/x.py", "import torchq.tree", test_imports_point_down_folder_by_folder),
    "a circle": ("torchq/x.py", "import torchq.y", test_modules_never_import_in_circles),
    "exported again": ("torchq/runs/__init__.py", "from torchq import tree", test_folders_export_nothing_again),
    "learners that meet": (
        "torchq/lowrank/tabular_q.py", "import torchq.lowrank.low_rank_q", test_learners_never_import_each_other),
    "heavy": ("torchq/runs/x.py", "import matplotlib", test_heavy_packages_are_imported_where_they_are_used),
    "long": ("envs/x.py", "\n" * 301, test_files_are_short),
}  # fmt: skip


@pytest.mark.parametrize(("path", "text", "rule"), VIOLATIONS.values(), ids=VIOLATIONS)
def test_rules_fail_where_they_are_broken(path, text, rule, tmp_path, monkeypatch):
    """And hold in the same house without the fault."""
    for package in ("torchq", "envs"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "torchq" / "y.py").write_text("import torchq.x\n" if path == "torchq/x.py" else "")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    if path != "torchq/x.py":
        rule()
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(text)
    with pytest.raises((AssertionError, KeyError)):
        rule()
