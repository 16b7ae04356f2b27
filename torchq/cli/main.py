"""The command `torchq`, also `python -m torchq`: train, evaluate, export, and what families of one's own need."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

import torchq
from torchq.cli import completion, evaluate, export, own_family, train
from torchq.cli.commands import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of `torchq`; returns the exit code."""
    own = [own_family.new_command("new-family"), own_family.check_command("check-family")]
    commands = [train.command("train"), evaluate.command("evaluate"), export.command("export"), *own]
    help_text = "Value functions for many related tasks at once. Every command has a --help of its own."
    commands.append(completion.command("completion", {command.name or "": command for command in commands}))
    group = click.Group("torchq", commands=commands, help=help_text)
    given = list(sys.argv[1:] if argv is None else argv)
    return run_command(click.version_option(torchq.__version__, package_name="torchq")(group), given or ["--help"])
