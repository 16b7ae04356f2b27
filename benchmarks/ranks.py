"""What two ranks of torchrun gain over one, seeds or tasks shared, and what more of them would.

    python benchmarks/ranks.py [--repeats 5] [--seconds 8] [--out NAME]

One process on one core beside two ranks on two cores, in turns; rates are those of summary.json, without the start of
the processes. Then the message of an update and what exchanging it takes here, and from these and the rates of
benchmarks/results/gpu-nvidia-h200.md what 8 and 64 GPUs would do, with the assumptions beside it. Prints Markdown and
writes it to benchmarks/results/ranks-cpu.md.
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

from torchq.versions import git_commit

ROOT = Path(__file__).parent.parent
CASES = {
    "seeds: 16 runs of 4 pendulums": ("--num-seeds", "16", "--shard", "seeds", "--num-envs", "32"),
    "tasks: 4,096 pendulums": ("--num-seeds", "1", "--shard", "tasks", "--num-tasks", "4096", "--num-envs", "4"),
    "tasks: 32,768 pendulums": ("--num-seeds", "1", "--shard", "tasks", "--num-tasks", "32768", "--num-envs", "8"),
}
PLAIN = ("--algo", "stlrq", "--engine", "fused", "--no-optimal", "--no-progress", "--device", "cpu",
         "--replay-ratio", "0")  # fmt: skip
GPU_RATE, GPU_BATCH = 3.0e9, 1 << 20
"""Transitions per second of one H200 with 65,536 tasks, and those of a step: benchmarks/results/gpu-nvidia-h200.md."""
LATENCY = {1: 0.0, 8: 25e-6, 64: 60e-6}
"""Assumed seconds of an all-gather of a few kilobytes: NCCL within a machine by NVLink, and between eight machines."""
EXCHANGE = """
import sys, time, torch
from torchq.ranks import join
ranks, size = join(), int(sys.argv[1])
sent, received = torch.zeros(size, dtype=torch.uint8), torch.zeros(size * ranks.count, dtype=torch.uint8)
for repeat in range(600):
    if repeat == 100: begun = time.perf_counter()
    ranks.exchange(sent, received)
if ranks.index == 0: print((time.perf_counter() - begun) / 500)
"""


def rate(ranks: int, case: tuple[str, ...], episodes: int, folder: Path) -> float:
    """Transitions per second of a run."""
    out = folder / "run"
    subprocess.run(["rm", "-rf", str(out)], check=True)
    given = [
        str(ROOT / "train.py"),
        *PLAIN,
        *case,
        "--episodes",
        str(episodes),
        "--eval-every",
        str(episodes),
        "--out",
        str(out),
    ]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = ["taskset", "-c", "0", sys.executable, *given] if ranks == 1 else [*launcher, *given]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return float(json.loads((out / "summary.json").read_text())["transitions_per_s"])


def exchange_seconds(ranks: int, size: int) -> float:
    """Of one exchange of so many bytes between ranks on this machine."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(EXCHANGE)
        script.flush()
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        done = subprocess.run([*launcher, script.name, str(size)], check=True, capture_output=True, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})  # fmt: skip
    return float(done.stdout)


def table(repeats: int, seconds: float, folder: Path) -> list[str]:
    """Rates of one and two ranks, and their ratios."""
    lines = [
        "| shared | one rank, one core | two ranks | ratio, median of " + f"{repeats} | all |",
        "|---|---|---|---|---|",
    ]
    for name, case in CASES.items():
        per_episode = 200.0 * int(case[case.index("--num-envs") + 1]) * int(case[1])
        per_episode *= int(case[case.index("--num-tasks") + 1]) if "--num-tasks" in case else 4
        episodes = max(2, int(rate(1, case, 2, folder) * seconds / per_episode))
        found = [[rate(ranks, case, episodes, folder) for ranks in (1, 2)] for _ in range(repeats)]
        ratios = [two / one for one, two in found]
        one, two = (statistics.median(column) for column in zip(*found, strict=True))
        shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        lines.append(
            f"| {name} | {one / 1e6:.1f} M/s | {two / 1e6:.1f} M/s | **{statistics.median(ratios):.2f}** | {shown} |"
        )
    return lines


def projected(size: int) -> list[str]:
    """What more GPUs would do, were the assumptions true."""
    step = GPU_BATCH / GPU_RATE
    lines = ["| GPUs | tasks | step | of it the exchange | transitions/s | efficiency |", "|---|---|---|---|---|---|"]
    for gpus, latency in LATENCY.items():
        for grows in (False, True):
            if gpus == 1 and grows:
                continue
            compute = step if grows else step / gpus
            whole = compute + latency
            done = (GPU_BATCH * gpus if grows else GPU_BATCH) / whole
            tasks = 65_536 * (gpus if grows else 1)
            lines.append(f"| {gpus} | {tasks:,} | {whole * 1e6:.0f} µs | {latency / whole:.0%} | {done / 1e9:.1f} G "
                         f"| {done / GPU_RATE / gpus:.0%} |")  # fmt: skip
    lines.append("")
    lines.append(
        f"Assumed: the rate of one H200 with 65,536 tasks of 16 environments (3.0 G transitions/s, {step * 1e6:.0f} µs "
        f"a step); an all-gather of {size:,} bytes takes 25 µs among 8 GPUs of a machine and 60 µs among 64 of eight, "
        "which was not measured; nothing of it is hidden behind other work."
    )
    return lines


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--out", default="ranks-cpu")
    given = parser.parse_args()
    begun, size = time.time(), (20 + 20 + 10) * 32 * 4
    with tempfile.TemporaryDirectory() as folder:
        lines = ["# Ranks", "", f"Commit {git_commit()}, two cores; `python benchmarks/ranks.py`.", "",
                 *table(given.repeats, given.seconds, Path(folder)), "", "## The message", "",
                 "| bytes a rank | 2 ranks | 4 ranks |", "|---|---|---|"]  # fmt: skip
        for bytes_sent in (size, 10 * size):
            took = [f"{exchange_seconds(ranks, bytes_sent) * 1e6:.0f} µs" for ranks in (2, 4)]
            lines.append(f"| {bytes_sent:,} | {' | '.join(took)} |")
    lines += ["", "## Projected", "", *projected(size), "", f"({time.time() - begun:.0f} s)", ""]
    text = "\n".join(lines)
    print(text)
    (ROOT / "benchmarks" / "results" / f"{given.out}.md").write_text(text)


if __name__ == "__main__":
    main()
