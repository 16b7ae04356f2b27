"""Gradients of the layers against finite differences: back end × size of the largest PSD cone × relative error.

    python benchmarks/layer_gradients.py

Prints a Markdown table and writes it to benchmarks/results/layer_gradients.md.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from torchq import LMIQLayer, LMIQLiLayer
from torchq.quadratic.backends import BACKENDS
from torchq.quadratic.forms import Quadratic
from torchq.versions import git_commit, versions

GAMMA = 0.9
SAMPLES = 25
SIZES = {3: (2, 1), 4: (3, 1), 5: (3, 2), 6: (4, 2), 7: (5, 2), 8: (6, 2), 9: (7, 2), 10: (7, 3)}
"""p and m by PSD size p + m."""
STEP = 1e-6


def num_samples(p: int, m: int) -> int:
    """More for more parameters: with few the solution is not unique, and has no derivative."""
    return SAMPLES if p + m <= 6 else 12 * (p + m)


class Case(NamedTuple):
    """Inputs of a layer by name, directions to move them in, and weights that make its outputs one number."""

    inputs: dict[str, Tensor]
    directions: dict[str, Tensor]
    weights: list[Tensor]


def case(kind: str, p: int, m: int, seed: int = 0) -> Case:
    """Random samples of a concave reward, the same for each seed; kind is "lmi-ql" or "lmi-qli"."""
    generator = torch.Generator().manual_seed(100 * seed + 10 * p + m)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    count = num_samples(p, m)
    phi, deviation, next_phi = normal(count, p), normal(count, m), 0.5 * normal(count, p)
    inputs = {
        "phi": phi,
        "deviation": deviation,
        "reward": -phi.square().sum(-1) - 0.3 * deviation.square().sum(-1) + 0.1 * normal(count),
        "next_phi": next_phi,
        "value": -0.5 * phi.square().sum(-1) + 0.1 * normal(count),
        "next_value": -0.5 * next_phi.square().sum(-1),
    }
    if kind == "lmi-ql":
        inputs["penalty_weight"] = torch.tensor(0.05, dtype=torch.float64)
    else:
        root, square = normal(p, p), normal(m, m)
        inputs |= {"P": -root @ root.mT / p, "S": 0.3 * normal(p, m), "R": square @ square.mT + torch.eye(m)}
    weights = [normal(p, p), normal(p, m), normal(m, m), normal(p, p)]
    symmetric = {name: (x := normal(*value.shape)) + x.mT for name, value in inputs.items() if name in ("P", "R")}
    directions = {name: normal(*value.shape) for name, value in inputs.items()} | symmetric
    return Case(inputs, directions, weights)


def outcome(
    kind: str, backend: str, p: int, m: int, weights: Sequence[Tensor]
) -> Callable[[dict[str, Tensor]], Tensor]:
    """A number as a function of a layer's inputs."""
    layer = (LMIQLayer if kind == "lmi-ql" else LMIQLiLayer)(num_samples(p, m), p, m, GAMMA, backend=backend)

    def number(inputs: dict[str, Tensor]) -> Tensor:
        arguments = list(inputs.values())
        if kind == "lmi-qli":
            arguments[6:] = [Quadratic(*arguments[6:])]
        return torch.stack([(w * out).sum() for w, out in zip(weights, layer(*arguments), strict=False)]).sum()

    return number


def relative_errors(kind: str, backend: str, p: int, m: int) -> dict[str, float]:
    """Error of the derivative along each input's direction, relative to central differences (at least 1e−3).

    The differences are of the same map, solved by torchq and polished to rounding: a solver's own 1e−9 is enough to
    spoil them by percents.
    """
    inputs, directions, weights = case(kind, p, m)
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    outcome(kind, backend, p, m, weights)(leaves).backward()
    exact_map, errors = outcome(kind, "torchq", p, m, weights), {}
    for name, direction in directions.items():
        sides = [
            exact_map(leaves | {name: leaves[name] + sign * STEP * direction}).item() for sign in (1.0, -1.0)
        ]  # With gradients enabled, or solutions would not be polished.
        difference = (sides[0] - sides[1]) / (2.0 * STEP)
        gradient = leaves[name].grad
        assert gradient is not None
        errors[name] = abs((gradient * direction).sum().item() - difference) / max(abs(difference), 1e-3)
    return errors


def table() -> list[str]:
    """The largest error over the inputs, one line for each layer and back end."""
    rows = [
        "| layer | back end | " + " | ".join(f"size {size}" for size in SIZES) + " |",
        "|---|---" + "|---" * len(SIZES) + "|",
    ]
    for kind in ("lmi-ql", "lmi-qli"):
        for backend in BACKENDS:
            worst = [max(relative_errors(kind, backend, p, m).values()) for p, m in SIZES.values()]
            rows.append(f"| {kind} | {backend} | " + " | ".join(f"{error:.0e}" for error in worst) + " |")
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = f"{platform.machine()}, one thread; {versions()}; commit {git_commit()}"
    lines = ["# Gradients of the layers", "", where, "", *table()]
    text = "\n".join(lines) + "\n"
    print(text)
    (Path(__file__).parent / "results" / "layer_gradients.md").write_text(text)
