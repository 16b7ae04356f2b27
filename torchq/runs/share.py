"""Which part of a run a rank has: some of its seeds, or some of its tasks."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from torchq.config import Config
from torchq.engines import shards
from torchq.engines.contract import Evaluation, Statistics
from torchq.engines.eager import Stepwise
from torchq.engines.external import ExternalEnvironment
from torchq.engines.graph import GraphEngine
from torchq.engines.rollout import Rollout, selected
from torchq.engines.shards import TaskShare
from torchq.errors import UsageError
from torchq.lowrank.low_rank_q import LowRankQ
from torchq.lowrank.shard_sums import ShardSums
from torchq.ranks import ALONE, Ranks
from torchq.runs.replay_log import Overlap

By = Literal["whole", "seeds", "tasks"]


TOGETHER = {"cpu": "fused", "cuda": "graph", "meta": "eager"}
"""Engines whose ranks share tasks, by device."""


class Cut(NamedTuple):
    """What of a whole run one rank has, as ranges [first, end)."""

    seeds: tuple[int, int]
    trained: tuple[int, int]
    """Of the tasks that learn."""
    held: tuple[int, int]
    """Of those that are tested only, from the first of them."""

    def overlap(self, other: Cut) -> tuple[Overlap, Overlap] | None:
        """Where the stored transitions that both have lie in this one's, and in the other's; None if there are none."""
        found = []
        for mine, theirs in zip(self[:2], other[:2], strict=True):
            first, end = max(mine[0], theirs[0]), min(mine[1], theirs[1])
            if first >= end:
                return None
            found.append([slice(first - low, end - low) for low in (mine[0], theirs[0])])
        shapes = [(cut.seeds[1] - cut.seeds[0], cut.trained[1] - cut.trained[0]) for cut in (self, other)]
        return Overlap(shapes[0], found[0][0], found[1][0]), Overlap(shapes[1], found[0][1], found[1][1])


class Share(NamedTuple):
    """The part of a rank, and those of all others."""

    ranks: Ranks
    by: By
    cuts: tuple[Cut, ...]
    """One for each rank."""
    shards: int
    """Of the tasks of the run."""
    sample: tuple[int, ...] | None = None
    """Numbers of the tasks that the run tests; None: all."""

    @property
    def which(self) -> str:
        """The part of this rank, as names of files have it; "" for all of a run."""
        return "" if self.by == "whole" else f"{self.ranks.index}of{self.ranks.count}"

    @property
    def own(self) -> Cut:
        """The part of this rank."""
        return self.cuts[self.ranks.index]

    def local(self, rollout: Rollout) -> Rollout:
        """The rollout of this rank, from that of the whole run."""
        if self.by == "whole":
            return rollout
        seeds = rollout.seeds[slice(*self.own.seeds)]
        if self.by == "seeds":
            return dataclasses.replace(rollout, seeds=seeds)
        first, end = self.own.trained
        learner: Any = dataclasses.replace(rollout.learner, num_tasks=end - first)  # type: ignore[type-var]
        if weights := getattr(learner, "task_weights", ()):
            learner = dataclasses.replace(learner, task_weights=weights[first:end])
        tasks, known = torch.arange(first, end), self._known(rollout.num_tasks)
        ends = [end for end in shards.bounds(rollout.num_tasks, self.shards) if first <= end <= self.own.trained[1]]
        own = TaskShare(
            known.to(rollout.device),
            tuple(end - first for end in ends),
            shards.largest(rollout.num_tasks, self.shards),
        )
        rows, tested = self._tests(known, rollout.test_rows)
        return dataclasses.replace(
            rollout, learner=learner, tasks=selected(rollout.tasks, tasks), share=own, test_rows=rows,
            test_tasks=None if rollout.test_tasks is None else selected(rollout.test_tasks, tested),
        )  # fmt: skip

    @staticmethod
    def _tests(known: Tensor, sample: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """Which of its tasks a rank tests, None for all, and which they are of those that the whole run does."""
        if sample is None:
            return None, known
        known = known.to(sample.device)
        return torch.isin(known, sample).nonzero().flatten(), torch.isin(sample, known).nonzero().flatten()

    def _known(self, num_trained: int) -> Tensor:
        """Numbers of this rank's tasks, those that learn first."""
        cut = self.own
        return torch.cat([torch.arange(*cut.trained), num_trained + torch.arange(*cut.held)])

    def part(self, name: str, whole: Tensor, num_trained: int, learner: Any) -> Tensor:
        """This rank's part of a tensor of the whole run's state.

        Args:
            name: dotted, as in a checkpoint.
            whole: of all seeds and tasks.
            num_trained: tasks that learn.
            learner: of the whole run.
        """
        axis = self.axis(name, whole, learner)
        if self.by == "tasks" and name.startswith("learner.task_places."):
            return whole[self._known(num_trained).to(whole.device)]
        if axis is None:
            return whole
        first, end = self.own.seeds if self.by == "seeds" else self.own.trained
        return whole.narrow(axis, first, end - first).contiguous()

    def axis(self, name: str, tensor: Tensor, learner: Any) -> int | None:
        """The axis along which ranks have parts of a tensor; None: all have it whole."""
        if self.by == "whole" or tensor.ndim < 2:
            return None
        if self.by == "seeds":
            return 0
        kind, _, rest = name.partition(".")
        if kind in ("env", "statistics") or rest == "table":
            return 1
        if not isinstance(learner, LowRankQ) or not rest.startswith(("factors", "moments", "target", "guide")):
            return None
        if not learner.couples_tasks:
            return 1
        number = rest.removeprefix("guide.").split(".")[1]
        has_rows = learner.has_task_mode and (not learner.task_sizes or rest.startswith("guide"))
        return 2 if has_rows and number == "0" else None

    def joined(self, found: list[list[Evaluation]]) -> list[Evaluation]:
        """Tests of the whole run, from those of each rank's part; [] where there are none."""
        return [self._joined(list(parts)) for parts in zip(*found, strict=True)]

    def _num_learnt(self, cut: Cut) -> int:
        """How many of the tasks that a part tests learn."""
        first, end = cut.trained
        return end - first if self.sample is None else sum(first <= number < end for number in self.sample)

    def _joined(self, parts: list[Evaluation]) -> Evaluation:
        if len(parts) == 1:
            return parts[0]
        axis = 0 if self.by == "seeds" else 1
        sums = Statistics(*(torch.cat(sums, axis) for sums in zip(*(part.statistics for part in parts), strict=True)))
        finite = torch.stack([part.finite for part in parts]).all()
        returns = [part.returns for part in parts]
        if self.by == "tasks":  # Those that learn come first, of all ranks.
            ends = [self._num_learnt(cut) for cut in self.cuts]
            returns = [part[:, :end] for part, end in zip(returns, ends, strict=True)] + [
                part[:, end:] for part, end in zip(returns, ends, strict=True)
            ]
        return Evaluation(parts[0].episode, torch.cat(returns, axis), sums, finite)


