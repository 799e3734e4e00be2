"""Normalize-and-Project in one call."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Literal

from torch import nn
from torch.optim import Optimizer

from nap_rl.nap.layers import Axes, NormKind
from nap_rl.nap.normalize import normalize
from nap_rl.nap.project import Projector
from nap_rl.nap.trace import Example


def normalize_and_project(
    module: nn.Module,
    optimizer_factory: Callable[[Iterable[nn.Parameter]], Optimizer],
    example_input: Example,
    *,
    norm: NormKind = "layer",
    axes: Axes = "all",
    affine: Literal["regularize", "project", "free", "omit"] = "regularize",
    existing: Literal["keep", "replace"] = "keep",
    every: int = 1,
    output: Literal["free", "project"] = "free",
    scope: Literal["tensor", "unit"] = "tensor",
    regularize_coefficient: float = 0.1,
    free: Collection[str] = (),
) -> tuple[nn.Module, Optimizer, Projector]:
    """`normalize`, then an optimiser over the parameters that are left, then its `Projector`.

    Args:
        optimizer_factory: makes the optimiser from parameters, e.g. `lambda p: torch.optim.Adam(p, lr=1e-4)`.
        affine: the paper's four treatments of gain and offset: those of `Projector`, or "omit", norms without.

    The other arguments are those of `normalize` and `Projector`.

    Returns:
        The module, its optimiser, and its projector.
    """
    normalize(module, example_input, norm=norm, axes=axes, affine=affine != "omit", existing=existing, free=free)
    optimizer = optimizer_factory(module.parameters())
    projector = Projector(
        module,
        optimizer,
        every=every,
        affine="free" if affine == "omit" else affine,
        output=output,
        scope=scope,
        regularize_coefficient=regularize_coefficient,
    )
    return module, optimizer, projector
