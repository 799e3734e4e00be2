"""Weights of an earlier run for a new one: `agent.init_from=<run folder or checkpoint>`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from nap_rl import checkpoint
from nap_rl.nn import QNetwork

TORSO = "torso."


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """The online network's tensors by their names in `QNetwork`, on the CPU.

    Raises:
        FileNotFoundError, checkpoint.CheckpointError: there is no checkpoint, or it is damaged.
    """
    # The one place that knows files: a reader of another kind gives its tensors our names here.
    return checkpoint.load(checkpoint.newest_of_run(path)).tensors["network"]


def transfer(weights: Mapping[str, Tensor], network: QNetwork) -> list[str]:
    """Copy weights into a freshly built network; returns the names of what stays fresh, empty if all fits.

    If everything fits, all of it is copied. If only the torso does (other actions, another head, other streams), the
    torso is, and the rest stays as it was initialised.

    Raises:
        ValueError: the torsos differ; names the first tensor that does.
    """
    ours = network.state_dict()
    differing = sorted(name for name in {*weights, *ours} if not _fits(weights.get(name), ours.get(name)))
    if torso := [name for name in differing if name.startswith(TORSO)]:
        raise ValueError(
            f"its torso is another one ({torso[0]} is {_shape(weights.get(torso[0]))} there and "
            f"{_shape(ours.get(torso[0]))} here): agent.torso, agent.nap, nap and plasticity have to be as in that run"
        )
    kept = {name: tensor for name, tensor in weights.items() if not differing or name.startswith(TORSO)}
    network.load_state_dict({**ours, **kept})
    return sorted(set(ours) - set(kept))


def _fits(theirs: Tensor | None, ours: Tensor | None) -> bool:
    return theirs is not None and ours is not None and theirs.shape == ours.shape


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else "x".join(map(str, tensor.shape)) or "a number"
