"""Settings that contradict each other, or that a method does not have: one line each."""

import pytest

from torchq.errors import UsageError
from torchq.presets import resolve


@pytest.mark.parametrize(
    ("algo", "env", "settings", "message"),
    [
        ("lspi", "pendulum", {"penalty": "data"}, "penalty: expected only with algo=lmi-ql, got algo=lspi"),
        ("lspi", "pendulum", {"constraint": "tot"}, "constraint: expected only with algo=lmi-ql or lmi-qli"),
        ("lmi-ql", "pendulum", {"iterations": 3}, "iterations: expected only with algo=lmi-qli or lspi"),
        ("stlrq", "pendulum", {"task_weights": (0.0, 0.0, 0.0, 0.0)}, "task_weights: expected one above 0"),
        ("stlrq", "pendulum", {"epsilon_end": 0.5, "epsilon_start": 0.1}, "epsilon_end: expected at most"),
        ("stlrq", "acrobot", {"epsilon_start": 0.01}, "epsilon_end: expected at most"),
    ],
)
def test_what_cannot_be_is_one_line(algo, env, settings, message):
    with pytest.raises(UsageError) as raised:
        resolve(algo, env, "default", settings)
    said = str(raised.value).replace('"', "")
    assert said.startswith(message)
    assert "\n" not in said


def test_what_can_be_is_taken():
    assert resolve("lmi-ql", "pendulum", "default", {"penalty": "data", "constraint": "tot"}).penalty == "data"
    assert resolve("lspi", "pendulum", "default", {"iterations": 3}).iterations == 3
    assert resolve("stlrq", "pendulum", "default", {"task_weights": (0.0, 1.0, 1.0, 1.0)}).task_weights[0] == 0.0
    assert resolve("stlrq", "pendulum", "default", {"epsilon_start": 0.2, "epsilon_end": 0.2}).epsilon_end == 0.2
