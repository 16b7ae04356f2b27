"""Environments of a user of Gymnasium, none of them in the package."""

import os
import signal

import gymnasium
import numpy as np
from gymnasium import spaces


class Machine(gymnasium.Env):
    """A point to push to the origin of a square, beside a clock; it fails in the way that it is told to."""

    observation_space = spaces.Dict({"position": spaces.Box(-1, 1, (2,), np.float32), "clock": spaces.Discrete(3)})
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, gain=1.0, fail="", seeded=True, goal=0.3):
        self.gain, self.fail, self.seeded, self.goal = gain, fail, seeded, goal
        self.push = 0.2 * self.gain
        self.drag = 0.0

    def observed(self):
        return {"position": self.x.astype(np.float32), "clock": self.t % 3}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed if self.seeded else None)
        self.t, self.x = 0, self.np_random.uniform(-1, 1, 2)
        return self.observed(), {}

    def step(self, action):
        self.t += 1
        noise = 0.05 * self.np_random.normal(size=2)
        self.x = np.clip((1 - self.drag) * self.x + self.push * action + noise, -1, 1)
        if self.fail and self.t == 7:
            self.go_wrong()
        reward = np.nan if self.fail == "reward" and self.t == 7 else -float(np.abs(self.x).sum())
        observation = {"position": np.zeros(3), "clock": 0} if self.fail == "shape" and self.t == 7 else self.observed()
        return observation, reward, self.over(), self.t >= self.life(), {}

    def over(self):
        return np.nan if self.fail == "end" and self.t == 7 else bool(np.abs(self.x).max() < self.goal)

    def life(self):
        return 20

    def go_wrong(self):
        if self.fail == "raise":
            raise KeyError("no such\nthing")
        if self.fail == "nan":
            self.x = np.array([np.nan, 0.0])
        if self.fail == "die":
            os.kill(os.getpid(), signal.SIGKILL)


class TwoAims(gymnasium.Env):
    """A step to the left pays the first reward, one to the right the second."""

    observation_space, action_space = spaces.Discrete(2), spaces.Discrete(2)
    reward_space = spaces.Box(0, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        return int(action), np.array([1.0 - action, 2.0 * action]), False, False, {}


class Odd(gymnasium.Env):
    """Observations that cannot be tabulated."""

    observation_space, action_space = spaces.Text(5), spaces.Discrete(2)


gymnasium.register("Machine-v0", Machine, max_episode_steps=20)
gymnasium.register("TwoAims-v0", TwoAims, max_episode_steps=5)
gymnasium.register("Odd-v0", Odd, max_episode_steps=5)
