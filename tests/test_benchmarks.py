"""The benchmark of a machine with a GPU, as far as a CPU can tell."""

import importlib.util
import json
import re
import subprocess
import sys

import classic_control
import gpu
import new_tasks
import pytest
import sample_efficiency
import sharing
import torch
from problems import ROOT
from sharing_grids import discounted
from sharing_runs import OddPendulum, Plan, learn, with_own_components

from envs import Wireless, base, optimal


@pytest.mark.slow
def test_every_question_to_a_gpu_is_answered_in_a_dry_run(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--dry-run", "--out", tmp_path / "found"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["commit"]
    assert found["device"].startswith("CPU")
    assert found["sections"].keys() == gpu.SECTIONS.keys() - set(gpu.SLOW)
    rows = {name: section["rows"] for name, section in found["sections"].items()}
    assert all(section["status"] == "done" for section in found["sections"].values())
    assert [row["engine"] for row in rows["agreement-pendulum"]] == ["eager", "fused"]
    assert 0 < float(rows["agreement-pendulum"][1]["apart after 1 round"]) < 1e-9
    assert all(row["million/s"] > 0 for row in rows["rates-fused"])
    assert all(row["whole figure, s"] > 0 for row in rows["figures"])
    assert all(row["with, million/s"] > 0 for row in rows["replay-fused"])
    assert all(row["exit code"] == 0 for name in ("tests", "command") for row in rows[name])
    page = (tmp_path / "found.md").read_text()
    assert all(f"## {name}" in page for name in found["sections"])


def test_a_section_that_fails_or_hangs_costs_only_itself(monkeypatch, tmp_path):
    """And what it had measured is kept."""
    script = "import json, sys, time; sys.path[:0] = {path!r}; open(sys.argv[4], 'w').write({rows!r}); {end}"
    rows = json.dumps({"a": 1}) + "\n"
    for end, status in (("raise ValueError('no such luck')", "exit code 1: ValueError: no such luck"),
                        ("time.sleep(60)", "stopped after 2 s")):  # fmt: skip
        (tmp_path / "section.py").write_text(script.format(path=[], rows=rows, end=end))
        monkeypatch.setattr(gpu, "__file__", str(tmp_path / "section.py"))
        found = gpu.run_section("rates-fused", 2.0, dry=False)
        assert found["status"] == status
        assert found["rows"] == [{"a": 1}]
        assert found["seconds"] < 10


def test_returns_by_samples_are_those_of_a_run_that_learns():
    """Ten short episodes and a hundred, two seeds: at the second mark pendulums stand."""
    found, seconds = sample_efficiency.returns_at("pendulum", (100, 3000), range(2), {"rank": 20})
    assert [values.shape for values in found] == [(2, 4), (2, 4)]
    assert found[1].mean() > -150 > found[0].mean()
    assert seconds > 0


def test_the_yardstick_outside_says_what_it_needs_or_runs():
    command = [sys.executable, ROOT / "benchmarks" / "contextual_dqn.py", "--envs", "pendulum", "--dry-run"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if importlib.util.find_spec("stable_baselines3"):
        assert "| pendulum | 800 |" in done.stdout, done.stderr
    else:
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert done.stderr.endswith("pip install stable-baselines3\n")


@pytest.mark.slow
def test_every_question_about_sharing_is_asked(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "sharing.py", "--quick", "--out", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "sharing.md").read_text()
    found = sharing.sections(page)
    assert list(found) == [title for title, _ in sharing.QUESTIONS.values()]
    assert all(section.count("\n| ") > 2 for section in found.values())
    assert re.search(r"\b(nan|inf)\b", page) is None
    pictures = re.findall(r"\]\((\S+\.png)\)", page)
    assert len(pictures) == len(found)
    assert all((tmp_path / name).stat().st_size > 1000 for name in pictures)


def test_components_of_one_task_stay_its_own(tmp_path):
    with torch.no_grad():
        start = with_own_components(2, 1)
        family = OddPendulum(episode_length=10)
        (mark,) = learn(Plan(tmp_path, quick=True), family, [20], range(2), start, num_tasks=5, rank=7,
                        task_modes="product")  # fmt: skip
    own = mark.policy.factors[0][:, 0, :, 2:]  # (seeds, tasks, components)
    assert own.diagonal(dim1=1, dim2=2).abs().min() > 0
    assert own.count_nonzero() == 2 * 5


def test_values_without_discount_are_the_optimum():
    env = Wireless(episode_length=10)
    task = base.stack_tasks(env.sample_tasks()[3:])
    value, _ = discounted(env, task, 1.0, num_gains=4, rounds=10)
    assert value[:, 1, 4, -1].mean().item() == pytest.approx(optimal.wireless(env, task, num_gains=4), abs=1e-3)


@pytest.mark.slow
def test_tasks_held_out_and_new_ones_get_their_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(new_tasks, "RESULTS", tmp_path)
    new_tasks.main(["--quick"])
    for name, heads in {"held_out.md": ["## Pendulums", "## Transmitters"], "adaptation.md": ["## Pendulums"]}.items():
        page = (tmp_path / name).read_text()
        assert all(head in page for head in heads)
        assert re.search(r"\b(nan|inf)\b", page) is None


def test_classic_control_gets_its_page(tmp_path, monkeypatch):
    monkeypatch.setattr(classic_control, "RESULTS", tmp_path)
    classic_control.main(["--quick"])
    page = (tmp_path / "classic_control.md").read_text()
    assert all(f"| {title} | " in page for title, *_ in classic_control.KNOWN.values())
    assert page.count("a row each") == 6
    assert "the 4 beyond that, never trained on" in page
    assert re.search(r"\b(nan|inf)\b", page) is None


def test_a_campaign_of_faults_is_survived(tmp_path):
    """In a process of its own, for its children are forked: what has started threads cannot be."""
    command = [sys.executable, ROOT / "benchmarks" / "faults.py", "--kills", 1, "--disks", 1, "--mutations", 6,
               "--commands", 6, "--seed", 7, "--kinds", "stlrq,turns", "--out", tmp_path / "found"]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.findall(r"\| (\w+) \| (\d+) \| (\d+) \|", (tmp_path / "found.md").read_text())
    assert counts == [("kills", "1", "1"), ("disks", "1", "1"), ("mutations", "6", "6"), ("commands", "6", "6")]


@pytest.mark.slow
def test_a_million_is_measured_with_fewer(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "million.py", "--tasks", 1200, "--runs", tmp_path, "--out",
               tmp_path / "found"]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "found.md").read_text()
    assert "## 1,200 tasks of pendulum" in page
    assert "## 1,200 tasks of wireless" in page
    assert (tmp_path / "found.png").stat().st_size > 10_000
