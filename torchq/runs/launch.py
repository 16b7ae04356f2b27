"""Start a run or go on with one: what `torchq.train` and `train.py` have in common."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from torchq import families
from torchq.config import Config, scope
from torchq.engines import torch_settings
from torchq.errors import ExternalError, Interrupted, UsageError, keyword, spell
from torchq.methods import LOW_RANK_ALGOS, QUADRATIC_ALGOS
from torchq.ranks import Ranks, join, launched, restarted
from torchq.runs import memory, positions, training
from torchq.runs.adaptation import about, adapted_config, start_adapted
from torchq.runs.config_files import read_settings
from torchq.runs.env_specs import family_for, read_options, read_ranges, read_vary
from torchq.runs.experiment import Experiment, prepare
from torchq.runs.folder import CONFIG, claim, default_env, new_config, read_config, resumed_config, write_config
from torchq.runs.monte_carlo import make_cases, run_study
from torchq.runs.rank_search import search_rank
from torchq.runs.run import Run
from torchq.runs.task_specs import read_tasks
from torchq.runs.tasks import beyond
from torchq.runs.warm_starts import informed, quadratic_starts, start_low_rank

Tell = Callable[[str, int], None]
"""Takes a line for the user, arguments in backquotes, and its level of `logging`."""

_LOG = logging.getLogger("torchq")


def train(*, out: str | Path | None = None, resume: bool = False, progress: bool | None = None, **settings: Any) -> Run:
    """Train one learner on a family of tasks, as `train.py` does, and leave a run folder.

        run = torchq.train(algo="stlrq", env="pendulum", episodes=50, out="runs/a")

    Ctrl-C keeps what is learnt; go on with `torchq.train(out="runs/a", resume=True)`. What the command line prints goes
    to the logger "torchq".

    Args:
        out: run folder; None takes the first free `runs/ALGO-ENV-N`.
        resume: go on with the run in `out`, with its configuration; more `episodes` extend it.
        progress: whether to show a bar; None shows it on a terminal.
        settings: `algo` ("stlrq", "lrq", "clrq", "tabular", "lmi-ql", "lmi-qli" or "lspi"), and any of `env`, `preset`
            and the fields of `torchq.config.Config`, which `train.py --help` explains; None is as good as left out.
            `config` is a TOML file of them, or the folder of a run whose settings are taken, which others go before.
            `env` is the name of a family, or "module:Family" for one of your own. `tasks` are parameters, such as
            {"mass": 0.3, "length": 0.7}, or words or files that say them, see `torchq.runs.task_specs`; `vary` is a
            product of them, {"mass": [0.1, 0.3]}; `env_option` are constants of the family, {"num_actions": 20};
            `ranges` those of observations that an environment of Gymnasium leaves unbounded; `rank` may be "auto".

    Raises:
        UsageError: a ValueError, if a setting is not as expected.
        TorchqError: if the run cannot go on, as when its values diverge.
    """
    given = {name: _plain(value) for name, value in settings.items() if value is not None}
    if not isinstance(out, str | Path | None) or out == "":
        raise UsageError(f"`out`: expected the path of a folder, got {out!r}")
    folder = None if out is None else Path(out)
    return launch(given, folder, resume=resume, progress=progress, tell=lambda text, level: _LOG.log(
        level, "%s", spell(text, keyword)))  # fmt: skip


def _plain(value: Any) -> Any:
    """A setting as a configuration holds it: sequences as tuples, numbers of NumPy as numbers, paths as text."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(_plain(one) for one in value)
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, Path) else value


def launch(given: Mapping[str, Any], out: Path | None, *, resume: bool, progress: bool | None, tell: Tell) -> Run:
    """Train with the settings given, those of the preset, and those of the run to go on with.

    Args:
        given: settings by name.
        out: the run folder; None for a new one.
        resume: whether to go on with the run in it.
        progress: whether to show a bar; None shows it on a terminal.
        tell: what takes the lines for the user.

    Raises:
        TorchqError: see `train`.
        Interrupted: on Ctrl-C.
    """
    ranks = join()
    tell = tell if ranks.index == 0 else _nothing_told
    with torch_settings.threads_kept(), ranks.signals_kept():
        resume, config = ranks.first(lambda: _configured(given, out, resume, tell))
        family = _family(config)[1]
        if config.algo in QUADRATIC_ALGOS:
            return Run(_study(config, family, out, resume, progress, tell))
        return Run(_learner(config, family, out, resume, progress, tell, ranks))


def _nothing_told(text: str, level: int) -> None: ...


