import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from problems import command_line

import torchq
from torchq.cli.evaluate import main
from torchq.report import page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def evaluate(*arguments):
    return command_line(*arguments, entry=main)


def trained(folder, *flags):
    done = command_line("--num-seeds", 3, "--device", "cpu", "--engine", "eager", "--out", folder, *flags)
    assert done[0] == 0, done[2]
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    for algo in ("stlrq", "lrq", "tabular"):
        trained(home / algo, "--algo", algo, "--env", "gridworld", "--episodes", 6)
    trained(home / "six", "--algo", "stlrq", "--env", "gridworld", "--episodes", 2, "--num-tasks", 6)
    trained(home / "pendulum", "--algo", "stlrq", "--env", "pendulum", "--episodes", 2, "--no-optimal")
    return home


@pytest.fixture(scope="module")
def made(runs, tmp_path_factory):
    """The page about three runs, and what it holds."""
    folder = tmp_path_factory.mktemp("page")
    code, out, err = evaluate(runs / "stlrq", runs / "lrq", runs / "tabular", "--report", folder)
    assert code == 0, err
    assert out.splitlines()[-1] == f"report: {folder / 'index.html'}"
    text = (folder / "index.html").read_text()
    found = re.search(r'<script type="application/json" id="contents">(.*?)</script>', text, flags=re.DOTALL)
    return folder / "index.html", text, json.loads(found[1])


def test_a_page_needs_nothing_else(made):
    _, text, _ = made
    assert not re.search(r"""(?:src|href)=["'](?!#)""", text.partition('id="contents"')[0])
    assert "@import" not in text.partition("</style>")[0]


def test_figures_say_what_the_run_folders_say(made, runs):
    _, _, contents = made
    run = torchq.load(runs / "stlrq")
    (curve,) = [trace for trace in contents["figures"]["curves"][1]["data"] if trace.get("name") == "S-TLR-Q"]
    assert curve["x"] == run.metrics.samples.tolist()
    assert curve["y"] == pytest.approx(np.median(run.metrics.returns[:, :, 1], axis=1), rel=1e-4)
    optimum = contents["figures"]["curves"][1]["data"][-1]
    assert optimum["name"] == "optimum"
    assert optimum["y"] == pytest.approx([run.summary["optimal_return"][1]] * 2, rel=1e-4)


def test_every_run_has_values_episodes_tasks_and_factors_where_they_mean_something(made):
    _, _, contents = made
    assert contents["labels"] == ["S-TLR-Q", "LR-Q", "tabular Q"]
    stlrq, lrq, tabular = contents["runs"]
    for run in contents["runs"]:
        assert run["values"]["axes"] == [[0, 1, 2, 3, 4]] * 2
        assert len(run["episodes"]) == len(run["tasks"]) == 4
        assert all(len(one["observations"][0]) == len(one["actions"]) + 1 for one in run["episodes"])
    assert (len(stlrq["similarity"]), len(lrq["similarity"]), len(tabular["similarity"])) == (2, 2, 0)
    assert [len(run["factors"]) for run in contents["runs"]] == [5, 0, 0]
    assert stlrq["actions"] == ["up", "right", "down", "left"]
    assert contents["optimal"][0]["return"] <= 0.0


def test_an_optimal_episode_is_no_shorter_way_than_the_distance(made):
    _, _, contents = made
    for task, episode in enumerate(contents["optimal"]):
        goal = [(0, 0), (0, 4), (4, 0), (4, 4)][task]
        start, end = ([axis[i] for axis in episode["observations"]] for i in (0, -1))
        assert tuple(end) == goal
        assert episode["return"] == -sum(abs(a - b) for a, b in zip(start, goal, strict=True))


def test_a_fleet_has_a_map_and_a_few_tasks_have_none(runs, tmp_path):
    assert evaluate(runs / "six", "--report", tmp_path)[0] == 0
    text = (tmp_path / "index.html").read_text()
    found = json.loads(re.search(r'id="contents">(.*?)</script>', text, flags=re.DOTALL)[1])["runs"][0]["map"]
    assert (found["axes"], found["names"]) == (["goal_row", "goal_column"], ["return", "return minus optimum"])
    median = np.median(torchq.load(runs / "six").metrics.final_return(), axis=0)
    assert found["colours"][0] == pytest.approx(median, rel=1e-4)


def test_names_and_settings_cannot_end_the_script(runs, tmp_path):
    folder = shutil.copytree(runs / "stlrq", tmp_path / "<script>alert(1)<&script>")
    assert evaluate(folder, runs / "stlrq", "--report", tmp_path / "out")[0] == 0
    text = (tmp_path / "out" / "index.html").read_text()
    assert "<script>alert" not in text


def test_a_run_without_a_checkpoint_still_has_its_curve(runs, tmp_path):
    folder = shutil.copytree(runs / "stlrq", tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint"))
    code, _, err = evaluate(folder, "--report", tmp_path / "out")
    assert code == 0, err
    assert "nothing but its curve is shown" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize(
    ("names", "flags", "message"),
    [
        (("stlrq", "pendulum"), (), "--report: expected runs of one family, got gridworld, pendulum"),
        (("stlrq", "six"), (), "--report: expected runs on the same tasks, but "),
        (("stlrq",), ("--samples", 400), "--samples: expected none with --report"),
    ],
)
def test_what_makes_no_page_is_said_in_one_line(names, flags, message, runs, tmp_path):
    code, _, err = evaluate(*(runs / name for name in names), "--report", tmp_path / "out", *flags)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


def dumped(url, *flags):
    """The page as a browser has it after its script."""
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", *flags]
    return subprocess.run([*command, "--dump-dom", url], capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_browser_draws_every_figure(theme, made):
    path, _, contents = made
    done = dumped(f"file://{path}#{theme}", "--enable-logging=stderr")
    assert 'data-ready="yes"' in done.stdout
    assert f'data-theme="{theme}"' in done.stdout
    assert "Uncaught" not in done.stderr
    figures = sum(map(len, contents["figures"].values())) + 2  # Two maps of values, then the first run's own.
    figures += len(contents["runs"][0]["similarity"]) + len(contents["runs"][0]["factors"]) + 3
    assert len(re.findall(r'<div[^>]* class="figure"', done.stdout)) == figures
    assert done.stdout.count('class="js-plotly-plot"') == figures


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_nothing_is_wider_than_a_phone(made, tmp_path):
    path, _, _ = made
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe id="f" src="file://{path}" style="width:390px;height:800px;border:0"></iframe><p id="said"></p>'
        "<script>"
        'setTimeout(() => { const page = document.getElementById("f").contentDocument;'
        'const wide = [...page.querySelectorAll(".figure, .figure svg.main-svg, p, h2, nav")].filter((e) => '
        "e.getBoundingClientRect().right > 391).map((e) => e.className.baseVal || e.outerHTML.slice(0, 60));"
        'const said = page.documentElement.dataset.ready + " " + (page.documentElement.scrollWidth <= 390) + wide;'
        'document.getElementById("said").textContent = said; }, 6000)'
        "</script>"
    )
    done = dumped(f"file://{frame}", "--allow-file-access-from-files", "--window-size=900,900")
    said = re.search(r'<p id="said">(.*?)</p>', done.stdout)[1]
    assert said == "yes true"


def test_the_page_is_made_of_files_of_the_package():
    for name in ("page.html", "page.css", "page.js"):
        assert page._read(name)
