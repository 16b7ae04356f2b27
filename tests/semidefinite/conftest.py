"""Either program that solves small semidefinite programs."""

import pytest

from torchq.semidefinite import solve


@pytest.fixture(params=["C++", "torch"])
def method(request, monkeypatch):
    """Solves, polishes and differentiates by either."""
    if request.param == "torch":
        monkeypatch.setattr(solve, "has_compiler", lambda: False)
    return request.param
