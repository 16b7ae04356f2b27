import torch

from torchq.lowrank.exploration import epsilon_greedy, exponential_decay, harmonic_decay


def test_explores_where_the_draw_is_below_epsilon():
    values = torch.tensor([[0.0, 3.0, 1.0]] * 3)
    explore = torch.tensor([0.0, 0.29, 0.3])
    action = epsilon_greedy(values, torch.tensor(0.3), explore, torch.tensor([2, 2, 2]))
    assert action.tolist() == [2, 2, 1]


def test_epsilon_zero_never_explores_and_one_always_does():
    values, random_action = torch.tensor([[0.0, 3.0]] * 2), torch.tensor([0, 0])
    explore = torch.tensor([0.0, 1 - 2**-24])
    assert epsilon_greedy(values, torch.tensor(0.0), explore, random_action).tolist() == [1, 1]
    assert epsilon_greedy(values, torch.tensor(1.0), explore, random_action).tolist() == [0, 0]


def test_ties_go_to_the_first_action():
    action = epsilon_greedy(torch.zeros(1, 4), torch.tensor(0.0), torch.zeros(1), torch.tensor([3]))
    assert action.item() == 0


def test_exponential_decay_equals_repeated_multiplication_down_to_the_floor():
    counts = torch.arange(200, dtype=torch.float64)
    schedule = exponential_decay(counts, 1.0, 0.3, 0.99)
    epsilon = 1.0
    for value in schedule.tolist():
        assert abs(value - epsilon) < 1e-12
        epsilon = max(0.3, epsilon * 0.99)
    assert schedule[-1] == 0.3


def test_harmonic_decay_halves_at_its_half_life():
    counts = torch.tensor([0.0, 100.0, 300.0])
    assert harmonic_decay(counts, 0.4, 100.0).tolist() == torch.tensor([0.4, 0.2, 0.1]).tolist()
    assert harmonic_decay(counts, 0.4, float("inf")).unique().numel() == 1