def _configured(given: Mapping[str, Any], out: Path | None, resume: bool, tell: Tell) -> tuple[bool, Config]:
    """Whether a run goes on, and the configuration of it."""
    if "config" in given and resume:
        raise UsageError("`config`: expected none with `resume`, which goes on with the run's own")
    if out is None and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0" and launched():
        raise UsageError("`out`: expected a folder with restarts by torchrun, which go on with the run in it")
    resume = resume or bool(restarted() and out and (out / CONFIG).exists())
    given = _in_full(_with_file(given), out if resume else None)
    searches = given.get("rank") == "auto"
    if searches:
        del given["rank"]
    if resume:
        config = resumed_config(out, given)
    else:
        config = adapted_config(given) if "adapt_from" in given else new_config(out, given)
    if config.algo in QUADRATIC_ALGOS and launched():
        raise UsageError(f"`algo`: {config.algo} uses all processors by itself; start it without torchrun")
    config, family = _family(config)
    return resume, _with_rank(config, family, tell) if searches and not resume else config


def checked(given: Mapping[str, Any]) -> Config:
    """The configuration of a new run with the settings given; nothing is begun.

    Raises:
        UsageError: if one is not as expected.
    """
    given = _in_full(_with_file(given), None)
    if given.get("rank") == "auto":
        del given["rank"]
    return _family(adapted_config(given) if "adapt_from" in given else new_config(None, given))[0]


