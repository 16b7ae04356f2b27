"""The layers: gradients against finite differences, batches, back ends, and instances that fail."""

import builtins
import importlib
import math

import pytest
import torch
from layer_gradients import GAMMA, SAMPLES, SIZES, case, relative_errors

import envs
from torchq import LMIQLayer, LMIQLi, LMIQLiLayer
from torchq.errors import SolverError
from torchq.quadratic import forms, lqr, sdp
from torchq.quadratic.backends import BACKENDS
from torchq.quadratic.forms import Quadratic, Sample
from torchq.runs import study

OWN = BACKENDS[:2]


def relaxation_inputs(seed=0):
    return list(case("lmi-ql", 3, 1, seed).inputs.values())


def batch_of(cases):
    return [torch.stack(values) for values in zip(*cases, strict=True)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["lmi-ql", "lmi-qli"])
@pytest.mark.parametrize("size", SIZES)
def test_gradients_into_every_input_equal_finite_differences(kind, backend, size):
    errors = relative_errors(kind, backend, *SIZES[size])
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.parametrize("backend", BACKENDS)
def test_layer_equals_the_solver(backend):
    inputs = relaxation_inputs()
    outputs = LMIQLayer(SAMPLES, 3, 1, GAMMA, backend=backend)(*inputs)
    G, y = forms.residual_system(Sample(*inputs[:6]), GAMMA)
    penalty = 0.05 * torch.eye(3, dtype=torch.float64)
    solution = sdp.solve_relaxation(G, y, torch.zeros(3, 3, dtype=torch.float64), penalty, 3, 1)
    for ours, theirs in zip(outputs, (*solution.q, solution.W), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", OWN)
def test_a_layer_fed_its_output_is_the_learner(backend):
    inputs = list(case("lmi-qli", 3, 1).inputs.values())[:6]
    layer, q = LMIQLiLayer(SAMPLES, 3, 1, GAMMA, backend=backend), forms.baseline(3, 1)
    for _ in range(3):
        q = layer(*inputs, q)
    expected = LMIQLi(GAMMA, 3).fit(Sample(*inputs), torch.zeros(3, 3, dtype=torch.float64)).q
    for ours, theirs in zip(q, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_equals_its_instances(backend):
    cases = [relaxation_inputs(seed) for seed in range(4)]
    layer = LMIQLayer(SAMPLES, 3, 1, GAMMA, backend=backend)
    batch = layer(*(x.unflatten(0, (2, 2)) for x in batch_of(cases)))
    for number, one in enumerate(cases):
        for ours, theirs in zip(batch, layer(*one), strict=True):
            torch.testing.assert_close(ours[divmod(number, 2)], theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("backend", OWN)
def test_a_bad_instance_is_reported_for_itself(backend):
    layer = LMIQLayer(SAMPLES, 3, 1, GAMMA, backend=backend)
    good = batch_of([relaxation_inputs(seed) for seed in range(3)])
    bad = [x.clone() for x in good]
    bad[2][1, 0] = math.nan
    leaf, good[0] = bad[0].requires_grad_(), good[0].requires_grad_()
    with pytest.warns(UserWarning, match="instance 1 of 3 was not solved \\(not finite\\); its outputs are NaN"):
        outputs = layer(*bad)
    for ours, theirs in zip(outputs, layer(*good), strict=True):
        torch.testing.assert_close(ours[[0, 2]], theirs[[0, 2]], atol=1e-6, rtol=1e-6)
        assert ours[1].isnan().all()
    sum(output[[0, 2]].sum() for output in outputs).backward()
    assert leaf.grad[[0, 2]].isfinite().all()
    assert leaf.grad[[0, 2]].abs().sum() > 0
    assert (leaf.grad[1] == 0).all()


@pytest.mark.parametrize("backend", OWN)
def test_an_instance_that_defeats_the_solver_is_reported_for_itself(backend):
    """The inequalities themselves always have a solution (P low enough, S = W = 0), so it takes absurd numbers."""
    layer = LMIQLayer(SAMPLES, 3, 1, GAMMA, backend=backend)
    inputs = batch_of([relaxation_inputs(seed) for seed in range(3)])
    bound = torch.zeros(3, 3, 3, dtype=torch.float64)
    bound[1] = 1e200
    with pytest.warns(UserWarning, match="instance 1 of 3 was not solved"):
        outputs = layer(*inputs, bound)
    assert outputs[0][1].isnan().all()
    assert torch.stack([output[[0, 2]].isfinite().all() for output in outputs]).all()


def test_no_solution_at_all_is_an_error():
    inputs = relaxation_inputs()
    with pytest.raises(SolverError, match="got NaN or infinity in every instance"):
        LMIQLayer(SAMPLES, 3, 1, GAMMA)(*inputs[:2], inputs[2] * math.nan, *inputs[3:])


def test_gradients_descend_through_three_iterations():
    """The held-out cost after three iterations falls along its gradient with respect to the rewards."""
    names = ("phi", "deviation", "reward", "next_phi", "value", "next_value")
    sample, other = (Sample(*(case("lmi-qli", 2, 1, seed).inputs[name] for name in names)) for seed in (0, 1))
    layer = LMIQLiLayer(SAMPLES, 2, 1, GAMMA)

    def cost(reward):
        q = forms.baseline(2, 1)
        for _ in range(3):
            q = layer(*sample._replace(reward=reward), q)
        return forms.bellman_cost(other, GAMMA, q)

    reward = sample.reward.clone().requires_grad_()
    before = cost(reward)
    before.backward()
    assert cost((reward - 1e-3 * reward.grad / reward.grad.norm()).detach()) < before


def test_an_unknown_back_end_is_refused():
    with pytest.raises(ValueError, match="backend: expected one of clarabel, moreau, diffcp, got 'scs'"):
        LMIQLayer(5, 2, 1, 0.9, backend="scs")


def test_missing_cvxpylayers_is_named_with_its_install_command(monkeypatch):
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


def test_a_missing_back_end_is_named_with_its_install_command(monkeypatch):
    def without(name, *arguments):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ImportError, match="moreau is not installed; install it with: pip install moreau"):
        LMIQLayer(5, 2, 1, 0.9, backend="moreau")


def test_outputs_are_a_quadratic():
    inputs = list(case("lmi-qli", 2, 1).inputs.values())
    q = LMIQLiLayer(SAMPLES, 2, 1, GAMMA)(*inputs[:6], Quadratic(*inputs[6:]))
    assert forms.greedy_gain(q).shape == (1, 2)


def linear_quadratic(scale, count=40):
    """Data of the first linear-quadratic task under its baseline, with V_b lower than it is, and Riccati's gain."""
    env = envs.LinearQuadratic()
    task = env.sample_tasks()[0]
    found = study.make_case(env, task, envs.stack_tasks([task]), 0)
    design = found.design._replace(value=scale * found.design.value)
    optimal = lqr.discounted_riccati(*env.linearised(task), *env.reward_weights(), env.gamma)[1]
    return study.dataset(found._replace(design=design), 0, count), design, optimal, env.gamma


def test_a_pessimistic_baseline_is_warned_of_and_needs_its_bound():
    sample, design, optimal, gamma = linear_quadratic(3.0)
    weight = torch.tensor(1e-4, dtype=torch.float64)
    layer = LMIQLayer(len(sample.reward), 2, 1, gamma)
    with pytest.warns(UserWarning, match=r"bound: V_b seems pessimistic.*pass bound=P_b"):
        P, S, R, _ = layer(*sample, weight)
    assert (design.gain - forms.greedy_gain(Quadratic(P, S, R)) - optimal).abs().max() > 0.1
    P, S, R, _ = layer(*sample, weight, bound=design.value)
    torch.testing.assert_close(design.gain - forms.greedy_gain(Quadratic(P, S, R)), optimal, atol=1e-7, rtol=0)


def test_a_bound_is_one_for_all_instances():
    sample, design, _, gamma = linear_quadratic(3.0)
    batch = forms.Sample(*(torch.stack((field, field)) for field in sample))
    weight = torch.tensor(1e-3, dtype=torch.float64)
    one = LMIQLayer(len(sample.reward), 2, 1, gamma)(*sample, weight, bound=design.value)
    both = LMIQLayer(len(sample.reward), 2, 1, gamma)(*batch, weight, bound=design.value)
    for ours, theirs in zip(both, one, strict=True):
        torch.testing.assert_close(ours, torch.stack((theirs, theirs)))
    q = forms.baseline(2, 1)
    last = Quadratic(*(torch.stack((part, part)) for part in q))
    both = LMIQLiLayer(len(sample.reward), 2, 1, gamma)(*batch, last, bound=design.value)
    assert both.P.shape == (2, 2, 2)
