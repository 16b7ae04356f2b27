import contextlib
import json
import re
from typing import get_args, get_type_hints

import pytest
import torch
from problems import ROOT, experiment

import envs
from torchq import config, methods
from torchq.config import from_json, to_json
from torchq.engines import select
from torchq.engines.contract import UnavailableError
from torchq.engines.protocols import schedule, takes_turns
from torchq.errors import UsageError
from torchq.lowrank.low_rank_q import LowRankQ
from torchq.lowrank.optim import OPTIMIZERS
from torchq.presets import resolve
from torchq.runs.experiment import prepare
from torchq.runs.folder import read_config


def test_paper_protocol_is_the_authors():
    for env, rank, gamma, floor, decay, episodes in (
        ("pendulum", 30, 0.99, 0.1, 0.99999, 2000),
        ("wireless", 50, 0.9, 0.001, 0.9999, 500),
    ):
        config = resolve("stlrq", env, "paper", {})
        assert (config.rank, config.gamma, config.episodes) == (rank, gamma, episodes)
        assert (config.epsilon_start, config.epsilon_end, config.epsilon_decay) == (1.0, floor, decay)
        assert (config.learning_rate, config.learning_rate_half_life) == (0.01, None)
        assert (config.optimizer, config.update, config.loss_scale, config.init_scale) == ("adamax", "block", 2.0, 0.1)
        assert (config.num_envs, config.eval_every, config.eval_episodes, config.dtype) == (1, 1, 1, "float64")


@pytest.mark.parametrize(
    ("algo", "convention", "sweeps", "clock"),
    [
        ("stlrq", "paper", 1, 4),
        ("clrq", "paper", 1, 4),
        ("lrq", "paper", 4, 1),
        ("lrq", "matched-epsilon", 4, 4),
        ("lrq", "matched-epsilon-one-update", 1, 4),
    ],
)
def test_conventions_of_lrq(algo, convention, sweeps, clock):
    """Updates per transition, and ticks of the exploration clock per sample of each of four tasks."""
    overrides = {"lrq_convention": convention} if algo == "lrq" else {}
    config = resolve(algo, "wireless", "paper", overrides)
    assert (config.num_sweeps, config.epsilon_clock(4)) == (sweeps, clock)


def test_tasks_that_share_take_turns_and_others_play_side_by_side():
    for algo, turns in (("stlrq", True), ("clrq", True), ("lrq", False), ("tabular", False)):
        prepared = experiment(algo, "pendulum", "paper", num_seeds=1)
        assert takes_turns(prepared.config, prepared.rollout) is turns
        prepared = experiment(algo, "pendulum", num_seeds=1)
        assert not takes_turns(prepared.config, prepared.rollout)


def test_one_clock_ticks_through_the_turns():
    """The third task's turn in the second episode begins after six episodes of transitions."""
    prepared = experiment("stlrq", "wireless", "paper", num_seeds=1)
    rates = schedule(prepared.config, prepared.rollout, 200, (1 * 4 + 2) * 200, 1)
    expected = 0.9999 ** torch.arange(1200, 1400, dtype=torch.float64)
    torch.testing.assert_close(rates.epsilon, expected)
    assert rates.learning_rate.unique().tolist() == [0.01]


def test_configuration_survives_json():
    config = resolve("stlrq", "wireless", "default", {"task_weights": (1.0, 2.0, 0.5, 1.0)})
    assert from_json(json.loads(json.dumps({**to_json(config), "versions": {}, "git_commit": None}))) == config


def test_a_configuration_of_version_0_1_0_still_reads():
    """As commit 209fbcf wrote it."""
    written = (ROOT / "tests" / "config-0.1.0.json").read_text()
    config = from_json(json.loads(written))
    since = {"features": "cells", "replay_ratio": 0, "replay_batch": 16, "replay_capacity": 20_000,
             "replay_recent": 1.0, "target_rate": None, "tasks": [], "test_tasks": [], "task_modes": "table",
             "held_out": 0.0, "adapt_from": None, "grow": False, "fit": "semi-gradient", "data": None,
             "guide_margin": 6.0, "guide_samples": 8000.0, "samples_before": 0, "env_option": {},
             "eval_tasks": None, "shard": "auto", "solver": "torchq", "baseline": "lqr", "hold": "all"}  # fmt: skip
    assert to_json(config).items() <= (json.loads(written) | since).items()
    assert [name for name in to_json(config) if name not in since] == list(json.loads(written))[:-2]  # versions, commit


