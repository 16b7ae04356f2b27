"""All that a machine with a GPU must answer, in one call of at most nine minutes.

    python benchmarks/gpu.py [--only NAME,NAME] [--out NAME]
    python benchmarks/gpu.py --dry-run --out FOLDER/NAME    # the same on a CPU, at sizes that take seconds

Every section runs in a process of its own with a time of its own, so that one that fails or hangs costs only itself;
what it had measured by then is kept. Writes one page and one JSON file, with device and commit, to
benchmarks/results/gpu-DEVICE.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TOTAL_SECONDS = 530.0

Row = dict[str, Any]
"""One line of a section's table; keys are its columns."""


class Plan(NamedTuple):
    """What a section is asked for."""

    device: str
    dry: bool
    scratch: Path
    """A folder that all sections share."""
    engine: str = ""
    """Which one to look at, where the section is about one."""

    @property
    def limits(self) -> tuple[int, ...]:
        """Sizes of what shows the machine's limits; the usual ones but in a dry run."""
        return (1 << 20, 256) if self.dry else ()


def machine(plan: Plan) -> Iterator[Row]:
    """What it can do: best of ten large copies and single-precision matrix products."""
    import throughput

    name = _device_name(plan.device)
    bounds = throughput.limits(plan.device, *plan.limits)
    yield {"device": name, "copy, GB/s": bounds.copy / 1e9, "matrix product, Tflop/s": bounds.peak / 1e12}


def tests(plan: Plan) -> Iterator[Row]:
    """The tests that need a GPU, file by file; in a dry run they are only collected."""
    names = sorted(path.stem for path in (ROOT / "tests" / "engines").glob("test_*.py"))
    files = [name for name in names if "mark.gpu" in (ROOT / "tests" / "engines" / f"{name}.py").read_text()]
    for group in [files] if plan.dry else [[name] for name in files]:
        command = [sys.executable, "-m", "pytest", "-q", "-rs", "-m", "gpu", "-o", "addopts=", "-p", "no:cacheprovider"]
        more = ["--collect-only"] if plan.dry else []
        paths = [f"tests/engines/{name}.py" for name in group]
        done = subprocess.run([*command, *more, *paths], cwd=ROOT, capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.strip()] or [_last(done.stderr.strip())]
        kinds = {kind: "; ".join(line for line in lines if line.startswith(start))
                 for kind, start in (("failed", ("FAILED", "ERROR")), ("skipped", "SKIPPED"))}  # fmt: skip
        yield {"files": ", ".join(group), "exit code": done.returncode, "end": lines[-1], **kinds}


def agreement(plan: Plan) -> Iterator[Row]:
    """Short runs against those of eager mode: how far factors are apart after one round and at the end, and returns."""
    import torch

    cases = (("pendulum", "default", 20), ("wireless", "default", 20), ("pendulum", "paper", 4))
    for env, preset, rounds in (("pendulum", "default", 2),) if plan.dry else cases:
        row: Row = {"env": env, "preset": preset, "engine": plan.engine, "rounds": rounds}
        begun = time.perf_counter()
        one, many, returns = _short_run(plan, env, preset, rounds)
        seconds, path = time.perf_counter() - begun, plan.scratch / f"{env}-{preset}.pt"
        if plan.engine == "eager":
            torch.save((one, many), path)
        reference = torch.load(path) if path.exists() else None
        for name, factors, number in (("apart after 1 round", one, 0), ("at the end", many, 1)):
            row[name] = _apart(factors, reference[number]) if reference else "no run in eager mode"
        row["return, tasks 0/1/2/3"] = " / ".join(f"{value:.1f}" for value in returns)
        yield row | {"seconds": seconds}


def _short_run(plan: Plan, env: str, preset: str, rounds: int) -> tuple[list[Any], list[Any], list[float]]:
    """Factors after the first round and at the end of a run, and its final greedy returns."""
    from torchq import families
    from torchq.presets import resolve
    from torchq.runs.experiment import prepare

    given = {"num_seeds": 2 if plan.dry else 8, "episodes": rounds, "eval_every": 1, "dtype": "float64"}
    config = resolve("stlrq", env, preset, {**given, "engine": plan.engine, "device": plan.device})
    run = prepare(config, families.make(env))
    state, _ = run.play_block(run.initial_state, 0, 1)
    one = [factor.double().cpu() for factor in state.learner.factors]
    state, evaluations = run.play_block(state, 1, rounds - 1)
    many = [factor.double().cpu() for factor in state.learner.factors]
    return one, many, evaluations[-1].returns.median(0).values.tolist()


