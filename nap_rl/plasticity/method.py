"""What a plasticity method may do, and when: the one protocol that every file of this folder follows."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:  # options are checked before torch is imported
    from torch import Tensor, nn
    from torch.optim import Optimizer

Inputs: TypeAlias = "Callable[[], Tensor]"
"""Gives a batch of network inputs, [B, ...]; called only by a method that looks at activations."""


class Method:
    """A plasticity method for one network and its optimiser. This base class does nothing: it is `none`.

    One update with every place where a method acts, in order::

        network = Method.prepare(network, example_input)    # once, before normalize and the optimiser
        method = Method(network, optimizer, seed=0)

        if (penalty := method.penalty()) is not None:
            loss = loss + penalty
        loss.backward()
        optimizer.step()                                    # NaP's hook projects here
        if method.after_update(update, inputs):             # update: number of updates done, 1, 2, ...
            projector.project()                             # back to the initial norms

    At a task switch, `if method.at_switch(): projector.project()`.

    With NaP the projection's target stays the norm at initialisation, whatever a method resets, shrinks or
    adds: so a method decides the direction of a weight tensor, NaP its length, and the output layer, which
    NaP leaves free, keeps the length that the method gives it.

    Args:
        network: the module that `optimizer` trains, normalised already where NaP is used.
        optimizer: its per-parameter state (moments) is cleared where weights are re-initialised.
        seed: of the method's own random stream, so that it neither reads nor moves the global one.

    Attributes:
        anchors: what `penalty` reads beside the network, as parameters and buffers. They are changed in place alone.
        observed: what hooks on the network keep of the last pass that learns, for `after_update`.
    """

    norm: str | None = None
    """The normalisation without which the method is not itself ("layer"), None where any network will do."""
    renews_parameters = False
    """Whether some parameters begin anew, moments and their counts of updates with them, and others do not."""
    only_at_switches = False
    """Whether it does nothing but at task switches."""
    value_networks_only = False
    """Whether it changes the streams of a value network, which other networks do not have."""
    statistics_batch = 64
    """States that `inputs` should give, for shares of dormant units (Sokar et al. 2023)."""

    def __init__(self, network: nn.Module, optimizer: Optimizer, *, seed: int = 0) -> None:
        import torch

        self.network = network
        self.optimizer = optimizer
        self.anchors = torch.nn.Module()
        self.observed: dict[str, Tensor] = {}
        device = next(network.parameters()).device
        self.generator = torch.Generator(device).manual_seed(seed)

    @staticmethod
    def prepare(network: nn.Module, example_input: Tensor) -> nn.Module:
        """The architecture's part: returns `network`, changed in place before anything else sees it."""
        return network

    def penalty(self) -> Tensor | None:
        """A scalar to add to the loss of this update, None for nothing.

        It finds weights in `network` and `anchors` at each call, since others may stand in for them: a compiled update
        of several agents does so.
        """
        return None

    def after_update(self, update: int, inputs: Inputs) -> bool:
        """Changes weights and optimiser state in place after update number `update` (from 1).

        Returns whether weights changed, in which case NaP has to project again.
        """
        return False

    def at_switch(self) -> bool:
        """Changes weights and optimiser state in place where a new task begins; whether weights changed."""
        return False

    def frozen_copy(self) -> nn.Module:
        """The network as it is now, for `anchors`."""
        return copy.deepcopy(self.network).requires_grad_(False)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs beyond the network and the optimiser."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.generator.set_state(state["generator"].cpu())


def positive(name: str, value: float) -> float:
    """`value` if it is finite and greater than 0; raises ValueError otherwise."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a number greater than 0; got {value}.")
    return value


def count(name: str, value: int) -> int:
    """`value` if it is a whole number of 1 or more; raises ValueError otherwise."""
    if value < 1 or value != int(value):
        raise ValueError(f"{name} must be a whole number of 1 or more; got {value}.")
    return int(value)


def fraction(name: str, value: float) -> float:
    """`value` if it lies in [0, 1]; raises ValueError otherwise."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie between 0 and 1; got {value}.")
    return value


def not_negative(name: str, value: float) -> float:
    """`value` if it is finite and not negative; raises ValueError otherwise."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a number of 0 or greater; got {value}.")
    return value


OPTIONS: dict[str, Callable[[str, Any], Any]] = {
    "at": count,
    "coefficient": positive,
    "decay": fraction,
    "every": count,
    "iterations": count,
    "kappa": positive,
    "maturity": count,
    "rate": fraction,
    "scale": positive,
    "shrink": fraction,
    "tau": not_negative,
}


def option(name: str, value: Any) -> Any:
    """The value of a method's option, checked; raises ValueError with a sentence that begins with its name."""
    return OPTIONS[name](name, value)
