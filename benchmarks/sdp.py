"""Semidefinite programs: recovery of known gains, and times of the programs and layers beside diffcp with SCS.

    python benchmarks/sdp.py

Prints Markdown tables and writes them to benchmarks/results/sdp.md with the machine, the versions and the commit.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import envs
from torchq import LMIQL, LMIQLayer, LMIQLi
from torchq.quadratic import excitation, forms, sdp
from torchq.quadratic.backends import BACKENDS
from torchq.quadratic.forms import Sample
from torchq.quadratic.lqr import noise_free_problem
from torchq.runs import control_tasks
from torchq.versions import git_commit, versions

NUM_PROBLEMS = 40
REPEATS = 5
BATCH = 16


def recovery() -> list[str]:
    """In how many noise-free LQR problems the learnt gain is Riccati's to 1e-3, and what is said of `dev`."""
    learners = {"lmi-ql, data": LMIQL(0.95, "data"), "lmi-ql, trace": LMIQL(0.95), "lmi-qli, 100": LMIQLi(0.95, 100)}
    counts = dict.fromkeys([(name, constraint) for name in learners for constraint in ("tot", "dev")], 0)
    told = dict.fromkeys(learners, 0)
    for seed in range(NUM_PROBLEMS):
        problem = noise_free_problem(seed)
        findings = excitation.diagnose(problem.sample, 0.95, constraint="dev")
        pessimistic = any("V_b seems pessimistic" in finding for finding in findings)
        for name, constraint in counts:
            bound = problem.value if constraint == "tot" else torch.zeros_like(problem.value)
            q = learners[name].fit(problem.sample, bound).q
            recovered = (forms.greedy_gain(q) - problem.gain).abs().max() < 1e-3
            counts[name, constraint] += int(recovered)
            told[name] += int(constraint == "dev" and not recovered and pessimistic)
    rows = []
    for name in learners:
        total, deviation = counts[name, "tot"], counts[name, "dev"]
        rows.append(f"| {name} | {total} | {deviation} | {told[name]} of {NUM_PROBLEMS - deviation} |")
    head = f"| learner | `tot`: recovered of {NUM_PROBLEMS} | `dev` | `dev` fails, and the diagnosis says why |"
    return [head, "|---|---|---|---|", *rows]


def case_study() -> control_tasks.Case:
    """The task of the case study."""
    env = envs.DampedPendulum()
    task = env.sample_tasks()[0]
    return control_tasks.make_case(env, task, envs.stack_tasks([task]), 0)


def timed(action: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def seconds_per_program() -> list[str]:
    """Median seconds of the relaxation on the case study's data, and of cvxpylayers' own forward pass."""
    case, weight = case_study(), torch.tensor(0.05, dtype=torch.float64)
    zero, penalty = torch.zeros(3, 3, dtype=torch.float64), 0.05 * torch.eye(3, dtype=torch.float64)
    rows = ["| samples | CVXPY + Clarabel | cvxpylayers: diffcp + SCS at 1e-9 | ratio |", "|---|---|---|---|"]
    for size in (10, 20, 50, 100, 200, 500):
        layer = LMIQLayer(size, 3, 1, case.env.gamma, backend="diffcp")
        ours, theirs = [], []
        for seed in range(REPEATS + 1):
            sample: Sample = control_tasks.dataset(case, seed, size)
            system = forms.residual_system(sample, case.env.gamma)
            ours.append(timed(partial(sdp.solve_relaxation, *system, zero, penalty, 3, 1)))
            theirs.append(timed(partial(layer, *sample, weight)))
        ratio = statistics.median(b / a for a, b in zip(ours[1:], theirs[1:], strict=True))
        first, second = (f"{1e3 * statistics.median(times[1:]):.0f} ms" for times in (ours, theirs))
        rows.append(f"| {size} | {first} | {second} | {ratio:.0f} |")
    return rows


def seconds_per_gradient() -> list[str]:
    """Median milliseconds an instance of the layer, forward and forward with backward, in a batch."""
    case, weight = case_study(), torch.tensor(0.05, dtype=torch.float64)
    head = " | ".join(f"{backend}: forward | with backward" for backend in BACKENDS)
    rows = [f"| samples | {head} |", "|---" * (1 + 2 * len(BACKENDS)) + "|"]
    for size in (20, 50, 100):
        sets = [control_tasks.dataset(case, seed, size) for seed in range(BATCH)]
        sample = Sample(*(torch.stack(parts) for parts in zip(*sets, strict=True)))
        leaf = sample.phi.clone().requires_grad_()
        cells = []
        for backend in BACKENDS:
            layer = LMIQLayer(size, 3, 1, case.env.gamma, backend=backend)
            forward = partial(layer, *sample, weight)
            for action in (forward, lambda run=layer, s=sample, x=leaf: run(x, *s[1:], weight)[1].sum().backward()):
                times = [timed(action) for _ in range(REPEATS + 1)][1:]
                cells.append(f"{1e3 * statistics.median(times) / BATCH:.1f} ms")
        rows.append(f"| {size} | {' | '.join(cells)} |")
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = f"{platform.machine()}, one thread; {versions()}; commit {git_commit()}"
    batch = f"`LMIQLayer`, milliseconds an instance in a batch of {BATCH}, p = 3, m = 1:"
    lines = ["# Semidefinite programs", "", where, "", *recovery(), "", *seconds_per_program(), "", batch, ""]
    text = "\n".join([*lines, *seconds_per_gradient()]) + "\n"
    print(text)
    (Path(__file__).parent / "results" / "sdp.md").write_text(text)
