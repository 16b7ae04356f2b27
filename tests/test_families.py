"""Families by name, by entry point of any package, and by path."""

import importlib
import subprocess
import sys
import textwrap

import pytest
from problems import ROOT, command_line

import envs
from torchq import families
from torchq.errors import UsageError

SMALL = ("--episodes", 1, "--num-seeds", 1, "--no-optimal", "--no-progress", "--engine", "eager", "--device", "cpu")

NAMES = (
    "acrobot", "cartpole", "damped-pendulum", "gridworld", "linear-quadratic", "mountain-car", "pendulum", "storage",
    "wireless",
)  # fmt: skip
OWN = """
import dataclasses
from {package} import Gridworld
@dataclasses.dataclass(frozen=True)
class Small(Gridworld):
    size: int = 3
class Needy:
    def __init__(self, size): ...
class Inner:
    Small = Small
SMALL = Small(4)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a module of the user's, in which the commands run."""
    (tmp_path / "my_families.py").write_text(OWN.format(package="envs"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("my_families", "broken_families", "needs_nothing"):
        sys.modules.pop(name, None)


def test_registered_families_are_made_by_name():
    assert families.names() == NAMES
    for name in families.names():
        assert families.make(name).name == name
    assert families.make("pendulum") == envs.Pendulum()


def test_a_family_knows_its_continuous_twin():
    twin = families.with_controls(envs.Pendulum(gravity=9.0))
    assert type(twin) is envs.UprightPendulum
    assert twin.gravity == 9.0
    assert families.with_controls(twin) is twin
    assert families.with_controls(envs.DampedPendulum()) == envs.DampedPendulum()


@pytest.mark.parametrize("name", ["my_families:Small", "my_families:Inner.Small", "my_families:SMALL"])
def test_a_family_of_ones_own_trains_by_its_path(here, name):
    code, out, err = command_line("--algo", "stlrq", "--env", name, *SMALL)
    assert (code, err) == (0, "")
    folder = here / "runs" / f"stlrq-{name.replace(':', '-')}-1"
    assert f"stlrq on {name}: 1 seeds, 4 tasks" in out
    assert (folder / "summary.json").exists()
    assert command_line("--resume", "--out", folder, "--episodes", 2)[0] == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pendulm", "expected one of acrobot, .*, module:Family or gym:ID, got .*; did you mean pendulum?"),
        ("nowhere:Small", "expected module:Family, but nowhere:Small needs nowhere, which is not found"),
        ("my_families:Smal", "my_families:Smal cannot be imported (AttributeError: module 'my_families' has no att"),
        ("my_families:", "my_families: cannot be imported (AttributeError"),
        ("my_families:Needy", "my_families:Needy cannot be made without arguments (TypeError: "),
        ("broken_families:Small", "broken_families:Small cannot be imported (SyntaxError: "),
        ("needs_nothing:Small", "expected module:Family, but needs_nothing:Small needs nothing_there, which is not"),
        ("math:pi", "expected a family with discrete actions and a grid for --algo stlrq, but float has no name, "),
    ],
)  # fmt: skip
def test_what_is_no_family_is_named(here, name, message):
    (here / "broken_families.py").write_text("def (:")
    (here / "needs_nothing.py").write_text("import nothing_there")
    code, _, err = command_line("--algo", "stlrq", "--env", name, *SMALL)
    assert (code, err.count("\n")) == (2, 1)
    if name == "pendulm":  # The command line's own words: it knows the names before.
        assert "did you mean pendulum?" in err
        with pytest.raises(UsageError, match=r"module:Family or gym:ID, got 'pendulm'; did you mean pendulum\?"):
            families.make(name)
    else:
        assert f"error: --env: {message}" in err
    assert not (here / "runs").exists()


def test_a_run_of_a_family_that_is_not_here_says_so(here):
    assert command_line("--algo", "stlrq", "--env", "my_families:Small", *SMALL, "--out", here / "run")[0] == 0
    (here / "my_families.py").unlink()
    sys.modules.pop("my_families")
    code, _, err = command_line("--resume", "--out", here / "run", "--episodes", 2)
    assert (code, err) == (2, "error: --env: expected module:Family, but my_families:Small needs my_families, which is "
                              "not found\n")  # fmt: skip
    assert "corrupted" not in err


def run(script, cwd, *arguments):
    """Standard output of a process that sees the package, in some folder."""
    command = [sys.executable, *arguments, *(["-c", textwrap.dedent(script)] if script else [])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_package_registers_its_families(tmp_path):
    """What pip would install: a module, and metadata with an entry point."""
    (tmp_path / "fleet.py").write_text(OWN.format(package="envs"))
    info = tmp_path / "fleet-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fleet\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[torchq.environments]\nfleet = fleet:Small\n")
    out = run(f"""
        import sys; sys.path[:0] = [{str(tmp_path)!r}]
        from torchq import families
        print(*families.names(), type(families.make("fleet")).__name__)
    """, ROOT)  # fmt: skip
    assert out.split() == [*sorted([*NAMES, "fleet"]), "Small"]


def test_a_package_of_the_same_name_hides_nothing(tmp_path):
    """In a folder with an `envs` of its own, which stays what `import envs` gives."""
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").write_text("mine = 1\n")
    out = run("""
        import envs, torchq
        from torchq import families
        from torchq.runs.monte_carlo import make_cases
        given = dict(optimal=True, device="cpu", progress=False)
        run = torchq.train(algo="stlrq", env="gridworld", episodes=2, num_seeds=1, out="a", **given)
        study = torchq.train(algo="lspi", env="pendulum", num_seeds=4, sizes=[20], out="b", progress=False)
        print(envs.mine, run.summary["optimal_return"][0], type(run.policy.act([0.0, 0.0])).__name__, len(study.rows))
        import gymnasium
        print(type(families.make("wireless")).__module__, gymnasium.make("torchq/Pendulum-v0").reset(seed=0)[0].shape)
    """, tmp_path)  # fmt: skip
    assert out.splitlines() == [f"1 {-100 / 24} int 16", "torchq_envs.wireless (2,)"]
    arguments = ("--algo", "stlrq", "--env", "gridworld", "--episodes", "1", "--num-seeds", "1", "--no-progress")
    assert "final return" in run(None, tmp_path, "-m", "torchq", "train", *arguments, "--out", "c")
    assert "pictures: report" in run(None, tmp_path, "-m", "torchq", "evaluate", "a", "c")


def test_a_fault_of_a_family_is_shown_whole(here):
    """Its author needs the traceback; it is neither a lack of memory nor a damaged config.json."""
    text = OWN.format(package="envs") + "class Faulty(Small):\n    def reset(self, tasks, uniforms):\n        {body}\n"
    for body, kind in (
        ("raise RuntimeError('a shape is wrong')", RuntimeError),
        ("return self.nothing", AttributeError),
    ):
        (here / "my_families.py").write_text(text.format(body=body))
        sys.modules.pop("my_families", None)
        importlib.invalidate_caches()
        with pytest.raises(kind):
            command_line("--algo", "stlrq", "--env", "my_families:Faulty", *SMALL)
    assert not (here / "runs").exists()
