"""Transitions per second of the fused engine on a CPU at two commits, in turns: before and after a change.

    git worktree add ../before COMMIT
    python benchmarks/in_turns.py ../before . [--repeats 9]

Each checkout runs in a process of its own with its own `throughput.py`; both are asked for one repeat after the other,
so that what else the machine does meets both. Prints medians in million/s and the median of the ratios.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
from pathlib import Path

CASES = [
    (env, stage, rank, 1 << exponent)
    for env, (stage, rank), exponent in itertools.product(
        ("pendulum", "wireless"), (("environment", 8), ("+ act", 8), ("+ update", 8), ("+ update", 30)), (12, 16)
    )
]
PAPER = [(env, algo) for env in ("pendulum", "wireless") for algo in ("stlrq", "lrq")]
WORKER = """
import sys, time
sys.path[:0] = [{root!r} + "/benchmarks", {root!r}]
import torch, throughput, torchq
assert torchq.__file__.startswith({root!r}), torchq.__file__
plays = [(throughput.stepper(throughput.make(env, rank, batch, 4, "cpu"), "fused", stage), batch)
         for env, stage, rank, batch in {cases!r}]
for play, batch in plays:
    play(1)
papers = [throughput.make_online(env, algo, "fused", "cpu") for env, algo in {papers!r}]
def round_of(run):
    start = time.perf_counter()
    state, _ = run.play(run.initial_state, 0)
    episodes = run.initial_state.statistics.reward.numel()
    return episodes * (100 if run.config.env == "pendulum" else 200) / (time.perf_counter() - start) / 1e6
for run in papers:
    round_of(run)
print("ready", flush=True)
with torch.no_grad():
    for line in sys.stdin:
        rates = []
        for play, batch in plays:
            steps, start = max(4, (1 << 20) // batch), time.perf_counter()
            play(steps)
            rates.append(batch * steps / (time.perf_counter() - start) / 1e6)
        rates += [round_of(run) for run in papers]
        print(*rates, flush=True)
"""


class Checkout:
    """A process that measures all cases when asked."""

    def __init__(self, root: Path) -> None:
        script = WORKER.format(root=str(root.resolve()), cases=CASES, papers=PAPER)
        self.process = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
        )
        self.read()

    def read(self) -> str:
        """The next line."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def measure(self) -> list[float]:
        """One repeat of every case."""
        assert self.process.stdin is not None
        self.process.stdin.write("again\n")
        self.process.stdin.flush()
        return list(map(float, self.read().split()))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs=2, type=Path, metavar="CHECKOUT")
    parser.add_argument("--repeats", type=int, default=9)
    chosen = parser.parse_args()
    before, after = map(Checkout, chosen.checkouts)
    found = [(before.measure(), after.measure()) for _ in range(chosen.repeats)]
    print("| env | stage | rank | environments | before | after | ratio |\n|---|---|---|---|---|---|---|")
    paper = [(env, f"a round of the paper's {algo}, 100 runs", "", 400) for env, algo in PAPER]
    for index, (env, stage, rank, batch) in enumerate([*CASES, *paper]):
        old, new = ([measured[side][index] for measured in found] for side in (0, 1))
        ratio = statistics.median(b / a for a, b in zip(old, new, strict=True))
        medians = f"{statistics.median(old):.1f} | {statistics.median(new):.1f}"
        print(f"| {env} | {stage} | {rank} | {batch:,} | {medians} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
