"""The fused engine on a CPU: whole episodes of a run by one C++ program, made for its environments and sizes."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from torchq.engines import shards
from torchq.engines.codegen import cpp
from torchq.engines.codegen.trace import TranslationError, trace_family
from torchq.engines.contract import Batch, Block, EnvState, LearnerState, Played, Rates, RunState, UnavailableError
from torchq.engines.cpu import arguments, build
from torchq.engines.rollout import Rollout
from torchq.lowrank.guide import aged
from torchq.lowrank.low_rank_q import LowRankQ
from torchq.lowrank.low_rank_state import LowRankState
from torchq.lowrank.modes import KINDS
from torchq.lowrank.optim import Moments
from torchq.native import num_threads
from torchq.philox import Purpose
from torchq.ranks import Exchange

_OPTIMIZERS = {"sgd": 0, "adam": 1, "adamax": 2}
_KINDS = {kind: number for number, kind in enumerate(KINDS)}


class CppEngine:
    """Whole episodes in one call.

    Args:
        rollout: with a low-rank learner, on the CPU.

    Raises:
        UnavailableError: if it is another, its environment cannot be translated, or the program does not compile.
    """

    name = "fused"

    def __init__(self, rollout: Rollout) -> None:
        if rollout.device.type != "cpu":
            raise UnavailableError(f"it needs the CPU, got {rollout.device.type}")
        if not isinstance(rollout.learner, LowRankQ):
            raise UnavailableError("it needs stlrq, lrq or clrq")
        if len(rollout.learner.action_sizes) != 1:
            raise UnavailableError("it needs one action mode")
        if rollout.learner.update_order == "block" and (rollout.learner.task_sizes or rollout.learner.only_tasks):
            raise UnavailableError("blocks of modes need a row per task, and all modes to learn")
        self.exchange: Exchange | None = None
        self.rollout, self.learner = rollout, rollout.learner
        self._real: Any = ctypes.c_float if rollout.dtype == torch.float32 else ctypes.c_double
        start = rollout.reset(rollout.batch(0), 0)
        self._state_type, self._field_types = type(start), [field.dtype for field in start]
        try:
            program = trace_family(rollout.env, rollout.tasks, start, rollout.dtype)
            self._library = build.library(_constants(rollout, self.learner), cpp.family(program))
        except (TranslationError, RuntimeError, OSError) as error:
            raise UnavailableError(str(error).strip().partition("\n")[0]) from error
        self._num_modes = len(self.learner.sizes) + int(bool(self.learner.task_sizes))  # And the one made up of others.
        self._arguments = arguments.block(len(program.field_types), self._num_modes, self._real)
        assert ctypes.sizeof(self._arguments) == self._library.torchq_size()

    def train(self, batch: Batch, state: RunState, rates: Rates, first_step: int, *, updates: bool = True) -> RunState:
        """Consecutive steps with their updates, as in `Engine`.

        Args:
            batch: who plays.
            state: before; it stays as it was.
            rates: of each step.
            first_step: how many steps each environment has taken before.
            updates: whether to learn; without, the environments are played by the behaviour policy alone.
        """
        learner, env, statistics, memory = state
        changed = self._copied(learner)
        fields, steps = [_copy(field) for field in env], len(rates.epsilon)
        sums = torch.zeros(*statistics.reward.shape, 4, dtype=torch.float64)
        weights = None
        if self.learner.task_weights:
            weights = torch.tensor(self.learner.task_weights, dtype=self.rollout.dtype)[batch.task_index]
        self._call(
            "torchq_train", batch, fields, groups=self.learner.groups, steps=steps, first_step=first_step,
            updates=int(updates), num_updates=int(learner.num_updates), epsilon=rates.epsilon,
            learning_rate=rates.learning_rate, task_weights=weights, statistics=sums, **changed,
            **self._replay(memory if updates else ()),
        )  # fmt: skip
        count = learner.num_updates + int(updates) * steps * self._sweeps_per_step
        after = self._learnt(learner, changed, count)
        return RunState(after, type(env)(*fields), statistics.plus(*sums.unbind(-1)), memory)

    def greedy_returns(self, learner: LearnerState, env: EnvState, first_step: int) -> Tensor:
        """Returns of greedy episodes, as in `Engine`."""
        factors, fields = [factor.contiguous() for factor in learner.factors], [_copy(field) for field in env]
        total = torch.zeros(fields[0].shape, dtype=torch.float64)
        self._call(
            "torchq_greedy", self.rollout.test_batch(), fields, Purpose.EVALUATION_STEP,
            groups=max(factor.shape[1] for factor in factors),
            factors=factors, guide=_guide_of(learner), margin=float(learner.guide.margin) if learner.guide else 0.0,
            margin_end=float("inf"), steps=self.rollout.env.episode_length, first_step=first_step, total=total,
        )  # fmt: skip
        return total.to(self.rollout.dtype)

    def play(self, block: Block, state: RunState) -> Played:
        """Whole rounds with their tests, as in `BlockEngine`."""
        learner, rollout = state.learner, self.rollout
        rounds, length = len(block.test), rollout.env.episode_length
        changed, tested = self._copied(learner), rollout.test_batch()
        fields = [_copy(field) for field in block.starts or state.env]  # ([rounds,] seeds, tasks, envs)
        tests = [_copy(field) for field in block.test_starts]
        sums = torch.zeros(rounds, len(rollout.seeds), rollout.num_tasks, 4, dtype=torch.float64)
        total = torch.zeros(tests[0].shape, dtype=torch.float64)
        finite = torch.zeros(len(total), len(rollout.seeds), self.learner.groups, dtype=torch.uint8)
        weights = torch.tensor(self.learner.task_weights, dtype=rollout.dtype) if self.learner.task_weights else None
        self._call(
            "torchq_play", rollout.batch(), fields, groups=self.learner.groups, steps=length, updates=1,
            first_step=block.first_round * length, num_updates=int(learner.num_updates), task_weights=weights,
            epsilon=block.rates.epsilon, learning_rate=block.rates.learning_rate, statistics=sums, total=total,
            test_margin_end=self.learner.margin_updates[1], test_tasks=len(tested.task_index),
            test_index=tested.task_index, test_names=self.rollout.names(tested.task_index),
            test_parameters=tested.parameters,
            rounds=rounds, turns=block.turns, fresh=int(block.starts is not None), test_envs=total.shape[-1],
            test=block.test, test_state=tests, finite=finite, **changed, **self._replay(state.replay),
        )  # fmt: skip
        count = learner.num_updates + rounds * block.turns * length * self._sweeps_per_step
        ended = [field[-1] for field in fields] if block.starts else fields
        if block.turns > 1:
            ended = [field[:, -1:] for field in ended]  # Of the last turn, (seeds, 1, envs).
        env, after = type(state.env)(*ended), self._learnt(learner, changed, count)
        return Played(after, env, sums, total.to(rollout.dtype), finite.bool().all(-1).all(-1))

    def starts(self, batch: Batch, purpose: Purpose, episodes: list[int], num_envs: int) -> EnvState:
        """Environments at the start of episodes, as in `BlockEngine`."""
        rollout, shape = self.rollout, (len(episodes), len(self.rollout.seeds), len(batch.task_index), num_envs)
        fields = [torch.zeros(shape, dtype=dtype) for dtype in self._field_types]
        at = torch.tensor(episodes, dtype=torch.int64) * rollout.env.episode_length
        self._call("torchq_reset", batch, fields, factors=[], purpose=purpose, steps=len(episodes), reset_at=at)
        return self._state_type(*fields)

    @property
    def _sweeps_per_step(self) -> int:
        return self.rollout.updates_per_step * self.learner.num_sweeps

    def _replay(self, memory: Any) -> dict[str, Any]:
        """Arguments of what is learnt from again."""
        replay = self.rollout.replay
        if replay is None or not isinstance(memory, Tensor):
            return {}
        return {
            "memory": memory, "slots": memory.shape[2], "replay_ratio": replay.ratio, "replay_batch": replay.batch,
            "replay_capacity": replay.capacity, "replay_recent": replay.recent,
        }  # fmt: skip

    def _copied(self, learner: LowRankState) -> dict[str, Any]:
        """Arguments of what a learner's state holds, copies of it: in the program parameters' modes are the last."""
        rest: dict[str, Any] = {}
        if learner.task_places:
            rest["task_places"] = torch.stack(learner.task_places, dim=-1).to(self.rollout.dtype).contiguous()
        kinds = (learner.factors, [m.first for m in learner.moments], [m.second for m in learner.moments])
        names = ("factors", "first", "second", "target")
        rest |= {"guide": _guide_of(learner), "margin": self.learner.margin}
        rest["margin_end"] = self.learner.margin_updates[0]
        return rest | {name: self._ordered(kind) for name, kind in zip(names, (*kinds, learner.target), strict=True)}

    def _ordered(self, tensors: Any) -> list[Tensor | None]:
        """Copies of a tensor of each mode in the program's order, where no tensor is made up for the task mode."""
        made: list[Tensor | None] = [_copy(tensor) for tensor in tensors]
        own = len(self.learner.task_sizes)
        return [None, *made[own:], *made[:own]] if own and made else made

    def _learnt(self, before: LowRankState, changed: dict[str, Any], count: Tensor) -> LowRankState:
        """The state of a learner from what the program has changed."""
        own, found = len(self.learner.task_sizes), {}
        for name in ("factors", "first", "second", "target"):
            tensors = changed[name]
            found[name] = (*tensors[-own:], *tensors[1:-own]) if own and tensors else tuple(tensors)
        moments = tuple(map(Moments, found["first"], found["second"]))
        guide = aged(before.guide, count, self.learner.margin, self.learner.margin_updates[0])
        return before._replace(
            factors=found["factors"], moments=moments, num_updates=count, target=found["target"], guide=guide
        )

    def _call(
        self, function: str, batch: Batch, fields: list[Tensor], purpose: Purpose = Purpose.STEP, **given: Any
    ) -> None:
        """Call the program with the arguments given; tensors by their addresses, and what is left out 0."""
        seeds, tasks, envs = fields[0].shape[-3:]
        factors = given["factors"]
        given |= {
            "seeds": seeds, "tasks": tasks, "envs": envs, "threads": num_threads(),
            "run_seeds": self.rollout.seeds, "task_index": batch.task_index,
            "task_names": self.rollout.names(batch.task_index, purpose), "parameters": batch.parameters,
            "state": fields,
            "factor_groups": [1 if factor is None else factor.shape[1] for factor in factors],
            "rows": [tasks if factor is None else factor.shape[2] for factor in factors],
            "gamma": self.rollout.gamma, "field_bytes": [field.element_size() for field in fields],
            "purpose": int(purpose), "target_rate": self.learner.target_rate or 0.0, **self._shards(tasks),
        }  # fmt: skip
        failed: list[BaseException] = []
        if self.exchange is not None and function != "torchq_reset":
            given |= {"ranks": self.exchange.count, "exchange": arguments.callback(self.exchange, failed)}
        block = self._arguments()  # Begins with the arguments of a single call.
        own = {field[0] for field in block._fields_}
        for name, value in given.items():
            given_to = block if name in own else block.args
            if isinstance(value, list) and value:
                getattr(given_to, name)[: len(value)] = [_address(x) if isinstance(x, Tensor) else x for x in value]
            elif not isinstance(value, list):
                setattr(given_to, name, _address(value) if isinstance(value, Tensor) else value)
        getattr(self._library, function)(ctypes.byref(block))
        if failed:
            raise failed[0]

    def _shards(self, num_tasks: int) -> dict[str, Any]:
        """Arguments about the shards of tasks that play together."""
        if not self.learner.couples_tasks or num_tasks != self.rollout.num_tasks:
            return {"shards": 1, "shard_tasks": num_tasks, "ranks": 1}
        share, again = self.rollout.share, self.rollout.replay.batch if self.rollout.replay else 0
        if share is None:
            count = shards.count(num_tasks, self.rollout.num_envs + again)
            ends, largest = shards.bounds(num_tasks, count), shards.largest(num_tasks, count)
        else:
            ends, largest = share.bounds, share.largest
        return {
            "shards": len(ends) - 1, "shard_begins": torch.tensor(ends), "shard_tasks": largest, "ranks": 1,
        }  # fmt: skip


