"""Reading a run back: the network of a checkpoint, with the configuration that built it."""

from __future__ import annotations

from pathlib import Path

from nap_rl import checkpoint
from nap_rl.conf import schema
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
    network = build_network(config, int(meta["num_actions"]))
    network.load_state_dict(checkpoint.load_tensors(folder, "network"))
    return network.eval(), config
