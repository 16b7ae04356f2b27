"""What the layers are given: nonsense is refused in one line that names it."""

import pytest
import torch
from layer_gradients import GAMMA, SAMPLES, case

from torchq import LMIQLayer, LMIQLiLayer
from torchq.quadratic import forms
from torchq.quadratic.backends import BACKENDS


def relaxation_inputs():
    return list(case("lmi-ql", 3, 1).inputs.values())


WRONG = {
    r"^reward: expected the shape \(\*batch, 25\) of this layer, got \(25, 1\)$": {"reward": torch.zeros(SAMPLES, 1)},
    r"^value: expected the batch \(\) of phi, got \(2,\)$": {"value": torch.zeros(2, SAMPLES)},
    r"^phi: expected the shape \(\*batch, 25, 3\) of this layer, got \(25, 2\)$": {"phi": torch.zeros(SAMPLES, 2)},
    r"^deviation: expected the shape \(\*batch, 25, 1\) of this layer, got \(1, 25\)$": {
        "deviation": torch.zeros(1, SAMPLES),
    },
    r"^bound: expected symmetric matrices; use \(B \+ B.mT\) / 2$": {"bound": torch.ones(3, 3).triu()},
    r"^bound: expected the shape \(\*batch, 3, 3\) of this layer, got \(2, 2\)$": {"bound": torch.ones(2, 2)},
    r"^penalty_weight: expected λ ≥ 0, got -0.5$": {"penalty_weight": torch.tensor(-0.5)},
    r"^penalty_weight: expected the shape \(\), got \(4, 1\)$": {"penalty_weight": torch.ones(4, 1)},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_fit_is_one_line(message):
    inputs = case("lmi-ql", 3, 1).inputs | {name: value.double() for name, value in WRONG[message].items()}
    with pytest.raises(ValueError, match=message):
        LMIQLayer(SAMPLES, 3, 1, GAMMA)(**inputs)


MADE_WRONG = {
    r"^num_samples: expected a positive integer, got 10.5$": {"num_samples": 10.5},
    r"^num_features: expected a positive integer, got 0$": {"num_features": 0},
    r"^gamma: expected 0 ≤ γ ≤ 1, got nan$": {"gamma": float("nan")},
    r"^penalty: expected one of trace, data, got 'traces'$": {"penalty": "traces"},
}


@pytest.mark.parametrize("message", MADE_WRONG)
def test_a_layer_is_not_made_of_nonsense(message):
    arguments = {"num_samples": 10, "num_features": 2, "num_controls": 1, "gamma": 0.9} | MADE_WRONG[message]
    with pytest.raises(ValueError, match=message):
        LMIQLayer(**arguments)


def test_what_is_no_tensor_is_named():
    inputs = relaxation_inputs()
    with pytest.raises(TypeError, match=r"^reward: expected a torch.Tensor, got list$"):
        LMIQLayer(SAMPLES, 3, 1, GAMMA)(*inputs[:2], inputs[2].tolist(), *inputs[3:])
    with pytest.raises(TypeError, match=r"^last: expected Quadratic\(P, S, R\), got Tensor$"):
        LMIQLiLayer(SAMPLES, 3, 1, GAMMA)(*inputs[:6], inputs[0])
    with pytest.raises(ValueError, match=r"^last.R: expected positive definite matrices; begin with forms.baseline$"):
        LMIQLiLayer(SAMPLES, 3, 1, GAMMA)(*inputs[:6], forms.baseline(3, 1)._replace(R=torch.zeros(1, 1).double()))
    layer = LMIQLayer(SAMPLES, 3, 1, GAMMA)
    with pytest.raises(RuntimeError, match=r"^penalty_weight: expected λ under transforms of torch.func, got None"):
        torch.func.vmap(lambda reward: layer(*inputs[:2], reward, *inputs[3:6])[0])(torch.stack((inputs[2],) * 2))


def test_a_weight_may_be_a_number_and_a_batch_empty():
    inputs, layer = relaxation_inputs(), LMIQLayer(SAMPLES, 3, 1, GAMMA)
    assert all(map(torch.equal, layer(*inputs[:6], 0.05), layer(*inputs[:6], torch.tensor(0.05, dtype=torch.float64))))
    empty = [part.expand(0, *part.shape) for part in inputs[:6]]
    assert [tuple(part.shape) for part in layer(*empty, 0.05)] == [(0, 3, 3), (0, 3, 1), (0, 1, 1), (0, 3, 3)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_single_precision_is_refused(backend):
    inputs = relaxation_inputs()
    with pytest.raises(ValueError, match=r"^deviation: expected torch.float64, got torch.float32; use .double\(\)$"):
        LMIQLayer(SAMPLES, 3, 1, GAMMA, backend=backend)(inputs[0], inputs[1].float(), *inputs[2:])
