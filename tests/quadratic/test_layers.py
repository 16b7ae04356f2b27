"""The layers: gradients against finite differences, batches, back ends, and instances that fail."""

import builtins
import copy
import importlib
import io
import math
import os
import pickle
import subprocess
import sys

import pytest
import torch
from layer_gradients import GAMMA, SAMPLES, SIZES, case, relative_errors
from problems import ROOT

import envs
from torchq import LMIQL, LMIQLayer, LMIQLi, LMIQLiLayer
from torchq.errors import SolverError
from torchq.quadratic import forms, lqr, sdp
from torchq.quadratic.backends import BACKENDS
from torchq.quadratic.forms import Quadratic, Sample
from torchq.runs import control_tasks

OWN = BACKENDS[:3]


def relaxation_inputs(seed=0):
    return list(case("lmi-ql", 3, 1, seed).inputs.values())


def batch_of(cases):
    return [torch.stack(values) for values in zip(*cases, strict=True)]


@pytest.mark.parametrize("kind", ["lmi-ql", "lmi-qli"])
@pytest.mark.parametrize("size", SIZES)
def test_gradients_into_every_input_equal_finite_differences(kind, size):
    errors = relative_errors(kind, "torchq", *SIZES[size])
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("kind", ["lmi-ql", "lmi-qli"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_gradients_of_other_back_ends_do_so_too(kind, backend, size):
    """Of lmi-qli at sizes 8 and 9 next to a kink, which a solution to nine digits does not tell from it."""
    if backend == "diffcp" and size > 6:
        pytest.skip("slow; benchmarks/layer_gradients.py has it")
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
    with pytest.raises(ValueError, match="backend: expected one of torchq, clarabel, moreau, diffcp, got 'scs'"):
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
        LMIQLayer(5, 2, 1, 0.9, backend="clarabel")


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
    found = control_tasks.make_case(env, task, envs.stack_tasks([task]), 0)
    design = found.design._replace(value=scale * found.design.value)
    optimal = lqr.discounted_riccati(*env.linearised(task), *env.reward_weights(), env.gamma)[1]
    return control_tasks.dataset(found._replace(design=design), 0, count), design, optimal, env.gamma


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


def copied(layer):
    return copy.deepcopy(layer)


def pickled(layer):
    return pickle.loads(pickle.dumps(layer))


def saved(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("backend", BACKENDS[:2])
@pytest.mark.parametrize("travel", [copied, pickled, saved, lambda layer: layer.to(torch.float64)])
def test_layers_travel_as_modules_do(backend, travel):
    layer, inputs = LMIQLayer(SAMPLES, 3, 1, GAMMA, backend=backend), relaxation_inputs()
    assert all(map(torch.equal, travel(layer)(*inputs), layer(*inputs)))


def test_layers_have_no_state_and_compile_around_themselves():
    """In a process of its own: the type checker of the tests is not for compilers."""
    script = (
        "import torch, layer_gradients as g\n"
        "layer, inputs = g.LMIQLayer(g.SAMPLES, 3, 1, g.GAMMA), list(g.case('lmi-ql', 3, 1).inputs.values())\n"
        "layer.load_state_dict(layer.state_dict())\n"
        "compiled = torch.compile(lambda *values: 2 * layer(*values)[0], backend='eager')\n"
        "torch.testing.assert_close(compiled(*inputs), 2 * layer(*inputs)[0])"
    )
    folders = os.pathsep.join((str(ROOT), str(ROOT / "benchmarks")))
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": folders})


def test_transforms_of_functions_go_through_the_layer():
    """vmap, jacrev and grad, and two of them."""
    layer, inputs = LMIQLayer(SAMPLES, 3, 1, GAMMA), relaxation_inputs()

    def learnt(reward):
        return layer(*inputs[:2], reward, *inputs[3:])[0]

    reward = inputs[2]
    several = reward + 0.01 * torch.randn(3, SAMPLES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    each = torch.stack([learnt(one) for one in several])
    torch.testing.assert_close(torch.func.vmap(learnt)(several), each, rtol=1e-6, atol=1e-6)
    expected = torch.autograd.functional.jacobian(learnt, reward)
    torch.testing.assert_close(torch.func.jacrev(learnt)(reward), expected)
    torch.testing.assert_close(torch.func.grad(lambda value: learnt(value).sum())(reward), expected.sum((0, 1)))
    both = torch.func.vmap(torch.func.jacrev(learnt))(torch.stack((reward, reward)))
    torch.testing.assert_close(both, torch.stack((expected, expected)))


@pytest.mark.parametrize("penalty", ["trace", "data"])
def test_without_a_weight_the_layer_searches_as_the_learner_does(penalty):
    inputs = batch_of([relaxation_inputs(seed)[:6] for seed in range(3)])
    reward = inputs[2].requires_grad_()
    P, S, R, W = LMIQLayer(SAMPLES, 3, 1, GAMMA, penalty=penalty)(*inputs)
    zero = torch.zeros(3, 3, dtype=torch.float64)
    fits = LMIQL(GAMMA, penalty).fit_batch(Sample(*(x.detach() for x in inputs)), zero)
    for index, fit in enumerate(fits):
        for ours, theirs in zip((P, S, R), fit.q, strict=True):
            torch.testing.assert_close(ours[index].detach(), theirs, atol=1e-5, rtol=1e-5)
    W.sum().backward()
    assert reward.grad.isfinite().all()
    assert (reward.grad != 0).any()


def test_a_rough_solution_is_warned_of(monkeypatch):
    monkeypatch.setattr("torchq.quadratic.backends._EXACT", -1.0)
    inputs = relaxation_inputs()
    with pytest.warns(UserWarning, match="instance 0 of 1 is exact to .* only: do not trust its derivatives"):
        LMIQLayer(SAMPLES, 3, 1, GAMMA)(*inputs[:2], inputs[2].requires_grad_(), *inputs[3:])


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_other_back_ends_refuse_transforms_of_functions(backend):
    layer, inputs = LMIQLayer(SAMPLES, 3, 1, GAMMA, backend=backend), relaxation_inputs()
    with pytest.raises(
        RuntimeError, match=f'^backend: expected "torchq" under transforms of torch.func, got "{backend}"$'
    ):
        torch.func.vmap(lambda reward: layer(*inputs[:2], reward, *inputs[3:])[0])(torch.stack((inputs[2], inputs[2])))
