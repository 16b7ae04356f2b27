"""The documentation: what it tells to type is typed, what it names is there, and the site builds without a warning."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pkgutil import resolve_name
from types import SimpleNamespace

import click
import jaxtyping
import pytest
from mkdocs.exceptions import PluginError
from pages import OTHERS, PAGES, arguments, blocks, commands, run_page, short_pilots, shortened, spans
from problems import ROOT

from torchq import families
from torchq.cli import completion, evaluate, export, own_family, train

TEXT = "\n".join(PAGES.values())
TYPED = [line for text in PAGES.values() for line in (*commands(text), *spans(text))]
"""Commands in blocks, and whatever stands in the text as code."""
COMMANDS = {
    "train": train.command("train"),
    "evaluate": evaluate.command("evaluate"),
    "export": export.command("export"),
    "new-family": own_family.new_command("new-family"),
    "check-family": own_family.check_command("check-family"),
    "completion": completion.command("completion", {}),
}
PLACEHOLDERS = {"ALGO": "stlrq", "ENV": "pendulum", "PRESET": "paper", "RUNS": "8", "N": "8", "NAME": "pendulum"}
RUN = [name for name, text in PAGES.items() if any(block.mark.startswith("example") for block in blocks(text))
       or any(arguments(line) for line in commands(text))]  # fmt: skip


@pytest.mark.parametrize("name", RUN)
def test_a_page_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    """Every command of its blocks, and every example, in order, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    if "torchq export" in "".join(commands(PAGES[name])):  # In a process of its own: shape checks cannot be traced.
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, ROOT / "tests" / "pages.py", name]
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with short_pilots():
            run_page(PAGES[name])
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
        own = [found for found, module in sys.modules.items() if str(tmp_path) in str(getattr(module, "__file__", ""))]
        for found in set(own) - before:
            del sys.modules[found]


def test_pages_that_run_are_most():
    assert len(RUN) >= 8
    assert sum(len(commands(text)) for text in PAGES.values()) >= 40


def test_every_block_of_python_is_an_example():
    for name, text in PAGES.items():
        for block in blocks(text):
            assert (block.language == "python") == block.mark.startswith("example"), (name, block)


def fault(given):
    """What click says of a command with its values; nothing runs. The name of a command alone stands for it."""
    try:
        if len(given) > 1:
            COMMANDS[given[0]].make_context(given[0], [PLACEHOLDERS.get(word, word) for word in given[1:]])
        return "" if given[0] in COMMANDS else "no such command"
    except click.exceptions.Exit:  # --list and --help.
        return ""
    except (click.ClickException, KeyError) as error:
        return str(error)


def test_every_command_of_torchq_is_understood():
    """In blocks and in the text, with the values that it gives."""
    found = {
        line: arguments(line) for line in TYPED if "…" not in line and "|" not in line and line.count("'") % 2 == 0
    }
    faults = {line: fault(given) for line, given in found.items() if given and given != ["--help"]}
    assert len(faults) >= 60
    assert {line: text for line, text in faults.items() if text} == {}


@pytest.mark.parametrize("line", ["torchq train --algo stlqr", "torchq train --rnak 3", "torchq learn --fast",
                                  "python train.py --algo stlrq --rank 0", "torchq export RUN"])  # fmt: skip
def test_a_command_that_is_wrong_is_not_understood(line):
    assert fault(arguments(line))


def flags_of(command):
    return {name for param in command.params for name in (*param.opts, *param.secondary_opts)}


def test_flags_exist():
    """Of torchq's commands; of others in the line that gives them, read from the source of a script."""
    known = set.union(*(flags_of(command) for command in COMMANDS.values())) | {"--help"}
    own = {
        "torchrun": {"--nproc-per-node", "--standalone", "--max-restarts"},
        "pip": {"--no-deps"},
        "ruff": {"--check"},
        "mkdocs": {"--strict"},
        "tensorboard": {"--logdir"},
    }
    scripts = {}
    for line in TYPED:
        given = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", line))
        if script := re.match(r"python ((?:benchmarks|docs|examples)/\S+\.py)", line):
            scripts[script[1]] = scripts.get(script[1], set()) | given
        elif (program := line.split(" ")[0]) in own:
            assert given <= own[program], line
    for path, given in scripts.items():
        source = (ROOT / path).read_text()
        compile(source, path, "exec")
        assert all(f'"{flag}"' in source for flag in given), (path, given)
    assert len(scripts) >= 10
    others = set().union(*scripts.values(), *own.values()) | {"--dry-run"}
    bare = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", re.sub(r"<!-- flags[^>]*>", "", TEXT)))
    assert bare - known - others == set()


def test_other_commands_are_of_programs_that_are_known():
    for text in PAGES.values():
        for line in commands(text):
            assert arguments(line) or OTHERS.match(line), line
            for part in line.split(" && "):
                program = shlex.split(part)[0]
                assert arguments(part) or program in ("pip", "ruff", "mypy", "pytest", "mkdocs", "python"), part


def test_files_that_are_linked_or_named_exist():
    for name, text in PAGES.items():
        linked = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
        for path in linked + re.findall(r'\b(?:src|srcset)="([^"]+)"', text):
            assert ((ROOT / name).parent / path).exists(), (name, path)
    named = re.findall(r"`((?:torchq|envs|benchmarks|examples|tests|docs)/[\w./-]*)`", TEXT)
    scripts = re.findall(r"python ((?:[\w-]+/)*[\w-]+\.py)", TEXT)
    assert min(len(named), len(scripts)) >= 20
    for path in (*named, *scripts):
        assert (ROOT / path).exists(), path


