"""Hashes of everything that a run leaves, without elapsed time: two runs with equal hashes are the same run.

Left out are the `time/` columns and scalars and the clocks in the trainer's state.
"""

from __future__ import annotations

import csv
import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nap_rl import checkpoint
from nap_rl.replay.buffer import record_dtype

CLOCKS = ("elapsed_seconds", "checkpoint_seconds")  # in the trainer's state
CLOCK_PREFIX = "time/"  # of columns in metrics.csv and tags in TensorBoard


def fingerprint(run: Path) -> dict[str, str]:
    """SHA-256 of each part: sections of the newest checkpoint, its counters, the replay, CSV files, TensorBoard.

    Raises:
        FileNotFoundError: the run has no sound checkpoint.
    """
    newest = checkpoint.latest(run / "checkpoints")
    if newest is None:
        raise FileNotFoundError(f"{run} holds no checkpoint")
    saved = checkpoint.load(newest)
    state = json.loads(json.dumps(saved.meta["state"]))
    for clock in CLOCKS:
        del state["trainer"][clock]
    parts = {section: checkpoint.sha256_of(tensors) for section, tensors in saved.tensors.items()}
    counters = json.dumps([state, saved.meta["frames"], saved.meta["updates"]], sort_keys=True)
    parts["counters"] = _sha256(counters.encode())
    parts["records"] = _sha256(_records(saved).tobytes())
    parts["metrics.csv"] = _sha256(json.dumps(_without_clock(run / "metrics.csv")).encode())
    for name in ("episodes.csv", "evaluations.csv"):
        parts[name] = _sha256((run / name).read_bytes() if (run / name).exists() else b"")
    parts["TensorBoard"] = _sha256(json.dumps(scalars(run)).encode())
    return parts


def scalars(run: Path) -> list[tuple[str, int, float]]:
    """(tag, step, value) of all scalars, sorted by tag, as TensorBoard's own reader finds them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in sorted(events.Tags()["scalars"]) if not tag.startswith(CLOCK_PREFIX)]
    return [(tag, event.step, event.value) for tag in tags for event in events.Scalars(tag)]


def _records(saved: checkpoint.Checkpoint) -> Any:
    """The replay's slots that can still be read, by environment and in the order they were played."""
    config: Mapping[str, Any] = saved.meta["config"]
    counts = saved.tensors["replay"]["counts"].numpy()
    window = -(-config["replay"]["capacity"] // len(counts))
    dtype = record_dtype((84, 84), np.dtype(np.uint8))
    raw = b"".join(zlib.decompress(saved.blobs[segment["name"]].read_bytes()) for segment in saved.meta["segments"])
    records = np.frombuffer(raw, dtype=dtype)
    stack = saved.tensors["trainer"]["stacks"].shape[1]
    records = records[records["serial"] >= (counts - window - (stack - 1))[records["env"]]]
    return records[np.lexsort((records["serial"], records["env"]))]


def _without_clock(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    kept = [i for i, name in enumerate(rows[0] if rows else []) if not name.startswith(CLOCK_PREFIX)]
    return [[row[i] for i in kept] for row in rows]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
