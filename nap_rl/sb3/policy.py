"""A Rainbow network as a policy of Stable-Baselines3, and the plain description that a zip carries of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from nap_rl.nap import normalize
from nap_rl.nap.layers import Axes, NormKind
from nap_rl.nn import (
    Categorical,
    DataEfficientTorso,
    ExpectedValue,
    Head,
    ImpalaTorso,
    MlpTorso,
    NatureTorso,
    QNetwork,
    Quantile,
    Streams,
)

TORSOS = {"nature": NatureTorso, "data_efficient": DataEfficientTorso, "impala": ImpalaTorso}
CHOICES: dict[str, tuple[object, ...]] = {
    "torso": (*TORSOS, "mlp"),
    "head": ("expected", "categorical", "quantile"),
    "norm": (None, "layer", "rms", "group", "batch"),
    "axes": ("all", "channels"),
}


@dataclass(frozen=True)
class NetworkSpec:
    """What a value network is made of: plain values, so that a zip can say it without a pickle.

    Attributes:
        torso: of images, "nature", "data_efficient" or "impala"; of vectors, "mlp".
        net_arch: widths of the fully connected layers of the "mlp" torso.
        hidden: width of the hidden layer of each stream.
        head: "expected" (DQN), "categorical" (C51) or "quantile" (QR-DQN).
        outputs: atoms or quantiles an action; 1 for "expected".
        v_min, v_max: ends of the support of a categorical head.
        dueling: a value and an advantage stream.
        noisy_sigma0: None for plain layers in the streams.
        norm: NaP's normalisations, in front of every nonlinearity; None for none.
        axes, affine: see `nap_rl.nap.normalize`.
    """

    torso: str = "nature"
    net_arch: tuple[int, ...] = ()
    hidden: int = 512
    head: str = "categorical"
    outputs: int = 51
    v_min: float = -10.0
    v_max: float = 10.0
    dueling: bool = True
    noisy_sigma0: float | None = 0.1
    norm: str | None = None
    axes: str = "all"
    affine: bool = True

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is none of {', '.join(map(str, choices))}")
        for width in (self.hidden, self.outputs, *self.net_arch):
            if not 1 <= width <= 1 << 20:
                raise ValueError(f"a layer of {width} units was asked for, expected 1 to {1 << 20}")
        if len(self.net_arch) > 64:
            raise ValueError(f"net_arch has {len(self.net_arch)} layers, expected 64 or fewer")
        if not -math.inf < self.v_min < self.v_max < math.inf:
            raise ValueError(f"v_min={self.v_min} and v_max={self.v_max}, expected numbers with v_min < v_max")
        if self.noisy_sigma0 is not None and not 0.0 <= self.noisy_sigma0 < math.inf:
            raise ValueError(f"noisy_sigma0={self.noisy_sigma0}, expected a number of 0 or more, or None")

    def plain(self) -> dict[str, Any]:
        """JSON-ready; `from_plain` is the inverse."""
        return {**asdict(self), "net_arch": list(self.net_arch)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> NetworkSpec:
        """From values that nobody vouches for; ValueError where one is missing, unknown or of another type."""
        defaults = asdict(cls())
        if set(plain) != set(defaults):
            raise ValueError(f"a network is described by {', '.join(defaults)}")
        values = {**plain, "net_arch": tuple(plain["net_arch"]) if isinstance(plain["net_arch"], list) else None}
        for name, value in values.items():
            kind = type(defaults[name])
            optional = name in ("norm", "noisy_sigma0") and value is None
            kinds = (int, float) if kind is float else (str,) if name == "norm" else (kind,)
            if not optional and (type(value) not in kinds):
                raise ValueError(f"{name} of a network is {plain[name]!r:.60}, expected {kinds[-1].__name__}")
        if not all(type(width) is int for width in values["net_arch"]):
            raise ValueError("net_arch of a network holds something else than whole numbers")
        return cls(**values)

    def build(self, frame_shape: Sequence[int], stack: int, actions: int) -> QNetwork:
        """A fresh network for observations [B, stack, *frame_shape], on torch's default device.

        frame_shape is (H, W) or (channels, H, W) for image torsos, anything for "mlp".

        Raises:
            ValueError: the observations do not fit the torso.
        """
        network = self._without_norms(frame_shape, stack, actions)
        if self.norm is not None:
            generator = torch.Generator().manual_seed(0)
            example = torch.rand(2, stack, *frame_shape, generator=generator)  # noise: zeros would hide every weight
            axes = cast(Axes, self.axes)
            normalize(network, example, norm=cast(NormKind, self.norm), axes=axes, affine=self.affine)
        return network

    def shapes(self, frame_shape: Sequence[int], stack: int, actions: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the network before its norms are put in; nothing is allocated."""
        with torch.device("meta"):
            network = self._without_norms(frame_shape, stack, actions)
        return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}

    def _without_norms(self, frame_shape: Sequence[int], stack: int, actions: int) -> QNetwork:
        torso: nn.Module
        if self.torso == "mlp":
            torso = MlpTorso(stack * math.prod(frame_shape), self.net_arch)
        elif len(frame_shape) == 2:
            torso = TORSOS[self.torso](stack)
        elif len(frame_shape) == 3:  # [B, C, channels, H, W]: the frames' channels one after the other
            torso = nn.Sequential(nn.Flatten(1, 2), TORSOS[self.torso](stack * frame_shape[0]))
        else:
            raise ValueError(f"frames of shape {list(frame_shape)} are no images: use MlpPolicy")
        try:
            with torch.no_grad():
                features = torso(torch.zeros(1, stack, *frame_shape)).shape[1]
        except RuntimeError:
            raise ValueError(f"images of {list(frame_shape[-2:])} pixels are too small for '{self.torso}'") from None
        streams = Streams(features, actions, self._head().outputs, self.hidden, self.dueling, self.noisy_sigma0)
        return QNetwork(torso, streams, self._head())

    def _head(self) -> Head:
        if self.head == "categorical":
            return Categorical(self.outputs, self.v_min, self.v_max)
        return Quantile(self.outputs) if self.head == "quantile" else ExpectedValue()


# Without clipped rewards the range of returns is not known beforehand: quantiles need none, atoms do.
MLP_SPEC = NetworkSpec(torso="mlp", net_arch=(128,), hidden=128, head="quantile", outputs=51, noisy_sigma0=0.5)
CNN_SPEC = NetworkSpec()


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
    return NetworkSpec.from_plain(plain)


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
        self.q_net = spec.build(frame_shape, stack, int(action_space.n)).to(device)
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
