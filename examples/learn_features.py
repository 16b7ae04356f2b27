"""Learn a feature map through the semidefinite program, by gradient descent on the Bellman residual of held-out data.

    python examples/learn_features.py [--out runs/learn_features.png]

In each of 10 runs a layer solves LMI-QL on 100 transitions of the damped pendulum, out to ±2.8 rad, far from where it
is linear. The Bellman residual of its Q-function on 100 other transitions is differentiated through the program, into
the penalty λ and the frequency w of the feature map φ = (θ, ω, sin wθ), which starts nearly linear at 0.5. The fixed
φ = (θ, ω) has its λ learnt in the same way. Prints residuals and returns, and draws
them. (Not convex in w: from 2.5 it ends in another minimum near 3.)
"""

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import envs
from torchq import LMIQLayer
from torchq.philox import Purpose
from torchq.quadratic import forms
from torchq.quadratic.forms import Quadratic, Sample
from torchq.runs import control_tasks

RUNS, SAMPLES, STEPS, TEST_EPISODES = 10, 100, 80, 100
FIRST_FREQUENCY, FIRST_PENALTY = 0.5, 0.3


class WideDampedPendulum(envs.DampedPendulum):
    """The damped pendulum with data and test episodes from almost the whole circle."""

    exploration_high = (2.8, 3.0)


def features(x: Tensor, frequencies: Tensor) -> Tensor:
    """φ = (θ, ω, sin w₁θ, …), one set of frequencies per run; none gives φ = (θ, ω)."""
    return torch.cat((x, torch.sin(x[..., :1] * frequencies.unsqueeze(-2))), dim=-1)


def with_features(sample: Sample, frequencies: Tensor) -> Sample:
    """The same transitions seen through other features; x is the first two columns of the study's own."""
    phi, next_phi = (features(one[..., :2], frequencies) for one in (sample.phi, sample.next_phi))
    return sample._replace(phi=phi, next_phi=next_phi)


def returns(case: control_tasks.Case, q: Quadratic, frequencies: Tensor) -> Tensor:
    """Mean undiscounted return of each run's greedy policy over the same test episodes, (runs,)."""
    seed = torch.tensor([1000])
    start = control_tasks.draw(seed, 0, Purpose.EVALUATION_RESET, 1, TEST_EPISODES, 2)[0]
    state = case.env.place(case.env.exploration_high, start.expand(RUNS, -1, -1, -1))
    noise = control_tasks.draw(seed, 0, Purpose.EVALUATION_STEP, case.env.episode_length, TEST_EPISODES, 2)
    gain, total = forms.greedy_gain(q), torch.zeros(RUNS, TEST_EPISODES, dtype=torch.float64)
    for uniforms in noise:
        x = case.env.observe(state)[:, 0]
        control = -(x @ case.design.gain.mT) + features(x, frequencies) @ gain.mT
        state, reward, _, _ = case.env.step(case.batch, state, control.mT, uniforms.expand(RUNS, -1, -1, -1))
        total += reward[:, 0]
    return total.mean(-1)


class Learnt(NamedTuple):
    """The best of each run while its parameters were learnt, and the way there."""

    q: Quadratic
    frequencies: Tensor
    residual: Tensor
    """Of the best, (runs,)."""
    residuals: Tensor
    """(steps, runs)."""
    paths: Tensor
    """Frequencies, (steps, runs, sines)."""


def learn(train: Sample, held_out: Sample, gamma: float, num_sines: int) -> Learnt:
    """Descend on the held-out residual through the layer, all runs in one batch."""
    layer = LMIQLayer(SAMPLES, 2 + num_sines, 1, gamma)
    frequencies = torch.full((RUNS, num_sines), FIRST_FREQUENCY, dtype=torch.float64, requires_grad=True)
    log_penalty = torch.full((RUNS,), math.log(FIRST_PENALTY), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([frequencies, log_penalty], lr=0.05)
    history = []
    for _ in range(STEPS):
        P, S, R, _ = layer(*with_features(train, frequencies), log_penalty.exp())
        q = Quadratic(P, S, R)
        residual = forms.bellman_cost(with_features(held_out, frequencies), gamma, q)  # Held-out, (runs,).
        history.append([x.detach().clone() for x in (residual, frequencies, *q)])
        optimizer.zero_grad()
        residual.sum().backward()
        optimizer.step()
    residuals, paths, *qs = (torch.stack(one) for one in zip(*history, strict=True))
    best = residuals.argmin(0), torch.arange(RUNS)
    return Learnt(Quadratic(*(x[best] for x in qs)), paths[best], residuals[best], residuals, paths)


def main() -> None:
    """Learn, test and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/learn_features.png"), help="where to draw it")
    out = parser.parse_args().out
    env = WideDampedPendulum()
    task = env.sample_tasks()[0]
    case = control_tasks.make_case(env, task, envs.stack_tasks([task]), 0)
    sets = [control_tasks.dataset(case, seed, 2 * SAMPLES) for seed in range(RUNS)]
    train, held_out = (
        Sample(*(torch.stack(x) for x in zip(*([x[part] for x in one] for one in sets), strict=True)))
        for part in (slice(SAMPLES), slice(SAMPLES, None))
    )
    fixed, learnt = (learn(train, held_out, env.gamma, num_sines) for num_sines in (0, 1))
    fixed_return, learnt_return = (returns(case, one.q, one.frequencies) for one in (fixed, learnt))
    print("| medians over 10 runs | held-out residual | return |\n|---|---|---|")
    for name, one, value in (("φ = (θ, ω)", fixed, fixed_return), ("φ = (θ, ω, sin wθ)", learnt, learnt_return)):
        print(f"| {name} | {one.residual.median():.3f} | {value.median():.2f} |")
    print(f"as it starts, w = {FIRST_FREQUENCY}: residual {learnt.residuals[0].median():.3f}")
    gain = learnt_return - fixed_return
    better = f"return better in {int((gain > 0).sum())} of {RUNS} runs, by {gain.median():.2f} in the median"
    print(f"learnt w: median {learnt.frequencies.median():.2f}; {better}")
    draw(fixed, learnt, out)
    print(f"drawn: {out}")


def draw(fixed: Learnt, learnt: Learnt, out: Path) -> None:
    """Residuals and frequencies while they are learnt."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for one, color, label in ((fixed, "0.3", "(θ, ω)"), (learnt, "C0", "(θ, ω, sin wθ)")):
        left.plot(one.residuals, color=color, alpha=0.3, linewidth=1)
        left.plot(one.residuals.median(1).values, color=color, linewidth=2, label=f"{label}: median and runs")
    left.set(xlabel="gradient step", ylabel="held-out mean |δ|", yscale="log")
    left.legend(fontsize="small")
    right.plot(learnt.paths[..., 0], color="C1", alpha=0.5, linewidth=1)
    right.set(xlabel="gradient step", ylabel="frequency w")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
