"""The yardstick outside: the DQN of Stable-Baselines3 on the same tasks, told their parameters, beside stlrq.

    pip install -e ".[benchmarks]"
    python benchmarks/contextual_dqn.py [--envs pendulum,wireless] [--marks 5000,10000,25000] [--seeds 3]
    python benchmarks/contextual_dqn.py --dry-run    # the same at sizes that take seconds, and writes nothing

One network sees the observation and the parameters of the task, and steps all tasks together, one environment each.
Greedy returns at some samples per task, and seconds of processor time of training, user and system, of all threads:
of the DQN without building its model and without tests, on one thread; of stlrq without importing and compiling, but
with its one test at the mark. stlrq stops at the last whole episode before a mark, trains `--own-seeds` runs side by
side, and its seconds are those of all of them divided by their number. Prints Markdown, and writes it to
benchmarks/results/contextual_dqn.md.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchq import families
from torchq.presets import resolve
from torchq.runs.experiment import prepare
from torchq.versions import git_commit, versions

EXPLORATION = 5_000
"""Samples per task over which the DQN's exploration rate falls to its floor."""
COMMON = {
    "policy_kwargs": {"net_arch": [128, 128]}, "learning_rate": 1e-3, "batch_size": 128, "buffer_size": 500_000,
    "learning_starts": 1_000, "train_freq": 1, "gradient_steps": 1, "target_update_interval": 500,
}  # fmt: skip
"""Of the DQN; steps of all tasks together count as one for `train_freq`, and one for each task elsewhere."""


def unit(value: Tensor, low: float, high: float) -> Tensor:
    """From a range to [−1, 1]."""
    return 2.0 * (value - low) / (high - low) - 1.0


class Setting(NamedTuple):
    """How the DQN meets a family; what it sees is in about [−1, 1]."""

    settings: dict[str, Any]
    """Of the DQN, beside the common ones."""
    observe: Callable[..., tuple[Tensor, ...]]
    """Numbers that it sees of an observation."""
    describe: Callable[[Any], tuple[Tensor, ...]]
    """Numbers that tell it the tasks."""


SETTINGS = {
    "pendulum": Setting(
        {"gamma": 0.99, "exploration_final_eps": 0.05},
        lambda theta, speed: (theta.cos(), theta.sin(), speed / 8.0),
        lambda tasks: (unit(tasks.mass.log10(), -2.0, 0.0), unit(tasks.length, 0.5, 1.0)),
    ),
    "wireless": Setting(
        {"gamma": 0.95, "exploration_final_eps": 0.01},
        lambda gain, occupied, queue, battery: (  # The gain is rarely more than 20.
            unit(gain, 0.0, 20.0), unit(occupied, 0.0, 1.0), unit(queue, 0.0, 10.0), unit(battery, 0.0, 10.0)
        ),
        lambda tasks: (
            unit(tasks.harvest, 0.5, 3.0), unit(tasks.harvest_probability, 0.2, 0.8),
            unit(tasks.arrival, 1.0, 2.0), unit(tasks.arrival_probability, 0.2, 0.8),
        ),
    ),
}  # fmt: skip


