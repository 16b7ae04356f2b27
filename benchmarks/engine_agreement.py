"""Full training runs of 20 seeds with each engine: do they end at the same returns?

    python benchmarks/engine_agreement.py [--preset paper] [--engines eager,compile,fused] [--envs pendulum,wireless]

Same seeds, same random numbers; engines agree to rounding at first, and runs that a rounding error has parted agree as
samples of one distribution do. Prints Markdown, and writes it to benchmarks/results/engine_agreement-PRESET-DEVICE.md.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from pathlib import Path

import torch

import torchq
from torchq.versions import git_commit, versions

NUM_SEEDS, FIRST_SEED = 20, 300


def final_returns(folder: Path, env: str, preset: str, engine: str) -> dict:
    """The summary of a full run."""
    seeds = {"num_seeds": NUM_SEEDS, "seed": FIRST_SEED}
    given = {"env": env, "preset": preset, "engine": engine, "optimal": False, "progress": False, **seeds}
    return torchq.train(algo="stlrq", out=folder, **given).summary


def main() -> None:
    """Train, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--preset", default="default", choices=("default", "paper"))
    parser.add_argument("--engines", default="eager,compile,fused" if device == "cpu" else "eager,compile,graph,fused")
    parser.add_argument("--envs", default="pendulum,wireless")
    chosen, commit = parser.parse_args(), git_commit()
    rows = ["| env | engine | median of tasks 0/1/2/3 | lower quartile | upper quartile | seconds |", "|---" * 6 + "|"]
    for env in chosen.envs.split(","):
        for engine in chosen.engines.split(","):
            with tempfile.TemporaryDirectory() as folder:
                summary = final_returns(Path(folder) / "run", env, chosen.preset, engine)
            kinds = (summary["final_return"][kind] for kind in ("median", "q25", "q75"))
            cells = " | ".join(" / ".join(f"{value:.1f}" for value in kind) for kind in kinds)
            rows.append(f"| {env} | {engine} | {cells} | {summary['wall_time_s']:.0f} |")
    machine = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    heading = f"{machine}; {versions()}; commit {commit}; `stlrq`, preset {chosen.preset}, seeds 300 to 319"
    text = "\n".join(["# Final returns by engine", "", heading, "", *rows]) + "\n"
    print(text)
    results = Path(__file__).parent / "results"
    (results / f"engine_agreement-{chosen.preset}-{device}.md").write_text(text)


if __name__ == "__main__":
    main()
