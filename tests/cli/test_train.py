import json
import re
import shutil

import pytest
from problems import command_line, outcome

import torchq
import torchq.engines.protocols
import torchq.runs.training
from torchq.checkpoint import load_checkpoint
from torchq.cli.main import main as torchq_main
from torchq.presets import resolve
from torchq.runs.folder import claim

GOOD = ("--algo", "stlrq", "--env", "gridworld", "--episodes", 1, "--num-seeds", 1, "--no-optimal", "--device", "cpu")

CASES = {
    "no algo": (("--env", "gridworld"), "--algo: expected one of stlrq, lrq, clrq, tabular, lmi-ql, lmi-qli, lspi, got nothing; begin with --algo stlrq"),
    "unknown algo": (("--algo", "stlqr"), "--algo: expected one of stlrq, lrq, clrq, tabular, lmi-ql, lmi-qli, lspi, got 'stlqr'; did you mean stlrq?"),
    "unknown env": (("--algo", "stlrq", "--env", "pendulm"), "--env: expected one of acrobot, cartpole, damped-pendulum, gridworld, linear-quadratic, mountain-car, pendulum, storage, wireless, got 'pendulm'; did you mean pendulum?"),
    "unknown flag": ((*GOOD, "--epsiodes", 3), "--epsiodes: no such flag; did you mean --episodes?"),
    "rank": ((*GOOD, "--rank", 0), "--rank: expected an integer of at least 1 and at most 8,192, got 0"),
    "hundreds of digits": ((*GOOD, "--rank", "1" * 400), f"--rank: expected an integer of at least 1 and at most 8,192, got {'1' * 400}"),
    "seeds": ((*GOOD, "--num-seeds", 0), "--num-seeds: expected an integer of at least 1 and at most 16,777,216, got 0"),
    "not a number": ((*GOOD, "--rank", "many"), "--rank: expected an integer of at least 1 and at most 8,192, got 'many'"),
    "nan": ((*GOOD, "--learning-rate", "nan"), "--learning-rate: expected a number of above 0, got nan"),
    "infinite": ((*GOOD, "--init-scale", "inf"), "--init-scale: expected a number of above 0, got inf"),
    "too many": ((*GOOD, "--num-tasks", 10**13), "--num-tasks: expected an integer of at least 1 and at most 16,777,216, got 10000000000000"),
    "gamma": ((*GOOD, "--gamma", 1.5), "--gamma: expected a number of at least 0 and at most 1, got 1.5"),
    "cuda": ((*GOOD, "--device", "cuda"), "--device: expected a machine with a CUDA GPU for cuda, found none; use cpu or auto"),
    "weights": ((*GOOD, "--task-weights", "1,2"), "--task-weights: expected one weight for each of 4 tasks, got 2"),
    "weight": ((*GOOD, "--task-weights", "1,2,x,4"), "--task-weights: expected a number of at least 0, got 'x'"),
    "paper gridworld": ((*GOOD, "--preset", "paper"), "--preset: expected default for --env gridworld (paper covers pendulum, wireless)"),
    "paper envs": (("--algo", "stlrq", "--preset", "paper", "--num-envs", 2), "--num-envs: expected 1 with --preset paper (tasks take turns), got 2"),
    "convention": ((*GOOD, "--lrq-convention", "paper"), "--lrq-convention: expected only with --algo lrq --preset paper, got --algo stlrq"),
    "eval-every": ((*GOOD, "--eval-every", 2), "--eval-every: expected at most --episodes 1, got 2"),
    "tabular rank": (("--algo", "tabular", "--rank", 3), "--rank: expected only with a low-rank algo, got --algo tabular"),
    "no value": (("--algo",), "Option '--algo' requires an argument."),
    "stray word": ((*GOOD, "stray"), "Got unexpected extra argument (stray)"),
    "resume nowhere": (("--resume",), "--resume: expected --out with the folder of the run to continue"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), CASES.values(), ids=CASES)
