"""All that a machine with a GPU must answer, in one call of at most nine minutes, or as many seconds as are given.

    python benchmarks/gpu.py [--only NAME,NAME] [--seconds 530] [--out NAME]
    python benchmarks/gpu.py --dry-run --out FOLDER/NAME    # the same on a CPU, at sizes that take seconds

Every section runs in a process of its own with a time of its own, so that one that fails or hangs costs only itself;
what it had measured by then is kept. Those that measure no time run side by side, first. Writes one page and one JSON
file, with device and commit, to benchmarks/results/gpu-DEVICE.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from gpu_questions import (
    AGREEMENT,
    ROOT,
    Plan,
    Row,
    agreement,
    command,
    deterministic,
    device_name,
    figures,
    last_line,
    machine,
    profile,
    programs,
    rates,
    replay,
    tests,
)

TOTAL_SECONDS = 530.0

SLOW = (
    *(f"agreement-{case}" for case in AGREEMENT if case != "pendulum"), "rates-graph", "rates-eager", "deterministic",
    "rates-compile", "profile",
)  # fmt: skip
"""What a dry run leaves out: it needs a GPU, takes long, or is another question's function with another engine."""


class Section(NamedTuple):
    """A question."""

    answer: Callable[[Plan], Iterator[Row]]
    seconds: float
    """At most."""
    about: str = ""
    """An engine or a case."""
    alone: bool = True
    """Whether it measures times."""


SECTIONS = {
    "tests": Section(tests, 150.0, alone=False),
    **{f"agreement-{case}": Section(agreement, 150.0, case, alone=False) for case in AGREEMENT},
    "machine": Section(machine, 30.0),
    "rates-fused": Section(rates, 60.0, "fused"),
    "profile": Section(profile, 40.0),
    "programs": Section(programs, 60.0),
    "command": Section(command, 50.0),
    "figures": Section(figures, 90.0),
    "replay-fused": Section(replay, 40.0, "fused"),
    "rates-graph": Section(rates, 60.0, "graph"),
    "rates-eager": Section(rates, 20.0, "eager"),
    "deterministic": Section(deterministic, 30.0),
    "rates-compile": Section(rates, 60.0, "compile"),
}
"""What is missed most comes first; the last take what time is left."""


def run_section(name: str, seconds: float, *, dry: bool) -> dict[str, Any]:
    """Rows of a section from a process of its own, and how it ended."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        given = [sys.executable, __file__, "--section", name, "--rows", str(path)]
        given += ["--dry-run"] if dry else []
        process = subprocess.Popen(given, stderr=subprocess.PIPE, text=True, start_new_session=True)
        try:
            error = process.communicate(timeout=seconds)[1].strip()
            status = "done" if process.returncode == 0 else f"exit code {process.returncode}: {last_line(error)}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.communicate()
            status = f"stopped after {seconds:.0f} s"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {"status": status, "seconds": time.perf_counter() - begun, "rows": rows}
    print(f"{name}: {done['status']}, {done['seconds']:.0f} s", flush=True)
    return done


def answers(wanted: list[str], until: float, *, dry: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Sections as they end: those that measure no time side by side, but in a dry run, then one after the other."""

    def at_most(name: str) -> float:
        return max(1.0, min(SECTIONS[name].seconds, until - time.perf_counter()))

    together = [name for name in wanted if not SECTIONS[name].alone]
    with ThreadPoolExecutor(1 if dry else max(1, len(together))) as pool:
        running = {pool.submit(run_section, name, at_most(name), dry=dry): name for name in together}
        yield from ((running[done], done.result()) for done in as_completed(running))
    yield from ((name, run_section(name, at_most(name), dry=dry)) for name in wanted if name not in together)


def write_rows(name: str, path: Path, plan: Plan) -> None:
    """In the section's process: one line a row, as soon as it is there."""
    import torch

    sys.path[:0] = [str(ROOT)]
    with path.open("w") as file, torch.no_grad():
        for row in SECTIONS[name].answer(plan):
            file.write(json.dumps(row) + "\n")
            file.flush()


def write(out: Path, found: dict[str, Any]) -> None:
    """The page and the JSON file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    out.with_suffix(".md").write_text(page(found))


def page(found: dict[str, Any]) -> str:
    """Everything as Markdown."""
    lines = ["# On a GPU", "", f"{found['device']}; {found['versions']}; commit {found['commit']}; "
             f"{found['seconds']:.0f} s; `python benchmarks/gpu.py`"]  # fmt: skip
    for name, section in found["sections"].items():
        what = (SECTIONS[name].answer.__doc__ or "").strip()
        lines += ["", f"## {name}", "", f"{what} ({section['status']}, {section['seconds']:.0f} s)", ""]
        columns = list(dict.fromkeys(key for row in section["rows"] for key in row))
        if columns:
            lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in section["rows"]]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)
    return text.replace("|", "\\|")


def main() -> int:
    """Measure and write; the exit code says whether every section came to its end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, at sizes that take seconds")
    parser.add_argument("--only", help="sections, separated by commas")
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="in all; default: %(default)s")
    parser.add_argument("--out", type=Path, help="where to write, without a suffix; default: benchmarks/results/gpu-…")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    device = "cpu" if chosen.dry_run else "cuda"
    if chosen.section:
        write_rows(chosen.section, chosen.rows, Plan(device, chosen.dry_run, SECTIONS[chosen.section].about))
        return 0
    import torch

    from torchq.versions import git_commit, versions

    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: expected a machine with a CUDA GPU, found none; --dry-run needs none")
    wanted = (
        chosen.only.split(",") if chosen.only else [name for name in SECTIONS if not (chosen.dry_run and name in SLOW)]
    )
    if unknown := [name for name in wanted if name not in SECTIONS]:
        raise SystemExit(f"error: --only: expected some of {', '.join(SECTIONS)}, got {', '.join(unknown)}")
    name, begun = device_name(device), time.perf_counter()
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    out = chosen.out or Path(__file__).parent / "results" / f"gpu-{slug}"
    found: dict[str, Any] = {"device": name, "versions": versions(), "commit": git_commit(), "sections": {}}
    for section, done in answers(wanted, begun + chosen.seconds, dry=chosen.dry_run):
        found["sections"][section] = done
        write(out, {**found, "seconds": time.perf_counter() - begun})  # Whatever becomes of the rest.
    print(out.with_suffix(".md").read_text())
    return int(any(done["status"] != "done" for done in found["sections"].values()))


if __name__ == "__main__":
    sys.exit(main())
