"""The whole study and the layer's example at two commits: wall time of each command, and whether results are the same.

    git worktree add ../before 486e6e7
    python benchmarks/studies_in_turns.py ../before . [--repeats 1]

Commands run one after the other in turns, each in a process of its own, starts and imports included. Prints Markdown
and writes it to benchmarks/results/studies_in_turns.md.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from torchq.versions import versions

STUDY = ("lmi-ql --penalty trace", "lmi-ql --penalty data", "lmi-qli", "lspi")
"""Methods of the case study."""
RUNS = 120
EXAMPLE = "examples/learn_features.py"


def seconds(checkout: Path, arguments: list[str]) -> float:
    """Of a command in a checkout, NaN if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=checkout, env=environment, capture_output=True)
    return float("nan") if done.returncode else time.perf_counter() - begun


def commit(checkout: Path) -> str:
    """Of a checkout."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def medians(folder: Path) -> dict[str, float]:
    """Median of the return minus the optimal one, of the same starts, at each number of samples."""
    returns = defaultdict(list)
    with (folder / "metrics.csv").open() as lines:
        for row in csv.DictReader(lines):
            returns[row["samples"]].append(float(row["return"]) - float(row["optimal_return"]))
    return {size: statistics.median(of_size) for size, of_size in returns.items()}


def study(checkouts: list[Path], algo: str) -> tuple[list[float], float]:
    """Seconds in each checkout, and the largest difference of a median at any size that both have."""
    found, times = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number, checkout in enumerate(checkouts):
            out = Path(folder) / str(number)
            command = ["train.py", "--algo", *algo.split(), "--num-seeds", str(RUNS), "--out", str(out)]
            times.append(seconds(checkout, command))
            found.append(medians(out))
    both = found[0].keys() & found[1].keys()
    return times, max(abs(found[0][size] - found[1][size]) for size in both)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs=2, type=Path)
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    checkouts = [checkout.resolve() for checkout in given.checkouts]
    rows, totals = [], [0.0, 0.0]
    for algo in STUDY:
        runs = [study(checkouts, algo) for _ in range(given.repeats)]
        times = [statistics.median(run[0][side] for run in runs) for side in (0, 1)]
        totals = [total + each for total, each in zip(totals, times, strict=True)]
        rows.append((f"`train.py --algo {algo} --num-seeds {RUNS}`", times, f"{runs[0][1]:.1e}"))
    rows.append(("the study", totals, ""))
    runs_of_example = [[seconds(checkout, [EXAMPLE]) for checkout in checkouts] for _ in range(given.repeats)]
    rows.append((f"`{EXAMPLE}`", [statistics.median(run[side] for run in runs_of_example) for side in (0, 1)], ""))
    commits = [commit(checkout) for checkout in checkouts]
    lines = [
        "# The case study at two commits", "",
        f"{platform.machine()}, {os.cpu_count()} cores; {versions()}; `python benchmarks/studies_in_turns.py`", "",
        f"| command | {commits[0]}, s | {commits[1]}, s | ratio | largest difference of a median |",
        "|---|---|---|---|---|",
        *(f"| {name} | {old:.1f} | {new:.1f} | **{old / new:.1f}** | {apart} |" for name, (old, new), apart in rows),
    ]  # fmt: skip
    text = "\n".join(lines) + "\n"
    print(text)
    (Path(__file__).parent / "results" / "studies_in_turns.md").write_text(text)


if __name__ == "__main__":
    main()
