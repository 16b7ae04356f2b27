"""Slow, obvious twins of the fast code, in NumPy float64, one transition at a time."""

import itertools

import numpy as np


def q_value(factors, indices):
    return sum(np.prod([f[i, k] for f, i in zip(factors, indices, strict=True)]) for k in range(factors[0].shape[1]))


def action_values(factors, indices, action_sizes):
    actions = itertools.product(*(range(size) for size in action_sizes))
    return np.array([q_value(factors, (*indices, *action)) for action in actions])


def semi_gradient(factors, indices, mode, error):
    """Gradient of ½δ² with respect to one whole factor."""
    gradient = np.zeros_like(factors[mode])
    for k in range(gradient.shape[1]):
        others = [f[i, k] for d, (f, i) in enumerate(zip(factors, indices, strict=True)) if d != mode]
        gradient[indices[mode], k] = -error * np.prod(others)
    return gradient


class Adamax:
    """torch.optim.Adamax, one factor at a time."""

    def __init__(self, factors, learning_rate):
        self.lr, self.m = learning_rate, [np.zeros_like(f) for f in factors]
        self.u, self.t = [np.zeros_like(f) for f in factors], [0] * len(factors)

    def step(self, factors, mode, g):
        self.t[mode] += 1
        self.m[mode] = 0.9 * self.m[mode] + 0.1 * g
        self.u[mode] = np.maximum(0.999 * self.u[mode], np.abs(g) + 1e-8)
        factors[mode] -= self.lr / (1 - 0.9 ** self.t[mode]) * self.m[mode] / self.u[mode]


def block_update(factors, optimizer, indices, next_indices, reward, gamma, action_sizes, scale=2.0):
    """One sweep of the paper's online protocol; `indices` holds task (if any), states and actions in order."""
    for mode in range(len(factors)):
        target = reward + gamma * action_values(factors, next_indices, action_sizes).max()
        error = target - q_value(factors, indices)
        optimizer.step(factors, mode, scale * semi_gradient(factors, indices, mode, error))


def joint_update(factors, optimizer, batch, gamma, action_sizes, weights=None):
    """One step of all factors from the summed gradients of a batch of (indices, next_indices, reward, task)."""
    gradients = [np.zeros_like(f) for f in factors]
    for indices, next_indices, reward, task in batch:
        target = reward + gamma * action_values(factors, next_indices, action_sizes).max()
        error = (target - q_value(factors, indices)) * (1.0 if weights is None else weights[task])
        for mode in range(len(factors)):
            gradients[mode] += semi_gradient(factors, indices, mode, error)
    for mode in range(len(factors)):
        optimizer.step(factors, mode, gradients[mode])


def accumulate_rows(values, index, size):
    total = np.zeros((size, values.shape[1]))
    for value, i in zip(values, index, strict=True):
        total[i] += value
    return total


def hat_rows(factors, places):
    """Rows of the factors at places along them; fractional ones are weighted means of two rows."""
    rows = []
    for factor, place in zip(factors, places, strict=True):
        low = int(np.floor(place))
        high, w = (low + 1) % len(factor), place - low
        rows.append((1 - w) * factor[low] + w * factor[high])
    return rows


def hat_update(factors, target, optimizer, batch, gamma, num_actions):
    """One joint step from a batch of (places with the action last, next places without, reward)."""
    gradients = [np.zeros_like(factor) for factor in factors]
    for places, following, reward in batch:
        values = [np.prod(hat_rows(target, (*following, a)), axis=0).sum() for a in range(num_actions)]
        rows = hat_rows(factors, places)
        error = reward + gamma * max(values) - np.prod(rows, axis=0).sum()
        for mode, (factor, place) in enumerate(zip(factors, places, strict=True)):
            others = np.prod([row for d, row in enumerate(rows) if d != mode], axis=0)
            low = int(np.floor(place))
            gradients[mode][low] -= error * (1 - (place - low)) * others
            gradients[mode][(low + 1) % len(factor)] -= error * (place - low) * others
    for mode, gradient in enumerate(gradients):
        optimizer.step(factors, mode, gradient)
