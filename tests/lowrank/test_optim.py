import pytest
import torch

from torchq.lowrank import optim

REFERENCE = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamax": torch.optim.Adamax}


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("name", REFERENCE)
def test_steps_equal_torch_optim(name, scale, generator):
    """Dense and sparse gradients, 50 steps."""
    factor = torch.randn(2, 1, 5, 3, generator=generator, dtype=torch.float64)
    parameter = torch.nn.Parameter(factor.clone())
    reference = REFERENCE[name]([parameter], lr=0.01)
    moments = optim.init_moments(factor, name)
    for count in range(1, 51):
        gradient = scale * torch.randn(factor.shape, generator=generator, dtype=torch.float64)
        gradient[:, :, count % 5 :] = 0
        parameter.grad = gradient
        reference.step()
        learning_rate = torch.tensor(0.01, dtype=torch.float64)
        factor, moments = optim.OPTIMIZERS[name](factor, gradient, moments, torch.tensor(count), learning_rate)
        torch.testing.assert_close(factor, parameter.detach(), rtol=1e-12, atol=1e-12 * max(1.0, scale))
