"""Semidefinite programs: recovery of known gains, and time per program beside diffcp with SCS on the same problems.

    python benchmarks/sdp.py

Prints two Markdown tables and writes them to benchmarks/results/sdp.md with the machine, the versions and the commit.
"""

from __future__ import annotations

import platform
import statistics
import time
from pathlib import Path

import torch

import envs
from torchq import LMIQL, LMIQLayer, LMIQLi, quadratic, sdp, study
from torchq.lqr import noise_free_problem
from torchq.quadratic import Sample
from torchq.versions import git_commit, versions

NUM_PROBLEMS = 40
REPEATS = 7


def recovery() -> list[str]:
    """In how many noise-free LQR problems the learnt gain is Riccati's to 1e-3."""
    learners = {"lmi-ql, data": LMIQL(0.95, "data"), "lmi-ql, trace": LMIQL(0.95), "lmi-qli, 100": LMIQLi(0.95, 100)}
    counts = dict.fromkeys([(name, constraint) for name in learners for constraint in ("tot", "dev")], 0)
    for seed in range(NUM_PROBLEMS):
        problem = noise_free_problem(seed)
        for name, constraint in counts:
            bound = problem.value if constraint == "tot" else torch.zeros_like(problem.value)
            q = learners[name].fit(problem.sample, bound).q
            error = (quadratic.greedy_gain(q) - problem.gain).abs().max()
            counts[name, constraint] += int(error < 1e-3)
    rows = [f"| {name} | {counts[name, 'tot']} | {counts[name, 'dev']} |" for name in learners]
    head = f"| learner | `tot`: recovered of {NUM_PROBLEMS} | `dev` |"
    return [head, "|---|---|---|", *rows]


def seconds_per_program() -> list[str]:
    """Median seconds of the relaxation on the case study's data, and of the layer's forward pass."""
    env = envs.DampedPendulum()
    task = env.sample_tasks()[0]
    case = study.make_case(env, task, envs.stack_tasks([task]), 0)
    zero, weight = torch.zeros(3, 3, dtype=torch.float64), torch.tensor(0.05, dtype=torch.float64)
    rows = ["| samples | CVXPY + Clarabel | cvxpylayers: diffcp + SCS at 1e-8 | ratio |", "|---|---|---|---|"]
    for size in (10, 20, 50, 100, 200, 500):
        layer = LMIQLayer(size, 3, 1, env.gamma, backend="diffcp")
        ours, theirs = [], []
        for seed in range(REPEATS + 1):
            sample: Sample = study.dataset(case, seed, size)
            start = time.perf_counter()
            G, y = quadratic.residual_system(sample, env.gamma)
            sdp.solve_relaxation(G, y, zero, weight * torch.eye(3, dtype=torch.float64), 3, 1)
            middle = time.perf_counter()
            layer(*sample, weight)
            ours.append(middle - start)
            theirs.append(time.perf_counter() - middle)
        ratio = statistics.median(b / a for a, b in zip(ours[1:], theirs[1:], strict=True))
        first, second = (f"{1e3 * statistics.median(times[1:]):.0f} ms" for times in (ours, theirs))
        rows.append(f"| {size} | {first} | {second} | {ratio:.0f} |")
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = f"{platform.machine()}, one thread; {versions()}; commit {git_commit()}"
    lines = ["# Semidefinite programs", "", where, "", *recovery(), "", *seconds_per_program()]
    text = "\n".join(lines) + "\n"
    print(text)
    (Path(__file__).parent / "results" / "sdp.md").write_text(text)
