"""Plasticity methods, one a file; `Method` is the protocol that the agent and the studies drive them by."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from nap_rl.plasticity.method import Inputs, Method, option

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

__all__ = ["METHODS", "Inputs", "Method", "check_options", "make_method", "method_named", "options_of"]

# Name -> module and class. A method is imported when it is asked for: to check a name takes no torch.
METHODS: dict[str, str] = {
    "none": "method.Method",
    "redo": "redo.ReDo",
    "shrink_perturb": "shrink_perturb.ShrinkPerturb",
    "regenerative": "regenerative.Regenerative",
    "l2": "l2.L2",
    "weight_decay": "l2.WeightDecay",
    "noisy_updates": "noisy_updates.NoisyUpdates",
    "leaky_relu": "activations.LeakyReLU",
    "crelu": "activations.CReLU",
    "reset_head": "reset_head.ResetHead",
    "continual_backprop": "continual_backprop.ContinualBackprop",
    "weight_clipping": "weight_clipping.WeightClipping",
    "fire": "fire.Fire",
    "parseval": "parseval.Parseval",
    "c_chain": "c_chain.CChain",
    "hare_tortoise": "hare_tortoise.HareTortoise",
    "injection": "injection.Injection",
    "layer_norm_l2": "l2.LayerNormL2",
}


def method_named(name: str) -> type[Method]:
    """The class of a method. Raises ValueError naming the nearest one."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.0)[0]
        raise ValueError(f"There is no plasticity method {name!r}; the nearest is {near!r} of {', '.join(METHODS)}.")
    module, _, kind = METHODS[name].partition(".")
    method: type[Method] = getattr(import_module(f"{__name__}.{module}"), kind)
    return method


def options_of(name: str) -> dict[str, Any]:
    """The options of a method and their defaults, such as {"tau": 0.025, "every": 1000}."""
    parameters = inspect.signature(method_named(name)).parameters.values()
    given = ("network", "optimizer", "example_input", "seed")
    return {p.name: p.default for p in parameters if p.name not in given}


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raises ValueError for an unknown method or option, and for a value that an option cannot have."""
    known = options_of(name)
    for key, value in options.items():
        if key not in known:
            listed = ", ".join(known) or "none"
            raise ValueError(f"The plasticity method {name!r} has no option {key!r}; it has: {listed}.")
        option(key, value)


def make_method(
    name: str,
    network: nn.Module,
    optimizer: Optimizer,
    *,
    example_input: Tensor,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Method:
    """The method `name` for a network that its `prepare` has seen already.

    `options` are those of its constructor, by name. Raises ValueError for an unknown method or option.
    """
    options = dict(options or {})
    check_options(name, options)
    method = method_named(name)
    if "example_input" in inspect.signature(method).parameters:
        options["example_input"] = example_input
    return method(network, optimizer, seed=seed, **options)