def _constants(rollout: Rollout, learner: LowRankQ) -> dict[str, str]:
    """What the program is compiled for besides its family."""
    grid = rollout.grid
    constants = {
        "REAL": "float" if rollout.dtype == torch.float32 else "double", "RANK": learner.rank,
        "ACTIONS": rollout.env.num_actions, "JOINT": int(grid.joint), "HAS_TASK": int(learner.has_task_mode),
        "GRID_LOW": _braces(mode.low for mode in grid.modes), "GRID_HIGH": _braces(mode.high for mode in grid.modes),
        "GRID_SIZES": _braces(grid.sizes), "GRID_KINDS": _braces(_KINDS[mode.kind] for mode in grid.modes),
        "OPTIMIZER": _OPTIMIZERS[learner.optimizer], "BLOCK_ORDER": int(learner.update_order == "block"),
        "TASK_MODES": len(learner.task_sizes), "ONLY_TASKS": int(learner.only_tasks), "GUIDE": int(learner.margin > 0),
        "NORMALISED": int(learner.normalised), "SWEEPS": learner.num_sweeps, "LOSS_SCALE": learner.loss_scale,
    }  # fmt: skip
    return {name: str(value) for name, value in constants.items()}


def _braces(values: Any) -> str:
    return "{" + ",".join(map(str, values)) + "}"


def _guide_of(learner: LowRankState) -> list[Tensor]:
    """Factors of a state's guide, or none."""
    return [factor.contiguous() for factor in learner.guide.factors] if learner.guide else []


def _copy(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _address(tensor: Tensor) -> int | None:
    assert tensor.is_contiguous()
    return tensor.data_ptr() or None