def _apart(factors: list[Any], reference: list[Any]) -> str:
    """Largest relative difference of a factor."""
    found = ((ours - theirs).norm() / theirs.norm() for ours, theirs in zip(factors, reference, strict=True))
    return f"{max(float(value) for value in found):.1e}"


def rates(plan: Plan) -> Iterator[Row]:
    """Transitions per second by engine, rank, environments and tasks; the limit is that of copying and arithmetic."""
    import throughput

    bounds = throughput.limits(plan.device, *plan.limits)
    update, sizes = throughput.STAGES[2], (64,) if plan.dry else (1 << 12, 1 << 16, 1 << 20)
    kinds = (("pendulum", 8),) if plan.dry else (("pendulum", 8), ("pendulum", 30), ("wireless", 8))
    cases = [(env, rank, size, 4) for env, rank in kinds for size in sizes]
    if plan.engine == "fused":
        cases += [("pendulum", 8, sizes[-1], count) for count in ((16,) if plan.dry else (1024, 65536))]
    if plan.engine in ("graph", "compile"):  # Each takes half a minute to compile.
        cases = [("pendulum", 8, size, 4) for size in (sizes[-1], sizes[0])]
    for env, rank, size, count in cases:
        row: Row = {"env": env, "engine": plan.engine, "rank": rank, "environments": size, "tasks": count}
        try:
            cell = throughput.measure(env, plan.engine, update, rank, size, count, plan.device)
        except Exception as error:  # Of one cell; the others go on.
            yield row | {"million/s": None, "of the limit": None, "note": _line(error)}
            continue
        if cell is None:
            yield row | {"million/s": None, "of the limit": None, "note": "too slow to repeat"}
            continue
        moved, operations = throughput.cost(throughput.make(env, rank, count, count, "cpu"), update)
        share = max(cell.median * moved / bounds.copy, cell.median * operations / bounds.peak)
        yield row | {"million/s": cell.median / 1e6, "of the limit": f"{share:.1%}", "note": ""}


def figures(plan: Plan) -> Iterator[Row]:
    """The published figures, tests included: as much of each run as fits its share of the time, and so the whole."""
    from torchq import families
    from torchq.engines.torch_settings import wait_for
    from torchq.presets import resolve
    from torchq.runs.experiment import prepare

    seconds = 0.1 if plan.dry else 8.0
    for env, runs in (("pendulum", 100),) if plan.dry else (("pendulum", 100), ("wireless", 200)):
        for algo in ("stlrq",) if plan.dry else ("stlrq", "lrq", "clrq"):
            seeds = 2 if plan.dry else runs
            config = resolve(algo, env, "paper", {"num_seeds": seeds, "engine": "fused", "device": plan.device})
            run = prepare(config, families.make(env))
            state, _ = run.play_block(run.initial_state, 0, 1)
            wait_for(run.rollout.device)
            begun, played, count, spent = time.perf_counter(), 0, 1, 0.0
            while played < config.episodes - 1 and spent < seconds:
                count = min(count, config.episodes - 1 - played)
                state, _ = run.play_block(state, 1 + played, count)
                wait_for(run.rollout.device)
                played, spent = played + count, time.perf_counter() - begun
                count = max(1, min(2 * count, int(count * 2.0 * played / spent) if spent else 1))
            per_round = spent / played
            transitions = run.initial_state.statistics.reward[:, :].shape[0] * len(run.task_list)
            rate = transitions * run.rollout.env.episode_length / per_round / 1e6
            yield {"figure": f"{env}, {seeds} runs", "algo": algo, "million/s": rate, "rounds timed": played,
                   "of": config.episodes, "whole figure, s": per_round * config.episodes}  # fmt: skip


def deterministic(plan: Plan) -> Iterator[Row]:
    """What a fixed order of sums costs."""
    import throughput

    from torchq.engines import torch_settings

    size = 64 if plan.dry else 1 << 18
    for engine in ("fused", "eager"):
        found = []
        for wanted in (False, True):
            with torch_settings.deterministic(wanted, plan.device):
                cell = throughput.measure("pendulum", engine, throughput.STAGES[2], 8, size, 4, plan.device)
            found.append(cell.median / 1e6 if cell else float("nan"))
        yield {"engine": engine, "environments": size, "million/s": found[0], "with --deterministic": found[1],
               "cost": f"{found[0] / found[1] - 1:.0%}"}  # fmt: skip


