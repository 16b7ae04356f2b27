import numpy as np
import torch

from torchq import TabularQ, Transition


def test_update_equals_a_plain_loop_over_the_batch(generator):
    """Errors are those before the step; repeated cells add up."""
    learner = TabularQ((2, 2), 2, 3)
    state = learner.init(torch.arange(2), device="cpu", dtype=torch.float64)
    state = state._replace(table=torch.randn(2, 3, 8, generator=generator, dtype=torch.float64))
    shape = (2, 3, 30)
    index, following = (tuple(torch.randint(2, shape, generator=generator) for _ in range(2)) for _ in range(2))
    action = torch.randint(2, shape, generator=generator)
    reward = torch.randn(shape, generator=generator, dtype=torch.float64)
    discount = 0.9 * torch.randint(2, shape, generator=generator)
    expected = state.table.numpy().reshape(2, 3, 2, 2, 2).copy()
    before = expected.copy()
    for s, m, n in np.ndindex(*shape):
        i, j, a = index[0][s, m, n], index[1][s, m, n], action[s, m, n]
        best = before[s, m, following[0][s, m, n], following[1][s, m, n]].max()
        error = reward[s, m, n].item() + discount[s, m, n].item() * best - before[s, m, i, j, a]
        expected[s, m, i, j, a] += 0.1 * error
    new, _ = learner.update(
        state, Transition(index, action, reward, discount, following), torch.tensor(0.1, dtype=torch.float64)
    )
    np.testing.assert_allclose(new.table.reshape(expected.shape), expected, atol=1e-12)
