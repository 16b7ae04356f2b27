"""What there is to choose from, a line each: `--list`."""

from __future__ import annotations

import inspect
from typing import Any

import click

from torchq import families
from torchq.presets import table

ALGOS = {
    "stlrq": "S-TLR-Q: the Q-functions of all tasks in one low-rank tensor with a task mode",
    "lrq": "LR-Q: a low-rank tensor for each task, none helps another",
    "clrq": "C-LR-Q: one low-rank tensor for all tasks alike, without a task mode",
    "tabular": "Q-learning with a table for each task",
    "lmi-ql": "LMI-QL: a quadratic Q-function by a semidefinite program, for plants with continuous control",
    "lmi-qli": "LMI-QLi: the same, by improving on a baseline",
    "lspi": "least-squares policy iteration on the same features, to compare with",
}
PRESETS = {
    "default": "all tasks together, interpolated modes, updates from stored transitions too",
    "paper": "the authors' protocol: tasks take turns",
}
ENGINES = {
    "auto": "the fastest that works and takes eager mode's steps",
    "fused": "whole episodes or steps as one generated program: C++ on a CPU, Triton on a GPU",
    "graph": "steps captured as CUDA graphs",
    "compile": "steps through torch.compile",
    "eager": "plain PyTorch",
    "external": "environments of Gymnasium, in worker processes",
}


def option() -> click.Option:
    """The flag `--list`, which prints and ends."""
    return click.Option(["--list"], is_flag=True, is_eager=True, expose_value=False, callback=_print,
                        help="List algorithms, families, presets and engines, a line each.")  # fmt: skip


def _print(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(text())
        context.exit()


def text() -> str:
    """Everything, by kind."""
    covered = {env for env, preset in table(families.names()) if preset == "paper"}
    found = {name: _about(families.loaded(name)) + (" (paper)" if name in covered else "") for name in families.names()}
    found["module:Family"] = "a family of your own, see torchq new-family"
    found["gym:ID"] = "environments of Gymnasium that differ in a parameter, see --vary"
    kinds = {"--algo": ALGOS, "--env": found, "--preset": PRESETS, "--engine": ENGINES}
    width = max(len(name) for names in kinds.values() for name in names)
    lines = [[flag, *(f"  {name:<{width}}  {about}" for name, about in names.items())] for flag, names in kinds.items()]
    return "\n\n".join(map("\n".join, lines))


def _about(family: Any) -> str:
    """The first sentence of a family's documentation."""
    return (inspect.getdoc(family) or "").partition("\n")[0].rstrip(".")
