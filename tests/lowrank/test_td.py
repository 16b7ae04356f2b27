import torch

from torchq.lowrank import td


def test_error_is_target_minus_prediction():
    q, reward, discount = torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([0.5])
    error = td.td_error(q, reward, discount, torch.tensor([[3.0, 8.0, -1.0]]))
    assert error.item() == 1.0 + 0.5 * 8.0 - 2.0


def test_terminated_transition_does_not_bootstrap():
    error = td.td_error(torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([[1e9, 5.0]]))
    assert error.item() == -1.0


def test_target_is_held_constant():
    values = torch.ones(1, 3, requires_grad=True)
    q = torch.ones(1, requires_grad=True)
    td.td_error(q, torch.ones(1), torch.ones(1), values).sum().backward()
    assert values.grad is None
    assert q.grad.item() == -1


def test_semi_gradient_is_that_of_half_the_squared_error():
    row = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)
    cofactor = torch.tensor([1.5, 2.0], dtype=torch.float64)
    error = 4.0 - (row * cofactor).sum()
    (gradient,) = torch.autograd.grad(0.5 * error**2, row)
    torch.testing.assert_close(td.semi_gradient(error.detach(), cofactor), gradient)


def test_normalised_step_reaches_the_target_whatever_the_scale():
    for scale in (1e-3, 1.0, 1e3):
        row = torch.tensor([0.3, -0.7], dtype=torch.float64)
        cofactor = scale * torch.tensor([1.5, 2.0], dtype=torch.float64)
        error = 4.0 - (row * cofactor).sum()
        moved = row - td.normalised_semi_gradient(error, cofactor, damping=1e-15)
        torch.testing.assert_close((moved * cofactor).sum(), torch.tensor(4.0, dtype=torch.float64))