def command(plan: Plan) -> Iterator[Row]:
    """The default command as a user meets it: with nothing compiled, then again."""
    small = ("--episodes", "5", "--num-seeds", "2", "--env", "gridworld") if plan.dry else ()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("once",) if plan.dry else ("nothing compiled yet", "again"):
            given = ["--algo", "stlrq", "--device", plan.device, *small, "--no-progress", "--out", f"{folder}/{name}"]
            environment = {**os.environ, "TORCHQ_CACHE": f"{folder}/cache", "TRITON_CACHE_DIR": f"{folder}/triton"}
            begun = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "train.py", *given], cwd=ROOT, env=environment, capture_output=True, text=True
            )
            seconds = time.perf_counter() - begun
            lines = (done.stdout if done.returncode == 0 else done.stderr).splitlines()
            yield {"run": name, "seconds": seconds, "exit code": done.returncode,
                   "first line": lines[0] if lines else "", "last line": lines[-1] if lines else ""}  # fmt: skip


SLOW = ("agreement-graph", "rates-graph", "rates-eager", "deterministic", "agreement-compile", "rates-compile")
"""What a dry run leaves out: it needs a GPU, takes long, or is another question's function with another engine."""


class Section(NamedTuple):
    """A question."""

    answer: Callable[[Plan], Iterator[Row]]
    seconds: float
    """At most."""
    engine: str = ""


SECTIONS = {
    "machine": Section(machine, 30.0),
    "tests": Section(tests, 150.0),
    "agreement-eager": Section(agreement, 60.0, "eager"),
    "agreement-fused": Section(agreement, 50.0, "fused"),
    "command": Section(command, 50.0),
    "figures": Section(figures, 90.0),
    "rates-fused": Section(rates, 80.0, "fused"),
    "agreement-graph": Section(agreement, 60.0, "graph"),
    "rates-graph": Section(rates, 40.0, "graph"),
    "rates-eager": Section(rates, 20.0, "eager"),
    "deterministic": Section(deterministic, 30.0),
    "agreement-compile": Section(agreement, 60.0, "compile"),
    "rates-compile": Section(rates, 40.0, "compile"),
}
"""What is missed most comes first; the last take what time is left."""


def run_section(name: str, seconds: float, scratch: Path, *, dry: bool) -> dict[str, Any]:
    """Rows of a section from a process of its own, and how it ended."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        given = [sys.executable, __file__, "--section", name, "--rows", str(path), "--scratch", str(scratch)]
        given += ["--dry-run"] if dry else []
        process = subprocess.Popen(given, stderr=subprocess.PIPE, text=True, start_new_session=True)
        try:
            error = process.communicate(timeout=seconds)[1].strip()
            status = "done" if process.returncode == 0 else f"exit code {process.returncode}: {_last(error)}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.communicate()
            status = f"stopped after {seconds:.0f} s"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {"status": status, "seconds": time.perf_counter() - begun, "rows": rows}


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


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().partition("\n")[0]


def _last(text: str) -> str:
    return text.rpartition("\n")[2]


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else f"CPU ({platform.machine()})"


def main() -> int:
    """Measure and write; the exit code says whether every section came to its end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, at sizes that take seconds")
    parser.add_argument("--only", help="sections, separated by commas")
    parser.add_argument("--out", type=Path, help="where to write, without a suffix; default: benchmarks/results/gpu-…")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    device = "cpu" if chosen.dry_run else "cuda"
    if chosen.section:
        plan = Plan(device, chosen.dry_run, chosen.scratch, SECTIONS[chosen.section].engine)
        write_rows(chosen.section, chosen.rows, plan)
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
    name, begun = _device_name(device), time.perf_counter()
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    out = chosen.out or Path(__file__).parent / "results" / f"gpu-{slug}"
    found: dict[str, Any] = {"device": name, "versions": versions(), "commit": git_commit(), "sections": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for section in wanted:
            left = TOTAL_SECONDS - (time.perf_counter() - begun)
            at_most = max(1.0, min(SECTIONS[section].seconds, left))
            done = run_section(section, at_most, Path(scratch), dry=chosen.dry_run)
            print(f"{section}: {done['status']}, {done['seconds']:.0f} s", flush=True)
            found["sections"][section] = done
            write(out, {**found, "seconds": time.perf_counter() - begun})  # Whatever becomes of the rest.
    print(out.with_suffix(".md").read_text())
    return int(any(done["status"] != "done" for done in found["sections"].values()))


if __name__ == "__main__":
    sys.exit(main())
