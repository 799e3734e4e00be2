"""A Rainbow network as a policy of Stable-Baselines3, and the plain description that a zip carries of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor

from nap_rl.nap import normalize
from nap_rl.nn import NetworkSpec, QNetwork

# Without clipped rewards the range of returns is not known beforehand: quantiles need none, atoms do.
MLP_SPEC = NetworkSpec(torso="mlp", net_arch=(128,), hidden=128, head="quantile", outputs=51, noisy_sigma0=0.5)
CNN_SPEC = NetworkSpec()
HEADS = ("expected", "categorical", "quantile")  # that Rainbow offers


def make_spec(policy: str, kwargs: Mapping[str, Any], nap: bool) -> NetworkSpec:
    """The network of a policy's name and `policy_kwargs`.

    Raises:
        ValueError: an unknown name or value; one sentence.
    """
    specs = {"CnnPolicy": CNN_SPEC, "MlpPolicy": MLP_SPEC}
    if policy not in specs:
        raise ValueError(f"policy={policy!r} is none of {', '.join(specs)}")
    known = [field.name for field in fields(NetworkSpec)]
    for name in kwargs:
        if name not in known:
            raise ValueError(f"policy_kwargs has '{name}', expected some of {', '.join(known)}")
    plain = {**specs[policy].plain(), **({"norm": "layer"} if nap else {}), **kwargs}
    if nap and plain["norm"] is None:
        raise ValueError("nap=True projects behind normalisations, but policy_kwargs has norm=None")
    if isinstance(plain["net_arch"], tuple):
        plain["net_arch"] = list(plain["net_arch"])
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


def to_stacks(
    observation: npt.NDArray[Any], shape: tuple[int, ...], stack: int, frame_shape: tuple[int, ...]
) -> tuple[npt.NDArray[Any], bool]:
    """SB3's observations, one or N, as [N, stack, *frame_shape], and whether there was a batch of them.

    Images may have their channels first or last; `shape` is that of one observation with channels first. SB3's frame
    stacks have the newest frame last, as ours do.

    Raises:
        ValueError: the observation has another shape.
    """
    array = np.asarray(observation)
    last = (*shape[1:], shape[0])
    if len(shape) == 3 and array.shape[-3:] == last != shape:
        array = np.moveaxis(array, -1, -3)
    if array.shape != shape and array.shape[1:] != shape:
        raise ValueError(f"an observation has shape {list(array.shape)}, expected {list(shape)} or N of them")
    return array.reshape(-1, stack, *frame_shape), array.ndim > len(shape)


class RainbowPolicy(BasePolicy):
    """SB3's side of a value network: `q_net`, `q_net_target` and `optimizer`, under the names that a zip has.

    Args:
        observation_space: a Box; images with channels first.
        action_space: Discrete.
        lr_schedule: progress remaining -> learning rate.
        spec: the network.
        stack, frame_shape: how an observation divides into frames.
        adam_eps: epsilon of Adam.
    """

    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        observation_space: spaces.Box,
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        *,
        spec: NetworkSpec,
        stack: int,
        frame_shape: tuple[int, ...],
        adam_eps: float,
        device: torch.device | str,
    ) -> None:
        super().__init__(observation_space, action_space)
        self.stack = stack
        self.frame_shape = frame_shape
        self.q_net = build_network(spec, frame_shape, stack, int(action_space.n)).to(device)
        self.q_net_target = copy.deepcopy(self.q_net).requires_grad_(False)
        fused = torch.device(device).type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(self.q_net.parameters(), lr=lr_schedule(1), eps=adam_eps, fused=fused)

    def to_stacks(self, observation: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], bool]:
        """See the function of this name."""
        assert self.observation_space.shape is not None
        return to_stacks(observation, self.observation_space.shape, self.stack, self.frame_shape)

    def forward(self, observation: Tensor) -> Tensor:
        """Greedy actions [N] without noise."""
        return self._predict(observation)

    def _predict(self, observation: PyTorchObs, deterministic: bool = True) -> Tensor:
        assert isinstance(observation, Tensor)
        stacks = observation.view(-1, self.stack, *self.frame_shape)
        return self.q_net.q_values(stacks).argmax(dim=1)
