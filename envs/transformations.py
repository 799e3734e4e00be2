"""Changes of an environment that make another task of it: permutations and offsets, drawn from a generator.

Each function takes an environment, a generator and a standard deviation, which only `offset` reads, and returns the
changed environment. Observations are a Box; actions are Discrete.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Discrete
from gymnasium.wrappers import TransformAction, TransformObservation

Env = gymnasium.Env[Any, Any]
Array = npt.NDArray[Any]


def permute_observations(env: Env, rng: np.random.Generator, std: float) -> Env:
    """Every number of an observation moves to a place of its own."""
    order = rng.permutation(int(np.prod(_box(env).shape)))
    return _changed(env, lambda x: x.reshape(-1)[order].reshape(x.shape))


def permute_channels(env: Env, rng: np.random.Generator, std: float) -> Env:
    """The channels, which are the last axis, change places. Raises ValueError unless there are 3 axes."""
    shape = _box(env).shape
    if len(shape) != 3:
        raise ValueError(f"observations of shape {list(shape)} have no channels to permute: expected [H, W, channels]")
    order = rng.permutation(shape[-1])
    return _changed(env, lambda x: x[..., order])


def permute_actions(env: Env, rng: np.random.Generator, std: float) -> Env:
    """Action i does what action order[i] did."""
    space = env.action_space
    assert isinstance(space, Discrete)
    order = space.start + rng.permutation(int(space.n))
    return TransformAction(env, lambda action: order[action - space.start], space)


def offset(env: Env, rng: np.random.Generator, std: float) -> Env:
    """observation + b, each b_i ~ N(0, std^2) and fixed. Raises ValueError unless observations are floats."""
    box = _box(env)
    if box.dtype.kind != "f":
        raise ValueError(f"an offset needs observations of floats, but these are {box.dtype}")
    b = rng.normal(0.0, std, box.shape).astype(box.dtype)
    return _changed(env, lambda x: x + b)


TRANSFORMATIONS: dict[str, Callable[[Env, np.random.Generator, float], Env]] = {
    "observations": permute_observations,
    "channels": permute_channels,
    "actions": permute_actions,
    "offset": offset,
}


def transform(env: Env, names: tuple[str, ...], seed: int, offset_std: float) -> Env:
    """`env` under the named transformations. What one draws does not depend on which others are named."""
    for place, (name, function) in enumerate(TRANSFORMATIONS.items()):
        if name in names:
            env = function(env, np.random.default_rng([seed, place]), offset_std)
    return env


def _box(env: Env) -> Box[Any]:
    assert isinstance(env.observation_space, Box)
    return env.observation_space


def _changed(env: Env, change: Callable[[Array], Array]) -> Env:
    box = _box(env)
    return TransformObservation(env, change, Box(change(box.low), change(box.high), dtype=box.dtype.type))
