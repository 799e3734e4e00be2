"""Who follows which optimiser. A step that another one makes on the same weights is followed or told, never missed."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Sequence, Set
from typing import Any, ClassVar, Protocol
from weakref import ReferenceType, WeakSet, ref

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

# In the defaults of an optimiser that a Projector follows. Copies and pickles of it keep this, but not its hooks.
MARK = "nap_projected"
HELD = "nap_held"  # attribute of a layer, a `Held`


class Follower(Protocol):
    """Something that does its work after each step of one optimiser, such as a Projector."""

    optimizer: Optimizer
    projects: ClassVar[bool]

    def followed(self) -> Collection[Tensor]:
        """The weights whose steps it follows."""

    def rebind(self, optimizer: Optimizer) -> None:
        """Follow that optimiser from now on."""

    def after_step(self) -> None:
        """Do what is due after a step."""


class Held:
    """Stands in a layer that a Projector projects. Whatever copies or pickles the layer takes it along.

    So copies of a network are known, and training one without a Projector is told.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.__setstate__(layer)

    def __setstate__(self, layer: nn.Module) -> None:
        self._layer: ReferenceType[nn.Module] = ref(layer)
        _held.add(self)
        _harmless.clear()
        _listen()

    def __reduce__(self) -> tuple[Any, ...]:
        return object.__new__, (Held,), self._layer()

    def __deepcopy__(self, copies: dict[int, Any]) -> Held | None:
        """Of the layer's copy, which Python begins before it copies the layer's attributes."""
        layer = copies.get(id(self._layer()))
        return None if layer is None else Held(layer)

    def parameters(self) -> list[Tensor]:
        """Of the layer itself; none once it is gone."""
        layer = self._layer()
        return [] if layer is None else list(layer.parameters(recurse=False))


_held: WeakSet[Held] = WeakSet()
_followers: WeakSet[Follower] = WeakSet()
_harmless: WeakSet[Optimizer] = WeakSet()  # optimisers that move nothing of a follower's, or have their own
_warned: WeakSet[Optimizer] = WeakSet()
_hooks: list[Any] = []


def follow(follower: Follower) -> None:
    """From now on, other optimisers that move the follower's weights are noticed."""
    _listen()
    _followers.add(follower)
    _harmless.clear()


def unfollow(follower: Follower) -> None:
    """The follower does not follow any optimiser now."""
    _followers.discard(follower)
    _harmless.clear()


def hold(module: nn.Module, optimizer: Optimizer, layers: Iterable[nn.Module]) -> None:
    """Of what the optimiser owns in `module`, a Projector projects these layers and no others."""
    owned = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    release(each for each in module.modules() if owned.intersection(each.parameters(recurse=False)))
    for layer in layers:
        object.__setattr__(layer, HELD, Held(layer))


def release(layers: Iterable[nn.Module]) -> None:
    """Nothing is to project these layers: training them is not told."""
    for layer in layers:
        layer.__dict__.pop(HELD, None)


def _listen() -> None:
    if not _hooks:
        _hooks.append(register_optimizer_step_post_hook(_after_any_step))


def _after_any_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Look once at each optimiser, and once more after a Projector or a copy of a projected layer was made."""
    if torch.compiler.is_compiling() or optimizer in _harmless:
        return
    moved = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    mine = [follower for follower in _followers if follower.optimizer is optimizer]
    if _hand_over(optimizer, moved, mine):
        return
    if optimizer.defaults.get(MARK) and not mine:
        _warn(optimizer, "{} is a copy of one that a Projector follows, but the Projector was not copied with it.")
    if _trains_held_layer(moved):
        _warn(
            optimizer,
            "{} trains weights that a Projector projected, or a copy of them, and no Projector follows it: build "
            "Projector(network, optimizer).",
        )
    _harmless.add(optimizer)


def _hand_over(optimizer: Optimizer, moved: Set[Tensor], mine: Sequence[Follower]) -> bool:
    """Whether `optimizer` has all weights of somebody else's follower, which follows it from now on; warns of some."""
    handed_over = False
    for other in list(_followers):
        inside = any(value is optimizer for value in vars(other.optimizer).values())  # of Lookahead or SAM, say
        if other.optimizer is optimizer or inside or any(isinstance(follower, type(other)) for follower in mine):
            continue
        shared, name = [tensor in moved for tensor in other.followed()], type(other).__name__
        if all(shared):
            _warn(optimizer, f"{{}} has taken over all weights of a {name}, which follows it from now on.")
            other.rebind(optimizer)
            other.after_step()
            handed_over = True
        elif any(shared):
            _warn(
                optimizer, f"{{}} moves some of the weights of a {name} that follows another: give it its own {name}."
            )
    return handed_over


def _trains_held_layer(moved: Set[Tensor]) -> bool:
    """Whether a layer among `moved` is held, and no Projector is there that projects it."""
    held = [layer for each in list(_held) if not moved.isdisjoint(layer := each.parameters())]
    if not held:
        return False
    projected = {tensor for follower in _followers if follower.projects for tensor in follower.followed()}
    return any(projected.isdisjoint(layer) for layer in held)


def _warn(optimizer: Optimizer, text: str) -> None:
    if optimizer not in _warned:
        _warned.add(optimizer)
        warnings.warn(text.format(f"this optimizer ({type(optimizer).__name__})"), stacklevel=3)
