"""What a field of the configuration takes, in words."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le


class Range(NamedTuple):
    """Numbers that a field takes."""

    kind: type
    low: float
    high: float = float("inf")
    low_open: bool = False

    def __str__(self) -> str:
        text = "an integer" if self.kind is int else "a number"
        if self.low > -float("inf"):
            text += f" of {'above' if self.low_open else 'at least'} {self.low:g}"
        if self.high < float("inf"):
            text += f" and at most {self.high:,}" if self.kind is int else f" and at most {self.high:g}"
        return text


class Shape(NamedTuple):
    """What a field takes: one of some names, numbers of a range, or something of a type."""

    kind: type
    """int, float, bool, str, or tuple for several."""
    names: tuple[str, ...] = ()
    range: Range | None = None

    def __str__(self) -> str:
        if self.names:
            return f"one of {', '.join(self.names)}"
        if self.kind is tuple:
            return f"a list, each {self.range or 'the parameters of a task by name'}"
        return (
            str(self.range) if self.range else {bool: "true or false", str: "a text", dict: "values by name"}[self.kind]
        )


def read_shape(annotation: Any, constraints: list[Any]) -> Shape:
    """What a field takes, read off its type and constraints."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        flat = [part for item in more for part in getattr(item, "metadata", [item])]
        return read_shape(inner, [*constraints, *flat])
    if get_origin(annotation) in (Union, types.UnionType):
        return read_shape(next(part for part in get_args(annotation) if part is not type(None)), constraints)
    if get_origin(annotation) is Literal:
        return Shape(str, names=get_args(annotation))
    if get_origin(annotation) is tuple:
        return read_shape(get_args(annotation)[0], [])._replace(kind=tuple)
    if get_origin(annotation) is dict:
        return Shape(dict)
    if annotation not in (int, float):
        return Shape(annotation)
    found = {type(one): one for one in constraints}
    low = found[Gt].gt if Gt in found else found[Ge].ge
    return Shape(annotation, range=Range(annotation, low, found[Le].le if Le in found else float("inf"), Gt in found))
