"""What metrics.csv says of a network's layers: norms, effective rates, rotation and dormant units, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nap_rl.report.curves import NORM_PREFIX, Columns, Floats, NoRowsError, read_metrics, relative_norms

LAYERS = {
    "norm": "norm of all layers / its first",
    "effective_lr": "effective learning rate",
    "rotation": "degrees that an update turns a layer",
    "dormant": "share of dormant units",
}
"""Each quantity of all layers together, in words."""
PREFIXES = {
    "norm": NORM_PREFIX,
    "effective_lr": "nap/effective_lr/",
    "rotation": "nap/rotation/",
    "dormant": "plasticity/dormant/",
}
ON_A_LOG_SCALE = ("effective_lr", "rotation")
ALL = "all layers"


def is_of_layers(column: str) -> bool:
    """Whether a column of metrics.csv holds one of `LAYERS`."""
    return column.startswith(tuple(PREFIXES.values()))


def by_layer(columns: Columns, run: Path) -> dict[str, Mapping[str, Floats]]:
    """A name of `LAYERS` -> `ALL`, then each layer -> [rows]. What the run did not log is missing.

    `ALL` is the norm of all layers together, the geometric mean of the effective rates, the mean of rotation and
    dormant units. Norms are relative to their first row.

    Raises ValueError as `relative_norms` does.
    """
    found: dict[str, Mapping[str, Floats]] = {"norm": relative_norms(columns, run)}
    for name in ("effective_lr", "rotation", "dormant"):
        prefix = PREFIXES[name]
        layers = {key.removeprefix(prefix): values for key, values in columns.items() if key.startswith(prefix)}
        if layers:
            found[name] = {ALL: _together(name, np.stack(list(layers.values()))), **layers}
    return found


def effective_rate(run: Path) -> tuple[Floats, Floats] | None:
    """Frames and effective learning rate (geometric mean over layers), [rows] each; None if the run has not logged it.

    Raises ValueError as `read_metrics` does.
    """
    prefix = PREFIXES["effective_lr"]
    try:
        columns = read_metrics(run, lambda name: name == "frames" or name.startswith(prefix))
    except (FileNotFoundError, NoRowsError):
        return None
    frames = columns.pop("frames", None)
    if frames is None or not columns:
        return None
    rate = _together("effective_lr", np.stack(list(columns.values())))
    known = np.isfinite(rate) & (rate > 0)
    return (frames[known], rate[known]) if known.any() else None


def _together(name: str, layers: Floats) -> Floats:
    """[layers, rows] -> [rows]"""
    if name != "effective_lr":
        mean: Floats = layers.mean(axis=0)
        return mean
    with np.errstate(divide="ignore"):
        rate: Floats = np.exp(np.log(layers).mean(axis=0))
    return rate
