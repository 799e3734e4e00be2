"""Optimisers that torch has the parts of, and not the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer


class MuonAndAdamW(Optimizer):
    """torch.optim.Muon for matrices and torch.optim.AdamW for all else, as one optimiser.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) takes matrices alone. Its updates get the
    size of AdamW's, 0.2 sqrt(max(rows, columns)) times an orthogonal matrix (Liu et al. 2025, arXiv 2502.16982), so
    that one learning rate serves both.

    Args:
        matrices: [rows, columns] each.
        others: of any shape.
        muon, adamw: further arguments of torch.optim.Muon and torch.optim.AdamW.

    Raises:
        ValueError: one of `matrices` has another number of dimensions, or torch refuses an argument.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        *,
        lr: float,
        muon: dict[str, Any],
        adamw: dict[str, Any],
    ) -> None:
        matrices, others = list(matrices), list(others)
        self.muon = Muon(matrices, lr=lr, adjust_lr_fn="match_rms_adamw", **muon) if matrices else None
        self.adamw = AdamW(others, lr=lr, **adamw) if others else None
        groups = [{**g, "part": name} for name, part in self._parts() for g in part.param_groups]
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both, on the parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for name, part in self._parts():  # `state` and `param_groups` of this one are the only ones
            part.state = self.state
            part.param_groups = [group for group in self.param_groups if group["part"] == name]
            part.step()
        return loss

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "muon": self.muon, "adamw": self.adamw}

    def _parts(self) -> list[tuple[str, Optimizer]]:
        named = (("muon", self.muon), ("adamw", self.adamw))
        return [(name, part) for name, part in named if part is not None]
