"""What a checkpoint keeps of an optimiser: containers of any depth as dicts by text, and what stands in its groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

KIND, KEYS = "container", "keys"
_MAKERS = {"list": list, "tuple": tuple, "set": set}
PLAIN = (Tensor, bool, int, float, str, type(None))


def encode(value: Any) -> Any:
    """`value`, if it is plain; a container becomes {KIND: its type, "0": ..., "1": ...}, a dict's keys stand in KEYS.

    Raises:
        ValueError: something in it is none of these; names its type.
    """
    if isinstance(value, PLAIN):
        return value
    kind = type(value).__name__
    if kind == "dict":
        keys = list(value)
        if others := [key for key in keys if not isinstance(key, (int, str))]:
            raise ValueError(f"a dict by {type(others[0]).__name__}")
        return {KIND: kind, KEYS: keys, **{str(i): encode(each) for i, each in enumerate(value.values())}}
    if kind not in _MAKERS:
        raise ValueError(f"a {kind}")
    items = sorted(value, key=repr) if kind == "set" else value
    return {KIND: kind, **{str(i): encode(each) for i, each in enumerate(items)}}


def encode_moments(moments: Mapping[Any, Any]) -> dict[str, Any]:
    """What is kept of one parameter. Names stay names, where all keys are.

    Raises:
        ValueError: as `encode`; with the name.
    """
    if not all(isinstance(key, str) for key in moments):
        encoded: dict[str, Any] = encode(dict(moments))
        return encoded
    found = {}
    for name, value in moments.items():
        try:
            found[name] = encode(value)
        except ValueError as error:
            raise ValueError(f"{error} as {name}") from None
    return found


def decode_moments(moments: Mapping[str, Any]) -> dict[Any, Any]:
    """The inverse of `encode_moments`."""
    if KIND in moments:
        decoded: dict[Any, Any] = decode(moments)
        return decoded
    return {name: decode(value) for name, value in moments.items()}


def decode(value: Any) -> Any:
    """The inverse of `encode`."""
    if not isinstance(value, Mapping):
        return value
    items = [decode(value[str(i)]) for i in range(len(value) - 1 - (KEYS in value))]
    return dict(zip(value[KEYS], items, strict=True)) if KEYS in value else _MAKERS[value[KIND]](items)


def counters(optimizer: Optimizer) -> dict[str, dict[str, Any]]:
    """What its steps keep in groups of parameters, such as counts, by number of the group; {} for torch's own.

    Raises:
        ValueError: it is nothing that a checkpoint holds; names its type.
    """
    found = {}
    for index, group in enumerate(optimizer.param_groups):
        own = {key: value for key, value in group.items() if key not in (*optimizer.defaults, "params", "lr", "layer")}
        kept = {key: encode(value) for key, value in own.items() if not key.startswith("__")}
        if kept:
            found[str(index)] = kept
    return found


def set_counters(optimizer: Optimizer, kept: Mapping[str, Mapping[str, Any]]) -> None:
    """The inverse of `counters`."""
    for index, own in kept.items():
        optimizer.param_groups[int(index)].update({key: decode(value) for key, value in own.items()})
