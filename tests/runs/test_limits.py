"""Sizes that no machine has room for, and what a system takes away: one line, and nothing is lost."""

import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
import torch
from problems import ROOT, command_line, start_process

from torchq.runs import memory
from torchq.runs.metrics import TensorBoard

FLAGS = ("--algo", "stlrq", "--env", "gridworld", "--num-seeds", 1, "--engine", "eager", "--device", "cpu",
         "--no-optimal", "--no-progress", "--eval-every", 1)  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((*FLAGS, "--episodes", 2, "--eval-episodes", 10**7), "--eval-episodes, --eval-tasks: expected tests that fit"),
        (("--algo", "lspi", "--sizes", 2 * 10**9), "--sizes: expected data sets that fit in memory, but 2,000,000,000"),
        ((*FLAGS, "--algo", "tabular", "--env-option", "size=1000000", "--episodes", 2), "expected a run that fits"),
    ],
)
def test_more_than_any_memory_is_one_line(given, expected, tmp_path):
    code, _, err = command_line(*given, "--out", tmp_path / "run")
    assert (code, err.count("\n")) == (2, 1), err
    assert expected in err
    assert not (tmp_path / "run").exists()


def test_a_huge_grid_is_learnt_without_walking_through_it(tmp_path):
    given = ("--algo", "stlrq", "--env", "gridworld", "--env-option", "size=30000", "--rank", 2, "--episodes", 1)
    begun = time.monotonic()
    code, _, err = command_line(
        *given, "--num-seeds", 1, "--engine", "eager", "--no-progress", "--out", tmp_path / "run"
    )
    assert code == 0, err
    assert time.monotonic() - begun < 30


def test_a_limit_on_addresses_counts_as_memory():
    script = (
        "import resource, torch\nfrom torchq.runs import memory\n"
        "resource.setrlimit(resource.RLIMIT_AS, (20 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))\n"
        "print(memory.available(torch.device('cpu')), memory._left_by_limit())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    free, left = done.stdout.split()
    assert 0 < int(left) < 20 << 30
    assert int(free) <= int(left)
    assert memory.available(torch.device("cpu")) > 0


def test_a_folder_that_vanishes_is_one_line(tmp_path):
    process = start_process(*FLAGS, "--episodes", 100_000, "--out", tmp_path / "run")
    while not (tmp_path / "run" / "metrics.csv").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert (err.count("\n"), err[:7]) == (1, "error: "), err
    assert "No such file or directory" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    code, _, err = command_line(*FLAGS, "--episodes", 1, "--out", tmp_path / "run")
    tmp_path.chmod(0o700)
    assert (code, err) == (2, f"error: {tmp_path / 'run'}: Permission denied\n")


def test_only_what_a_disk_refuses_is_quiet_in_the_thread_of_events(tmp_path):
    before, seen = threading.excepthook, []
    threading.excepthook = seen.append
    try:
        board = TensorBoard(tmp_path, None)
        for error in (OSError(28, "full"), ValueError("a fault")):

            def fail(error=error):
                raise error

            thread = threading.Thread(target=fail)
            thread.start()
            thread.join()
        board.close()
        assert [str(found.exc_value) for found in seen] == ["a fault"]
        assert threading.excepthook == seen.append
    finally:
        threading.excepthook = before
