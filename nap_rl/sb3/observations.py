"""Observations of SB3's environments as frames of one shape and dtype: the space decides, whatever is returned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces

Array = npt.NDArray[Any]

MOST_NUMBERS = 1 << 24  # in one observation
# torch has few operators for these dtypes; the next one holds all of their numbers (uint64's to 53 bits).
WIDER = {"uint16": "int32", "uint32": "int64", "uint64": "float64", "longdouble": "float64", "float128": "float64"}


class NotFinite(ValueError):
    """An observation holds NaN or infinity."""


@dataclass(frozen=True)
class Observations:
    """How observations of a space become frames of a replay.

    A Discrete number becomes a one-hot vector, as in SB3. A Dict becomes the numbers of its entries one behind the
    other, in the space's order.

    Attributes:
        space: of the observations, images with their channels first.
        stack, frame_shape: an observation is `stack` frames, the newest last.
        dtype: of the frames; the space's own, or the next wider one that torch knows.
    """

    space: spaces.Space[Any]
    stack: int
    frame_shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, space: spaces.Space[Any], stack: int, frame_shape: tuple[int, ...]) -> Observations:
        """With the dtype that belongs to the space."""
        return cls(space, stack, frame_shape, frame_dtype(space))

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype`, as torch calls it."""
        return torch.from_numpy(np.empty(0, self.dtype)).dtype

    def encode(self, observation: Any) -> tuple[Array, bool]:
        """One observation or N, of any container and dtype, as [N, stack, *frame_shape], and whether it was a batch.

        Images may have their channels first or last.

        Raises:
            NotFinite: a number is NaN or infinite.
            ValueError: the observation has another shape, or is none of the space.
        """
        encoded, batched = _encode(self.space, observation)
        return encoded.astype(self.dtype, copy=False).reshape(-1, self.stack, *self.frame_shape), batched


def frame_dtype(space: spaces.Space[Any]) -> np.dtype[Any]:
    """Of frames: a Box's own, bool for one-hot vectors, float32 for a Dict."""
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return np.dtype(bool)
    if isinstance(space, spaces.Dict):
        return np.dtype(np.float32)
    return np.dtype(WIDER.get(np.dtype(space.dtype).name, space.dtype))


def size(space: spaces.Space[Any]) -> int:
    """Numbers that an observation has once it is encoded."""
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    if isinstance(space, spaces.Dict):
        return sum(size(part) for part in space.values())
    return math.prod(space.shape or ())


def is_image_space(space: spaces.Space[Any]) -> bool:
    """Whether SB3 takes observations of the space for images: uint8 in three dimensions, with bounds 0 and 255."""
    return (
        isinstance(space, spaces.Box)
        and len(space.shape) == 3
        and space.dtype == np.uint8
        and bool((space.low == 0).all() and (space.high == 255).all())
    )


def plain_space(space: spaces.Space[Any]) -> dict[str, Any]:
    """For JSON; `space_from_plain` is the inverse.

    A Box has no "kind", as in older zips. An end of it that is the same everywhere is one number.
    """
    if isinstance(space, spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"kind": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, spaces.MultiBinary):
        return {"kind": "MultiBinary", "n": space.shape[0] if isinstance(space.n, int) else list(space.shape)}
    if isinstance(space, spaces.Dict):
        return {"kind": "Dict", "spaces": {name: plain_space(part) for name, part in space.items()}}
    assert isinstance(space, spaces.Box)
    ends = {"low": space.low, "high": space.high}
    uniform = {name: end.size > 0 and bool((end == end.flat[0]).all()) for name, end in ends.items()}
    plain = {name: end.flat[0].item() if uniform[name] else end.tolist() for name, end in ends.items()}
    return {**plain, "shape": list(space.shape), "dtype": str(space.dtype)}