class Batch:
    """Copies of every task of a family that start and end together, seen as the DQN sees them.

    Args:
        env: name of the family.
        copies: environments of each task.
        generator: of all random numbers.
    """

    def __init__(self, env: str, copies: int, generator: np.random.Generator) -> None:
        self.family, self.setting, self.generator = families.make(env), SETTINGS[env], generator
        self.tasks = families.stack_tasks(self.family.sample_tasks(), dtype=torch.float32)
        self.parameters = torch.stack(self.setting.describe(self.tasks), dim=-1).expand(1, -1, copies, -1)

    def uniforms(self, count: int) -> Tensor:
        """Random numbers of one call."""
        return torch.from_numpy(self.generator.random((*self.parameters.shape[:-1], count), dtype=np.float32))

    def observation(self) -> Tensor:
        """What is seen, then the parameters, a row for each environment."""
        seen = self.setting.observe(*self.family.observe(self.state).unbind(-1))
        return torch.cat((torch.stack(seen, dim=-1), self.parameters), dim=-1).flatten(0, -2)

    def start(self) -> Tensor:
        """New episodes; returns their first observation."""
        self.state = self.family.reset(self.tasks, self.uniforms(self.family.num_reset_uniforms))
        return self.observation()

    def play(self, actions: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Observation, reward and whether the episodes are at their end, after one step."""
        uniforms = self.uniforms(self.family.num_step_uniforms)
        given = actions.view(self.parameters.shape[:-1])
        self.state, reward, _, truncated = self.family.step(self.tasks, self.state, given, uniforms)
        return self.observation(), reward.flatten(), bool(truncated.all())


def vectorised(batch: Batch) -> Any:
    """A batch as Stable-Baselines3 takes environments. Episodes end by time, which cuts no value."""
    from gymnasium import spaces
    from stable_baselines3.common.vec_env import VecEnv

    class Vectorised(VecEnv):
        set_attr = env_method = None  # Abstract, and not called.

        def reset(self) -> np.ndarray:
            return batch.start().numpy()

        def step_async(self, actions: np.ndarray) -> None:
            self.actions = torch.from_numpy(actions)

        def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
            observation, reward, ended = batch.play(self.actions)
            seen = observation.numpy()
            infos: list[dict[str, Any]] = [{} for _ in seen]
            if ended:
                infos = [{"TimeLimit.truncated": True, "terminal_observation": last} for last in seen]
                seen = self.reset()
            return seen, reward.numpy(), np.full(len(seen), ended), infos

        def close(self) -> None:
            pass

        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            return [getattr(batch, attr_name, None)] * self.num_envs

        def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
            return [False] * self.num_envs

    count, width = batch.start().shape
    return Vectorised(count, spaces.Box(-np.inf, np.inf, (width,)), spaces.Discrete(batch.family.num_actions))


@torch.no_grad()
def greedy_returns(network: torch.nn.Module, batch: Batch) -> list[float]:
    """Return of the greedy policy for each task, mean over one episode of every environment."""
    observation, total, ended = batch.start(), torch.tensor(0.0), False
    while not ended:
        observation, reward, ended = batch.play(network(observation).argmax(-1))
        total = total + reward
    return total.view(batch.parameters.shape[1:3]).mean(-1).tolist()


def dqn(env: str, marks: list[int], seed: int, episodes: int) -> list[tuple[list[float], float]]:
    """At each mark, returns by task and processor seconds spent in training."""
    from stable_baselines3 import DQN

    rows: list[tuple[list[float], float]] = []
    batch, test = (Batch(env, copies, np.random.default_rng((seed, use))) for use, copies in enumerate((1, episodes)))
    num_tasks = batch.parameters.shape[1]
    fraction = min(1.0, EXPLORATION / marks[-1])
    settings = {**COMMON, **SETTINGS[env].settings, "exploration_fraction": fraction, "seed": seed, "device": "cpu"}
    model = DQN("MlpPolicy", vectorised(batch), **settings)
    testing, begun = 0.0, time.process_time()

    def look(given: dict[str, Any], _: dict[str, Any]) -> bool:
        nonlocal testing
        if given["self"].num_timesteps == marks[len(rows)] * num_tasks:
            now = time.process_time()
            rows.append((greedy_returns(model.q_net, test), now - begun - testing))
            testing += time.process_time() - now
        return len(rows) < len(marks)

    model.learn(marks[-1] * num_tasks, callback=look)
    return rows


def ours(env: str, mark: int, seeds: int, first: int, episodes: int) -> tuple[np.ndarray, float, int]:
    """Returns by seed and task, processor seconds per seed, and samples per task."""
    family = families.make(env)
    a_round = resolve("stlrq", env, "default", {}).num_envs * family.episode_length
    rounds = max(1, mark // a_round)
    given = {"num_seeds": seeds, "seed": first, "device": "cpu", "engine": "fused", "optimal": False}
    given |= {"episodes": rounds, "eval_every": rounds, "eval_episodes": episodes}
    run = prepare(resolve("stlrq", env, "default", given), family)
    state, played, begun = run.initial_state, 0, time.process_time()
    while played < rounds:
        count = min(run.longest_block, rounds - played)
        state, evaluations = run.play_block(state, played, count)
        played += count
    seconds = time.process_time() - begun
    return evaluations[-1].returns.numpy(), seconds / seeds, rounds * a_round


def table(env: str, marks: list[int], seeds: int, own: int, first: int, episodes: int) -> list[str]:
    """Rows of one family."""
    found = [dqn(env, marks, seed, episodes) for seed in range(first, first + seeds)]
    rows = []
    for index, mark in enumerate(marks):
        theirs = np.median([run[index][0] for run in found], 0)
        seconds = float(np.median([run[index][1] for run in found]))
        returns, taken, samples = ours(env, mark, own, first, episodes)
        cells = [" / ".join(f"{value:.0f}" for value in kind) for kind in (theirs, np.median(returns, 0))]
        at = "" if samples == mark else f" (at {samples:,})"
        times = f"{seconds:.1f} | {taken:.3f} | {seconds / taken:.0f}"
        rows.append(f"| {env} | {mark:,} | {cells[0]} | {cells[1]}{at} | {times} |")
    return rows


def main() -> None:
    """Train both, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", default="pendulum,wireless")
    parser.add_argument("--marks", default="5000,10000,25000", help="samples per task")
    parser.add_argument("--seeds", type=int, default=3, help="runs of the DQN")
    parser.add_argument("--own-seeds", type=int, default=20, help="runs of stlrq, side by side")
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--episodes", type=int, default=32, help="test episodes per task, run and mark")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/contextual_dqn.md")
    parser.add_argument("--dry-run", action="store_true", help="tiny marks, one seed; written only with --out")
    chosen = parser.parse_args()
    try:
        import stable_baselines3
    except ModuleNotFoundError as error:
        sys.exit(f"contextual_dqn.py needs Stable-Baselines3 ({error}): pip install stable-baselines3")
    torch.set_num_threads(1)
    marks = sorted(set(map(int, chosen.marks.split(","))))
    plan = (marks, chosen.seeds, chosen.own_seeds, chosen.first_seed, chosen.episodes)
    if chosen.dry_run:
        plan = ([400, 800], 1, 2, chosen.first_seed, 2)
    names = chosen.envs.split(",")
    heads = "| env | samples per task | DQN, median of tasks 0/1/2/3 | stlrq | DQN, s | stlrq, s | ratio |"
    rows = [heads, "|---" * 7 + "|", *(row for env in names for row in table(env, *plan))]
    where = f"{platform.machine()}; {versions()}; stable-baselines3 {stable_baselines3.__version__}"
    how = f"{plan[1]} runs of the DQN and {plan[2]} of stlrq, from seed {plan[3]} on, medians; {plan[4]} greedy test"
    how += " episodes a task and run; processor seconds per run"
    settings = "".join(f"; {env}: {SETTINGS[env].settings}" for env in names)
    settings = f"DQN: {COMMON}, exploring over {EXPLORATION:,} samples per task{settings}"
    heading = ["# A DQN that is told the task", "", f"{where}; commit {git_commit()}", "", how, "", settings, ""]
    text = "\n".join([*heading, *rows])
    print(text)
    out = chosen.out or (None if chosen.dry_run else Path(__file__).parent / "results" / "contextual_dqn.md")
    if out:
        out.write_text(text + "\n")


if __name__ == "__main__":
    main()
