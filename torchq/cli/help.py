"""What `train.py --help` prints: flags by topic, examples, and the defaults of what is chosen beside it."""

from __future__ import annotations

import click

from torchq.config import Config
from torchq.presets import resolve
from torchq.runs.folder import default_env

CHOSEN = "torchq.chosen"
"""In the context of a command: the configuration whose defaults are shown, or None for those of the whole table."""

GROUPS = {
    "What to train": ("algo", "env", "preset", "env_option", "ranges", "config", "list", "help"),
    "Tasks": ("tasks", "vary", "num_tasks", "test_tasks", "held_out", "task_modes", "task_weights"),
    "Protocol and evaluation": (
        "episodes", "num_seeds", "seed", "num_envs", "eval_every", "eval_episodes", "eval_tasks", "optimal",
        "lrq_convention",
    ),
    "Learning": (
        "rank", "gamma", "learning_rate", "learning_rate_half_life", "optimizer", "update", "normalised", "init_scale",
        "target_rate", "state_modes", "features",
    ),
    "Exploration": ("epsilon_start", "epsilon_end", "epsilon_decay"),
    "Replay": ("replay_ratio", "replay_batch", "replay_capacity", "replay_recent"),
    "Quadratic learners": ("sizes", "baseline", "penalty", "constraint", "iterations", "hold", "solver"),
    "Warm start and adaptation": (
        "warm_start", "guide_margin", "guide_samples", "adapt_from", "data", "fit", "grow",
    ),
    "Engine and device": ("device", "engine", "dtype", "deterministic", "shard"),
    "Run folder": ("out", "resume", "progress", "sweep"),
}  # fmt: skip
"""Flags by topic, by the names of their parameters."""

EXAMPLES = {
    "--algo stlrq": "four pendulums, all defaults",
    "--algo lrq --env wireless --preset paper --num-seeds 20": "a baseline, as its authors ran it",
    "--algo stlrq --task mass=0.05:1:8,length=0.5:1:8 --task-modes linear": "64 tasks by their parameters",
    "--algo stlrq --env gym:CartPole-v1 --vary length=0.25,0.5,1": "an environment of Gymnasium, a task per length",
    "--algo lmi-ql --sizes 10,50,200": "quadratic Q-functions from few samples",
    "--algo stlrq --sweep rank=5,10,30": "three runs, one after the other",
    "--resume --out runs/a --episodes 2000": "go on with a run, and make it longer",
    "--algo lrq --env wireless --help": "the flags that this choice has, with its defaults",
}


class TrainCommand(click.Command):
    """A command whose `--help` is by topic and, beside `--algo`, `--env` or `--preset`, of that choice."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Look at what is chosen before `--help`, which is eager, ends the command."""
        ctx.meta[CHOSEN] = None if ctx.resilient_parsing else self._chosen(ctx, args)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Sections by topic."""
        if chosen := ctx.meta.get(CHOSEN):
            formatter.write_paragraph()
            with formatter.indentation():
                words = f"--algo {chosen.algo} --env {chosen.env} --preset {chosen.preset}"
                formatter.write_text(f"Flags and defaults of {words}; --help alone shows all.")
        rows = {_name(param): param.get_help_record(ctx) for param in self.get_params(ctx)}
        known = {name for names in GROUPS.values() for name in names}
        for heading, names in {**GROUPS, "Other": tuple(name for name in rows if name not in known)}.items():
            if shown := [row for name in names if (row := rows.get(name))]:
                with formatter.section(heading):
                    formatter.write_dl(shown)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Commands to begin with."""
        program = "python train.py" if ctx.command_path == "train.py" else ctx.command_path
        with formatter.section("Examples"):
            for flags, about in EXAMPLES.items():
                formatter.write(f"{'':{formatter.current_indent}}{program} {flags}\n")
                formatter.write(f"{'':{formatter.current_indent + 4}}{about}\n")

    def _chosen(self, ctx: click.Context, args: list[str]) -> Config | None:
        """The configuration that is chosen beside `--help`.

        Raises:
            UsageError: if there is none such.
        """
        try:
            given, _, _ = self.make_parser(ctx).parse_args(list(args))
        except click.UsageError:
            return None  # Said when the arguments are read.
        params = {param.name: param for param in self.params}
        chosen = {
            name: params[name].type_cast_value(ctx, given[name]) for name in ("algo", "env", "preset") if name in given
        }
        asked = [param for param in self.get_params(ctx) if _name(param) == "help"]
        if not any(given.get(param.name or "") for param in asked) or not chosen:
            return None
        algo = chosen.get("algo", "stlrq")
        return resolve(algo, chosen.get("env", default_env(algo)), chosen.get("preset", "default"), {})


def _name(param: click.Parameter) -> str:
    """The name of a parameter; that of `--help` is another in each version of click."""
    return "help" if "--help" in param.opts else str(param.name)