def test_names_exist():
    names = set(re.findall(r"`((?:torchq|envs)(?:\.\w+)+)[`(]", TEXT))
    assert len(names) >= 20
    for name in names:
        assert resolve_name(name) is not None


def test_extras_exist():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {part for group in re.findall(r'"(?:torchq|\.)\[([\w,]+)\]"', TEXT) for part in group.split(",")}
    assert {"test", "docs", "export", "layers"} <= named <= extras.keys()


def build(folder, source=ROOT):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", source / "mkdocs.yml", "-d", folder]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(list(map(str, command)), cwd=source, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_the_site_builds_strictly_and_has_every_page(site):
    for name in PAGES.keys() - {"README.md"}:
        assert (site / name.removeprefix("docs/")).with_suffix(".html").exists(), name
    for path in (ROOT / "benchmarks" / "results").glob("*.md"):
        assert (site / "benchmarks" / "results" / path.name).with_suffix(".html").exists(), path


def test_the_site_fetches_nothing(site):
    """Scripts, styles, fonts and pictures are its own."""
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for path in pages:
        text = path.read_text()
        fetched = re.findall(r'<(?:script|img|iframe|source)[^>]* src="?(https?://[^" >]*)', text)
        fetched += re.findall(r'<link[^>]* href="?(https?://[^" >]*)', text)
        assert fetched == [], path
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(\W?https?:|@import", path.read_text()), path


def test_the_reference_has_every_public_name(site):
    import torchq

    text = "".join(path.read_text() for path in (site / "api").glob("*.html"))
    for name in set(torchq.__all__) - {"__version__", "TorchqError"}:
        assert f'id="torchq.{name}"' in text, name
    for name in families.names():
        assert f'id="envs.{families.loaded(name).__name__}"' in text, name


def test_equations_of_docstrings_are_blocks_of_code(site):
    """Their lines must not run together."""
    page = (site / "api" / "tensor.html").read_text()
    text = re.sub(r"<[^>]*>", "", "".join(re.findall(r"<code>.*?</code>", page, flags=re.DOTALL)))
    for equation in ("δ = r + γ maxₐ Q(s′, a) − Q(s, a)", "place = (x − low) / (high − low) · size  modulo size",
                     "∂(½δ²)/∂F[i, :] = −δ · ∏", "T[m, :] = ∏ₚ φₚ(θ_mp)ᵀ Fₚ"):  # fmt: skip
        assert equation in text, equation


FAULTS = {
    "a link to nowhere": ("docs/speed.md", "[page](nowhere.md)"),
    "an anchor that is not there": ("docs/speed.md", "[page](results.md#nothing)"),
    "a measured page that is not there": ("docs/speed.md", "[page](../benchmarks/results/nothing.md)"),
    "a name that is not there": ("docs/api/runs.md", "::: torchq.nothing"),
    "a page outside of the navigation": ("docs/lost.md", "# Lost"),
    "a flag twice": ("docs/command-line.md", "<!-- flags of train: --rank -->"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_stops_the_build(fault, tmp_path):
    for name in ("docs", "benchmarks", "torchq", "envs", "mkdocs.yml", "CONTRIBUTING.md", "CHANGELOG.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "docs").unlink()
    subprocess.run(["cp", "-r", ROOT / "docs", tmp_path / "docs"], check=True)
    path, text = FAULTS[fault]
    with (tmp_path / path).open("a") as file:
        file.write(f"\n{text}\n")
    assert build(tmp_path / "site", tmp_path).returncode != 0


def hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_flag_has_a_place_on_the_page_of_the_command_line():
    module, text = hooks(), PAGES["docs/command-line.md"]
    module.check_flags(module.FLAGS.findall(text), "page")
    for wrong in (text.replace(" --rank ", " "), text + "<!-- flags of train: --rank -->",
                  text.replace(" --rank ", " --rank --magic ")):  # fmt: skip
        with pytest.raises(PluginError, match="expected each flag of train once"):
            module.check_flags(module.FLAGS.findall(wrong), "page")


def test_links_of_the_repository_become_links_of_the_site():
    page = SimpleNamespace(file=SimpleNamespace(abs_src_path=ROOT / "docs/api/x.md", src_uri="api/x.md"))
    moved = hooks().on_page_markdown(
        "[a](../../benchmarks/results/sdp.md#x) ![b](../figures/t.svg) [c](https://x.y/z)", page, None, None
    )
    assert moved == "[a](../benchmarks/results/sdp.md#x) ![b](../figures/t.svg) [c](https://x.y/z)"
    with pytest.raises(PluginError, match="outside"):
        hooks().on_page_markdown("[a](../../../x.md)", page, None, None)


def test_runs_are_shortened():
    assert shortened(["train", "--algo", "lrq"])[-7:] == [
        "--episodes", "1", "--eval-every", "1", "--no-optimal", "--num-seeds", "2"]  # fmt: skip
    assert "--sizes" in shortened(["train", "--algo", "lmi-ql"])
    assert shortened(["export", "a", "b.npz"]) == ["export", "a", "b.npz"]


@pytest.mark.slow
def test_figures_are_drawn(tmp_path):
    command = [sys.executable, ROOT / "docs" / "figures.py", "--out", tmp_path, "--small"]
    done = subprocess.run(list(map(str, command)), env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert done.returncode == 0, done.stderr
    drawn = {path.name for path in tmp_path.glob("*.svg")}
    assert drawn == {path.name for path in (ROOT / "docs" / "figures").glob("*.svg")}
    assert drawn == set(re.findall(r"figures/(\w+\.svg)", PAGES["docs/how-it-works.md"]))
