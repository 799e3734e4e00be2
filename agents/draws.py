"""The random part of an update: noise and quantile levels, an independent draw for each forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nap_rl.nn import QNetwork
from nap_rl.nn.heads import TauUse


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


class Numbers(NamedTuple):
    """All that an update draws."""

    eps: Tensor | None  # [passes, numbers]
    taus: tuple[Tensor, ...]  # one a pass; none where the network has no levels


def passes(network: QNetwork, *, double: bool, munchausen: bool) -> tuple[str, ...]:
    """Names in `Draws` of an update's passes."""
    # Levels that are drawn to value an action must not choose it as well.
    selects = double or network.head.tau_counts is not None
    return ("online_tm1", "target_t", *("selector_t",) * selects, *("target_tm1",) * munchausen)


def draw_numbers(network: QNetwork, passes: Sequence[str], rows: int, generator: torch.Generator) -> Numbers:
    """The numbers for `rows` transitions, all noise from one call."""
    eps = network.sample_eps(generator, len(passes))
    uses: list[TauUse] = ["s_tm1", "s_t", *(["policy"] * len(passes[2:]))]  # type: ignore[list-item]
    taus = [network.sample_taus(use, rows, generator) for use in uses]
    return Numbers(eps, tuple(each for each in taus if each is not None))


def by_pass(passes: Sequence[str], numbers: Numbers) -> Draws:
    """Which pass gets which numbers; a pure function."""
    none = [None] * len(passes)
    eps = none if numbers.eps is None else numbers.eps.unbind()
    return Draws(**{name: Draw(*both) for name, *both in zip(passes, eps, numbers.taus or none, strict=True)})
