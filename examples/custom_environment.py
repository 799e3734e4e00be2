"""An environment of your own in train.py: python examples/custom_environment.py frames=20000

Register it with gymnasium, and name its module in `env.module`. An environment that draws everything random from
`self.np_random` resumes exact to the bit. The same from a shell, in this folder:

    PYTHONPATH=. python ../train.py env=gym env.module=custom_environment env.id=examples/Thermostat-v0 agent=dqn_small
"""

from __future__ import annotations

import sys
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from nap_rl import train


class Thermostat(gymnasium.Env[npt.NDArray[np.float32], np.int64]):
    """Keep a room near 20 degrees for 200 minutes: heat or wait, while it is cold outside.

    Observations: (room - 20) / 10, (outside - 20) / 10, share of the time that has passed. Reward: 1 for each minute
    within a degree of 20, less a tenth while heating.
    """

    observation_space = gymnasium.spaces.Box(-10.0, 10.0, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    MINUTES = 200

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.room, self.outside = self.np_random.uniform(15.0, 25.0), self.np_random.uniform(-5.0, 10.0)
        self.minute = 0
        return self.shown(), {}

    def step(self, action: np.int64) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self.room += 1.0 * int(action) - 0.03 * (self.room - self.outside) + self.np_random.normal(0.0, 0.05)
        self.minute += 1
        reward = float(abs(self.room - 20.0) < 1.0) - 0.1 * int(action)
        return self.shown(), reward, False, self.minute == self.MINUTES, {}

    def shown(self) -> npt.NDArray[np.float32]:
        scaled = (self.room - 20.0) / 10.0, (self.outside - 20.0) / 10.0, self.minute / self.MINUTES
        return np.array(scaled, np.float32)


gymnasium.register("examples/Thermostat-v0", entry_point=Thermostat)

SETTINGS = ["env=gym", "env.module=custom_environment", "env.id=examples/Thermostat-v0", "agent=dqn_small"]

if __name__ == "__main__":
    sys.argv[1:1] = [*SETTINGS, "agent.nap=true"]
    train.main()
