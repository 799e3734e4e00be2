"""The one description of a value network, for configurations, zips and exports alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nap_rl.nn.activations import ACTIVATIONS, with_activation
from nap_rl.nn.custom_torso import custom_torso
from nap_rl.nn.embedding import QuantileEmbedding
from nap_rl.nn.heads import Categorical, ExpectedValue, Head, ImplicitQuantile, Quantile
from nap_rl.nn.q_network import QNetwork
from nap_rl.nn.streams import Streams
from nap_rl.nn.torsos import DataEfficientTorso, ImpalaTorso, MinAtarTorso, MlpTorso, NatureTorso, feature_count

IMAGE_TORSOS = {
    "nature": NatureTorso,
    "data_efficient": DataEfficientTorso,
    "impala": ImpalaTorso,
    "minatar": MinAtarTorso,
}
CHOICES: dict[str, tuple[object, ...]] = {
    "torso": ("nature", "data_efficient", "impala", "mlp", "minatar"),
    "head": ("expected", "categorical", "quantile", "implicit_quantile"),
    "activation": tuple(ACTIVATIONS),
    "norm": (None, "layer", "rms", "group", "batch"),
    "axes": ("all", "channels"),
    "priority": ("loss", "td_error"),
}
MOST_UNITS = 1 << 20  # of a layer, so that a description from outside cannot ask for more than a machine has
MOST_LAYERS = 64
LATER = (  # descriptions in older zips lack these
    *("kappa", "samples", "target_samples", "acting_samples", "cosines"),
    *("priority", "width", "max_pool", "spectral_norm", "activation"),
)
OPTIONAL = ("norm", "noisy_sigma0", "max_pool")


@dataclass(frozen=True)
class NetworkSpec:
    """What a value network is made of, in plain values.

    `build` gives the network without NaP's norms: a plasticity method may change the network before the caller puts
    them in, by `nap_rl.nap.normalize(network, example, **spec.norms)`. So neither this module nor `nap_rl.nap` imports
    the other.

    Attributes:
        torso: for images "nature", "data_efficient", "impala" or "minatar"; for vectors "mlp"; or the dotted path of a
            class of the user's (see `custom_torso`).
        net_arch: widths of fully connected layers in front of the streams.
        hidden: width of the hidden layer of each stream; 0 for a stream of an output layer alone.
        head: "expected" (DQN), "categorical" (C51), "quantile" (QR-DQN) or "implicit_quantile" (IQN).
        outputs: atoms or quantiles an action; "expected" and "implicit_quantile" have 1 and do not read it.
        v_min, v_max: ends of a categorical head's support.
        dueling: a value and an advantage stream.
        noisy_sigma0: initial noise of the streams' layers; None for plain layers.
        norm: kind of NaP's norms in front of every nonlinearity; None for none.
        axes, affine: see `nap_rl.nap.normalize`.
        kappa: width of the Huber loss's quadratic part, for quantile heads.
        samples, target_samples, acting_samples: see `nap_rl.nn.ImplicitQuantile`.
        priority: see `nap_rl.nn.ImplicitQuantile`.
        cosines: see `nap_rl.nn.QuantileEmbedding`.
        activation: nonlinearity of torso and streams, a name of `nap_rl.nn.ACTIVATIONS`. A torso of the user's keeps
            its own, and an embedding its ReLU.
        width, max_pool, spectral_norm: see `nap_rl.nn.ImpalaTorso`; other torsos have 1, None and False.

    Raises:
        ValueError: a value out of range; one sentence.
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
    kappa: float = 1.0
    samples: int = 64
    target_samples: int = 64
    acting_samples: int = 32
    cosines: int = 64
    priority: str = "loss"
    width: int = 1
    max_pool: int | None = None
    spectral_norm: bool = False
    activation: str = "relu"

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            dotted = name == "torso" and "." in self.torso
            if getattr(self, name) not in choices and not dotted:
                raise ValueError(f"{name}={getattr(self, name)!r} is none of {', '.join(map(str, choices))}")
        levels = (self.samples, self.target_samples, self.acting_samples, self.cosines)
        sizes = (self.width, *(each for each in (self.hidden, self.max_pool) if each))
        for width in (*sizes, self.outputs, *self.net_arch, *levels):
            if not 1 <= width <= MOST_UNITS:
                raise ValueError(f"a layer of {width} units was asked for, expected 1 to {MOST_UNITS}")
        if len(self.net_arch) > MOST_LAYERS:
            raise ValueError(f"net_arch has {len(self.net_arch)} layers, expected {MOST_LAYERS} or fewer")
        if not -math.inf < self.v_min < self.v_max < math.inf:
            raise ValueError(f"v_min={self.v_min} and v_max={self.v_max}, expected numbers with v_min < v_max")
        if self.noisy_sigma0 is not None and not 0.0 <= self.noisy_sigma0 < math.inf:
            raise ValueError(f"noisy_sigma0={self.noisy_sigma0}, expected a number of 0 or more, or None")
        if self.noisy_sigma0 is not None and self.hidden == 0:
            raise ValueError(f"hidden=0 needs noisy_sigma0=None, got noisy_sigma0={self.noisy_sigma0}")
        if not 0.0 <= self.kappa < math.inf:
            raise ValueError(f"kappa={self.kappa}, expected a number of 0 or more")
        plain = {"width": 1, "max_pool": None, "spectral_norm": False}
        for name, value in plain.items():
            if self.torso != "impala" and getattr(self, name) != value:
                raise ValueError(f"{name}={getattr(self, name)} is for torso='impala', and torso='{self.torso}'")

    @property
    def norms(self) -> dict[str, Any]:
        """Keyword arguments for `nap_rl.nap.normalize`; meaningless where `norm` is None."""
        return {"norm": self.norm, "axes": self.axes, "affine": self.affine}

    @property
    def pixels(self) -> bool:
        """Whether the torso is made for images, uint8 in 0..255."""
        return self.torso in IMAGE_TORSOS and self.torso != "minatar"

    def plain(self) -> dict[str, Any]:
        """JSON-ready; `from_plain` is the inverse."""
        return {**asdict(self), "net_arch": list(self.net_arch)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> NetworkSpec:
        """From values that need not be trusted. Those in `LATER` may be missing and then have their defaults.

        Raises:
            ValueError: a value is missing, unknown or of another type, or the torso is code of somebody else's.
        """
        defaults = asdict(cls())
        plain = {**{name: defaults[name] for name in LATER}, **plain}
        if set(plain) != set(defaults):
            raise ValueError(f"a network is described by {', '.join(defaults)}")
        values = {**plain, "net_arch": tuple(plain["net_arch"]) if isinstance(plain["net_arch"], list) else None}
        for name, value in values.items():
            kind = {"norm": str, "max_pool": int}.get(name, type(defaults[name]))
            optional = name in OPTIONAL and value is None
            kinds = (int, float) if kind is float else (kind,)
            if not optional and (type(value) not in kinds):
                raise ValueError(f"{name} of a network is {plain[name]!r:.60}, expected {kinds[-1].__name__}")
        if not all(type(width) is int for width in values["net_arch"]):
            raise ValueError("net_arch of a network holds something else than whole numbers")
        if "." in values["torso"]:
            raise ValueError(f"the torso is {values['torso']:.60}: a file cannot say which code is to run")
        return cls(**values)

    @classmethod
    def from_config(cls, agent: Mapping[str, Any], nap: Mapping[str, Any]) -> NetworkSpec:
        """From the sections `agent` and `nap` of a run's configuration, as plain values.

        Raises:
            ValueError: a head of no known kind, or a value out of range.
        """
        return cls(
            torso=agent["torso"],
            net_arch=tuple(agent.get("net_arch", ())),
            hidden=agent["hidden"],
            dueling=agent["dueling"],
            noisy_sigma0=agent["noisy_sigma0"],
            norm=nap["norm"] if agent["nap"] and nap["normalize"] else None,
            axes=nap["axes"],
            affine=nap["affine"] != "omit",
            width=agent.get("width", 1),
            max_pool=agent.get("max_pool"),
            spectral_norm=agent.get("spectral_norm", False),
            activation=agent.get("activation", "relu"),
            **_head_from_config(agent["head"]),
        )

    def build(self, frame_shape: Sequence[int], stack: int, actions: int) -> QNetwork:
        """A fresh network without norms, for observations [B, stack, *frame_shape], on torch's default device.

        frame_shape is (H, W) or (channels, H, W) for image torsos, anything for "mlp". Initial weights are drawn from
        torch's global generator, in the order torso, streams, embedding.

        Raises:
            ValueError: the observations do not fit the torso.
        """
        if self.torso in CHOICES["torso"]:
            torso, features = self._torso(frame_shape, stack), self._features(frame_shape, stack)
            with_activation(torso, self.activation)
        else:
            torso, features = custom_torso(self.torso, (stack, *frame_shape))
            if self.net_arch:
                behind = MlpTorso(features, self.net_arch)
                with_activation(behind, self.activation)
                torso, features = nn.Sequential(torso, behind), self.net_arch[-1]
        head = self._head()
        streams = Streams(features, actions, head.outputs, self.hidden, self.dueling, self.noisy_sigma0)
        with_activation(streams, self.activation)
        implicit = self.head == "implicit_quantile"
        embedding = QuantileEmbedding(features, self.cosines, self.acting_samples) if implicit else None
        return QNetwork(torso, streams, head, embedding)

    def shapes(self, frame_shape: Sequence[int], stack: int, actions: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors of `build`'s network; nothing is allocated."""
        with torch.device("meta"):
            network = self.build(frame_shape, stack, actions)
        return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}

    def example_input(self, frame_shape: Sequence[int], stack: int, pixels: bool | None = None) -> Tensor:
        """Eight observations of noise, always the same.

        On black images every feature would be 0, and no weight would matter. Over two rows a BatchNorm leaves a sign.
        uint8 in 0..255 for `pixels`, else float32 in [0, 1]; None: as the torso is made for.
        """
        generator, shape = torch.Generator().manual_seed(0), (8, stack, *frame_shape)
        if self.pixels if pixels is None else pixels:
            return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return torch.rand(shape, generator=generator)

    def _torso(self, frame_shape: Sequence[int], stack: int) -> nn.Module:
        if self.torso == "mlp":
            return MlpTorso(stack * math.prod(frame_shape), self.net_arch)
        if len(frame_shape) not in (2, 3):
            raise ValueError(f"frames of shape {list(frame_shape)} are no images: use MlpPolicy")
        channels = stack * math.prod(frame_shape[:-2])
        torso = self._image_torso(channels)
        if len(frame_shape) == 2 and not self.net_arch:
            return torso
        layers: list[nn.Module] = [torso]
        if len(frame_shape) == 3:  # [B, C, channels, H, W]: the frames' channels one after the other
            layers.insert(0, nn.Flatten(1, 2))
        if self.net_arch:
            layers.append(MlpTorso(self._image_features(channels, frame_shape), self.net_arch))
        return nn.Sequential(*layers)

    def _image_torso(self, channels: int) -> nn.Sequential:
        if self.torso == "impala":
            return ImpalaTorso(channels, self.width, self.max_pool, self.spectral_norm)
        return IMAGE_TORSOS[self.torso](channels)

    def _features(self, frame_shape: Sequence[int], stack: int) -> int:
        if self.net_arch:
            return self.net_arch[-1]
        if self.torso == "mlp":
            return stack * math.prod(frame_shape)
        return self._image_features(stack * math.prod(frame_shape[:-2]), frame_shape)

    def _image_features(self, channels: int, frame_shape: Sequence[int]) -> int:
        """F of the image torso."""
        with torch.device("meta"):  # layers without memory: their sizes tell
            torso = self._image_torso(channels)
        height, width = frame_shape[-2:]
        try:
            return feature_count(torso, height, width)
        except ValueError:
            size = list(frame_shape[-2:])
            raise ValueError(f"images of {size} pixels are too small for torso='{self.torso}'") from None

    def _head(self) -> Head:
        if self.head == "categorical":
            return Categorical(self.outputs, self.v_min, self.v_max)
        if self.head == "quantile":
            return Quantile(self.outputs, self.kappa)
        if self.head == "implicit_quantile":
            return ImplicitQuantile(self.samples, self.target_samples, self.acting_samples, self.kappa, self.priority)
        return ExpectedValue()


def _head_from_config(head: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `NetworkSpec` from `agent.head`, whose kind shows in its names."""
    names = set(head)
    if not names:
        return {"head": "expected", "outputs": 1}
    if names == {"atoms", "v_min", "v_max"}:
        return {"head": "categorical", "outputs": head["atoms"], "v_min": head["v_min"], "v_max": head["v_max"]}
    if names == {"quantiles", "kappa"}:
        return {"head": "quantile", "outputs": head["quantiles"], "kappa": head["kappa"]}
    if names - {"priority"} == {"samples", "target_samples", "acting_samples", "cosines", "kappa"}:
        return {"head": "implicit_quantile", "outputs": 1, **head}
    raise ValueError(f"a head with {', '.join(sorted(names))} is of no known kind")
