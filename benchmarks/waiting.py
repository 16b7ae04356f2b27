"""What a person waits for: whole commands at two commits, in turns, before and after a change.

    git worktree add ../before COMMIT
    python benchmarks/waiting.py ../before . [--repeats 5]

Both checkouts run the same command one after the other, so that what else the machine does meets both: the default
command with everything compiled and with nothing, and the paper's protocol with 8 seeds on one thread, whose training
with its tests is given as transitions a second too. Prints medians, ratios of the medians and the range of the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

DEFAULT = ("--algo", "stlrq")
PAPER = (*DEFAULT, "--env", "pendulum", "--preset", "paper", "--num-seeds", "8")
CASES = {
    "default, all compiled": (DEFAULT, {}, False),
    "default, nothing compiled": (DEFAULT, {}, True),
    "paper, 8 seeds, one thread": (PAPER, {"OMP_NUM_THREADS": "1"}, False),
}


class Measured(NamedTuple):
    """One command."""

    seconds: float
    """Of the whole process, imports included."""
    rate: float
    """Transitions per second of training with its tests."""
    outcome: bytes
    """Its metrics.csv."""


def run(checkout: Path, arguments: tuple[str, ...], environment: dict[str, str], cache: Path) -> Measured:
    """One command in one checkout."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", *arguments, "--no-progress", "--out", f"{folder}/run"]
        given = {**os.environ, "TORCHQ_CACHE": str(cache), **environment}
        begun = time.perf_counter()
        subprocess.run(command, cwd=checkout, env=given, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - begun
        summary = json.loads(Path(folder, "run", "summary.json").read_text())
        return Measured(seconds, summary["transitions_per_s"], Path(folder, "run", "metrics.csv").read_bytes())


def pair(checkouts: list[Path], case: str, caches: list[Path]) -> list[Measured]:
    """A command in both checkouts, one after the other."""
    arguments, environment, cold = CASES[case]
    found = []
    for checkout, cache in zip(checkouts, caches, strict=True):
        with tempfile.TemporaryDirectory() as empty:
            found.append(run(checkout, arguments, environment, Path(empty) if cold else cache))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs=2, type=Path, metavar="CHECKOUT")
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    print("| command | | before | after | ratio | range |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        for case in CASES:
            caches = [Path(first), Path(second)]
            pair(chosen.checkouts, case, caches)  # Compiles, and brings files into memory.
            found = [pair(chosen.checkouts, case, caches) for _ in range(chosen.repeats)]
            same = all(one.outcome == other.outcome for one, other in found)
            for what, old, new in (
                ("seconds", *([one[side].seconds for one in found] for side in (0, 1))),
                ("million/s", *([one[side].rate / 1e6 for one in found] for side in (0, 1))),
            ):
                ratios = [b / a if what == "million/s" else a / b for a, b in zip(old, new, strict=True)]
                cells = f"{statistics.median(old):.2f} | {statistics.median(new):.2f} | {statistics.median(ratios):.2f}"
                print(f"| {case} | {what} | {cells} | {min(ratios):.2f}–{max(ratios):.2f} |", flush=True)
            print(f"| | metrics.csv | | | {'the same bytes' if same else 'other bytes'} | |", flush=True)


if __name__ == "__main__":
    main()
