"""Environments that others wrote, as tasks: CARL's contexts, tables of Gymnasium's toy_text, rewards of MO-Gymnasium.

Needs `pip install stable-baselines3 mo-gymnasium`, and `pip install --no-deps carl-bench omegaconf` (it asks for an
older Gymnasium, but runs with this one). Prints tables and writes benchmarks/results/gym_tasks.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

import envs
import torchq
from torchq.versions import git_commit, versions

RESULTS = Path(__file__).parent / "results"
SEEDS = 4
CARTPOLE: dict[str, Any] = {
    "id": "carl:carl/CARLCartPole-v0",
    "names": ("gravity", "length"),
    "grid": ((4.9, 8.17, 11.43, 14.7), (0.4, 0.5, 0.6, 0.7)),
    "length": 500,
    "given": {
        "ranges": {"obs.0": (-2.4, 2.4), "obs.1": (-3.0, 3.0), "obs.2": (-0.21, 0.21), "obs.3": (-3.0, 3.0)},
        "learning_rate": 0.003, "epsilon_end": 0.2, "replay_capacity": 100_000, "env_option": {"points": 10},
    },
    # Of rl-baselines3-zoo for CartPole-v1.
    "dqn": {
        "learning_rate": 2.3e-3, "batch_size": 64, "buffer_size": 100_000, "learning_starts": 1000, "gamma": 0.99,
        "target_update_interval": 10, "train_freq": 256, "gradient_steps": 128, "exploration_fraction": 0.16,
        "exploration_final_eps": 0.04, "policy_kwargs": {"net_arch": [256, 256]},
    },
}  # fmt: skip
PENDULUM: dict[str, Any] = {
    "id": "carl:carl/CARLPendulum-v0",
    "names": ("m", "l"),
    "grid": ((0.5, 0.8, 1.1, 1.4), (0.5, 0.7, 0.9, 1.1)),
    "length": 200,
    "given": {"ranges": {"obs.2": (-8.0, 8.0)}, "learning_rate": 0.01, "epsilon_end": 0.02},
    "dqn": {
        "learning_rate": 1e-3, "batch_size": 64, "buffer_size": 100_000, "learning_starts": 500, "gamma": 0.98,
        "target_update_interval": 200, "train_freq": 4, "gradient_steps": 4, "exploration_fraction": 0.3,
        "exploration_final_eps": 0.02, "policy_kwargs": {"net_arch": [64, 64]},
    },
}  # fmt: skip


class Levels(gymnasium.ActionWrapper):
    """The 11 levels of a continuous action that torchq has too, for DQN."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.levels = envs.spaces.Actions(env.action_space)
        self.action_space = gymnasium.spaces.Discrete(self.levels.sizes[0])

    def action(self, action: int) -> Any:
        """One level."""
        return self.levels(np.array([action]))


def contexts(setting: dict[str, Any], count: int) -> list[dict[str, float]]:
    """The corners of the grid, or all of it."""
    axes = [axis if count == 16 else (axis[0], axis[-1]) for axis in setting["grid"]]
    return [
        {f"contexts__0__{n}": v for n, v in zip(setting["names"], at, strict=True)} for at in itertools.product(*axes)
    ]


def family(setting: dict[str, Any], tasks: list[dict[str, float]], workers: int = 0) -> envs.GymTasks:
    """The family of some contexts."""
    return envs.GymTasks(setting["id"], tasks, obs_context_features=[], workers=workers)


def expert(setting: dict[str, Any], task: dict[str, float], episodes: int, tests: int) -> float:
    """Mean return of Stable-Baselines3's DQN on one context, after so many episodes of samples."""
    from stable_baselines3 import DQN

    def made() -> gymnasium.Env:
        seen = gymnasium.wrappers.FilterObservation(family(setting, [task])._made(task), ["obs"])
        env = gymnasium.wrappers.FlattenObservation(seen)
        return env if isinstance(env.action_space, gymnasium.spaces.Discrete) else Levels(env)

    model = DQN("MlpPolicy", made(), seed=0, device="cpu", **setting["dqn"]).learn(episodes * setting["length"])
    env, returns = made(), []
    for number in range(tests):
        observation, _ = env.reset(seed=10_000 + number)
        total, over = 0.0, False
        while not over:
            action = model.predict(observation, deterministic=True)[0]
            observation, reward, terminated, truncated, _ = env.step(int(action))
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    return float(np.mean(returns))


def trained(env: str, out: Path, tests: int, **given: Any) -> tuple[np.ndarray, torchq.Run]:
    """Mean greedy return of each run and task, (seeds, tasks)."""
    run = torchq.train(env=env, out=out, progress=False, device="cpu", **{"algo": "stlrq", "num_seeds": SEEDS, **given})
    return run.evaluate(tests), run


def carl(setting: dict[str, Any], episodes: int, tests: int, counts: tuple[int, ...], out: Path) -> list[str]:
    """A row for each number of contexts."""
    all_tasks = contexts(setting, max(counts))
    started = time.perf_counter()
    experts = {json.dumps(task): expert(setting, task, episodes, tests) for task in all_tasks}
    for_experts = time.perf_counter() - started
    rows = []
    for count in counts:
        tasks = contexts(setting, count)
        given = {**setting["given"], "tasks": tasks}
        given["env_option"] = {"obs_context_features": [], **given.get("env_option", {})}
        found, run = trained(
            f"gym:{setting['id']}", out / f"{count}", tests, episodes=episodes, eval_every=episodes, **given
        )
        theirs = np.array([experts[json.dumps(task)] for task in tasks])
        ours = np.median(found, axis=0)
        rows.append(
            f"| {setting['id'].rpartition('/')[2]} | {count} | {episodes * setting['length']:,} | {ours.mean():.1f} | "
            f"{ours.min():.1f} | {theirs.mean():.1f} | {theirs.min():.1f} | {(ours >= theirs).sum()} of {count} | "
            f"{run.summary['wall_time_s']:.0f} | {for_experts * count / len(all_tasks):.0f} |"
        )
        print(rows[-1], flush=True)
    return rows