def plan(config: Config, rollout: Rollout, held: int, ranks: Ranks) -> Share:
    """How the ranks share a run: by seeds where these come out even, else by tasks where these can be, else by seeds.

    Args:
        config: of the whole run.
        rollout: of the whole run.
        held: tasks that are tested only, if they are.
        ranks: who shares it.

    Raises:
        UsageError: if it cannot be shared, or not as `shard` asks for.
    """
    seeds, trained = len(rollout.seeds), rollout.num_tasks
    if ranks is ALONE:
        return Share(ranks, "whole", (Cut((0, seeds), (0, trained), (0, held)),), 1)
    if isinstance(rollout.env, ExternalEnvironment):
        raise UsageError("`env`: environments of Gymnasium use all processors by themselves; start without torchrun")
    count, refused = ranks.count, _refused(config, rollout, ranks.count)
    by = config.shard
    if by == "auto":
        by = "seeds" if seeds % count == 0 or (refused and seeds >= count) else "tasks"
    if by == "seeds":
        if seeds < count:
            raise UsageError(f"`num_seeds`: expected at least one for each of {count} ranks, got {seeds}")
        ends = shards.bounds(seeds, count)
        cuts = tuple(Cut((ends[i], ends[i + 1]), (0, trained), (0, held)) for i in range(count))
        return Share(ranks, "seeds", cuts, 1)
    if refused:
        raise UsageError(refused)
    number = _num_shards(config, rollout, count)
    ends, each = shards.bounds(trained, number), number // count
    tests = shards.bounds(held, count)
    cuts = tuple(
        Cut((0, seeds), (ends[i * each], ends[(i + 1) * each]), (tests[i], tests[i + 1])) for i in range(count)
    )
    sample = None if rollout.test_rows is None else tuple(rollout.test_rows.tolist())
    return Share(ranks, "tasks", cuts, number, sample)


def _num_shards(config: Config, rollout: Rollout, count: int) -> int:
    if not rollout.learner.couples_tasks:
        return count
    again = config.replay_batch if config.replay_ratio else 0
    return shards.count(rollout.num_tasks, config.num_envs + again)


def _refused(config: Config, rollout: Rollout, count: int) -> str | None:
    """Why the tasks cannot be shared among so many, or None."""
    seeds = len(rollout.seeds)
    hint = f"; share at least {count} seeds with `num_seeds`, got {seeds}" if seeds < count else ""
    learner = rollout.learner
    if config.protocol == "online" and learner.couples_tasks:
        return f"`shard`: expected seeds with `protocol=online`, whose tasks take turns{hint}"
    if config.adapt_from or config.warm_start:
        return f"`shard`: expected seeds with `adapt_from` and `warm_start`{hint}"
    if not learner.couples_tasks:
        return None if rollout.num_tasks >= count else f"`num_tasks`: expected one for each of {count} ranks{hint}"
    number = _num_shards(config, rollout, count)
    if number % count:
        most = (
            f"tasks of this run are shared by 2, 4, ... at most {number} ranks" if number > 1 else "there are too few"
        )
        return f"`num_tasks`: expected tasks for {count} ranks, but {most} (128 transitions an update each){hint}"
    return None


def connected(engine: Any, rollout: Rollout, ranks: Ranks) -> Any:
    """An engine that adds up what all ranks learn.

    Raises:
        UsageError: if it cannot.
    """
    if hasattr(engine, "exchange"):
        engine.exchange = ranks
        return engine
    if engine.name not in ("eager", "graph") or rollout.share is None:
        expected = "auto, eager, graph on a GPU or fused on a CPU where ranks share tasks"
        raise UsageError(f"`engine`: expected {expected}, got {engine.name}; or share seeds: `shard=seeds`")
    learner = dataclasses.replace(rollout.learner, sums=ShardSums(rollout.share.bounds, ranks))  # type: ignore[type-var]
    rollout = dataclasses.replace(rollout, learner=learner)
    return GraphEngine(rollout, Stepwise(rollout)) if engine.name == "graph" else Stepwise(rollout)
