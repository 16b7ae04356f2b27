"""What the commands share: errors of one line in the words of their flags, and exit codes."""

from __future__ import annotations

import difflib
import io
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress

import click

from torchq.cli.signals import ending_in_order, exit_code
from torchq.errors import Interrupted, TorchqError
from torchq.ranks import speaks

_ARGUMENTS = {"folder": "RUN", "file": "FILE"}
"""What has no flag."""


def flag(name: str, value: str | None = None) -> str:
    """An argument as the command line writes it."""
    if name in _ARGUMENTS:
        return _ARGUMENTS[name]
    spelt = "--" + name.replace("_", "-")
    if value in (None, "True"):
        return spelt
    return "--no-" + spelt[2:] if value == "False" else f"{spelt} {shlex.quote(value) if name == 'out' else value}"


def _print_what_can_be() -> None:
    """Put question marks where a terminal has no letter: η is not Latin-1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() not in ("utf-8", "utf8"):
            stream.reconfigure(errors="replace")


def run_command(command: click.Command, argv: Sequence[str] | None) -> int:
    """Run a click command; errors become one line on standard error and exit code 2, signals 128 and their number."""
    _print_what_can_be()
    try:
        with ending_in_order():
            return command.main(args=argv, prog_name=command.name, standalone_mode=False) or 0
    except click.NoSuchOption as error:
        params = error.ctx.command.params if error.ctx else command.params
        near = difflib.get_close_matches(error.option_name, [o for p in params for o in p.opts], n=1)
        message = f"{error.option_name}: no such flag" + (f"; did you mean {near[0]}?" if near else "; see --help")
    except click.MissingParameter as error:
        message = error.format_message()
    except click.BadParameter as error:
        name = error.param.opts[0] if error.param else "arguments"
        message = f"{name}: {error.message}"
    except click.ClickException as error:
        message = error.format_message()
    except TorchqError as error:
        message = error.spelt(flag)
    except OSError as error:
        where = os.fsdecode(error.filename) if isinstance(error.filename, bytes | str) else ""
        message = ": ".join(part for part in (where, error.strerror) if part) or str(error)
    except UnicodeEncodeError:
        message = "arguments: expected text that UTF-8 can encode; rename the folder"
    except (click.Abort, KeyboardInterrupt) as error:
        cause = error.__cause__ if isinstance(error, click.Abort) else error
        with suppress(OSError):  # The terminal may be gone.
            if speaks():
                click.echo(cause.spelt(flag) if isinstance(cause, Interrupted) else "interrupted", err=True)
        return exit_code(error)
    if not speaks():
        return 2
    line = "error: " + " ".join(message.split())
    click.echo(line.encode(errors="backslashreplace").decode(), err=True)
    return 2
