"""The random part of an update: noise and quantile levels, an independent draw for each forward pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nap_rl.nn import QNetwork


class Draw(NamedTuple):
    """The random part of one forward pass; None where the network has none."""

    eps: Tensor | None  # [numbers] ~ N(0, 1) of all noisy layers side by side; [B, numbers]: for each row
    taus: Tensor | None  # [B, N] ~ U(0, 1)


class Draws(NamedTuple):
    """The draws of an update, by pass."""

    online_tm1: Draw  # the estimate that learns
    target_t: Draw  # the values bootstrapped from
    selector_t: Draw | None = None  # the choice of a_t; None where the values bootstrapped from choose it themselves
    target_tm1: Draw | None = None  # Munchausen's log-policy


def draw(network: QNetwork, rows: int, generator: torch.Generator, *, double: bool, munchausen: bool) -> Draws:
    """Draws for `rows` transitions, all noise from one call."""
    # Levels that are drawn to value an action must not choose it as well.
    selects = double or network.head.tau_counts is not None
    passes = ["online_tm1", "target_t"] + ["selector_t"] * selects + ["target_tm1"] * munchausen
    eps = network.sample_eps(generator, len(passes))
    taus = [network.sample_taus("s_tm1", rows, generator), network.sample_taus("s_t", rows, generator)]
    taus += [network.sample_taus("policy", rows, generator) for _ in passes[2:]]
    rows_of_eps = [None] * len(passes) if eps is None else eps.unbind()
    return Draws(**{name: Draw(*both) for name, *both in zip(passes, rows_of_eps, taus, strict=True)})
