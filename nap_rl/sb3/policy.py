"""A Rainbow network as a policy of Stable-Baselines3, and the plain description that a zip carries of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor

from nap_rl.nap import normalize
from nap_rl.nn import NetworkSpec, QNetwork
from nap_rl.sb3.observations import Observations

# Without clipped rewards the range of returns is not known beforehand: quantiles need none, atoms do.
MLP_SPEC = NetworkSpec(torso="mlp", net_arch=(128,), hidden=128, head="quantile", outputs=51, noisy_sigma0=0.5)
CNN_SPEC = NetworkSpec()
HEADS = ("expected", "categorical", "quantile")  # that Rainbow offers


def make_spec(policy: str, kwargs: Mapping[str, Any], nap: bool) -> NetworkSpec:
    """The network of a policy's name and `policy_kwargs`.

    Raises:
        ValueError: an unknown name or value; one sentence.
    """
    specs = {"CnnPolicy": CNN_SPEC, "MlpPolicy": MLP_SPEC, "MultiInputPolicy": MLP_SPEC}
    if policy not in specs:
        raise ValueError(f"policy={policy!r} is none of {', '.join(specs)}")
    known = [field.name for field in fields(NetworkSpec)]
    for name in kwargs:
        if name not in known:
            raise ValueError(f"policy_kwargs has '{name}', expected some of {', '.join(known)}")
    plain = {**specs[policy].plain(), **({"norm": "layer"} if nap else {}), **kwargs}
    if nap and plain["norm"] is None:
        raise ValueError("nap=True projects behind normalisations, but policy_kwargs has norm=None")
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in plain.items()}
    if isinstance(plain["net_arch"], (list, tuple)):
        plain["net_arch"] = [int(w) if isinstance(w, np.integer) else w for w in plain["net_arch"]]
    if plain["head"] == "expected":
        plain["outputs"] = 1
    spec = NetworkSpec.from_plain(plain)
    if spec.head not in HEADS:
        raise ValueError(f"head={spec.head!r} is none of {', '.join(HEADS)}")
    return spec


def build_network(spec: NetworkSpec, frame_shape: Sequence[int], stack: int, actions: int) -> QNetwork:
    """A fresh network with the norms that its description asks for; ValueError where the observations do not fit it."""
    network = spec.build(frame_shape, stack, actions)
    if spec.norm is not None:
        normalize(network, spec.example_input(frame_shape, stack), **spec.norms)
    return network


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

    def forward(self, observation: PyTorchObs) -> Tensor:
        """Greedy actions [N] without noise."""
        return self._predict(observation)

    def _predict(self, observation: PyTorchObs, deterministic: bool = True) -> Tensor:
        tensors = observation if isinstance(observation, dict) else {"": observation}
        arrays = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
        stacks, _ = self.observations.encode(arrays if isinstance(observation, dict) else arrays[""])
        return self.q_net.q_values(torch.from_numpy(stacks).to(self.device)).argmax(dim=1)
