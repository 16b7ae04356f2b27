"""The methods by their names, and which of them a setting is for."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

QUADRATIC_ALGOS = ("lmi-ql", "lmi-qli", "lspi")
LOW_RANK_ALGOS = ("stlrq", "lrq", "clrq")
TENSOR_ALGOS = (*LOW_RANK_ALGOS, "tabular")
"""Methods that learn action values on a grid."""

Algo = Literal["stlrq", "lrq", "clrq", "tabular", "lmi-ql", "lmi-qli", "lspi"]
ALGOS = get_args(Algo)


class Scope(NamedTuple):
    """Which methods a field is for."""

    shown: str
    algos: tuple[str, ...]


EVERY = Scope("any `algo`", ALGOS)
GRID = Scope(f"`algo={', '.join(TENSOR_ALGOS)}`", TENSOR_ALGOS)
LOW_RANK = Scope("a low-rank algo", LOW_RANK_ALGOS)
STLRQ = Scope("`algo=stlrq`", ("stlrq",))
COMMON = Scope("`algo=stlrq or clrq`", ("stlrq", "clrq"))
QUADRATIC = Scope(f"`algo={', '.join(QUADRATIC_ALGOS)}`", QUADRATIC_ALGOS)
RELAXED = Scope("`algo=lmi-ql`", ("lmi-ql",))
BOUNDED = Scope("`algo=lmi-ql or lmi-qli`", ("lmi-ql", "lmi-qli"))
HELD = Scope("`algo=lmi-qli`", ("lmi-qli",))
ITERATED = Scope("`algo=lmi-qli or lspi`", ("lmi-qli", "lspi"))
CONVENTION = Scope("`algo=lrq` `preset=paper`", ("lrq",))
WARM = Scope(f"`algo={', '.join(LOW_RANK_ALGOS)} or lmi-qli`", (*LOW_RANK_ALGOS, "lmi-qli"))
