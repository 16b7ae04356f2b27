"""What `gpu.py` asks of a machine with a GPU: each question answers with rows, as they come."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent

Row = dict[str, Any]
"""One line of a section's table; keys are its columns."""


class Plan(NamedTuple):
    """What a section is asked for."""

    device: str
    dry: bool
    about: str = ""
    """The engine, or the case, that the section is about, if any."""

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
    """The tests that need a GPU, file by file and side by side; in a dry run they are only collected."""
    paths = sorted((ROOT / "tests").glob("*/test_*.py"))
    files = [str(path.relative_to(ROOT)) for path in paths if "mark.gpu" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-m", "gpu", "-o", "addopts="]
    command += ["-p", "no:cacheprovider", "-p", "no:benchmark"]  # pytest-benchmark warns beside xdist.
    command += ["--collect-only"] if plan.dry else ["-n", "6"] if importlib.util.find_spec("xdist") else []
    groups = [files] if plan.dry else [[name] for name in files]
    running = [
        subprocess.Popen([*command, *group], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for group in groups
    ]  # fmt: skip
    for group, process in zip(groups, running, strict=True):
        lines = [line for line in process.communicate()[0].splitlines() if line.strip()] or ["nothing was printed"]
        kinds = {kind: "; ".join(line for line in lines if line.startswith(start))
                 for kind, start in (("failed", ("FAILED", "ERROR", "E  ")), ("skipped", "SKIPPED"))}  # fmt: skip
        yield {"files": ", ".join(group), "exit code": process.returncode, "end": lines[-1], **kinds}


AGREEMENT = {
    "pendulum": ("pendulum", "default", 20),
    "wireless": ("wireless", "default", 20),
    "paper": ("pendulum", "paper", 4),
    "cartpole": ("cartpole", "default", 2),
    "storage": ("storage", "default", 2),
}
"""Environment, preset and rounds of short runs."""


def agreement(plan: Plan) -> Iterator[Row]:
    """Short runs against those of eager mode: how far factors are apart after one round and at the end, and returns."""
    env, preset, rounds = ("pendulum", "default", 2) if plan.dry else AGREEMENT[plan.about]
    reference: Any = None
    for engine in ("eager", "fused") if plan.dry else ("eager", "fused", "graph", "compile"):
        row: Row = {"env": env, "preset": preset, "engine": engine, "rounds": rounds}
        begun = time.perf_counter()
        try:
            *found, returns = _short_run(plan, env, preset, engine, rounds)
        except Exception as error:  # Of one engine; the others go on.
            yield row | {"note": first_line(error)}
            continue
        reference = reference or found
        for name, ours, theirs in zip(("apart after 1 round", "at the end"), found, reference, strict=True):
            row[name] = _apart(ours, theirs)
        row["return, tasks 0/1/2/3"] = " / ".join(f"{value:.1f}" for value in returns)
        yield row | {"seconds": time.perf_counter() - begun}


def _short_run(plan: Plan, env: str, preset: str, engine: str, rounds: int) -> tuple[list[Any], list[Any], list[float]]:
    """Factors after the first round and at the end of a run, and its final greedy returns."""
    from torchq import families
    from torchq.presets import resolve
    from torchq.runs.experiment import prepare

    given = {"num_seeds": 2 if plan.dry else 8, "episodes": rounds, "eval_every": 1, "dtype": "float64", "num_tasks": 4}
    config = resolve("stlrq", env, preset, {**given, "engine": engine, "device": plan.device, "optimal": False})
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


def profile(plan: Plan) -> Iterator[Row]:
    """Where the time of the fused engine's steps goes: the kernels that take most of it."""
    import throughput
    import torch

    for env, envs, options in (
        ("pendulum", 1 << 20, throughput.PLAIN), ("pendulum", 4, {"num_seeds": 8}),
        ("wireless", 4096, {"replay_batch": 1024, "replay_ratio": 1}),
    ):  # fmt: skip
        run = throughput.prepare(
            throughput.resolve("stlrq", env, "default", {
                "num_seeds": 1, "engine": "fused", "device": plan.device, "num_envs": envs // 4, **options}),
            throughput.families.make(env),
        )  # fmt: skip
        play = throughput.stepper(run, "fused", throughput.STAGES[2])
        play(50)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            begun = time.perf_counter()
            play(50)
            seconds = time.perf_counter() - begun
        kernels = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)
        busy = sum(event.self_device_time_total for event in kernels)
        for event in kernels[:6]:
            yield {"env": env, "environments": envs, "replay": options.get("replay_ratio", "default"),
                   "us a step": 1e6 * seconds / 50, "kernel": event.key[:40], "launches": event.count,
                   "us each": event.self_device_time_total / event.count,
                   "share of busy": f"{event.self_device_time_total / busy:.0%}"}  # fmt: skip


def rates(plan: Plan) -> Iterator[Row]:
    """Transitions per second by engine, rank, environments and tasks; the limit is that of copying and arithmetic."""
    import throughput

    bounds = throughput.limits(plan.device, *plan.limits)
    update, sizes = throughput.STAGES[2], (64,) if plan.dry else (1 << 12, 1 << 16, 1 << 20)
    kinds = (("pendulum", 8),) if plan.dry else (("pendulum", 8), ("pendulum", 30), ("wireless", 8))
    cases = [(env, rank, size, 4) for env, rank in kinds for size in sizes]
    if plan.about == "fused":
        cases += [("pendulum", 8, sizes[-1], count) for count in ((16,) if plan.dry else (1024, 65536))]
    if plan.about in ("graph", "compile"):  # Each takes half a minute to compile.
        cases = [("pendulum", 8, size, 4) for size in (sizes[-1], sizes[0])]
    for env, rank, size, count in cases:
        row: Row = {"env": env, "engine": plan.about, "rank": rank, "environments": size, "tasks": count}
        try:
            cell = throughput.measure(env, plan.about, update, rank, size, count, plan.device)
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
            without, again = throughput.measure_replay(env, plan.about, shape, plan.device, 8_000 if plan.dry else None)
            yield {"env": env, "engine": plan.about, "environments": without.batch, "learnt from": again.stage,
                   "without, million/s": without.median / 1e6, "with, million/s": again.median / 1e6}  # fmt: skip


def programs(plan: Plan) -> Iterator[Row]:
    """LMI-QL's relaxation on the case study's data, 100 samples each: instances per second, with and without gradients.

    Gradients are of a batch at a time; a million programs are many of these.
    """
    import small_sdp
    import torch

    from torchq.semidefinite.program import Block, Program
    from torchq.semidefinite.solve import solve

    for batch in (8,) if plan.dry else (1024, 16_384, 65_536):
        sample, gamma = small_sdp.data(100, min(batch, 4096))
        c, A, b, blocks = small_sdp.program_of("(18)", sample, gamma)
        times = -(-batch // len(A))
        A, b = (part.repeat(times, *[1] * (part.dim() - 1)).to(plan.device) for part in (A, b))
        program = Program(c.to(plan.device), A, b, tuple(Block(*(part.to(plan.device) for part in x)) for x in blocks))
        wanted = program._replace(A=A.clone().requires_grad_())
        seconds = []
        for action in (
            partial(solve, program),
            torch.enable_grad()(lambda wanted=wanted: solve(wanted).z.sum().backward()),
        ):
            action()
            begun = time.perf_counter()
            action()
            if plan.device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begun)
        unsolved = int((~solve(program).solved).sum())
        yield {"programs": batch, "solved, thousand/s": batch / seconds[0] / 1e3,
               "with gradients, thousand/s": batch / seconds[1] / 1e3, "not solved": unsolved}  # fmt: skip


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
