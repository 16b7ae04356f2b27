"""Gradients of the layer against finite differences, at PSD sizes 3 to 6."""

import builtins

import pytest
import torch

from torchq import LMIQLayer, quadratic, sdp
from torchq.quadratic import Sample

NAMES = ("phi", "deviation", "reward", "next_phi", "value", "next_value", "penalty_weight")


def instance(p, m, samples=25, seed=0):
    generator = torch.Generator().manual_seed(100 * seed + 10 * p + m)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    phi, deviation, next_phi = normal(samples, p), normal(samples, m), 0.5 * normal(samples, p)
    reward = -phi.square().sum(-1) - 0.3 * deviation.square().sum(-1) + 0.1 * normal(samples)
    value, next_value = -0.5 * phi.square().sum(-1) + 0.1 * normal(samples), -0.5 * next_phi.square().sum(-1)
    weights = [normal(p, p), normal(p, m), normal(m, m), normal(p, p)]
    inputs = [phi, deviation, reward, next_phi, value, next_value, torch.tensor(0.05, dtype=torch.float64)]
    directions = [normal(*x.shape) if x.dim() else torch.ones((), dtype=torch.float64) for x in inputs]
    return inputs, directions, weights


@pytest.mark.parametrize(("p", "m"), [(2, 1), (3, 1), (3, 2), (4, 2)], ids=["3", "4", "5", "6"])
def test_gradients_into_every_input_equal_finite_differences(p, m):
    """Relative to the largest of the directional derivatives: 1e-4."""
    inputs, directions, weights = instance(p, m)
    layer = LMIQLayer(25, p, m, 0.9)

    def outcome(arguments):
        return sum((weight * output).sum() for weight, output in zip(weights, layer(*arguments), strict=True))

    leaves = [x.clone().requires_grad_() for x in inputs]
    outcome(leaves).backward()
    exact = [(leaf.grad * direction).sum().item() for leaf, direction in zip(leaves, directions, strict=True)]
    scale = max(abs(value) for value in exact)
    for position, (name, direction) in enumerate(zip(NAMES, directions, strict=True)):
        step = 1e-5 if name == "penalty_weight" else 1e-4
        sides = []
        for sign in (1, -1):
            arguments = list(inputs)
            arguments[position] = inputs[position] + sign * step * direction
            with torch.no_grad():
                sides.append(outcome(arguments).item())
        assert exact[position] == pytest.approx((sides[0] - sides[1]) / (2 * step), abs=1e-4 * scale), name


def test_layer_equals_the_solver():
    inputs, _, _ = instance(3, 1)
    P, S, R, W = LMIQLayer(25, 3, 1, 0.9)(*inputs)
    G, y = quadratic.residual_system(Sample(*inputs[:6]), 0.9)
    penalty = 0.05 * torch.eye(3, dtype=torch.float64)
    solution = sdp.solve_relaxation(G, y, torch.zeros(3, 3, dtype=torch.float64), penalty, 3, 1)
    for ours, theirs in zip((P, S, R, W), (*solution.q, solution.W), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_batch_equals_its_instances():
    cases = [instance(3, 1, seed=seed)[0] for seed in range(3)]
    layer = LMIQLayer(25, 3, 1, 0.9)
    batch = layer(*(torch.stack(values) for values in zip(*cases, strict=True)))
    for number, case in enumerate(cases):
        for ours, theirs in zip(batch, layer(*case), strict=True):
            torch.testing.assert_close(ours[number], theirs, atol=1e-6, rtol=1e-6)


def test_a_missing_back_end_is_named_with_its_install_command(monkeypatch):
    original = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("cvxpylayers"):
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        ImportError, match=r'cvxpylayers is not installed; install it with: pip install "torchq\[layers\]"'
    ):
        LMIQLayer(5, 2, 1, 0.9)
