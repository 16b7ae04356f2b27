"""The published figures in full: pendulum with 100 runs, wireless with 200, three methods, a test after each episode.

    python benchmarks/paper_figures.py [--out runs/paper]

Trains what is missing in the folder (interrupted runs go on), draws both figures and prints times and final returns as
Markdown, which goes to benchmarks/results/paper_figures-DEVICE.md with the figures beside it.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
from pathlib import Path

import torch

import torchq
from torchq.cli.evaluate import main as report
from torchq.native import num_threads
from torchq.versions import versions

RUNS = {"pendulum": 100, "wireless": 200}
ALGOS = ("stlrq", "lrq", "clrq")


def ensure(folder: Path, env: str, algo: str) -> dict:
    """The summary of a run, trained or resumed if need be."""
    if not (folder / "summary.json").exists():
        fresh = {"algo": algo, "env": env, "preset": "paper", "num_seeds": RUNS[env]}
        begun = (folder / "config.json").exists()
        torchq.train(out=folder, resume=begun, **({} if begun else fresh))
    commit = json.loads((folder / "config.json").read_text())["git_commit"]
    return {**json.loads((folder / "summary.json").read_text()), "commit": commit}


def main() -> None:
    """Train, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/paper"))
    out = parser.parse_args().out
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = Path(__file__).parent / "results"
    rows = ["| figure | algo | final return, median of tasks 0/1/2/3 | engine | seconds | commit |", "|---" * 6 + "|"]
    total = 0.0
    for env, count in RUNS.items():
        folders = [out / f"{env}-{algo}" for algo in ALGOS]
        for algo, folder in zip(ALGOS, folders, strict=True):
            summary = ensure(folder, env, algo)
            final = " / ".join(f"{value:.0f}" for value in summary["final_return"]["median"])
            total += summary["wall_time_s"]
            figure = f"{env}, {count} runs"
            how = f"{summary['engine']} | {summary['wall_time_s']:.0f} | {summary['commit']}"
            rows.append(f"| {figure} | {algo} | {final} | {how} |")
        if report([*map(str, folders), "--out", str(out / env)]):
            raise SystemExit(2)
        picture = next((out / env).glob("*.png"))
        shutil.copy(picture, results / f"{env}-paper.png")
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {num_threads()} threads"
    where = f"{machine}; {versions()}; evaluation included, {total:.0f} s together"
    text = "\n".join(["# The paper's figures", "", where, "", *rows]) + "\n"
    print(text)
    (results / f"paper_figures-{device}.md").write_text(text)


if __name__ == "__main__":
    main()
