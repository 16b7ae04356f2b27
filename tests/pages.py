"""The pages of the documentation, and what they tell to type: all of it, in order, with runs that are over soon.

    python tests/pages.py docs/index.md

runs a page in the current folder. Commands are those of its blocks of bash; blocks of Python run where they are marked
`<!-- example -->`, each for itself, or `<!-- example, going on -->`, with the names of those before; what is marked
`<!-- file NAME -->` is written first.
"""

import contextlib
import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

ROOT = Path(__file__).parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
}
OTHERS = re.compile(
    r"pip |pytest|ruff |mypy|git |bash \.ci|mkdocs |tensorboard |python (benchmarks|docs|examples|tests)/"
)
"""Commands that are not torchq's, or take long: the tests look at their files and flags alone."""
GIVEN = {"prices.csv": "price\n" + "\n".join(str(30 + 10 * (hour % 24 > 17) + hour % 7) for hour in range(24 * 21))}
"""Files of the reader's own."""
NEEDS = {"gym:carl": "carl", "gym:mo_gymnasium": "mo_gymnasium"}
"""Packages that are no part of the tests."""


class Block(NamedTuple):
    """A fenced block of a page."""

    mark: str
    language: str
    text: str


def blocks(text: str) -> list[Block]:
    """Blocks of a page in order."""
    found = re.findall(r"^(?:<!-- ([^>]*) -->\n)?```(\w+)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [Block(*one) for one in found]


def commands(text: str) -> list[str]:
    """Lines of the blocks of bash."""
    return [line for block in blocks(text) if block.language == "bash" for line in block.text.splitlines() if line]


def spans(text: str) -> list[str]:
    """Code in the running text, broken lines joined."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def arguments(line: str) -> list[str] | None:
    """Arguments of `torchq` that a line gives, the name of the command first; None if it is another program."""
    words = shlex.split(line)
    starts = {("torchq",): [], ("python", "train.py"): ["train"], ("python", "evaluate.py"): ["evaluate"]}
    starts["python", "-m", "torchq"] = []
    for start, command in starts.items():
        if tuple(words[: len(start)]) == start and len(words) > len(start):
            return command + words[len(start) :]
    return None


def shortened(given: list[str]) -> list[str]:
    """Arguments of a run that is over soon: the last of a flag given twice counts."""
    if given[0] == "evaluate":
        return [*given, "--device", "cpu", *(["--episodes", "1"] if "--episodes" in given else [])]
    if given[0] != "train" or "--list" in given:
        return given
    quiet = [*given, "--no-progress", "--device", "cpu"]
    if "--resume" in given:
        config = json.loads((Path(given[given.index("--out") + 1]) / "config.json").read_bytes())
        return (
            [*quiet, "--episodes", str(config["episodes"] + config["eval_every"])] if "--episodes" in given else quiet
        )
    algo = given[given.index("--algo") + 1] if "--algo" in given else "stlrq"
    if algo.startswith("l") and algo != "lrq":
        return [*quiet, "--num-seeds", "2", "--sizes", "20"]
    seeds = [] if "--adapt-from" in given else ["--num-seeds", "2"]
    workers = ["--env-option", "workers=0"] if "gym:" in " ".join(given) else []
    return [*quiet, "--episodes", "1", "--eval-every", "1", "--no-optimal", *seeds, *workers]


def run_command(line: str) -> None:
    """Run a line, unless it is of another program.

    Raises:
        RuntimeError: if it fails, or is of a program that nothing is known of.
    """
    from torchq.cli.main import main

    given = arguments(line)
    missing = [name for word, name in NEEDS.items() if word in line and importlib.util.find_spec(name) is None]
    if given is None or missing:
        if not (missing or OTHERS.match(line)):
            raise RuntimeError(f"expected a command of torchq, or one of {OTHERS.pattern}, got {line}")
        print(f"not run: {line}")
        return
    print(f"$ torchq {shlex.join(shortened(given))}", flush=True)
    if code := main(shortened(given)):
        raise RuntimeError(f"{line} ended with {code}")


def run_page(text: str) -> None:
    """Run a page from top to bottom."""
    for name, content in GIVEN.items():
        Path(name).write_text(content)
    names: dict[str, object] = {}
    for block in blocks(text):
        if block.mark.startswith("file "):
            Path(block.mark.removeprefix("file ")).write_text(block.text)
        elif block.mark.startswith("example"):
            names = names if block.mark == "example, going on" else {"__name__": "example"}
            print(block.text, flush=True)
            exec(compile(block.text, "example", "exec"), names)
        for line in commands(f"```{block.language}\n{block.text}```"):
            run_command(line)


@contextlib.contextmanager
def short_pilots() -> Iterator[None]:
    """Search for a rank among small ones, in a step or two."""
    from torchq.runs import rank_search

    with mock.patch.object(rank_search, "RANKS", (2, 3)), mock.patch.object(rank_search, "_SAMPLES", 300):
        yield


if __name__ == "__main__":
    sys.path[0] = ""  # Where a reader stands.
    with short_pilots():
        run_page(PAGES[sys.argv[1]])
