"""Crash-safe checkpoints: directories of safetensors and JSON files, never a pickle."""

from nap_rl.checkpoint.manifest import MANIFEST, CheckpointError
from nap_rl.checkpoint.store import (
    Checkpoint,
    latest,
    latest_meta,
    load,
    load_newest,
    load_tensors,
    newest_of_run,
    read_meta,
    save,
    sha256_of,
    verified_tensors,
)

__all__ = [
    "MANIFEST",
    "Checkpoint",
    "CheckpointError",
    "latest",
    "latest_meta",
    "load",
    "load_newest",
    "load_tensors",
    "newest_of_run",
    "read_meta",
    "save",
    "sha256_of",
    "verified_tensors",
]
