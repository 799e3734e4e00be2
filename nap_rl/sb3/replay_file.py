"""A replay as one file of tensors: what SB3 pickles, without a pickle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from nap_rl.replay import Replay

RECORDS = "records."


def encode(replay: Replay) -> bytes:
    """All that can still be sampled, the priorities and the generator, as safetensors."""
    oldest = replay.oldest()
    envs = np.repeat(np.arange(len(oldest)), replay.counts - oldest)
    serials = np.concatenate([np.arange(a, b) for a, b in zip(oldest, replay.counts, strict=True)])
    records = replay.records(envs, serials)
    columns = {RECORDS + name: torch.from_numpy(records[name].copy()) for name in records.dtype.names or ()}
    return safetensors.torch.save({**replay.state_dict(), **columns})


def decode(replay: Replay, path: Path) -> None:
    """Into a new replay of the same shape; ValueError where the file is damaged or of another shape."""
    try:
        state = safetensors.torch.load(path.read_bytes())
        columns = {name.removeprefix(RECORDS): state.pop(name) for name in list(state) if name.startswith(RECORDS)}
        replay.load_state_dict(state)
        records = np.empty(len(columns["env"]), dtype=replay.record)
        for name, column in columns.items():
            records[name] = column.numpy()
        replay.load_records(records)
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is no replay that fits this model: {error}") from None
