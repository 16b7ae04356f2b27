"""Many copies of a family as one of Gymnasium's vector environments, in NumPy or torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from . import base, sketches
from .gymnasium import FPS, action_space_of, family_of, observation_box, one_task


class FamilyVectorEnv(VectorEnv[Any, Any, Any]):
    """Copies of the tasks of a family that step together, in torch.

    Args:
        env: the batched environment.
        num_envs: how many.
        tasks: of each, as numbers of the default tasks, parameters by name or dataclasses; one for all; or fewer, which
            are dealt out in turn. None: the family's default tasks in turn.
        autoreset_mode: what follows the end of an episode: with "NextStep" a step that starts the next one, whatever
            its action; with "SameStep" the next one at once, `final_obs` in the info being the last observation; with
            "Disabled" nothing until reset(options={"reset_mask": mask}).
        output: "numpy", arrays that share the memory of the tensors, or "torch".
        device: where to compute; a GPU with output "torch" alone.
        context: whether observations end with the parameters of the task.
        render_mode: "rgb_array", or None.

    Raises:
        ValueError: if an argument is none of these, or, in `step`, an action is none of the family's.
    """

    def __init__(
        self,
        env: Any,
        num_envs: int = 1,
        tasks: Any = None,
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        output: str = "numpy",
        device: str | torch.device = "cpu",
        context: bool = False,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode: expected rgb_array or None, got {render_mode!r}")
        if output not in ("numpy", "torch"):
            raise ValueError(f"output: expected numpy or torch, got {output!r}")
        try:
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device: expected one that PyTorch has here, got {device}") from error
        if output == "numpy" and torch.device(device).type != "cpu":
            raise ValueError(f"device: expected cpu with output numpy, got {device}")
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {
            "render_modes": ["rgb_array"], "render_fps": FPS, "autoreset_mode": self.autoreset_mode,
        }  # fmt: skip
        self.batched_env, self.num_envs, self.render_mode, self.context = env, int(num_envs), render_mode, context
        self.tasks = _dealt(env, tasks, self.num_envs)
        self.output, self.device = output, torch.device(device)
        self._tasks = base.stack_tasks(self.tasks, device=self.device, dtype=torch.float32)
        columns = [getattr(self._tasks, field.name) for field in dataclasses.fields(self._tasks)]
        self._context = torch.cat(columns, dim=-1)  # (envs, parameters)
        self.single_observation_space = observation_box(env, self.tasks, context)
        self.single_action_space = action_space_of(env)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._low, self._high = (
            torch.from_numpy(bound).to(self.device)
            for bound in (self.single_observation_space.low, self.single_observation_space.high)
        )
        self._generator = torch.Generator(self.device)
        self._seeded, self._state = False, None
        self._done = torch.zeros(1, self.num_envs, 1, dtype=torch.bool, device=self.device)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start episodes: all, or those of options={"reset_mask": mask}."""
        if unknown := set(options or {}) - {"reset_mask"}:
            raise ValueError(f"options: expected reset_mask alone, got {', '.join(map(str, unknown))}")
        if seed is not None or not self._seeded:
            super().reset(seed=self._one_seed(seed))
            self._generator.manual_seed(int(self.np_random.integers(1 << 62)))
            self._seeded = True
        given = (options or {}).get("reset_mask")
        mask = None if given is None else torch.as_tensor(given, device=self.device)
        if mask is not None and (mask.shape != (self.num_envs,) or mask.dtype != torch.bool):
            raise ValueError(f"options: expected a reset_mask of {self.num_envs} truth values, got {mask.shape}")
        fresh = self._fresh()
        if mask is None or self._state is None:
            self._state, self._done = fresh, torch.zeros_like(self._done)
        else:
            where = mask.view(1, -1, 1)
            self._state, self._done = _where(where, fresh, self._state), self._done & ~where
        return self._given(self._observed(self._state)), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One step of all."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("step() before reset(): call reset() first")
        mode, before = self.autoreset_mode, self._done
        if mode == AutoresetMode.DISABLED and bool(before.any()):
            raise gymnasium.error.ResetNeeded(
                "step() after the end of an episode: reset(options={'reset_mask': mask}) those first"
            )
        state, reward, terminated, truncated = self.batched_env.step(
            self._tasks, self._state, self._checked(actions), self._uniforms(self.batched_env.num_step_uniforms)
        )
        info: dict[str, Any] = {}
        if mode == AutoresetMode.NEXT_STEP:
            state = _where(before, self._fresh(), state)
            reward, terminated, truncated = (torch.where(before, 0, x) for x in (reward, terminated, truncated))
            terminated, truncated = terminated.bool(), truncated.bool()
        done = terminated | truncated
        if mode == AutoresetMode.SAME_STEP:
            # Without looking whether there are any: that would wait for the device.
            mask = self._given(done.view(-1))
            info = {"final_obs": self._given(self._observed(state)), "_final_obs": mask, "_final_info": mask}
            info["final_info"] = {}
            state = _where(done, self._fresh(), state)
        self._state, self._done = state, done
        flags = (self._given(x.view(-1)) for x in (reward, terminated, truncated))
        return self._given(self._observed(state)), *flags, info

    def render(self) -> tuple[np.ndarray, ...] | None:
        """A picture of each copy."""
        if self.render_mode is None or self._state is None:
            return None
        seen = self.batched_env.observe(self._state).view(self.num_envs, -1).tolist()
        pairs = zip(seen, self.tasks, strict=True)
        return tuple(sketches.picture(self.batched_env, one, task) for one, task in pairs)

    def _one_seed(self, seed: Any) -> int | None:
        """One seed out of one for each copy."""
        if seed is None or isinstance(seed, int | np.integer):
            return seed if seed is None else int(seed)
        seeds = np.asarray(seed)
        if seeds.shape != (self.num_envs,) or seeds.dtype.kind not in "iu":
            raise ValueError(f"seed: expected a whole number, or one for each of {self.num_envs} copies, got {seed!r}")
        return int(np.random.SeedSequence(seeds.tolist()).generate_state(1)[0])

    def _fresh(self) -> Any:
        return self.batched_env.reset(self._tasks, self._uniforms(self.batched_env.num_reset_uniforms))

    def _uniforms(self, count: int) -> Tensor:
        return torch.rand(1, self.num_envs, 1, count, generator=self._generator, device=self.device)

    def _observed(self, state: Any) -> Tensor:
        """Observations, (envs, dimensions[ + parameters])."""
        observation = self.batched_env.observe(state).view(self.num_envs, -1).float()
        seen = torch.cat((observation, self._context), dim=-1) if self.context else observation
        return seen.clamp(self._low, self._high)

    def _checked(self, actions: Any) -> Tensor:
        discrete = isinstance(self.single_action_space, gymnasium.spaces.Discrete)
        try:
            found = torch.as_tensor(actions, device=self.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"actions: expected an array of {self.num_envs} numbers, got {actions!r}") from error
        if found.numel() != self.num_envs:
            raise ValueError(
                f"actions: expected {self.num_envs}, one for each copy, got the shape {tuple(found.shape)}"
            )
        if not discrete:
            bound = float(self.single_action_space.high[0])  # type: ignore[attr-defined]
            if self.device.type == "cpu" and not bool((found.abs() <= bound * (1.0 + 1e-6)).all()):
                came = found.flatten().tolist()[:8]
                raise ValueError(f"actions: expected controls between {-bound:g} and {bound:g}, got {came}")
            return found.to(torch.float32).view(1, -1, 1)
        count = int(self.single_action_space.n)  # type: ignore[attr-defined]
        if found.is_floating_point() or found.dtype == torch.bool:
            raise ValueError(f"actions: expected whole numbers from 0 to {count - 1}, got {found.dtype}")
        if self.device.type == "cpu" and bool(((found < 0) | (found >= count)).any()):
            raise ValueError(f"actions: expected whole numbers from 0 to {count - 1}, got {found.tolist()[:8]}")
        return found.long().view(1, -1, 1)

    def _given(self, tensor: Tensor) -> Any:
        return tensor.numpy() if self.output == "numpy" else tensor


