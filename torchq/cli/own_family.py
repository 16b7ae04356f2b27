"""The commands for families of one's own: `torchq new-family` and `torchq check-family`."""

from __future__ import annotations

import ast
from importlib import metadata, resources, util
from pathlib import Path
from string import Template
from typing import Any

import click

from torchq import families
from torchq.errors import UsageError


def new_command(name: str) -> click.Command:
    """The command that writes a family to start from."""
    argument = click.Argument(["path"], type=click.Path(path_type=Path), metavar="FILE.py")
    help_text = "Write a small family of your own to start from, with what it must say and do."
    return click.Command(name, params=[argument], callback=_new, help=help_text)


def check_command(name: str) -> click.Command:
    """The command that checks a family."""
    argument = click.Argument(["family"], metavar="MODULE:FAMILY")
    help_text = "Play a family at random and see that it keeps the contract of families; a line for each fault."
    return click.Command(name, params=[argument], callback=_check, help=help_text)


def _new(path: Path) -> None:
    module = path.stem
    if path.suffix != ".py" or not module.isidentifier():
        raise UsageError(f"FILE.py: expected the name of a Python module, such as my_family.py, got {path}")
    if util.find_spec(module) is not None and not path.exists():
        raise UsageError(f"FILE.py: there is a module {module} already, which this one would hide; name it otherwise")
    if path.exists():
        raise UsageError(f"FILE.py: {path} exists already; name another, nothing is overwritten")
    if not path.parent.is_dir():
        raise UsageError(f"FILE.py: expected a file in a folder that exists, but {path.parent} does not")
    family = _family_name(module)
    text = resources.files("torchq.cli").joinpath("family_template.txt").read_text(encoding="utf-8")
    filled = Template(text).substitute(module=module, Family=family, name=module.replace("_", "-"))
    body = ast.parse(filled).body if family.isidentifier() else []
    classes = [node.name for node in body if isinstance(node, ast.ClassDef)]
    if not body or len(set(classes)) < len(classes):
        raise UsageError(f"FILE.py: expected a name that makes a class of its own, such as my_family.py, got {path}")
    path.write_text(filled, encoding="utf-8")
    where = "" if path.parent == Path() else f", in {path.parent},"
    click.echo(f"wrote {path}; next{where} torchq check-family {module}:{family}, then "
               f"torchq train --algo stlrq --env {module}:{family}")  # fmt: skip


def _family_name(module: str) -> str:
    """What a family in a module is called, if nothing else is said."""
    return "".join(part[:1].upper() + part[1:] for part in module.split("_"))


def _check(family: str) -> None:
    if families.is_made(family):
        raise UsageError(f"MODULE:FAMILY: expected a family in torch, got {family}, which Gymnasium checks (check_env)")
    try:
        found: Any = families.make(family)
    except UsageError as error:
        example = "" if ":" in family else f"; yours is perhaps {family}:{_family_name(family)}"
        raise UsageError(f"MODULE:FAMILY: {str(error).removeprefix('env: ')}{example}") from error
    for entry in metadata.entry_points(group="torchq.environment_checks"):
        if faults := entry.load()(found):
            click.echo("\n".join(faults))
            raise UsageError(f"{family}: {len(faults)} fault{'s' if len(faults) > 1 else ''}; see above")
    click.echo(f"{family} keeps the contract of families")
