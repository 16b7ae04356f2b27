"""What mkdocs is told beyond mkdocs.yml: pages that lie elsewhere in the repository, and tables of flags."""

from __future__ import annotations

import posixpath
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import click
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
OUTSIDE = ("benchmarks/PROFILE.md", "benchmarks/results/*.md", "benchmarks/results/*.png", "C*.md")
"""Where each of them lies on the site is where it lies in the repository."""
LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)#\s]+)")
FLAGS = re.compile(r"<!-- flags of (\S+): ([^>]*?) -->")


def on_files(files: Files, config: Any) -> Files:
    """Add what lies outside of docs/."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            uri = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Make links of the repository those of the site, and markers of flags tables."""
    source = Path(page.file.abs_src_path).parent

    def moved(link: re.Match[str]) -> str:
        target = (source / link[2]).resolve()
        base = DOCS if target.is_relative_to(DOCS) else ROOT
        if not target.is_relative_to(base):
            raise PluginError(f"{page.file.src_uri}: {link[2]} lies outside of the repository")
        uri = target.relative_to(base).as_posix()
        return link[1] + posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")

    check_flags(FLAGS.findall(markdown), page.file.src_uri)
    return FLAGS.sub(lambda marker: flag_table(marker[1], marker[2].split()), LINK.sub(moved, markdown))


@cache
def options(command: str) -> dict[str, Any]:
    """Parameters of a command by their first name."""
    sys.path.insert(0, str(ROOT))
    from torchq.cli import evaluate, export, train

    params = {"train": train, "evaluate": evaluate, "export": export}[command].command(command).params
    return {param.opts[0]: param for param in params if param.opts[0].startswith("--")}


def check_flags(tables: list[tuple[str, str]], page: str) -> None:
    """A page that has tables of a command's flags has each flag once."""
    for command in {name for name, _ in tables}:
        named = [flag for name, flags in tables if name == command for flag in flags.split()]
        wrong = {flag for flag in named if named.count(flag) > 1} | set(named) ^ set(options(command))
        if wrong:
            raise PluginError(f"{page}: expected each flag of {command} once, but for {', '.join(sorted(wrong))}")


def flag_table(command: str, flags: list[str]) -> str:
    """A table of flags in the words of `--help`."""
    lines = ["| flag | what it says | default |", "|---|---|---|"]
    for param in (options(command)[flag] for flag in flags):
        names = "<br>".join(f"`{name}`" for name in (*param.opts, *param.secondary_opts) if name.startswith("--"))
        record = param.get_help_record(click.Context(click.Command(command))) or ("", "")
        text, _, default = record[1].partition("  [default: ")
        values = getattr(param.type, "names", ())
        taken = f" ({', '.join(values)})" if values else ""
        cells = (names, text + taken, default[:-1])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)
