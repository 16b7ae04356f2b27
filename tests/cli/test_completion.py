"""What TAB offers."""

import shutil
import subprocess

import pytest
from problems import command_line

from torchq import config
from torchq.cli.completion import SHELLS
from torchq.cli.main import main
from torchq.methods import ALGOS

CASES = {
    "torchq ev": ["evaluate"],
    "torchq train --algo ": list(ALGOS),
    "torchq train --algo lm": ["lmi-ql", "lmi-qli"],
    "torchq train --preset=p": ["paper"],
    "torchq train --algo stlrq --env pen": ["pendulum"],
    "torchq train --learning": ["--learning-rate", "--learning-rate-half-life"],
    "torchq train --no-gr": ["--no-grow"],
    "torchq evaluate --dev": ["--device"],
    "torchq evaluate --device c": ["cpu", "cuda"],
    "torchq completion ": list(SHELLS),
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completion")
    for shell in SHELLS:
        code, said, err = command_line("completion", shell, entry=main)
        assert (code, err) == (0, "")
        (folder / shell).write_text(said)
    return folder


def offered(shell, program, *arguments):
    done = subprocess.run([shell, *arguments, "-c", program], capture_output=True, text=True, env={"PATH": "/nowhere"})
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize("line", CASES)
def test_bash_offers_commands_flags_and_names_without_any_program(scripts, line):
    """No program is found at all: none is started, Python least of all."""
    words = line.replace("=", " = ").split(" ")
    program = (
        f"source {scripts / 'bash'}; COMP_WORDS=({' '.join(repr(word) for word in words)}); "
        f"COMP_CWORD={len(words) - 1}; _torchq; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    assert sorted(offered(shutil.which("bash"), program, "--norc")) == sorted(CASES[line])


@pytest.mark.skipif(not shutil.which("fish"), reason="needs fish")
@pytest.mark.parametrize("line", CASES)
def test_fish_offers_the_same(scripts, line):
    found = offered(shutil.which("fish"), f"source {scripts / 'fish'}; complete -C '{line}'", "--no-config")
    ours = [row.split("\t")[0].removeprefix("--preset=") for row in found]
    assert sorted(ours) == sorted(CASES[line])


@pytest.mark.skipif(not shutil.which("zsh"), reason="needs zsh")
def test_zsh_can_read_it(scripts):
    """Not a word of it is run: its completion needs a terminal."""
    done = subprocess.run([shutil.which("zsh"), "-fn", scripts / "zsh"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_flag_is_offered_in_every_shell(scripts):
    for name in config.flags():
        for shell, prefix in (("bash", "--"), ("zsh", "--"), ("fish", "-l ")):
            assert f"{prefix}{name.replace('_', '-')} " in (scripts / shell).read_text(), (shell, name)


def test_another_shell_is_one_line():
    code, _, err = command_line("completion", "tcsh", entry=main)
    assert (code, err.count("\n")) == (2, 1)
    assert "expected one of bash, zsh, fish, got 'tcsh'" in err
