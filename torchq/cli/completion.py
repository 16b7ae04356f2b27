"""The command that prints what completes `torchq` in a shell: `torchq completion`.

The script holds all flags and names itself, rather than asking torchq at each TAB as click's own do: importing torch
would take seconds. Where families come or go, print it again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import click

from torchq.cli.flags import Name

SHELLS = ("bash", "zsh", "fish")
_WHERE = {
    "bash": "torchq completion bash > ~/.local/share/bash-completion/completions/torchq",
    "zsh": "torchq completion zsh > ~/.torchq.zsh; in ~/.zshrc, after compinit, source ~/.torchq.zsh",
    "fish": "torchq completion fish > ~/.config/fish/completions/torchq.fish",
}
_BASH = """# Completion of torchq: WHERE
_torchq() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} flags= names=
    if [[ $word == = ]]; then word=; elif [[ $before == = ]]; then before=${COMP_WORDS[COMP_CWORD-2]}; fi
    if (( COMP_CWORD == 1 )); then COMPREPLY=($(compgen -W "COMMANDS" -- "$word")); return; fi
    case "${COMP_WORDS[1]} $before" in
VALUES
    esac
    case "${COMP_WORDS[1]}" in
FLAGS
    esac
    if [[ $word == -* ]]; then names=$flags; fi
    COMPREPLY=($(compgen -W "$names" -- "$word"))
}
complete -o default -F _torchq torchq
"""


class Word(NamedTuple):
    """What a shell knows of a flag, or of an argument, which is spelt in no way."""

    spelt: tuple[str, ...]
    names: tuple[str, ...] | None
    """What may be given: one of some names, or nothing that can be known; None: a file or folder."""
    alone: bool
    """Whether nothing may be given."""
    about: str


def command(name: str, commands: Mapping[str, click.Command]) -> click.Command:
    """The command under a name, for these and itself."""
    help_text = "Print what completes torchq on TAB in a shell; where to, once for all:\n\n\b\n" + "\n".join(
        _WHERE.values()
    )
    made = click.Command(name, params=[click.Argument(["shell"], type=Name(SHELLS))], help=help_text)
    made.callback = lambda shell: click.echo(script(shell, {**commands, name: made}), nl=False)
    return made


def script(shell: str, commands: Mapping[str, click.Command]) -> str:
    """What completes some commands of `torchq` in a shell."""
    if shell == "fish":
        return "\n".join((f"# Completion of torchq: {_WHERE[shell]}", *_fish(commands))) + "\n"
    values, flags = [], []
    for name, one in commands.items():
        words = _words(one)
        spelt = " ".join(way for word in words for way in word.spelt)
        names = " ".join(way for word in words if not word.spelt for way in word.names or ())
        flags.append(f'        {name}) flags="{spelt}" names="{names}" ;;')
        for word in words:
            if word.spelt and word.names:
                patterns = " | ".join(f'"{name} {way}"' for way in word.spelt)
                reply = f'COMPREPLY=($(compgen -W "{" ".join(word.names)}" -- "$word"))'
                values.append(f"        {patterns}) {reply}; return ;;")
    filled = {"WHERE": _WHERE[shell], "COMMANDS": " ".join((*commands, "--help", "--version")),
              "VALUES": "\n".join(values), "FLAGS": "\n".join(flags)}  # fmt: skip
    text = re.sub("|".join(filled), lambda found: filled[found[0]], _BASH)
    return f"autoload -U +X bashcompinit && bashcompinit\n{text}" if shell == "zsh" else text


def _words(one: click.Command) -> list[Word]:
    context = click.Context(one)
    return [_word(param) for param in one.get_params(context)]


def _word(param: click.Parameter) -> Word:
    """What may be given is known of a name, nothing of a number; all else may be a file."""
    kind, is_option = param.type, isinstance(param, click.Option)
    files = isinstance(kind, click.Path) or kind is click.STRING
    names = kind.names if isinstance(kind, Name) else None if files else ()
    about = re.split(r"\. |;|  ", (param.help if isinstance(param, click.Option) else "") or "")[0].rstrip(".")
    spelt = (*param.opts, *param.secondary_opts) if is_option else ()
    return Word(spelt, names, isinstance(param, click.Option) and param.is_flag, about)


def _fish(commands: Mapping[str, click.Command]) -> Iterator[str]:
    for name, one in commands.items():
        about = (one.help or "").partition(".")[0].partition(":")[0]
        yield f"complete -c torchq -n __fish_use_subcommand -f -a {name} -d {_quoted(about)}"
        for word in _words(one):
            names = f" -a {_quoted(' '.join(word.names))}" if word.names else ""
            given = "-f" if word.alone else "-rF" if word.names is None else f"-x{names}"
            if word.spelt:
                ways = " ".join(f"-l {way.removeprefix('--')}" for way in word.spelt)
                yield f"{_of(name)} {ways} {given} -d {_quoted(word.about)}"
            elif names:
                yield f"{_of(name)} -f{names}"


def _of(name: str) -> str:
    return f"complete -c torchq -n '__fish_seen_subcommand_from {name}'"


def _quoted(text: str) -> str:
    return "'" + " ".join(text.split()).replace("\\", "\\\\").replace("'", "\\'") + "'"
