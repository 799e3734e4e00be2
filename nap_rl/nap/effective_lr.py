"""What one update does to each layer: norms, effective learning rate, update ratio, rotation."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from nap_rl.nap.binding import follow
from nap_rl.nap.groups import weight_groups
from nap_rl.nap.norms import GroupNorms

MEASURES = ("param_norm", "grad_norm", "effective_lr", "update_ratio", "rotation", "relative_drift")


class LayerMonitor:
    """Measures of one update for each layer, with projection on or off.

    W are the weights of one group of `weight_groups(module)` as one vector, W' those before the update, W_0
    those at construction, g the gradient, eta the learning rate of the group's parameters:

        param_norm      ||W||
        grad_norm       ||g|| as it lies in `.grad`, clipped or not; 0 where there is none
        effective_lr    eta (||W_0|| / ||W'||)^k, k = 2 for SGD, k = 1 for other optimisers
        update_ratio    ||W - W'|| / ||W'||
        rotation        angle between W and W', in degrees
        relative_drift  ||W|| / ||W_0|| - 1

    From f(c W) = f(W) follows that the gradient at c W is 1/c times that at W. So a step of SGD turns W as
    eta / ||W||^2 does, and a step of Adam, whose size does not depend on the gradient's, as eta / ||W||
    does. Both are given relative to W_0: the number then is a learning rate, namely that which a net held at
    its initial norms would need for the same turn. Under projection it stays eta.

    Args:
        module: plain, or within DistributedDataParallel or torch.compile.
        optimizer: layers that it does not own are left out.
        power: the k above; None takes 2 for torch.optim.SGD, with or without momentum, and 1 for all others.
        free: paths of submodules to leave out.
    """

    projects: ClassVar[bool] = False

    def __init__(
        self, module: nn.Module, optimizer: Optimizer, *, power: int | None = None, free: Collection[str] = ()
    ) -> None:
        self.power = power if power is not None else (2 if isinstance(optimizer, SGD) else 1)
        owned = {p for group in optimizer.param_groups for p in group["params"]}
        groups = {name: ts for name, ts in weight_groups(module, free=free).items() if ts[0] in owned}
        if not groups:
            raise ValueError("the optimizer owns no weight of this module, so there is nothing to monitor.")
        self.names = list(groups)
        self.optimizer = optimizer
        self._first = [tensors[0] for tensors in groups.values()]
        self._norms = GroupNorms(list(groups.values()))
        with torch.no_grad():
            self._initial = self._norms()
        self._before: list[Tensor] | None = None
        follow(self)

    def rebind(self, optimizer: Optimizer) -> None:
        """Take learning rates from `optimizer` from now on, made anew over the same weights. The start stays."""
        owned = {p for group in optimizer.param_groups for p in group["params"]}
        if missing := [name for name, first in zip(self.names, self._first, strict=True) if first not in owned]:
            raise ValueError(f"the new optimizer does not own layer '{missing[0]}', which is monitored.")
        self.optimizer = optimizer
        follow(self)

    def after_step(self) -> None:
        """Nothing: `measure()` is called by hand."""

    def followed(self) -> Sequence[Tensor]:
        """The monitored weights."""
        return self._norms.tensors

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        follow(self)

    @torch.no_grad()
    def snapshot(self) -> None:
        """Keep a copy of the weights: to be called right before `optimizer.step()`. No host sync."""
        if self._before is None:
            self._before = [torch.empty_like(tensor) for tensor in self._norms.tensors]
        torch._foreach_copy_(self._before, self._norms.tensors)

    @torch.no_grad()
    def measure(self) -> dict[str, dict[str, float]]:
        """The measures of the update since `snapshot()`, by layer: one host sync for the whole net.

        Raises ValueError where `snapshot()` was never called.
        """
        rows = self.columns().tolist()
        return {name: dict(zip(MEASURES, row, strict=True)) for name, row in zip(self.names, rows, strict=True)}

    @torch.no_grad()
    def columns(self) -> Tensor:
        """[layers, measures] float64: what `measure()` returns, in the order of `names` and MEASURES. No host sync."""
        if self._before is None:
            raise ValueError("call snapshot() before the update that measure() is to describe.")
        weights = self._norms.tensors
        pairs = list(zip(weights, self._before, strict=True))
        now, before = self._norms(), self._norms(self._before)
        # Generators, so that the differences of one tensor at a time are in memory.
        change = self._norms(w - w_ for w, w_ in pairs)
        # The chord between W and W' brought to one length: unlike the cosine, it keeps small angles.
        ratios = (now / before)[self._norms.owner].unbind()
        chord = self._norms(w - ratio * w_ for (w, w_), ratio in zip(pairs, ratios, strict=True)) / now
        # Looked up now: an optimiser that loads its state gets new parameter groups.
        rate = {p: group["lr"] for group in self.optimizer.param_groups for p in group["params"]}
        rates = [torch.as_tensor(rate[p], dtype=torch.float64, device=now.device) for p in self._first]
        return torch.stack(
            (
                now,
                self._norms(torch.zeros_like(w) if w.grad is None else w.grad for w in weights),
                torch.stack(rates) * (self._initial / before) ** self.power,
                change / before,
                torch.rad2deg(2 * torch.asin((chord / 2).clamp_max(1))),
                now / self._initial - 1,
            ),
            dim=1,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """The norms at construction, by layer, 0-dim float64: a resumed run drifts from the same start."""
        return {name: norm.clone() for name, norm in zip(self.names, self._initial, strict=True)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError where the state is of other layers."""
        if different := sorted(set(state) ^ set(self.names)):
            side = "the state" if different[0] in state else "this monitor"
            raise ValueError(f"monitored layers differ: '{different[0]}' is in {side} alone.")
        self._initial = torch.stack([state[name].to(self._initial) for name in self.names])
