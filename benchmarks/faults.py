"""A campaign of faults: what kills, full disks, damaged files and nonsense on the command line do to runs.

    python benchmarks/faults.py [--kills 200] [--disks 100] [--mutations 500] [--commands 500] [--seed 0] [--out NAME]

Kills: runs of all kinds of learners and protocols, alone or shared by two ranks, are ended by SIGKILL at random
moments, a rank or all, until they come to their end; what they leave must be, byte for byte, what a run that was left
alone leaves. Disks: a write, a flush or a rename fails with "no space left", or leaves half of a file. Mutations: a
file of a run folder is damaged, and the run resumed or shown. Commands: flags with values of all sorts.

A try is survived if the process ends in time, with exit code 0, or 2 and one line and nothing lost. Prints what was
tried and survived, and what was not with what brings it about; writes benchmarks/results/faults.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

import torchq.runs.recorder  # What is loaded before the children fork is not loaded by each.
import torchq.runs.training
from torchq import checkpoint
from torchq.cli import evaluate, train
from torchq.config import Config, flags, shape
from torchq.versions import git_commit

ROOT = Path(__file__).parent.parent
SECONDS = 60.0
"""In which a process must have ended."""
MEMORY = 8 << 30
SMALL = ("--no-progress", "--no-optimal", "--device", "cpu")
GRID = (*SMALL, "--num-seeds", "2", "--eval-every", "1")
RUNS = {
    "stlrq": ("--algo", "stlrq", "--env", "gridworld", "--engine", "eager", *GRID, "--episodes", "6"),
    "replay": ("--algo", "stlrq", "--env", "wireless", "--engine", "fused", *GRID, "--episodes", "30", "--rank", "4",
               "--replay-ratio", "1", "--replay-batch", "2", "--replay-capacity", "500"),
    "turns": ("--algo", "stlrq", "--env", "pendulum", "--preset", "paper", "--engine", "fused", *GRID,
              "--episodes", "40"),
    "lrq": ("--algo", "lrq", "--env", "cartpole", "--engine", "fused", *GRID, "--episodes", "8", "--rank", "4"),
    "clrq": ("--algo", "clrq", "--env", "pendulum", "--engine", "fused", *GRID, "--episodes", "20", "--rank", "4"),
    "tabular": ("--algo", "tabular", "--env", "gridworld", "--engine", "eager", *GRID, "--episodes", "8"),
    "modes": ("--algo", "stlrq", "--env", "pendulum", "--engine", "fused", *GRID, "--num-tasks", "12",
              "--episodes", "20", "--rank", "4", "--task-modes", "linear", "--held-out", "0.2"),
    "study": ("--algo", "lspi", "--no-progress", "--num-seeds", "3", "--num-tasks", "1", "--sizes", "20,40"),
}  # fmt: skip
SHARED = (
    "--algo", "stlrq", "--env", "pendulum", "--engine", "fused", *SMALL, "--num-seeds", "1", "--num-tasks", "40",
    "--num-envs", "16", "--rank", "4", "--episodes", "60", "--eval-every", "1", "--replay-ratio", "0",
)  # fmt: skip


class Ended(NamedTuple):
    """How a process ended."""

    code: int | None
    """None: it did not, in time."""
    out: str
    err: str

    @property
    def orderly(self) -> bool:
        """Whether it succeeded, or refused in one line."""
        return self.code == 0 or (self.code == 2 and self.err.startswith("error: ") and self.err.count("\n") == 1)


def forked(work: Callable[[], int], folder: Path, kill_after: float | None = None) -> Ended:
    """A function in a process of its own, which is killed after some seconds, or when it has not ended in time."""
    paths = [folder / "out.txt", folder / "err.txt"]
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            os.setpgid(0, 0)
            for number, path in enumerate(paths, 1):
                os.dup2(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), number)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            code = _run(work)
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    until, code = time.monotonic() + (kill_after or SECONDS), None
    while code is None and time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
        else:
            time.sleep(0.002)
    if code is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return Ended(code, *(path.read_text(errors="replace") for path in paths))


def _run(work: Callable[[], int]) -> int:
    import traceback

    try:
        return work()
    except SystemExit as error:
        return int(error.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1


def trained(*arguments: Any) -> Callable[[], int]:
    """train.py with these arguments, a checkpoint after every block."""

    def work() -> int:
        torchq.runs.training.CHECKPOINT_SECONDS = 0.0
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"
        return train.main([str(argument) for argument in arguments])

    return work


def outcome(folder: Path) -> Any:
    """What a run leaves that must not depend on what happened to it."""
    config = json.loads((folder / "config.json").read_text())
    tensors, _ = checkpoint.load_checkpoint(folder / "checkpoint", config["algo"]) or ({}, {})
    rows = (folder / "metrics.csv").read_text()
    if "solver_seconds" in rows or config["algo"] in ("lspi", "lmi-ql", "lmi-qli"):
        rows = "\n".join(line.rpartition(",")[0] for line in rows.splitlines())  # Without the time it took.
    return rows, {name: tensor.numpy().tobytes() for name, tensor in sorted(tensors.items())}


class Campaign:
    """Counts what was tried and survived.

    Args:
        seed: of what is tried.
        folder: to work in.
    """

    def __init__(self, seed: int, folder: Path) -> None:
        self.random, self.folder = random.Random(seed), folder
        self.tried: dict[str, int] = {}
        self.lost: list[tuple[str, str, str]] = []
        self._whole: dict[str, Any] = {}

    def count(self, kind: str, survived: bool, what: str, told: str) -> None:
        """Note a try."""
        self.tried[kind] = self.tried.get(kind, 0) + 1
        if not survived:
            self.lost.append((kind, what, told.strip()[-600:]))
            print(f"{kind} not survived: {what}\n{told.strip()[-1500:]}\n", flush=True)

    def fresh(self, name: str) -> Path:
        """A folder that is not there yet."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        return path

    def whole(self, name: str) -> Path:
        """A run of a kind that was left alone."""
        path = self.folder / "whole" / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            done = forked(trained(*RUNS[name], "--out", path), self.folder)
            assert done.code == 0, (name, done.err)
        return path

    def kill(self, name: str) -> None:
        """Kill a run until it has come to its end."""
        expected, out = outcome(self.whole(name)), self.fresh("killed")
        for _ in range(self.random.randint(1, 3)):
            resumes = (out / "config.json").exists()
            given = ("--resume", "--no-progress") if resumes else RUNS[name]
            forked(trained(*given, "--out", out), self.folder, self.random.uniform(0.05, 1.5))
        given = ("--resume", "--no-progress") if (out / "config.json").exists() else RUNS[name]
        done = forked(trained(*given, "--out", out), self.folder)
        survived = done.code == 0 and outcome(out) == expected
        self.count("kills", survived, f"{name}, killed", done.err or "other bytes")

    def kill_rank(self) -> None:
        """Kill one of two ranks, or both, of a run that torchrun starts again."""
        path, out = self.folder / "whole" / "shared", self.fresh("killed")
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            done = forked(trained(*SHARED, "--out", path), self.folder)
            assert done.code == 0, done.err
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                    "--max-restarts", "3", ROOT / "train.py", *SHARED, "--out", out]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(list(map(str, launcher)), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                   text=True, env=environment)  # fmt: skip
        time.sleep(self.random.uniform(3.0, 7.0))
        listed = subprocess.run(["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, text=True).stdout
        ranks = [int(pid) for pid in listed.split()]
        for pid in ranks if self.random.random() < 0.3 else ranks[:1] if self.random.random() < 0.5 else ranks[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            _, err = process.communicate(timeout=2 * SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            err = "did not end in time"
        survived = process.returncode == 0 and outcome(out) == outcome(path)
        self.count("kills", survived, "two ranks, one or both killed", err)

    def disk(self, name: str) -> None:
        """Let one call that writes fail, then resume."""
        expected, out, number = outcome(self.whole(name)), self.fresh("full"), self.random.randint(1, 30)
        call = self.random.choice(("fsync", "replace", "write"))
        done = forked(_failing(trained(*RUNS[name], "--out", out), call, number), self.folder)
        orderly = done.code == 0 or (done.code == 2 and done.err.splitlines()[-1].startswith("error: "))
        told = f"first {done.code}: {done.err}"
        given = ("--resume", "--no-progress") if (out / "config.json").exists() else RUNS[name]
        again = forked(trained(*given, "--out", out), self.folder)
        survived = orderly and "Traceback" not in done.err and again.code == 0 and outcome(out) == expected
        self.count(
            "disks", survived, f"{name}, {call} number {number} fails", f"{told}\nthen {again.code}: {again.err}"
        )

    def mutate(self, name: str) -> None:
        """Damage a file of a run folder; resume it, or show it."""
        source, out = self.whole(name), self.fresh("mutated")
        shutil.copytree(source, out)
        if self.random.random() < 0.5:
            (out / "summary.json").unlink()
        path = self.random.choice(sorted(one for one in out.rglob("*") if one.is_file()))
        what = _damage(path, self.random)
        shows = self.random.random() < 0.5
        if shows:
            work = lambda: evaluate.main([str(out), "--out", str(self.fresh("shown")), "--device", "cpu"])  # noqa: E731
        else:
            work = trained("--resume", "--out", out, "--no-progress")
        done = forked(work, self.folder)
        kept = done.code != 0 or shows or (out / "summary.json").exists()
        command = "evaluate.py" if shows else "train.py --resume"
        self.count("mutations", done.orderly and kept, f"{name}, {path.relative_to(out)} {what}, {command}",
                   done.err or f"exit code {done.code}")  # fmt: skip

    def command(self, arguments: list[str]) -> None:
        """Whatever is asked for, train.py does it or says in one line why not."""
        done = forked(trained(*arguments, "--out", self.fresh("asked")), self.folder)
        refused = done.code == 2 and done.err.splitlines()[-1:] and done.err.splitlines()[-1].startswith("error: ")
        survived = (done.code == 0 or bool(refused)) and "Traceback" not in done.err
        self.count("commands", survived, " ".join(arguments), done.err or f"exit code {done.code}")


def _failing(work: Callable[[], int], call: str, number: int) -> Callable[[], int]:
    """Work whose n-th flush or rename, or write of a file's content, fails; a write leaves half of it."""
    count = 0

    def fails(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*given: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                if call == "write":
                    path, content = given
                    path.with_name(f".{path.name}.tmp").write_bytes(content[: len(content) // 2])
                raise OSError(28, os.strerror(28))
            return original(*given)

        return wrapped

    def broken() -> int:
        if call == "write":
            for module in [m for m in sys.modules.values() if getattr(m, "write_atomically", None)]:
                module.write_atomically = fails(checkpoint.write_atomically)  # type: ignore[attr-defined]
        else:
            setattr(os, call, fails(getattr(os, call)))
        return work()

    return broken


VALUES = (
    "",
    "0",
    "-1",
    "1e999",
    "nan",
    "null",
    "true",
    "[]",
    '"x"',
    "{}",
    "999999999999",
    "1e-320",
    "[[1]]",
    "\x00",
    "é",
)


def _damage(path: Path, chance: random.Random) -> str:
    """Damage a file; what was done to it."""
    content, kind = path.read_bytes(), chance.choice(("cut", "bit", "gone", "empty", "value", "twice", "noise"))
    if kind == "value" and path.suffix == ".json":
        found = json.loads(content)
        key, value = chance.choice(sorted(found)), chance.choice(VALUES)
        found[key] = "@@"
        path.write_text(json.dumps(found).replace('"@@"', value or "[null]"))
        return f"{key} = {value or '[null]'}"
    if kind == "gone":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "twice":
        path.write_bytes(content + content)
    elif kind == "noise":
        path.write_bytes(chance.randbytes(min(len(content), 500)))
    elif kind == "cut":
        path.write_bytes(content[: chance.randrange(len(content))])
    else:
        place = chance.randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ (1 << chance.randrange(8))]) + content[place + 1 :])
    return kind


def commands(count: int, seed: int) -> list[list[str]]:
    """Command lines of all sorts of flags, as Hypothesis draws them."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis import strategies as draw

    numbers = draw.sampled_from(
        ("0", "1", "2", "3", "-1", "0.5", "1.5", "1e-9", "1e9", "nan", "inf", "99999999999", "")
    )
    words = draw.sampled_from(("auto", "none", "x", "--rank", "é", "1,2", "mass=0.1", "../..", "\t", "0.1:1:3"))

    def value(name: str) -> Any:
        names = shape(name).names
        return draw.one_of(*([draw.sampled_from(names)] * 3 if names else []), numbers, words)

    known = [name for name in flags() if name not in ("episodes", "num_seeds", "adapt_from", "warm_start", "data")]
    some = draw.lists(draw.sampled_from(known), min_size=0, max_size=4, unique=True)
    found: list[list[str]] = []

    @seeded(seed)
    @settings(max_examples=count, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(draw.data())
    def collect(data: Any) -> None:
        algo = data.draw(draw.sampled_from(("stlrq", "lrq", "clrq", "tabular", "lspi", "lmi-ql", "dqn", "")))
        env = data.draw(
            draw.sampled_from(("pendulum", "wireless", "gridworld", "cartpole", "storage", "x:y", "gym:None"))
        )
        line = ["--algo", algo, "--no-progress", "--device", "cpu", "--num-seeds", "1"]
        line += [] if algo in ("lspi", "lmi-ql") else ["--env", env, "--episodes", "2", "--no-optimal"]
        for name in data.draw(some):
            said = "--" + name.replace("_", "-")
            if Config.model_fields[name].annotation is bool:
                line.append(said)
            else:
                line += [said, data.draw(value(name))]
        for extra in data.draw(
            draw.lists(draw.sampled_from(("--task", "--vary", "--env-option", "--sweep")), max_size=1)
        ):
            line += [extra, data.draw(draw.one_of(words, numbers))]
        found.append(line)

    collect()
    return found[:count]


def campaign(given: argparse.Namespace, folder: Path) -> Campaign:
    """Try everything."""
    run = Campaign(given.seed, folder)
    names, ranks = given.kinds.split(","), max(1, given.kills // 20) if given.kills >= 20 else 0
    for number in range(given.kills):
        run.kill_rank() if number < ranks else run.kill(names[number % len(names)])
    for number in range(given.disks):
        run.disk(names[number % len(names)])
    for number in range(given.mutations):
        run.mutate(names[number % len(names)])
    for line in commands(given.commands, given.seed) if given.commands else []:
        run.command(line)
    return run


def main() -> int:
    """Try, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, count in {"kills": 200, "disks": 100, "mutations": 500, "commands": 500, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--kinds", default=",".join(RUNS), help="of runs: " + ", ".join(RUNS))
    parser.add_argument("--out", default="faults")
    given, begun = parser.parse_args(), time.time()
    with tempfile.TemporaryDirectory() as folder:
        run = campaign(given, Path(folder))
    lost = {kind: sum(one[0] == kind for one in run.lost) for kind in run.tried}
    lines = ["# Faults", "", f"Commit {git_commit()}; `python benchmarks/faults.py --seed {given.seed}`, "
             f"{time.time() - begun:.0f} s.", "", "| fault | tried | survived |", "|---|---|---|"]  # fmt: skip
    lines += [f"| {kind} | {tried} | {tried - lost[kind]} |" for kind, tried in run.tried.items()]
    lines += ["", *(f"- {kind}: `{what}`: {told.splitlines()[-1] if told else ''}" for kind, what, told in run.lost)]
    text = "\n".join(lines).rstrip() + "\n"
    print(text)
    if given.out:
        (ROOT / "benchmarks" / "results" / f"{given.out}.md").write_text(text)
    return 1 if run.lost else 0


if __name__ == "__main__":
    sys.exit(main())