def _with_file(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings with those of the file `config` behind them."""
    if "config" not in given:
        return given
    settings = read_settings(Path(str(given["config"])))
    return {**{name: _plain(value) for name, value in settings.items()},
            **{name: value for name, value in given.items() if name != "config"}}  # fmt: skip


def _with_rank(config: Config, family: Any, tell: Tell) -> Config:
    """The configuration with the rank that pilots choose."""
    if config.algo not in LOW_RANK_ALGOS:
        raise UsageError(f"`rank`: expected only with {scope('rank').shown}, got `algo={config.algo}`")
    rank = search_rank(config, family, lambda line: tell(line, logging.INFO))
    tell(f"rank {rank} it is", logging.INFO)
    return config.replace(rank=rank)


def _in_full(given: Mapping[str, Any], resumed: Path | None) -> dict[str, Any]:
    """The settings with tasks and constants of the family themselves in the place of words and files that say them."""
    if not isinstance(given.get("adapt_from", ""), str):
        raise UsageError(f"`adapt_from`: expected the path of a run folder, got {given['adapt_from']!r}")
    given = dict(given)
    like = resumed if resumed and (resumed / CONFIG).exists() else given.get("adapt_from")
    before = read_config(Path(like)) if like is not None and (Path(like) / CONFIG).exists() else None
    name = before.env if before else given.get("env", default_env(given.get("algo", "")))
    if not isinstance(name, str):
        raise UsageError(
            "`env`: expected the name of a family, gym:ID, or module:NAME of a family in a module of yours, got "
            f"{type(name).__name__}"
        )
    if "tasks" in given and given["tasks"] in ((), ""):
        raise UsageError("`tasks`: expected at least one task, got none; leave it out for the family's own")
    options = read_options(given.pop("env_option", {}))
    if "ranges" in given:
        if not families.is_made(name):
            raise UsageError(f"`ranges`: expected only with `env=gym:ID`, got `env={name}`")
        options["ranges"] = read_ranges(given.pop("ranges"))
        if before and "ranges" in before.env_option:  # A run knows all of them; what is said again may be some.
            called = families.of(before).dimension_name
            said = {called(dimension): ends for dimension, ends in options["ranges"].items()}
            options["ranges"] = {**before.env_option["ranges"], **said}
    if options:
        given["env_option"] = {**(before.env_option if before else {}), **options}
    if "vary" in given:
        if "tasks" in given:
            raise UsageError("`vary`: expected none with `tasks`, which says the tasks too; leave one out")
        given["tasks"] = (read_vary(given.pop("vary")),)
    words = {setting: given[setting] for setting in ("tasks", "test_tasks") if setting in given}
    if not words:
        return given
    family = family_for(name, given.get("env_option", before.env_option if before else {}), list(words.values()))
    return {**given, **{setting: read_tasks(said, family, setting) for setting, said in words.items()}}


def _family(config: Config) -> tuple[Config, Any]:
    """The family of a configuration, and the configuration with what the family found out about itself."""
    family = families.of(config)
    if (families.is_made(config.env) or config.env_option) and (found := getattr(family, "resolved", None)):
        config = config.replace(env_option={**config.env_option, **found})
    return config, family


def _learner(
    config: Config, family: Any, out: Path | None, resume: bool, progress: bool | None, tell: Tell, ranks: Ranks
) -> Path:
    """A learner on a grid."""
    going_on, asked = bool(resume and out and (out / "checkpoint").exists()), config.replay_capacity
    if config.warm_start and not going_on:
        config = informed(config, family)
    experiment = _prepare(config, family, ranks, new=not going_on)
    config = experiment.config
    with claim(out, config, resume=resume) if ranks.index == 0 else nullcontext() as claimed:
        folder = ranks.first(lambda: claimed)
        assert folder is not None
        start = positions.load(experiment, folder) if resume else None
        if ranks.index == 0:
            write_config(folder, config)
        of_run = experiment.task_set
        tested = "" if of_run.sample is None else f" ({len(of_run.sample):,} of them tested)"
        size = f"{config.num_seeds} seeds, {len(of_run.tasks):,} tasks{tested}, num_envs {config.num_envs}"
        shared = f", {experiment.share.by} shared by {ranks.count} ranks" if ranks.count > 1 else ""
        where = f"{config.device}, engine {config.engine}{shared} -> {folder}"
        tell(f"{config.algo} on {config.env}: {size}; {where}", logging.INFO)
        if experiment.about_replay:
            tell(experiment.about_replay, logging.WARNING if config.replay_capacity < asked else logging.INFO)
        for note in (*getattr(family, "notes", ()), *experiment.notes):
            tell(note, logging.INFO)
        about_tasks = beyond(of_run.modes, of_run.held_out)
        if config.adapt_from and not going_on:
            about_tasks = about(config, family, of_run.tasks)
        for note in about_tasks:
            tell(note, logging.WARNING)
        if config.algo == "lrq" and config.protocol == "online":
            tell(f"LR-Q convention: {config.lrq_convention}", logging.INFO)
        if start and start.episode:
            tell(f"resuming after episode {start.episode} of {config.episodes}", logging.INFO)
        with _interruptible(folder), torch_settings.deterministic(config.deterministic, config.device):
            try:
                training.train(
                    experiment, folder, start=start, progress=progress, tell=lambda line: tell(line, logging.INFO)
                )
            except ExternalError as error:
                saved = (folder / "checkpoint").exists()
                kept = f"go on with: `resume=True` `out={folder}`" if saved else "there is no checkpoint yet"
                raise ExternalError(f"training stopped: {error}; {kept}") from error
            finally:
                experiment.close()
    return folder


def _study(config: Config, family: Any, out: Path | None, resume: bool, progress: bool | None, tell: Tell) -> Path:
    """The case study of a quadratic learner, whose solvers run on the CPU."""
    if config.device == "cuda":
        raise UsageError(f"`device`: expected cpu or auto with `algo={config.algo}`, got cuda")
    memory.check_study(config)
    cases = make_cases(config, family)
    config = config.replace(device="cpu", gamma=cases[0].env.gamma)
    for case in (case for case in cases if case.design.radius >= 1.0 and config.baseline == "lqr"):
        tell(f"warning: the baseline of task {case.task_index} does not stabilise it (√γ·ρ(A_b) = "
             f"{case.design.radius:.2f}): V_b is not finite, prefer lmi-qli", logging.WARNING)  # fmt: skip
    starts = quadratic_starts(config, cases, family) if config.warm_start else None
    with claim(out, config, resume=resume) as folder:
        write_config(folder, config)
        size = f"{config.num_seeds} runs, {len(cases)} tasks, sizes {config.sizes}"
        tell(f"{config.algo} on {config.env}: {size} -> {folder}", logging.INFO)
        with _interruptible(folder):
            run_study(config, cases, folder, starts=starts, resume=resume, progress=progress)
    return folder


@contextmanager
def _interruptible(folder: Path) -> Iterator[None]:
    """Answer Ctrl-C with the way to go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(f"interrupted; go on with: `resume=True` `out={folder}`") from error


def _prepare(config: Config, family: Any, ranks: Ranks, *, new: bool) -> Experiment:
    """The experiment of a configuration, with CPU threads to suit it.

    Raises:
        UsageError: if it needs more memory than there is.
    """
    try:
        start = start_adapted if config.adapt_from else start_low_rank if config.warm_start else None
        experiment = prepare(config, family, start if new else None, fit_replay=new, ranks=ranks)
    except (MemoryError, OverflowError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        if isinstance(error, RuntimeError) and "memory" not in reason:
            raise  # A fault of the family's own code, which its author needs to see whole.
        raise UsageError(
            "`num_seeds`, `num_tasks`, `num_envs`, `rank`: expected a run that fits in memory"
            + (reason and f" ({reason})")
        ) from error
    torch_settings.limit_threads(experiment.work)
    return experiment
