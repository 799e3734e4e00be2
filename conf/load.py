"""Reading a run back: the network of a checkpoint, with the configuration that built it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nap_rl import checkpoint
from nap_rl.conf import schema
from nap_rl.conf.environments import ATARI, Observations
from nap_rl.conf.networks import build_network
from nap_rl.nn import QNetwork


def load_network(path: Path) -> tuple[QNetwork, schema.Config]:
    """The online network (on the CPU, in eval mode) and its run's configuration.

    Args:
        path: a checkpoint's folder, or a run's folder, of which the newest sound checkpoint is read.

    Raises:
        FileNotFoundError: there is no checkpoint.
        checkpoint.CheckpointError: it is damaged.
    """
    folder = checkpoint.newest_of_run(path)
    meta = checkpoint.read_meta(folder)
    config = schema.from_dict(meta["config"])
    network = build_network(config, int(meta["num_actions"]), observations_of(meta))
    network.load_state_dict(checkpoint.load_tensors(folder, "network"))
    return network.eval(), config


def observations_of(meta: Mapping[str, Any]) -> Observations:
    """What the network of a checkpoint looks at; checkpoints of older versions are of Atari."""
    if "observations" not in meta:
        return ATARI
    stored = meta["observations"]
    return Observations(tuple(stored["shape"]), stored["dtype"], stored["stack"])
