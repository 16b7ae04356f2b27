"""The solver of small semidefinite programs beside Clarabel, CVXPY and differentiable layers: time and accuracy.

    python benchmarks/small_sdp.py [--threads 1] [--problems 1000] [--repeats 5] [--out NAME]

Times an instance of LMI-QL's relaxation (18) and of an iteration of LMI-QLi (14) on the case study's data, forward and
forward with backward, in batches; then the optimum of random programs beside Clarabel's at tolerance 1e-10. Prints
Markdown and writes it to benchmarks/results/small_sdp.md.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from random_programs import by_clarabel, instance, learning
from torch import Tensor

import envs
from torchq import LMIQLayer, LMIQLiLayer
from torchq.quadratic import forms, programs, sdp
from torchq.quadratic.forms import Quadratic, Sample
from torchq.runs import control_tasks
from torchq.semidefinite.program import Program, objective, values
from torchq.semidefinite.solve import solve
from torchq.versions import git_commit, versions

SIZES = (20, 50, 100, 500)
BATCHES = (1, 64, 1024)
LAYERS = {"clarabel": 8, "moreau": 16, "diffcp": 2}
"""Instances that each back end is timed with: it is slow."""
WEIGHT = 0.05


def median(action: Callable[[], object], repeats: int) -> float:
    """Seconds of a call, the median after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        action()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def data(size: int, count: int) -> tuple[Sample, float]:
    """The case study's data sets of one size, (count, size, …), and γ."""
    env = envs.DampedPendulum()
    task = env.sample_tasks()[0]
    case = control_tasks.make_case(env, task, envs.stack_tasks([task]), 0)
    return control_tasks.datasets(case, torch.arange(count), size), env.gamma


def program_of(kind: str, sample: Sample, gamma: float) -> Program:
    """(18) with λ = 0.05, or (14) from the baseline."""
    zero = torch.zeros(3, 3, dtype=torch.float64)
    if kind == "(18)":
        weight = WEIGHT * torch.eye(3, dtype=torch.float64)
        return programs.relaxation(*forms.residual_system(sample, gamma), zero, weight, 3, 1)
    return programs.fitted(*forms.fitted_system(sample, gamma, forms.baseline(3, 1)), zero, 3, 1)


def through_cvxpy(kind: str, sample: Sample, gamma: float) -> None:
    """CVXPY with Clarabel, the program compiled before."""
    zero = torch.zeros(3, 3, dtype=torch.float64)
    if kind == "(18)":
        weight = WEIGHT * torch.eye(3, dtype=torch.float64)
        sdp.solve_relaxation(*forms.residual_system(sample, gamma), zero, weight, 3, 1)
    else:
        sdp.solve_fitted(*forms.fitted_system(sample, gamma, forms.baseline(3, 1)), zero, 3, 1)


def through_layer(kind: str, backend: str, sample: Sample, gamma: float, *, backward: bool) -> Callable[[], object]:
    """One pass of a layer."""
    made = LMIQLayer if kind == "(18)" else LMIQLiLayer
    layer = made(sample.reward.shape[-1], 3, 1, gamma, backend=backend)
    start = Quadratic(*(part.expand(len(sample.phi), *part.shape) for part in forms.baseline(3, 1)))
    last = torch.tensor(WEIGHT, dtype=torch.float64) if kind == "(18)" else start
    leaf = sample.phi.clone().requires_grad_(backward)

    def run() -> Tensor:
        S: Tensor = layer(leaf, *sample[1:], last)[1]
        if backward:
            S.sum().backward()
        return S

    return run


