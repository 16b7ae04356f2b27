"""What tasks gain by sharing a tensor: its rank, how many tasks, how related, the size of the grid, and convergence.

    python benchmarks/sharing.py [--questions ranks,numbers,related,grids,convergence] [--seeds 16] [--quick]

Writes results/sharing.md, a page with an answer, a picture and tables for each question, on seeds from 100 on, on
which nothing was tuned. Questions that are left out keep the figures that the page has of them; `--questions ""`
writes its answers anew. `--quick` plays a few short episodes without a compiler: enough to see that everything runs;
its figures mean nothing.
"""

from __future__ import annotations

import argparse
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch
from sharing_grids import convergence, grids
from sharing_questions import numbers, ranks, related
from sharing_runs import Plan
from sharing_text import ANSWERS

from torchq.versions import git_commit, versions

QUESTIONS: dict[str, tuple[str, Callable[[Plan], list[str]]]] = {
    "ranks": ("Returns against the rank, and a rule that chooses it", ranks),
    "numbers": ("The number of tasks, at equal samples in all", numbers),
    "related": ("How related the tasks are", related),
    "grids": ("The size of the grid", grids),
    "convergence": ("Convergence", convergence),
}


def sections(page: str) -> dict[str, str]:
    """The sections of a page by their titles."""
    parts = re.split(r"^## (.*)\n", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def main() -> None:
    """Ask, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", default=",".join(QUESTIONS))
    parser.add_argument("--seeds", type=int, default=16, help="runs at most; some questions take fewer")
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--quick", action="store_true", help="a few short episodes, to see that everything runs")
    given = parser.parse_args()
    asked = [name for name in given.questions.split(",") if name]
    if unknown := set(asked) - set(QUESTIONS):
        parser.error(f"--questions: expected some of {', '.join(QUESTIONS)}, got {', '.join(sorted(unknown))}")
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "sharing.md"
    before = sections(path.read_text()) if path.exists() else {}
    plan = Plan(given.out, given.quick, given.first_seed, 2 if given.quick else given.seeds)
    where = f"{platform.machine()}; {versions()}"
    about = "`python benchmarks/sharing.py`: the default protocol but for what is named, on the CPU, seeds from 100 on."
    lines = ["# What tasks gain by sharing a tensor", "", about, ""]
    if given.quick:
        lines += ["A quick try: the figures mean nothing.", ""]
    for name, (title, ask) in QUESTIONS.items():
        answer = f"> {ANSWERS[name]}".replace("\n", "\n> ")
        lines += [f"## {title}", "", *([] if given.quick else [answer, ""])]
        if name not in asked:
            lines += [re.sub(r"\A(>.*\n)+", "", before.get(title, "Not asked yet.").strip()).strip(), ""]
            continue
        begun = time.process_time()
        found = ask(plan)
        took = f"{where}; commit {git_commit()}; {time.process_time() - begun:.0f} s of processor time."
        lines += [*found, "", took, ""]
        print(f"{title}: {took}", flush=True)
    path.write_text("\n".join(lines).rstrip() + "\n")
    print(path.name)


if __name__ == "__main__":
    with torch.no_grad():
        main()
