"""What `gpu.py` asks of a machine with a GPU: each question answers with rows, as they come."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent

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

    name = device_name(plan.device)
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
        lines = [line for line in done.stdout.splitlines() if line.strip()] or [last_line(done.stderr.strip())]
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
            yield row | {"million/s": None, "of the limit": None, "note": first_line(error)}
            continue
        if cell is None:
            yield row | {"million/s": None, "of the limit": None, "note": "too slow to repeat"}
            continue
        moved, operations = throughput.cost(throughput.make(env, rank, count, count, "cpu"), update)
        share = max(cell.median * moved / bounds.copy, cell.median * operations / bounds.peak)
        yield row | {"million/s": cell.median / 1e6, "of the limit": f"{share:.1%}", "note": ""}


def replay(plan: Plan) -> Iterator[Row]:
    """Transitions learnt from per second, each once as it comes, and with stored ones beside it."""
    import throughput

    for env in ("pendulum",) if plan.dry else ("pendulum", "wireless"):
        for shape in throughput.REPLAY_SHAPES[:1] if plan.dry else throughput.REPLAY_SHAPES:
            without, again = throughput.measure_replay(
                env, plan.engine, shape, plan.device, 8_000 if plan.dry else None
            )
            yield {"env": env, "engine": plan.engine, "environments": without.batch, "learnt from": again.stage,
                   "without, million/s": without.median / 1e6, "with, million/s": again.median / 1e6}  # fmt: skip


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


def first_line(error: BaseException) -> str:
    """Of an error."""
    return f"{type(error).__name__}: {error}".strip().partition("\n")[0]


def last_line(text: str) -> str:
    """Of a text."""
    return text.rpartition("\n")[2]


def device_name(device: str) -> str:
    """As a page calls it."""
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else f"CPU ({platform.machine()})"
