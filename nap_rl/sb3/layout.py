"""Networks of SB3's DQN and QR-DQN, and the same ones as `NetworkSpec`: names, layouts and what shapes tell.

SB3:   features_extractor.cnn.{0,2,4} -> features_extractor.linear.0 -> q_net.0 -> q_net.2 -> ... -> q_net.2n
ours:  three convolutions             -> fully connected layers ...    -> streams.advantage.hidden, .output

The layers correspond in this order; only their names differ. One layout differs: SB3 has the quantiles of QR-DQN before
the actions (row n * A + a), we have them behind (row a * N + n).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nap_rl.sb3.archive import Members, ZipError, check, naming

if TYPE_CHECKING:  # a zip that does not fit is refused before torch is imported
    from torch import Tensor

    from nap_rl.nn import NetworkSpec

NETS = {"q_net": "DQN", "quantile_net": "QRDQN"}
OUTPUT = "streams.advantage.output"
CONVOLUTIONS = [f"features_extractor.cnn.{i}" for i in (0, 2, 4)]
FEATURES = "features_extractor.linear.0"
# Torch's names of `nap_rl.nn.ACTIVATIONS`, which is not imported here.
ACTIVATIONS = {"ReLU": "relu", "LeakyReLU": "leaky_relu", "ELU": "elu", "GELU": "gelu", "SiLU": "silu", "Tanh": "tanh"}


class Torso(NamedTuple):
    """The torso of a zip's network, and what it looks at.

    Attributes:
        name, net_arch: `torso` and `net_arch` of `NetworkSpec`.
        inputs: channels of an image, numbers of a vector; those of all stacked frames.
        norms: kind, axes and affine of NaP's norms; None for none.
        activation: of `NetworkSpec`.
    """

    name: str
    net_arch: tuple[int, ...]
    inputs: int
    norms: tuple[str, str, bool] | None = None
    activation: str = "relu"

    @property
    def acts_on(self) -> str:
        """Its observations, in words."""
        return f"{self.inputs} numbers" if self.name == "mlp" else f"images of {self.inputs} channels"

    def fits(self, stack: int, frame_shape: Sequence[int]) -> bool:
        """Whether it can look at `stack` frames of a shape."""
        if self.name == "mlp":
            return stack * math.prod(frame_shape) == self.inputs
        return len(frame_shape) in (2, 3) and stack * math.prod(frame_shape[:-2]) == self.inputs


def read_torso(path: str | Path) -> Torso | None:
    """The torso of a zip by names and shapes alone, without torch; None where only the tensors can tell.

    Raises:
        FileNotFoundError: there is no such file.
        ZipError: it is no sound zip, or no CnnPolicy or MlpPolicy.
    """
    members = check(path)
    with naming(path):
        try:
            return _torso_of_rainbow(members.hints["nap_rl"]) if "nap_rl" in members.hints else _torso_of_sb3(members)
        except (LookupError, TypeError):  # it does not say so: the zip is refused once its tensors are read
            return None


def _torso_of_sb3(members: Members) -> Torso | None:
    for net in NETS:
        split = {name: name.partition(".") for name in members.shapes}
        if online := {rest: members.shapes[name] for name, (first, _, rest) in split.items() if first == net}:
            layers = sb3_layers(online, net)
            images, net_arch, _ = _widths(layers, {layer: online[f"{layer}.bias"] for layer in layers})
            inputs = online[f"{layers[0]}.weight"][1]
            return Torso(
                "nature" if images else "mlp", net_arch, inputs, activation=said_activation(members.hints, layers)
            )
    return None


def _torso_of_rainbow(said: Mapping[str, Any]) -> Torso:
    spec, shape, stack = said["network"], said["frame_shape"], said["stack"]
    if not all(type(size) is int for size in (stack, *shape, *spec["net_arch"])):
        raise TypeError("sizes are whole numbers")
    norms = None if spec["norm"] is None else (str(spec["norm"]), str(spec["axes"]), spec["affine"] is True)
    inputs = stack * math.prod(shape if spec["torso"] == "mlp" else shape[:-2])
    return Torso(str(spec["torso"]), tuple(spec["net_arch"]), inputs, norms, str(spec.get("activation", "relu")))


def _widths(layers: Sequence[str], biases: Mapping[str, Sequence[int]]) -> tuple[bool, tuple[int, ...], int]:
    """(whether it looks at images, net_arch, hidden) of a `NetworkSpec`, by the lengths of SB3's biases."""
    images = layers[0] == CONVOLUTIONS[0]
    widths = [math.prod(biases[layer]) for layer in layers[3 if images else 0 :]]
    *between, hidden, _ = [0, *widths] if len(widths) == 1 else widths
    return images, tuple(between), hidden