def test_bad_input_gets_one_line_and_leaves_no_run(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, out, err = command_line(*arguments)
    assert (code, out, err) == (2, "", f"error: {message}\n")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def finished(tmp_path):
    folder = tmp_path / "run"
    assert command_line(*GOOD, "--out", folder)[0] == 0
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_that_holds_a_run_is_refused_and_untouched(finished):
    before = contents(finished)
    code, _, err = command_line(*GOOD, "--out", finished)
    assert code == 2
    assert err == f"error: --out: {finished} already holds a run; continue it with --resume, or name another folder\n"
    assert contents(finished) == before


def test_a_folder_with_other_files_and_a_file_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("keep")
    code, _, err = command_line(*GOOD, "--out", tmp_path)
    assert (code, "holds other files" in err) == (2, True)
    code, _, err = command_line(*GOOD, "--out", tmp_path / "notes.txt")
    assert (code, "expected a folder, got the file" in err) == (2, True)
    assert (tmp_path / "notes.txt").read_text() == "keep"


def test_resume_of_a_folder_that_does_not_exist_is_an_error(tmp_path):
    code, _, err = command_line(*GOOD, "--out", tmp_path / "none", "--resume")
    assert (code, "does not exist" in err) == (2, True)
    assert not (tmp_path / "none").exists()


def break_config(folder):
    (folder / "config.json").write_text("null")


def break_rank(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rank": "ten"}))


def break_env(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "env": "moon"}))


def break_counters(folder):
    path = folder / "checkpoint" / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "metrics_size": -5}))


def lose_counters(folder):
    path = folder / "checkpoint" / "checkpoint.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in index.items() if name != "episode"}))


def lose_checkpoint(folder):
    (folder / "checkpoint" / "checkpoint.json").unlink()


def replace_checkpoint(folder):
    shutil.rmtree(folder / "checkpoint")
    (folder / "checkpoint").write_text("")


def break_metrics(folder):
    path = folder / "metrics.csv"
    path.write_bytes(b"\0" * path.stat().st_size)


@pytest.mark.parametrize(
    "damage",
    [break_config, break_rank, break_env, break_counters, lose_counters, lose_checkpoint, replace_checkpoint,
     break_metrics],
)  # fmt: skip
def test_resume_of_damaged_files_is_one_line_and_changes_nothing(finished, damage):
    damage(finished)
    before = contents(finished)
    code, _, err = command_line("--resume", "--out", finished, "--episodes", 3)
    assert (code, err.count("\n")) == (2, 1), err
    assert err.startswith("error: ")
    assert contents(finished) == before


def test_runs_too_large_for_memory_are_refused(tmp_path):
    code, _, err = command_line(*GOOD, "--num-seeds", 1 << 24, "--num-tasks", 1 << 16, "--out", tmp_path / "run")
    assert (code, err.count("\n")) == (2, 1)
    assert "expected a run that fits in memory" in err
    assert not (tmp_path / "run").exists()


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    config = resolve("stlrq", "gridworld", "default", {})
    with claim(tmp_path / "run", config, resume=False):
        code, _, err = command_line(*GOOD, "--out", tmp_path / "run")
    assert code == 2
    assert "another process is training in" in err


def test_concurrent_starts_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = resolve("stlrq", "gridworld", "default", {})
    with claim(None, config, resume=False) as first, claim(None, config, resume=False) as second:
        assert (first.name, second.name) == ("stlrq-gridworld-1", "stlrq-gridworld-2")


def test_a_run_that_ended_between_evaluations_cannot_be_extended(tmp_path):
    folder = tmp_path / "run"
    assert command_line(*GOOD, "--episodes", 3, "--eval-every", 2, "--out", folder)[0] == 0
    code, _, err = command_line("--resume", "--out", folder, "--episodes", 6)
    assert (code, "--eval-every 2 does not divide" in err) == (2, True)


def test_long_names_are_one_line(tmp_path):
    code, _, err = command_line(*GOOD, "--out", tmp_path / ("x" * 300))
    assert (code, err.count("\n")) == (2, 1)
    assert "File name too long" in err


def test_resume_takes_the_configuration_of_the_run(finished):
    assert command_line("--resume", "--out", finished)[0] == 0
    code, _, err = command_line("--resume", "--out", finished, "--rank", 3)
    assert code == 2
    assert err == "error: --rank: expected 10, as in the run to continue, got 3; leave it out\n"


def test_resume_of_a_damaged_run_is_named(finished):
    state = next((finished / "checkpoint").glob("*.safetensors"))
    state.write_bytes(state.read_bytes()[:-1])
    code, _, err = command_line("--resume", "--out", finished)
    assert (code, "truncated or corrupted" in err, err.count("\n")) == (2, True, 1)
    (finished / "config.json").write_text("{")
    code, _, err = command_line("--resume", "--out", finished)
    assert (code, "is corrupted" in err, err.count("\n")) == (2, True, 1)


def test_runs_without_out_get_numbered_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert command_line(*GOOD)[0] == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["stlrq-gridworld-1", "stlrq-gridworld-2"]


