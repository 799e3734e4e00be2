"""A network of your own in train.py: python examples/custom_torso.py frames=20000

A torso is any torch module that is made from the shape of one input and returns [B, features]. Everything behind it
(streams, head, NaP, checkpoints, evaluation) stays as it is. The same from a shell, in this folder:

    PYTHONPATH=. python ../train.py env=gym env.id=CartPole-v1 agent=dqn_small agent.torso=custom_torso.Residual
"""

from __future__ import annotations

import math
import sys

from torch import Tensor, nn

from nap_rl import train


class Residual(nn.Module):
    """Two residual blocks of `WIDTH` units. Nonlinearities are modules, so that NaP finds them.

    Args:
        shape: (stack, *observation) of one input.
    """

    WIDTH = 64

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), self.WIDTH))
        self.blocks = nn.ModuleList(self.block() for _ in range(2))
        self.relu = nn.ReLU()

    def block(self) -> nn.Module:
        return nn.Sequential(nn.ReLU(), nn.Linear(self.WIDTH, self.WIDTH), nn.ReLU(), nn.Linear(self.WIDTH, self.WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """[B, *shape] float32 -> [B, WIDTH]."""
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        features: Tensor = self.relu(x)
        return features


SETTINGS = ["env=gym", "env.id=CartPole-v1", "agent=dqn_small", "agent.torso=custom_torso.Residual", "agent.nap=true"]

if __name__ == "__main__":
    sys.argv[1:1] = SETTINGS
    train.main()