TABLES = (
    ("FrozenLake-v1", {"vary": {"is_slippery": [0, 1]}, "episodes": 600, "epsilon_decay": 0.9999}),
    ("FrozenLake-v1", {"vary": {"is_slippery": [1]}, "env_option": {"map_name": "8x8"}, "episodes": 1500,
                       "epsilon_decay": 0.99997, "gamma": 0.999}),
    ("CliffWalking-v1", {"env_option": {"episode_length": 200}, "episodes": 100, "epsilon_decay": 0.9995}),
    ("Taxi-v4", {"episodes": 600, "epsilon_decay": 0.9999, "gamma": 0.97}),
)  # fmt: skip


def tables(scale: float, tests: int, out: Path) -> list[str]:
    """A row for each environment with a table of transitions."""
    rows = []
    for number, (name, given) in enumerate(TABLES):
        episodes = max(2, round(given["episodes"] * scale))
        common = {"learning_rate_half_life": 30_000.0, "epsilon_end": 0.1}
        settings = {**common, **given, "episodes": episodes, "eval_every": episodes}
        found, run = trained(f"gym:{name}", out / str(number), tests, algo="tabular", **settings)
        words = " ".join(f"{k}={v}" for k, v in {**given.get("vary", {}), **given.get("env_option", {})}.items())
        best = ", ".join(f"{value:.3g}" for value in run.summary["optimal_return"])
        ours = ", ".join(f"{value:.3g}" for value in np.median(found, axis=0))
        rows.append(f"| {name} {words} | {run.summary['samples_per_task']:,} | {ours} | {best} |")
        print(rows[-1], flush=True)
    return rows


def treasures(episodes: int, tests: int, out: Path) -> list[str]:
    """A row for each weighing of treasure and time, beside the best treasure by its distance."""
    import mo_gymnasium  # noqa: F401

    tasks = [{"reward_weights__0": value, "reward_weights__1": 1.0} for value in (0.1, 0.5, 0.8, 2.0)]
    given = {"tasks": tasks, "episodes": episodes, "eval_every": episodes, "gamma": 1.0, "epsilon_decay": 0.9998}
    given["env_option"] = {"episode_length": 50}
    found, _ = trained("gym:mo_gymnasium:deep-sea-treasure-v0", out, tests, algo="tabular", **given)
    sea = gymnasium.make("mo_gymnasium:deep-sea-treasure-v0", disable_env_checker=True).unwrapped.sea_map
    rows = []
    for number, task in enumerate(tasks):
        weight = task["reward_weights__0"]
        best = max(weight * value - row - column for (row, column), value in np.ndenumerate(sea) if value > 0)
        rows.append(f"| {weight} | {np.median(found[:, number]):.2f} | {best:.2f} |")
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the samples, to see that it runs")
    parser.add_argument("--only", choices=["carl", "tables", "treasures"], help="one of the three parts")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    scale, tests, counts = (0.05, 2, (4,)) if arguments.quick else (1.0, 20, (4, 16))
    parts: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        if arguments.only in (None, "tables"):
            parts["tables"] = tables(scale, tests, out / "tables")
        if arguments.only in (None, "treasures"):
            parts["treasures"] = treasures(round(400 * scale), tests, out / "treasures")
        if arguments.only in (None, "carl"):
            parts["carl"] = [
                row
                for number, (setting, episodes) in enumerate(((PENDULUM, 100), (CARTPOLE, 100)))
                for row in carl(setting, round(episodes * scale), tests, counts, out / f"carl{number}")
            ]
    if not arguments.quick and arguments.only is None:
        (RESULTS / "gym_tasks.md").write_text(page(parts))


def page(parts: dict[str, list[str]]) -> str:
    """The page of results."""
    carl_rows, table_rows, treasure_rows = ("\n".join(parts[name]) for name in ("carl", "tables", "treasures"))
    return f"""# Environments that others wrote, as tasks

{versions()}; commit {git_commit()}; two cores. `python benchmarks/gym_tasks.py`; {SEEDS} runs, medians over them of the
mean of 20 greedy episodes.

## Contexts of CARL

One `stlrq` over all contexts against a DQN of Stable-Baselines3 for each, with as many samples of each context
(settings of rl-baselines3-zoo for the cart; one run). *As good* counts contexts where ours is at least as good.

| environment | contexts | samples each | ours, mean | worst | DQN, mean | worst | as good | ours, s | DQN, s |
|---|---|---|---|---|---|---|---|---|---|
{carl_rows}

## Tables of transitions

`--algo tabular` on environments of toy_text, beside the optimum from their own tables.

| environment | samples | median | optimum |
|---|---|---|---|
{table_rows}

## Rewards of MO-Gymnasium

deep-sea-treasure with the treasure weighed by each task and a step by 1; the optimum is that of the sea's map.

| weight of the treasure | median | optimum |
|---|---|---|
{treasure_rows}
"""


if __name__ == "__main__":
    main()