def forward_table(kind: str, repeats: int) -> list[str]:
    """Microseconds an instance, and ratios to Clarabel alone."""
    heads = ("N", "batch 1", "batch 64", "batch 1,024", "Clarabel alone", "CVXPY + Clarabel", "Moreau, layer",
             "diffcp, layer", "Clarabel alone / batch 64")  # fmt: skip
    rows = [f"## {kind}, forward, microseconds an instance", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for size in SIZES:
        sample, gamma = data(size, max(BATCHES))
        times = [median(partial(solve, program_of(kind, Sample(*(x[:batch] for x in sample)), gamma)), repeats) / batch
                 for batch in BATCHES]  # fmt: skip
        whole = program_of(kind, sample, gamma)
        times.append(statistics.median(by_clarabel(instance(whole, index), 1e-9).seconds for index in range(15)))
        times.append(median(partial(through_cvxpy, kind, Sample(*(x[0] for x in sample)), gamma), repeats))
        for backend in ("moreau", "diffcp"):
            count = LAYERS[backend]
            few = Sample(*(x[:count] for x in sample))
            times.append(median(through_layer(kind, backend, few, gamma, backward=False), 1) / count)
        shown = " | ".join(f"{1e6 * each:,.0f}" for each in times)
        rows.append(f"| {size} | {shown} | **{times[3] / times[1]:.0f}** |")
    return [*rows, ""]


def gradient_table(kind: str, repeats: int) -> list[str]:
    """Milliseconds an instance of layers, forward with backward into φ."""
    rows = [f"## {kind}, layer, forward with backward into φ, milliseconds an instance", "",
            "| N | torchq, batch 1 | torchq, batch 64 | " + " | ".join(LAYERS) + " | clarabel / torchq at 64 |",
            "|---|---|---|" + "---|" * (len(LAYERS) + 1)]  # fmt: skip
    for size in SIZES:
        sample, gamma = data(size, 64)
        counts = [("torchq", 1), ("torchq", 64), *LAYERS.items()]
        times = [median(through_layer(kind, backend, Sample(*(x[:count] for x in sample)), gamma, backward=True),
                        repeats if backend == "torchq" else 1) / count
                 for backend, count in counts]  # fmt: skip
        rows.append(f"| {size} | " + " | ".join(f"{1e3 * each:.2f}" for each in times)
                    + f" | **{times[2] / times[1]:.0f}** |")  # fmt: skip
    return [*rows, ""]


def accuracy(count: int) -> list[str]:
    """Random relaxations: the optimum beside Clarabel's at 1e-10, where that is feasible."""
    above, unsolved, rough, feasible, beyond = [], 0, 0, 0, 0
    for seed in range(count):
        one = learning(seed)
        one = one._replace(c=one.c.unsqueeze(0), A=one.A.unsqueeze(0), b=one.b.unsqueeze(0))
        found, clarabel = solve(one), by_clarabel(one)
        z = clarabel.z.unsqueeze(0)
        outside = [max(0.0, -float(torch.linalg.eigvalsh(values(block, z))[0, 0])) for block in one.blocks]
        unsolved += int(not found.solved)
        if clarabel.status != "Solved" or max(outside) > 1e-9:
            rough += 1
            continue
        best = objective(one, z)
        above.append(float((found.objective - best) / (1 + best.abs())))
        feasible += int(above[-1] <= 1e-8)
        # What Clarabel gains by leaving the inequalities, to first order.
        gained = sum(float(Y.diagonal(dim1=-2, dim2=-1).sum()) * out for Y, out in zip(found.Y, outside, strict=True))
        beyond += int(found.objective - best > found.gap + gained + 1e-12)
    worst = max(above)
    return [
        "## Accuracy",
        "",
        f"{count:,} random relaxations (1–3 controls, 2–8 features, λ 0–100, 5 to 1,000 samples, some ill-conditioned;",
        "`random_programs.learning`), objectives relative to 1 + |optimum|, beside Clarabel at tolerance 1e-10, where",
        "that is solved and feasible to 1e-9:",
        "",
        "| compared | at most 1e-8 above | largest excess | more than its own gap above | unsolved | Clarabel not so |",
        "|---|---|---|---|---|---|",
        f"| {len(above)} | {feasible} | {worst:.1e} | {beyond} | {unsolved} | {rough} |",
        "",
    ]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default="small_sdp")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    lines = ["# Small semidefinite programs", "",
             f"{platform.machine()}, {given.threads} thread(s); {versions()}; commit {git_commit()}; "
             "`python benchmarks/small_sdp.py`.", ""]  # fmt: skip
    for kind in ("(18)", "(14)"):
        lines += forward_table(kind, given.repeats)
        lines += gradient_table(kind, given.repeats)
    lines += accuracy(given.problems)
    text = "\n".join(lines).rstrip() + "\n"
    print(text)
    (Path(__file__).parent / "results" / f"{given.out}.md").write_text(text)


if __name__ == "__main__":
    main()