def test_flags_override_the_table_and_are_written_down(tmp_path):
    folder = tmp_path / "run"
    flags = ("--rank", 3, "--task-weights", "1,1,2,0.5", "--update", "block", "--state-modes", "joint", "--normalised")
    assert command_line(*GOOD, *flags, "--optimizer", "sgd", "--out", folder)[0] == 0
    config = json.loads((folder / "config.json").read_text())
    assert (config["rank"], config["update"], config["state_modes"], config["normalised"]) == (
        3,
        "block",
        "joint",
        True,
    )
    assert config["task_weights"] == [1, 1, 2, 0.5]
    assert (config["gamma"], config["optimizer"]) == (0.95, "sgd")


def test_help_explains_every_field():
    code, out, _ = command_line("--help")
    assert code == 0
    for flag in ("--algo", "--env", "--device", "--preset", "--seed", "--num-seeds", "--num-envs", "--episodes",
                 "--rank", "--learning-rate", "--eval-every", "--out", "--resume", "--progress", "--dtype",
                 "--num-tasks", "--eval-episodes", "--state-modes", "--update", "--lrq-convention",
                 "--task-weights", "--engine"):  # fmt: skip
        assert flag in out


def test_more_episodes_extend_a_run_to_what_it_would_have_been(tmp_path):
    for name, episodes in (("long", 4), ("short", 2)):
        assert command_line(*GOOD, "--episodes", episodes, "--out", tmp_path / name)[0] == 0
    code, out, err = command_line("--resume", "--out", tmp_path / "short", "--episodes", 4)
    assert code == 0, err
    assert "resuming after episode 2 of 4" in out
    assert outcome(tmp_path / "short") == outcome(tmp_path / "long")
    assert json.loads((tmp_path / "short" / "config.json").read_text())["episodes"] == 4


def test_ctrl_c_keeps_what_was_learnt(tmp_path, monkeypatch):
    quiet, stopped = tmp_path / "quiet", tmp_path / "stopped"
    assert command_line(*GOOD, "--episodes", 4, "--out", quiet)[0] == 0
    monkeypatch.setattr(torchq.runs.training, "BLOCK_SECONDS", 0.0)
    original = torchq.engines.protocols.batched_round

    def interrupt(config, rollout, engine, state, episode):
        if episode == 2:
            raise KeyboardInterrupt
        return original(config, rollout, engine, state, episode)

    monkeypatch.setattr(torchq.engines.protocols, "batched_round", interrupt)
    code, _, err = command_line(*GOOD, "--episodes", 4, "--out", stopped)
    assert (code, err) == (130, f"\ninterrupted; go on with: --resume --out {stopped}\n")
    monkeypatch.undo()
    assert load_checkpoint(stopped / "checkpoint", "stlrq")[1]["episode"] == 2
    assert command_line("--resume", "--out", stopped)[0] == 0
    assert outcome(stopped) == outcome(quiet)


def test_an_environment_that_misses_something_is_named_before_the_run(tmp_path):
    class Half:
        name = "half"

        def sample_tasks(self, num_tasks):
            return []

    code, _, err = command_line(*GOOD, "--out", tmp_path / "run", library={"gridworld": Half})
    assert code == 2
    expected = "error: --env: expected a family with discrete actions and a grid for --algo stlrq, but Half has no"
    assert err.startswith(f"{expected} terminates, num_actions")
    assert not (tmp_path / "run").exists()


def test_the_command_torchq_has_commands_and_a_version():
    for arguments in ((), ("--help",)):
        code, out, err = command_line(*arguments, entry=torchq_main)
        assert (code, err) == (0, "")
        listed = re.findall(r"^  ([a-z][a-z-]+)  ", out.partition("Commands:")[2], flags=re.MULTILINE)
        assert listed == ["check-family", "completion", "evaluate", "export", "new-family", "train"]
    assert command_line("--version", entry=torchq_main)[1] == f"torchq, version {torchq.__version__}\n"
    code, _, err = command_line("trian", entry=torchq_main)
    assert code == 2
    assert err.startswith("error: No such command 'trian'.")
    code, _, err = command_line("train", *GOOD, "--epsiodes", 3, entry=torchq_main)
    assert (code, err) == (2, "error: --epsiodes: no such flag; did you mean --episodes?\n")


def test_the_command_torchq_is_the_same_code(tmp_path):
    assert command_line(*GOOD, "--out", tmp_path / "a")[0] == 0
    assert command_line("train", *GOOD, "--out", tmp_path / "b", entry=torchq_main)[0] == 0
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")
    code, out, _ = command_line("evaluate", tmp_path / "a", "--json", "--out", tmp_path / "c", entry=torchq_main)
    assert code == 0
    assert json.loads(out)["runs"][0]["finished"]
