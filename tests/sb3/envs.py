"""Small environments whose observations and rewards are what a test says."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv


class Returns(gymnasium.Env[Any, Any]):
    """Episodes of five steps; what it returns goes through `observe` and `pay` first."""

    action_space = spaces.Discrete(3)

    def __init__(self, space: spaces.Space[Any], observe: Any = lambda x: x, pay: Any = float) -> None:
        self.observation_space, self.observe, self.pay, self.steps = space, observe, pay, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observe(self.observation_space.sample()), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.steps += 1
        done = self.steps == 5
        return self.observe(self.observation_space.sample()), self.pay(self.steps), done, done, {}


class AsReturned(DummyVecEnv):
    """Hands on what its environments returned, as SubprocVecEnv does: DummyVecEnv casts to the space's dtype."""

    def step_wait(self) -> Any:
        returned = [env.step(action) for env, action in zip(self.envs, self.actions, strict=True)]
        observations, infos, rewards = [], [], []
        for env, (observation, reward, terminated, truncated, info) in zip(self.envs, returned, strict=True):
            info = {**info, "TimeLimit.truncated": truncated and not terminated}
            if terminated or truncated:
                info["terminal_observation"] = observation
                observation, _ = env.reset()
            observations.append(observation)
            infos.append(info)
            rewards.append(reward)
        return np.stack(observations), np.stack(rewards), np.array([r[2] or r[3] for r in returned]), infos

    def reset(self) -> Any:
        return np.stack([env.reset()[0] for env in self.envs])


class Pictures(gymnasium.Env[Any, Any]):
    """Noise, channels last."""

    action_space = spaces.Discrete(3)

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}
