"""Shapes and types of the public functions are checked while the tests run."""

import os

import pytest
import torch
from jaxtyping import install_import_hook

if not os.environ.get("TORCHQ_NO_SHAPE_CHECKS"):
    for module in ("td", "cp", "modes", "replay", "optim", "exploration", "qtensor"):
        install_import_hook(f"torchq.lowrank.{module}", "beartype.beartype")
    for module in ("philox", "quadratic.forms", "quadratic.lqr"):
        install_import_hook(f"torchq.{module}", "beartype.beartype")

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
