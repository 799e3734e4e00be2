"""Putting norms into a module: before an activation, behind a weight layer, or inside a traced forward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from nap_rl.nap.normalized import Normalized
from nap_rl.nap.trace import ACTIVATION_MODULES, ACTIVATIONS, Call, Site


def replace_module(root: nn.Module, path: str, new: nn.Module) -> None:
    """Put `new` in the place of the module at `path`, under every name that this one has."""
    old = root.get_submodule(path)
    for parent in list(root.modules()):
        for name in [name for name, child in parent._modules.items() if child is old]:
            setattr(parent, name, new)


def norm_before(root: nn.Module, path: str, norm: nn.Module) -> None:
    """The activation module at `path` becomes `path.norm` followed by `path.activation`."""
    activation = root.get_submodule(path)
    replace_module(root, path, Normalized(norm, activation))


def norm_after(layer: nn.Module, norm: nn.Module) -> None:
    """`layer` returns `layer.nap_norm(output)`, by a hook: a wrapper would rename the layer's weights."""
    layer.add_module("nap_norm", norm)
    layer.register_forward_hook(_call_norm)


def _call_norm(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    normalized: Tensor = layer.get_submodule("nap_norm")(output)
    return normalized


def remove_bias(layer: nn.Module) -> None:
    if callable(remove := getattr(layer, "remove_bias", None)):
        remove()
    elif getattr(layer, "bias", None) is not None:
        layer.register_parameter("bias", None)


def norm_inside(owner: nn.Module, name: str, sites: Sequence[Site], norms: Mapping[int, nn.Module], call: Call) -> None:
    """Rewrite the forward of `owner` so that norms stand before some of the activations that it calls itself.

    `owner` stays the same object with the same submodules; its class becomes a subclass with another forward.

    Args:
        owner: gets the norms as submodules `nap_norm_0`, `nap_norm_1`, ...
        name: its path, for errors.
        sites: all activation calls of one run of its forward, in order; norms: by index into them.
        call: arguments of that run. Those that it leaves at their defaults are fixed to them.

    Raises:
        ValueError: torch.fx cannot trace the forward, or sees other activation calls than the run made.
    """
    numbers = {site: number for number, site in enumerate(sorted(norms))}
    for site, number in numbers.items():
        owner.add_module(f"nap_norm_{number}", norms[site])
    training = owner.training
    forwards: list[Callable[..., Any]] = []
    codes: list[str] = []
    try:
        for mode in (True, False):
            owner.training = mode  # a trace keeps the branch that it saw, dropout's for one
            graph = _trace(owner, name, sites, call)
            nodes = [node for node in graph.nodes if _is_activation(owner, node)]
            if [_function(owner, node) for node in nodes] != [site.function for site in sites]:
                raise ValueError(
                    f"torch.fx sees other activation calls in the forward of module '{name}' ({type(owner).__name__}) "
                    "than a run makes: make its activations submodules, each used once."
                )
            for site, number in numbers.items():
                _insert(graph, nodes[site], f"nap_norm_{number}")
            graph_module = fx.GraphModule(owner, graph)
            forwards.append(type(graph_module).forward)
            codes.append(graph_module.code)
    finally:
        owner.training = training
    train, evaluate = forwards

    def by_mode(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return (train if self.training else evaluate)(self, *args, **kwargs)

    cls = type(owner)
    forward = train if codes[0] == codes[1] else by_mode
    owner.__class__ = type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__})


class _Flat(fx.Tracer):
    """Records one module's own forward and none of its submodules'."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _trace(owner: nn.Module, name: str, sites: Sequence[Site], call: Call) -> fx.Graph:
    bound = inspect.signature(owner.forward).bind(*call[0], **call[1])
    given = set(bound.arguments)
    bound.apply_defaults()
    # What is no tensor decides between branches. torch.fx turns these into assertions of the traced forward.
    fixed = {
        key: value
        for key, value in bound.arguments.items()
        if value is None or isinstance(value, (bool, int, float, str)) or (key not in given and value)
    }
    try:
        return _Flat().trace(owner, fixed or None)
    except Exception as error:  # torch.fx raises many kinds, and all mean that it cannot follow this forward
        functions = ", ".join(sorted({site.function for site in sites}))
        raise ValueError(
            f"module '{name}' ({type(owner).__name__}) calls {functions} in its forward, which torch.fx "
            f"cannot trace ({error}): make its activations submodules, each used once."
        ) from error


def _is_activation(owner: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(owner.get_submodule(str(node.target)), ACTIVATION_MODULES)
    return node.op in ("call_function", "call_method") and _function(owner, node) in ACTIVATIONS


def _function(owner: nn.Module, node: fx.Node) -> str:
    if node.op == "call_module":
        return type(owner.get_submodule(str(node.target))).__name__.lower()
    return (node.target if isinstance(node.target, str) else node.target.__name__).rstrip("_")


def _insert(graph: fx.Graph, node: fx.Node, norm: str) -> None:
    with graph.inserting_before(node):
        if node.args:
            node.args = (graph.call_module(norm, (node.args[0],)), *node.args[1:])
        else:
            node.kwargs = {**node.kwargs, "input": graph.call_module(norm, (node.kwargs["input"],))}
