import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from problems import ROOT, command_line, outcome, start_process

from torchq.cli import signals
from torchq.cli.evaluate import main as evaluate
from torchq.cli.train import main as train

SLOW = ("--algo", "stlrq", "--env", "gridworld", "--num-seeds", 1, "--engine", "eager", "--device", "cpu",
        "--no-optimal", "--no-progress", "--eval-every", 1)  # fmt: skip


def wait_for_checkpoint(folder, process):
    """Until the run has saved something."""
    for _ in range(600):
        if (folder / "checkpoint" / "checkpoint.json").exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    pytest.fail("no checkpoint")


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_signal_keeps_what_is_learnt_and_says_how_to_go_on(number, code, tmp_path):
    folder = tmp_path / "run"
    process = start_process(*SLOW, "--episodes", 12, "--out", folder)
    wait_for_checkpoint(folder, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.strip() == f"interrupted; go on with: --resume --out {folder}"
    done = command_line("--resume", "--out", folder, "--no-progress")
    assert done[0] == 0, done[2]
    assert command_line(*SLOW, "--episodes", 12, "--out", tmp_path / "whole")[0] == 0
    assert outcome(folder) == outcome(tmp_path / "whole")


def test_a_second_signal_ends_at_once():
    script = (
        "import signal, time\nfrom torchq.cli.signals import ending_in_order\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # Ignored where the tests run in the background.
        "with ending_in_order():\n"
        "    try:\n        print('ready', flush=True); time.sleep(60)\n"
        "    finally:\n        print('saving', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "saving\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == -signal.SIGINT


@pytest.mark.parametrize("name", ["train.py", "evaluate.py", "torchq"])
def test_ctrl_c_while_packages_are_imported_prints_nothing(name):
    command = ["-m", "torchq", "train"] if name == "torchq" else [ROOT / name]
    command = [sys.executable, *command, "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    time.sleep(0.4)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (-signal.SIGINT, b"")


def test_what_is_ignored_stays_so_and_all_is_as_it_was_afterwards():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.ending_in_order():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_change_nothing():
    seen = []

    def look():
        with signals.ending_in_order():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


def test_a_link_to_nothing_in_the_place_of_runs_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(tmp_path / "gone")
    code, _, err = command_line(*SLOW, "--episodes", 1)
    assert (code, err.count("\n")) == (2, 1)
    assert "--out: expected runs to be a folder, but it is a link to nothing" in err


def test_a_full_disk_is_told_as_such(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("torchq.runs.training._save", full)
    code, _, err = command_line(*SLOW, "--episodes", 1, "--out", tmp_path / "run")
    assert (code, err) == (2, "error: No space left on device\n")


@pytest.mark.parametrize("flag", ["--out", "--report"])
def test_a_path_of_nothing_is_no_folder(flag, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = {"--out": train, "--report": evaluate}[flag]
    flags = SLOW if flag == "--out" else (tmp_path,)
    code, _, err = command_line(*flags, flag, "", entry=entry)
    assert (code, err) == (2, f"error: {flag}: expected the path of a folder, got ''\n")
