"""A Rainbow network as a policy of Stable-Baselines3."""

from __future__ import annotations

import copy

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor

from nap_rl.nn import NetworkSpec
from nap_rl.sb3.networks import build_network
from nap_rl.sb3.observations import Observations


class RainbowPolicy(BasePolicy):
    """SB3's side of a value network: `q_net`, `q_net_target` and `optimizer`, under the names that a zip has.

    Args:
        observations: the space, and how its observations divide into frames.
        action_space: Discrete.
        lr_schedule: progress remaining -> learning rate.
        spec: the network.
        adam_eps: epsilon of Adam.
    """

    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        observations: Observations,
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        *,
        spec: NetworkSpec,
        adam_eps: float,
        device: torch.device | str,
    ) -> None:
        super().__init__(observations.space, action_space)
        self.observations = observations
        layout = (observations.frame_shape, observations.stack)
        self.q_net = build_network(spec, *layout, int(action_space.n)).to(device)
        self.q_net_target = copy.deepcopy(self.q_net).requires_grad_(False)
        fused = torch.device(device).type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(self.q_net.parameters(), lr=lr_schedule(1), eps=adam_eps, fused=fused)

    def set_training_mode(self, mode: bool) -> None:
        """As in SB3, which asks for it at each step; here all modules are walked only where the mode is another one."""
        if mode != self.training:
            super().set_training_mode(mode)

    def forward(self, observation: PyTorchObs) -> Tensor:
        """Greedy actions [N] without noise."""
        return self._predict(observation)

    def _predict(self, observation: PyTorchObs, deterministic: bool = True) -> Tensor:
        tensors = observation if isinstance(observation, dict) else {"": observation}
        arrays = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
        stacks, _ = self.observations.encode(arrays if isinstance(observation, dict) else arrays[""])
        return self.q_net.q_values(torch.from_numpy(stacks).to(self.device)).argmax(dim=1)
