"""Continual backprop: low-utility units are replaced one by one (Dohare et al. 2024, Nature 632, Methods)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nap_rl.plasticity.method import Inputs, Method, option
from nap_rl.plasticity.units import hidden_units, matrices, mean_activity, outgoing_columns, recycle


class ContinualBackprop(Method):
    """After each update, per layer:

        utility_u <- decay * utility_u + (1 - decay) * E|h_u| * sum|outgoing weights of u|
        age_u     <- age_u + 1
        owed      <- owed + rate * (number of units with age > maturity)
        while owed >= 1, the mature unit with the least utility / (1 - decay^age) is recycled, owed falls by 1

    h is taken from the last training forward pass, so no extra pass is needed. A recycled unit starts with
    age and utility 0. Reads one number a layer back to the host each update.

    With NaP as for ReDo.

    Args:
        example_input: [B, ...], to find the layers with.
        rate: fraction of the mature units that is replaced an update; the source uses 1e-6 .. 1e-4.
        decay: of the utility's moving average.
        maturity: updates for which a new unit is safe.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        *,
        example_input: Tensor,
        rate: float = 1e-4,
        decay: float = 0.99,
        maturity: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(network, optimizer, seed=seed)
        self.rate = option("rate", rate)
        self.decay = option("decay", decay)
        self.maturity = option("maturity", maturity)
        self.units = [u for u in hidden_units(network, example_input) if u.recyclable]
        self.utility = {u.name: torch.zeros(u.width, device=example_input.device) for u in self.units}
        self.age = {name: torch.zeros_like(utility) for name, utility in self.utility.items()}
        self.owed = dict.fromkeys(self.utility, 0.0)
        for u in self.units:
            u.activation.register_forward_hook(self._observer(u.name))

    def _observer(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        observed = self.observed  # a closure, not a bound method: copying the network must not copy this object

        def observe(module: nn.Module, args: Any, h: Tensor) -> None:
            if torch.is_grad_enabled():  # acting and target passes do not count
                observed[name] = mean_activity(h.detach())

        return observe

    @torch.no_grad()
    def after_update(self, update: int, inputs: Inputs) -> bool:
        changed = False
        for u in self.units:
            reading = sum(outgoing_columns(w, u.width).abs().sum(dim=(0, 2)) for m in u.outgoing for w in matrices(m))
            self.utility[u.name].lerp_(self.observed[u.name] * reading, 1.0 - self.decay)
            age = self.age[u.name].add_(1.0)
            mature = age > self.maturity
            self.owed[u.name] += self.rate * int(mature.sum())
            while self.owed[u.name] >= 1.0:
                utility = self.utility[u.name] / (1.0 - self.decay**age)
                worst = utility.masked_fill(~mature, torch.inf).argmin()
                mask = torch.arange(u.width, device=worst.device) == worst
                recycle(u, mask, self.optimizer, self.generator)
                for counter in (self.utility[u.name], age):
                    counter.masked_fill_(mask, 0.0)
                mature = mature & ~mask
                self.owed[u.name] -= 1.0
                changed = True
        return changed

    def state_dict(self) -> dict[str, Tensor]:
        owed = {f"owed.{name}": torch.tensor(value, dtype=torch.float64) for name, value in self.owed.items()}
        utility = {f"utility.{name}": value for name, value in self.utility.items()}
        return super().state_dict() | owed | utility | {f"age.{name}": v for name, v in self.age.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        for name in self.owed:
            self.owed[name] = float(state[f"owed.{name}"])
            self.utility[name].copy_(state[f"utility.{name}"])
            self.age[name].copy_(state[f"age.{name}"])