def space_from_plain(plain: Mapping[str, Any]) -> spaces.Space[Any]:
    """From values that need not be trusted; ValueError, TypeError or KeyError where they are no space."""
    kind = plain.get("kind", "Box")
    space: spaces.Space[Any]
    if kind == "Discrete":
        space = spaces.Discrete(_whole(plain["n"]), start=_whole(plain["start"], low=-(1 << 53)))
    elif kind == "MultiDiscrete":
        nvec, start = (np.array(plain[name], dtype=np.int64) for name in ("nvec", "start"))
        if nvec.size == 0 or nvec.max() > MOST_NUMBERS:
            raise ValueError("a MultiDiscrete space of such sizes is read by nothing here")
        space = spaces.MultiDiscrete(nvec, start=start)
    elif kind == "MultiBinary":
        n = plain["n"]
        lengths = [_whole(length) for length in (n if isinstance(n, list) else [n])]
        if math.prod(lengths) > MOST_NUMBERS:
            raise ValueError(f"observations of {math.prod(lengths)} values are none that are read here")
        space = spaces.MultiBinary(lengths if isinstance(n, list) else lengths[0])
    elif kind == "Dict":
        space = spaces.Dict({str(name): space_from_plain(part) for name, part in plain["spaces"].items()})
    elif kind == "Box":
        shape, dtype = plain["shape"], np.dtype(plain["dtype"])
        if dtype.kind not in "iufb" or math.prod(shape) > MOST_NUMBERS:
            raise ValueError(f"observations of {math.prod(shape)} values of type {dtype} are none that are read here")
        low, high = (np.broadcast_to(np.array(plain[end], dtype), shape) for end in ("low", "high"))
        space = spaces.Box(low, high, dtype=dtype.type)
    else:
        raise ValueError(f"observations of kind {kind!r:.60} are none that are read here")
    check_space(space)
    return space


def check_space(space: spaces.Space[Any], inside: str = "") -> None:
    """ValueError, in one sentence, for spaces that SB3 has no policy for, and for images in a Dict."""
    if isinstance(space, spaces.Dict):
        if inside:
            raise ValueError(f"the observations have a Dict inside a Dict ('{inside}'): SB3 takes one level")
        for name, part in space.items():
            check_space(part, str(name))
    elif inside and is_image_space(space):
        raise ValueError(f"MultiInputPolicy reads vectors here, but '{inside}' of the observations is an image")
    elif not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        raise ValueError(
            f"the observations are {type(space).__name__}, expected Box, Discrete, MultiDiscrete, MultiBinary or Dict"
        )
    elif not 1 <= size(space) <= MOST_NUMBERS:
        raise ValueError(f"an observation has {size(space):,} numbers, expected 1 to {MOST_NUMBERS:,}")


def _whole(value: Any, low: int = 1) -> int:
    if type(value) is not int or not low <= value <= 1 << 53:
        raise ValueError(f"{value!r:.60} is no size of a space")
    return value


def _encode(space: spaces.Space[Any], observation: Any) -> tuple[Array, bool]:
    """Observations as [N, numbers], or as [N, *shape] for a Box, and whether there was a batch of them."""
    if isinstance(space, spaces.Dict):
        if not isinstance(observation, Mapping) or not set(space) <= set(observation):
            raise ValueError(f"an observation has not the entries {', '.join(map(str, space))}")
        parts = [_encode(part, observation[name]) for name, part in space.items()]
        columns = [array.reshape(len(array), -1).astype(np.float32) for array, _ in parts]
        return np.concatenate(columns, axis=1), any(batched for _, batched in parts)
    if isinstance(observation, Mapping):
        expected = f"shape {list(space.shape or ())} or N of them"
        raise ValueError(f"an observation is a dict with {', '.join(map(str, observation))}, expected {expected}")
    array = np.asarray(observation)
    if array.dtype == object:
        array = array.astype(np.float64)
    _check_finite(array)
    shape = space.shape or ()
    if len(shape) == 3 and array.shape[-3:] == (*shape[1:], shape[0]) != shape:
        array = np.moveaxis(array, -1, -3)
    batched = array.ndim > len(shape)
    if array.shape != shape and array.shape[1:] != shape:
        raise ValueError(f"an observation has shape {list(array.shape)}, expected {list(shape)} or N of them")
    array = array.reshape(-1, *shape)
    if isinstance(space, spaces.Discrete):
        return _one_hot(array.reshape(-1, 1), np.array([space.n]), np.array([space.start])), batched
    if isinstance(space, spaces.MultiDiscrete):
        return _one_hot(array.reshape(len(array), -1), space.nvec.ravel(), space.start.ravel()), batched
    if array.dtype != space.dtype:
        with np.errstate(over="ignore"):
            array = array.astype(space.dtype)
        _check_finite(array)
    return array, batched


def _check_finite(array: Array) -> None:
    if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
        raise NotFinite(f"an observation has {array[~finite][0]} in it")


def _one_hot(values: Array, counts: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> Array:
    """values [N, K] -> bool [N, sum of counts]: of each value, a vector with one True."""
    indices = values.astype(np.int64) - starts
    outside = ((indices < 0) | (indices >= counts)).any(axis=1)
    if outside.any():
        raise ValueError(f"an observation is {values[outside][0].tolist()}, which the space does not contain")
    encoded = np.zeros((len(values), int(counts.sum())), dtype=bool)
    np.put_along_axis(encoded, indices + np.cumsum(counts) - counts, True, axis=1)
    return encoded