def make(family: str, num_envs: int = 1, max_episode_steps: int | None = None, **given: Any) -> FamilyVectorEnv:
    """Entry point of the registered ids; arguments that are none of `FamilyVectorEnv` are constants of the family."""
    names = ("tasks", "autoreset_mode", "output", "device", "context", "render_mode")
    own = {name: given.pop(name) for name in names if name in given}
    given.pop("own_limit", None)
    if "task" in given:
        own["tasks"] = given.pop("task")
    if max_episode_steps is not None:
        given.setdefault("episode_length", max_episode_steps)
    return FamilyVectorEnv(family_of(family, **given), num_envs, **own)


def _dealt(env: Any, tasks: Any, num_envs: int) -> list[Any]:
    """A task for each copy."""
    if num_envs < 1:
        raise ValueError(f"num_envs: expected at least 1, got {num_envs}")
    if tasks is None:
        tasks = env.sample_tasks()
    several = isinstance(tasks, Sequence) and not isinstance(tasks, Mapping | str)
    found = [one_task(env, task) for task in (tasks if several else [tasks])]
    if not found:
        raise ValueError("tasks: expected at least one, got none")
    if len(found) > num_envs:
        found = found[:num_envs]
    return [found[number % len(found)] for number in range(num_envs)]


def _where(mask: Tensor, one: Any, other: Any) -> Any:
    """The state of those of a mask from one, of the others from the other."""
    return type(one)(*(torch.where(mask, ours, theirs) for ours, theirs in zip(one, other, strict=True)))
