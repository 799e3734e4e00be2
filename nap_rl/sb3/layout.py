"""Networks of SB3's DQN and QR-DQN, and the same ones as `NetworkSpec`: names, layouts and what shapes tell.

SB3:   features_extractor.cnn.{0,2,4} -> features_extractor.linear.0 -> q_net.0 -> q_net.2 -> ... -> q_net.2n
ours:  three convolutions             -> fully connected layers ...    -> streams.advantage.hidden, .output

The layers correspond in this order; only their names differ. One layout differs: SB3 has the quantiles of QR-DQN before
the actions (row n * A + a), we have them behind (row a * N + n).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from nap_rl.nn import NetworkSpec

NETS = {"q_net": "DQN", "quantile_net": "QRDQN"}
OUTPUT = "streams.advantage.output"
CONVOLUTIONS = [f"features_extractor.cnn.{i}" for i in (0, 2, 4)]
FEATURES = "features_extractor.linear.0"


class LayoutError(ValueError):
    """The tensors are those of no DQN or QR-DQN that is read here; ends a sentence with the file's name."""


def describe(tensors: Mapping[str, Tensor], net: str, quantiles: int) -> NetworkSpec:
    """The network whose weights these are, by SB3's names and the tensors' shapes.

    Args:
        tensors: of the online network, names without "q_net." or "quantile_net." in front.
        net: one of `NETS`.
        quantiles: N of QR-DQN, 1 for DQN.

    Raises:
        LayoutError: they are in no CnnPolicy or MlpPolicy.
    """
    layers = sb3_layers(tensors, net)
    images = layers[0] == CONVOLUTIONS[0]
    widths = [tensors[f"{layer}.bias"].numel() for layer in layers[3 if images else 0 :]]
    *between, hidden, _ = [0, *widths] if len(widths) == 1 else widths
    return NetworkSpec(
        torso="nature" if images else "mlp",
        net_arch=tuple(between),
        hidden=hidden,
        head="quantile" if net == "quantile_net" else "expected",
        outputs=quantiles,
        dueling=False,
        noisy_sigma0=None,
    )


def sb3_layers(tensors: Iterable[str], net: str) -> list[str]:
    """SB3's names of layers, from input to output; LayoutError for tensors of other layers, or half a layer."""
    names = set(tensors)
    linear = sorted({int(found[1]) for name in names if (found := re.match(rf"{net}\.([0-9]{{1,4}})\.", name))})
    images = any(name.startswith("features_extractor.") for name in names)
    layers = [*(CONVOLUTIONS if images else ()), *([FEATURES] if images else ()), *(f"{net}.{i}" for i in linear)]
    expected = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    if other := sorted(names - expected):
        if "extractors." in other[0]:
            raise LayoutError("has a MultiInputPolicy: CnnPolicy and MlpPolicy are read")
        raise LayoutError(f"has a tensor '{other[0][:60]}', which is in no CnnPolicy or MlpPolicy of SB3")
    if missing := sorted(expected - names):
        raise LayoutError(f"has no tensor '{missing[0]}'")
    if not linear:
        raise LayoutError(f"has no layers of {net}")
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
