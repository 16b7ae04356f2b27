"""Nested (named) tuples of tensors, as one dictionary by dotted names and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchq.errors import CheckpointError


def flatten(tree: Any, prefix: str = "") -> dict[str, Tensor]:
    """Tensors of nested (named) tuples by dotted name, such as `learner.factors.0`."""
    if isinstance(tree, Tensor):
        return {prefix: tree}
    names = getattr(tree, "_fields", None) or [str(i) for i in range(len(tree))]
    return {
        key: tensor
        for name, child in zip(names, tree, strict=True)
        for key, tensor in flatten(child, f"{prefix}.{name}" if prefix else name).items()
    }


def unflatten(template: Any, tensors: dict[str, Tensor], prefix: str = "") -> Any:
    """Tensors back into the shape of a template.

    Raises:
        CheckpointError: if a tensor is missing or of another shape or type.
    """
    if isinstance(template, Tensor):
        tensor = tensors.get(prefix)
        if tensor is None or tensor.shape != template.shape or tensor.dtype != template.dtype:
            came = "none" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}"
            raise CheckpointError(
                f"checkpoint: expected tensor {prefix} of {tuple(template.shape)} {template.dtype}, got {came}; "
                "the checkpoint belongs to a run with other settings"
            )
        return tensor.to(template.device)
    names = getattr(template, "_fields", None) or [str(i) for i in range(len(template))]
    children = [
        unflatten(child, tensors, f"{prefix}.{name}" if prefix else name)
        for name, child in zip(names, template, strict=True)
    ]
    return type(template)(*children) if hasattr(template, "_fields") else tuple(children)


def mapped(tree: Any, function: Callable[[str, Tensor], Tensor], prefix: str = "") -> Any:
    """The same nested (named) tuples of what a function makes of each tensor and its dotted name."""
    if isinstance(tree, Tensor):
        return function(prefix, tree)
    names = getattr(tree, "_fields", None) or [str(i) for i in range(len(tree))]
    children = [
        mapped(child, function, f"{prefix}.{name}" if prefix else name) for name, child in zip(names, tree, strict=True)
    ]
    return type(tree)(*children) if hasattr(tree, "_fields") else tuple(children)


def select(tree: Any, index: int) -> Any:
    """Nested (named) tuples with one row of each tensor, (1, …); scalars stay."""
    if isinstance(tree, Tensor):
        return tree[index : index + 1] if tree.ndim else tree
    children = [select(child, index) for child in tree]
    return type(tree)(*children) if hasattr(tree, "_fields") else tuple(children)


def rebuilt(tree: Any) -> Any:
    """The same nested (named) tuples, made anew around what they hold."""
    if not isinstance(tree, tuple):
        return tree
    children = [rebuilt(child) for child in tree]
    return type(tree)(*children) if hasattr(tree, "_fields") else tuple(children)


def not_finite(tensors: dict[str, Tensor]) -> tuple[str, int] | None:
    """The first tensor that is not finite, by name, and where along its first axis; None if all are."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not (finite := torch.isfinite(tensor)).all():
            return name, int((~finite).nonzero()[0, 0]) if tensor.ndim else 0
    return None


def all_finite(tensors: dict[str, Tensor]) -> Tensor:
    """Whether every floating-point tensor is finite; a boolean of shape ()."""
    finite = [torch.isfinite(tensor).all() for tensor in tensors.values() if tensor.is_floating_point()]
    return torch.stack(finite).all()