def said_activation(hints: Mapping[str, Any], layers: Sequence[str]) -> str:
    """`activation` of a `NetworkSpec`, by what SB3 wrote of `policy_kwargs`; ZipError where ours has no such network.

    Args:
        hints: the plain part of the zip's `data`.
        layers: SB3's names of the network's layers.
    """
    kwargs = hints.get("policy_kwargs")
    said = str(kwargs.get("activation_fn", "ReLU")) if isinstance(kwargs, dict) else "ReLU"
    found = re.fullmatch(r"(?:<class 'torch\.nn\.modules\.activation\.)?(\w+)(?:'>)?", said)
    if found is None or found[1] not in ACTIVATIONS:
        raise ZipError(f"was trained with activation_fn {said[:80]}, expected one of {', '.join(ACTIVATIONS)}")
    images = layers[0] == CONVOLUTIONS[0]
    if images and len(layers) == len([*CONVOLUTIONS, FEATURES]) + 1:  # no hidden layer that has it
        return "relu"
    if images and found[1] != "ReLU":
        raise ZipError(f"was trained with activation_fn {found[1]} behind the ReLUs of NatureCNN, expected ReLU")
    return ACTIVATIONS[found[1]]


def describe(tensors: Mapping[str, Tensor], net: str, quantiles: int) -> NetworkSpec:
    """The network whose weights these are, by SB3's names and the tensors' shapes.

    Args:
        tensors: of the online network, names without "q_net." or "quantile_net." in front.
        net: one of `NETS`.
        quantiles: N of QR-DQN, 1 for DQN.

    Raises:
        ZipError: they are in no CnnPolicy or MlpPolicy.
    """
    from nap_rl.nn import NetworkSpec

    layers = sb3_layers(tensors, net)
    images, net_arch, hidden = _widths(layers, {layer: tensors[f"{layer}.bias"].shape for layer in layers})
    return NetworkSpec(
        torso="nature" if images else "mlp",
        net_arch=net_arch,
        hidden=hidden,
        head="quantile" if net == "quantile_net" else "expected",
        outputs=quantiles,
        dueling=False,
        noisy_sigma0=None,
    )


def sb3_layers(tensors: Iterable[str], net: str) -> list[str]:
    """SB3's names of layers, from input to output; ZipError for tensors of other layers, or half a layer."""
    names = set(tensors)
    linear = sorted({int(found[1]) for name in names if (found := re.match(rf"{net}\.([0-9]{{1,4}})\.", name))})
    images = any(name.startswith("features_extractor.") for name in names)
    layers = [*(CONVOLUTIONS if images else ()), *([FEATURES] if images else ()), *(f"{net}.{i}" for i in linear)]
    expected = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    if other := sorted(names - expected):
        if "extractors." in other[0]:
            raise ZipError("has a MultiInputPolicy: CnnPolicy and MlpPolicy are read")
        raise ZipError(f"has a tensor '{other[0][:60]}', which is in no CnnPolicy or MlpPolicy of SB3")
    if missing := sorted(expected - names):
        raise ZipError(f"has no tensor '{missing[0]}'")
    if not linear:
        raise ZipError(f"has no layers of {net}")
    return layers


def our_layers(spec: NetworkSpec, frame_shape: tuple[int, ...], stack: int, actions: int) -> list[str]:
    """Our names of the same layers, in the same order; ValueError where the observations do not fit."""
    shapes = spec.shapes(frame_shape, stack, actions)
    return [name.removesuffix(".weight") for name in shapes if name.endswith(".weight")]


def rename(tensors: Mapping[str, Tensor], layers: Mapping[str, str]) -> dict[str, Tensor]:
    """The same tensors, their layers under other names."""
    split = {name: name.rpartition(".") for name in tensors}
    return {f"{layers[layer]}.{kind}": tensors[name] for name, (layer, _, kind) in split.items()}


def actions_first(tensors: Mapping[str, Tensor], actions: int, quantiles: int) -> dict[str, Tensor]:
    """Rows of the output layer, from quantiles before actions to actions before quantiles."""
    return {name: _transposed(tensor, quantiles, actions, name) for name, tensor in tensors.items()}


def quantiles_first(tensors: Mapping[str, Tensor], actions: int, quantiles: int) -> dict[str, Tensor]:
    """The inverse of `actions_first`."""
    return {name: _transposed(tensor, actions, quantiles, name) for name, tensor in tensors.items()}


def _transposed(tensor: Tensor, first: int, second: int, name: str) -> Tensor:
    if not name.startswith(OUTPUT):
        return tensor
    return tensor.view(first, second, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)
