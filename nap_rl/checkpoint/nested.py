"""Nested dicts of tensors, arrays and JSON values, split into what goes into tensor files and what into JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def flatten(tree: Mapping[str, Any]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """(tensors, rest): tensors["network"]["torso/weight"] was tree["network"]["torso"]["weight"], and so were arrays.

    Raises ValueError for a key with a slash, and where a tensor stands outside of every section.
    """
    tensors: dict[str, dict[str, Tensor]] = {}

    def walk(node: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
        rest = {}
        for key, value in node.items():
            if "/" in key:
                raise ValueError(f"the key {key!r} holds a slash, which separates keys here")
            if isinstance(value, Mapping):
                rest[key] = walk(value, (*path, key))
            elif isinstance(value, (Tensor, np.ndarray)):
                if not path:
                    raise ValueError(f"the tensor {key!r} is in no section")
                section, *inner = (*path, key)
                tensors.setdefault(section, {})["/".join(inner)] = torch.as_tensor(value)
            else:
                rest[key] = value
        return rest

    return tensors, walk(tree, ())


def unflatten(tensors: Mapping[str, Mapping[str, Tensor]], rest: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`, but for arrays, which stay tensors."""
    tree = _copied(rest)
    for section, group in tensors.items():
        for path, tensor in group.items():
            node = tree
            *parents, key = section, *path.split("/")
            for parent in parents:
                node = node.setdefault(parent, {})
            node[key] = tensor
    return tree


def _copied(node: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in node.items()}
