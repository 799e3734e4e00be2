"""What a zip of SB3 says in plain text of the spaces of its environment, as far as its layers bear it out."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from torch import Tensor

from nap_rl.nn import NetworkSpec
from nap_rl.sb3 import layout
from nap_rl.sb3.archive import ZipError
from nap_rl.sb3.observations import Observations, size

MOST_SIZE = 1 << 20  # of one axis of observations, and of actions


def said_observations(hints: Mapping[str, Any], spec: NetworkSpec, online: Mapping[str, Tensor]) -> Observations:
    """What the zip says of its observation_space, where that fits the first layer; else what the layer says."""
    first = next(tensor for name, tensor in online.items() if name.endswith("weight"))
    said = hints.get("observation_space")
    said = said if isinstance(said, dict) else {}
    kind, shape = str(said.get(":type:")), _numbers(said.get("_shape", said.get("shape")))
    if spec.pixels:
        return _images(shape, first.shape[1], online[f"{layout.FEATURES}.weight"].shape[1])
    inputs = first.shape[1]
    space: spaces.Space[Any]
    if kind.endswith(".Discrete'>"):
        space = spaces.Discrete(inputs, start=whole(said.get("start", 0)) or 0)
    elif kind.endswith(".MultiDiscrete'>") and sum(nvec := _numbers(said.get("nvec"))) == inputs:
        space = spaces.MultiDiscrete(list(nvec))
    elif kind.endswith(".MultiBinary'>") and math.prod(shape) == inputs:
        space = spaces.MultiBinary(shape if len(shape) > 1 else shape[0])
    elif kind.endswith(".Dict'>") and (entries := _dict(said.get("spaces"), inputs)):
        space = entries
    else:
        shape = shape if shape and math.prod(shape) == inputs else (inputs,)
        # SB3 divides images by 255, under MlpPolicy too, and no other bytes.
        if len(shape) == 3 and said.get("dtype") == "uint8":
            return Observations.of(spaces.Box(0, 255, shape, np.uint8), 1, shape)
        space = spaces.Box(-np.inf, np.inf, shape, np.float32)
        return Observations.of(space, 1, shape)
    return Observations.of(space, 1, (inputs,))


def _images(said: tuple[int, ...], channels: int, features: int) -> Observations:
    """Images with their channels first: of the shape `said` if it fits the layers, else square and as small as fits."""
    squares = [(channels, size, size) for size in (84, *range(36, 1024))]
    candidates = [said, *squares] if len(said) == 3 and said[0] == channels else squares
    shapes = [shape for shape in candidates if _nature_features(shape) == features]
    if not shapes:
        raise ZipError(f"has {channels} channels and {features} features, which no image size gives with NatureCNN")
    space = spaces.Box(0, 255, shapes[0], np.uint8)
    # Grey frames stand one behind the other. Colours may be one image or several, so they stay whole: always right.
    if channels % 3 == 0 or channels == 1:
        return Observations.of(space, 1, shapes[0] if channels > 1 else shapes[0][1:])
    return Observations.of(space, channels, shapes[0][1:])


def _nature_features(shape: tuple[int, ...]) -> int:
    """Features of SB3's NatureCNN for images [C, H, W]; 0 where they are too small."""
    height, width = ((((size - 8) // 4 + 1) - 4) // 2 + 1 - 3 + 1 for size in shape[-2:])
    return 64 * height * width if min(height, width) > 0 else 0


def _dict(text: Any, inputs: int) -> spaces.Dict | None:
    """Entries that SB3 wrote as "{'a': Box(-1.0, 1.0, (3,), float32), 'b': Discrete(2)}"; None if they do not fit."""
    if not isinstance(text, str) or len(text) > 100_000:
        return None
    _, *found = re.split(r"'([^']*)'(?:: |, )(Box|Discrete|MultiDiscrete|MultiBinary)\(", text)
    entries: dict[str, spaces.Space[Any]] = {}
    for name, kind, rest in zip(found[::3], found[1::3], found[2::3], strict=True):
        part = _entry(kind, rest, inputs)
        if part is None:
            return None
        entries[name] = part
    # No Dict of SB3 has no entries; keys of a plain dict were sorted when it was made, those of an OrderedDict stay.
    space = spaces.Dict(OrderedDict(entries)) if entries else None
    return space if space is not None and size(space) == inputs else None


def _entry(kind: str, rest: str, most: int) -> spaces.Space[Any] | None:
    if kind == "Box":
        shape = re.search(r"\(([0-9, ]*)\), \w+\)", rest)
        numbers = _numbers(f"({shape[1]})") if shape else ()
        fits = shape is not None and math.prod(numbers) <= most
        return spaces.Box(-np.inf, np.inf, numbers, np.float32) if fits else None
    numbers = _numbers(rest.partition(")")[0].partition(", start")[0])
    if not numbers or max(numbers) > most:
        return None
    if kind == "Discrete":
        start = re.match(r"[0-9]+, start=(-?[0-9]{1,9})\)", rest)
        return spaces.Discrete(numbers[0], start=int(start[1]) if start else 0)
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(list(numbers))
    return spaces.MultiBinary(numbers if len(numbers) > 1 else numbers[0]) if math.prod(numbers) <= most else None


def whole(value: Any) -> int | None:
    """A number that SB3 wrote as a number or as text, as it does where numpy's has no JSON; None for all else."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,9}", value):
        return int(value)
    return value if type(value) is int else None


def _numbers(value: Any) -> tuple[int, ...]:
    """A list of whole numbers, or a text such as "(4, 84, 84)" or "[3 4]"; () for all else."""
    if isinstance(value, str) and len(value) < 10_000 and re.fullmatch(r"[\[\](),0-9\s]*", value):
        value = [int(number) for number in re.findall(r"[0-9]{1,9}", value)]
    if isinstance(value, list) and all(type(number) is int and 0 < number <= MOST_SIZE for number in value):
        return tuple(value)
    return ()
