"""Nested dicts of tensors, arrays and JSON values <-> tensor files and one JSON value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

SEPARATOR = "/"


def flatten(state: Mapping[str, Any]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """(tensors, all else): state["network"]["torso"]["weight"] becomes tensors["network"]["torso/weight"].

    A section is a key of `state`. Arrays become tensors over the same memory.

    Raises:
        ValueError: a key holds a slash, or a tensor stands outside of every section.
    """
    tensors: dict[str, dict[str, Tensor]] = {}

    def without_tensors(node: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
        rest = {}
        for key, value in node.items():
            if SEPARATOR in key:
                raise ValueError(f"the key {key!r} holds a slash, which separates keys here")
            if isinstance(value, Mapping):
                rest[key] = without_tensors(value, (*path, key))
            elif isinstance(value, (Tensor, np.ndarray)):
                if not path:
                    raise ValueError(f"the tensor {key!r} is in no section")
                section, *inner = (*path, key)
                tensors.setdefault(section, {})[SEPARATOR.join(inner)] = torch.as_tensor(value)
            else:
                rest[key] = value
        return rest

    return tensors, without_tensors(state, ())


def unflatten(tensors: Mapping[str, Mapping[str, Tensor]], rest: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`; what were arrays come back as tensors. `rest` is left unchanged."""
    state = _copy_of_dicts(rest)
    for section, group in tensors.items():
        for path, tensor in group.items():
            node = state
            *parents, key = section, *path.split(SEPARATOR)
            for parent in parents:
                node = node.setdefault(parent, {})
            node[key] = tensor
    return state


def _copy_of_dicts(node: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy_of_dicts(value) if isinstance(value, Mapping) else value for key, value in node.items()}