BAD = {
    "rank": ("ten", "an integer of at least 1 and at most 8,192"),
    "num_seeds": (-1, "an integer of at least 1 and at most 16,777,216"),
    "episodes": (2.5, "an integer of at least 1 and at most 2,147,483,648"),
    "gamma": (1.5, "a number of at least 0 and at most 1"),
    "learning_rate": (0.0, "a number of above 0"),
    "epsilon_decay": (float("nan"), "a number of above 0 and at most 1"),
    "algo": ("moon", "one of stlrq, lrq, clrq, tabular, lmi-ql, lmi-qli, lspi"),
    "optimizer": ("adamw", "one of sgd, adam, adamax"),
    "normalised": ("yes", "true or false"),
    "num_tasks": (0, "an integer of at least 1 and at most 16,777,216"),
    "task_weights": ([1.0, "two"], "a list, each a number of at least 0"),
    "sizes": ([20, 10], "increasing sizes, one above zero"),
    "warm_start": (3, "a text"),
}


@pytest.mark.parametrize(("name", "value", "expected"), [(name, *case) for name, case in BAD.items()])
def test_what_a_file_or_python_gives_is_checked(name, value, expected, tmp_path):
    values = {**to_json(resolve("stlrq", "wireless", "default", {})), name: value}
    came = tuple(value) if isinstance(value, list) else value
    message = re.escape(f"expected {expected}, got {came!r}")
    with pytest.raises(ValueError, match=f"^{name}: {message}$"):
        from_json(values)
    with pytest.raises(ValueError, match=f"^{name}: {message}$"):
        resolve("stlrq", "wireless", "default", {}).replace(**{name: came})
    if name != "algo":
        with pytest.raises(UsageError, match=f"^{name}: {message}$"):
            resolve("stlrq", "wireless", "default", {name: came})
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UsageError, match=rf"config.json is corrupted or of another version \({name}: {message}\)"):
        read_config(tmp_path)


def test_settings_that_do_not_exist_are_named():
    with pytest.raises(UsageError, match=r"^ranks: there is no such setting; did you mean rank\?$"):
        resolve("stlrq", "wireless", "default", {"ranks": 3})
    with pytest.raises(ValueError, match=r"^algo: expected one of stlrq, .*, got nothing$"):
        from_json({"env": "pendulum"})
    with pytest.raises(ValueError, match=r"^expected a JSON object, got \[\]$"):
        from_json([])


def test_whole_numbers_are_numbers():
    """JSON and people write 1 for 1.0."""
    assert resolve("stlrq", "wireless", "default", {"learning_rate": 1}).learning_rate == 1.0


def test_choices_are_those_that_exist():
    assert set(config.shape("optimizer").names) == set(OPTIMIZERS)
    assert set(config.shape("dtype").names) == {"float32", "float64"}
    hints = get_type_hints(LowRankQ)
    assert config.shape("update").names == get_args(hints["update_order"])
    assert get_args(hints["sharing"]) == methods.LOW_RANK_ALGOS
    assert {*methods.TENSOR_ALGOS, *methods.QUADRATIC_ALGOS} == set(methods.ALGOS)
    run = experiment("stlrq", "pendulum", engine="eager")
    for engine in set(config.ENGINES) - {"auto"}:
        with contextlib.suppress(UnavailableError):
            assert select.build(run.rollout, engine).name == engine
    with pytest.raises(KeyError):
        select.build(run.rollout, "magic")


def test_every_setting_has_a_flag_a_scope_and_a_text_or_belongs_to_the_presets():
    flags = config.flags()
    own = {"algo", "env", "preset", "protocol", "loss_scale", "tasks", "test_tasks", "samples_before", "env_option"}
    assert set(config.Config.model_fields) - set(flags) == own
    for name, text in flags.items():
        assert text.endswith("."), name
    for name in config.Config.model_fields:
        assert config.scope(name).algos, name
        assert str(config.shape(name)), name


def test_python_may_leave_the_device_to_torchq():
    """As the command line does: `auto` is the GPU if there is one."""
    prepared = prepare(resolve("stlrq", "gridworld", "default", {"engine": "eager"}), envs.Gridworld())
    assert prepared.config.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert prepared.rollout.device.type == prepared.config.device
