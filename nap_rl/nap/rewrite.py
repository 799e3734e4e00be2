"""Putting norms into a module: before an activation, behind a weight layer, or inside a traced forward.

Whatever is put in can be copied, pickled, scripted and exported: no class or function of one process alone.
"""

from __future__ import annotations

import copyreg
import inspect
import linecache
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any, get_type_hints

from torch import Tensor, fx, nn

from nap_rl.nap.groups import is_transposed
from nap_rl.nap.trace import ACTIVATIONS, Call, Site, is_activation


def replace_module(root: nn.Module, path: str, new: nn.Module) -> None:
    """Put `new` in the place of the module at `path`, under every name that this one has."""
    old = root.get_submodule(path)
    for parent in list(root.modules()):
        for name in [name for name, child in parent._modules.items() if child is old]:
            setattr(parent, name, new)


def norm_before(root: nn.Module, path: str, norm: nn.Module) -> None:
    """The activation module at `path` becomes `path.norm` followed by `path.activation`."""
    activation = root.get_submodule(path)
    replace_module(root, path, nn.Sequential(OrderedDict(norm=norm, activation=activation)))


def norm_after(layer: nn.Module, norm: nn.Module) -> None:
    """`layer` returns `layer.nap_norm(output)`, by a hook: a wrapper would rename the layer's weights."""
    layer.add_module("nap_norm", norm)
    layer.register_forward_hook(call_nap_norm)


def call_nap_norm(self: Any, input: tuple[Tensor], output: Tensor) -> Tensor:
    """A forward hook, with the names and types that TorchScript asks for."""
    y: Tensor = self.nap_norm(output)
    return y


def remove_bias(layer: nn.Module) -> None:
    """By the layer's own `remove_bias()` if it has one; a `Conv1D` needs one to add, which becomes a constant zero."""
    if callable(remove := getattr(layer, "remove_bias", None)):
        remove()
    elif isinstance(bias := getattr(layer, "bias", None), nn.Parameter):
        layer.register_parameter("bias", None)
        if is_transposed(layer):
            del layer._parameters["bias"]
            layer.register_buffer("bias", bias.detach().clone().zero_(), persistent=False)


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
    first = sum(child.startswith("nap_norm_") for child, _ in owner.named_children())
    children = {site: f"nap_norm_{first + number}" for number, site in enumerate(sorted(norms))}
    for site, child in children.items():
        owner.add_module(child, norms[site])
    training = owner.training
    graphs = []
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
            for site, child in children.items():
                _insert(graph, nodes[site], child)
            graphs.append(graph)
    finally:
        owner.training = training
    cls = type(owner)
    owner.__class__ = rewritten(vars(cls).get("nap_original", cls), _source(*graphs))


@cache
def rewritten(cls: Any, source: str) -> type[nn.Module]:
    """The subclass of `cls` with the functions in `source`. One class for one source, so modules stay stackable.

    Its objects are pickled and copied as `cls` and `source`, from which any process makes the class again.
    """
    filename = f"<forward of {cls.__module__}.{cls.__qualname__} with norms, {hash(source):x}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)  # for TorchScript
    functions: dict[str, Any] = {}
    exec(compile(source, filename, "exec"), functions)
    members = {key: value for key, value in functions.items() if key.startswith("forward")}
    extra = {"__reduce_ex__": _reduce, "nap_original": cls, "nap_source": source}
    return type(
        cls.__name__, (cls,), {"__module__": cls.__module__, "__qualname__": cls.__qualname__, **members, **extra}
    )


def _reduce(self: Any, protocol: Any) -> Any:
    reduced = super(type(self), self).__reduce_ex__(protocol)
    if reduced[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
        return reduced
    return _restore, (self.nap_original, self.nap_source), *reduced[2:]


def _restore(cls: Any, source: str) -> nn.Module:
    new = rewritten(cls, source)
    return new.__new__(new)


def _source(train: fx.Graph, evaluate: fx.Graph) -> str:
    """Python text of `forward`, which runs the graph of the module's mode."""
    codes = [graph.python_code("self") for graph in (train, evaluate)]
    bodies = [code.src.strip() + "\n" for code in codes]
    words = set(re.findall(r"\w+", "".join(bodies)))
    names = {name: value for code in codes for name, value in code.globals.items() if name in words}
    imports = "".join(_import(name, value) for name, value in sorted(names.items()))
    if bodies[0] == bodies[1]:
        return imports + bodies[0]
    head = next(line for line in bodies[0].splitlines() if line.startswith("def forward("))
    arguments = ", ".join(str(node.target) for node in train.nodes if node.op == "placeholder")
    return (
        imports
        + bodies[0].replace("def forward(", "def forward_in_training(", 1)
        + bodies[1].replace("def forward(", "def forward_in_evaluation(", 1)
        + f"{head}\n    if self.training:\n        return self.forward_in_training({arguments})\n"
        + f"    return self.forward_in_evaluation({arguments})\n"
    )


def _import(name: str, value: Any) -> str:
    if isinstance(value, ModuleType):
        return f"import {value.__name__} as {name}\n" if value.__name__ != name else f"import {name}\n"
    if isinstance(value, float):
        return f"{name} = float('{value}')\n"
    if value is type(None):
        return f"{name} = type(None)\n"
    return f"from {value.__module__} import {value.__qualname__} as {name}\n"


def _trace(owner: nn.Module, name: str, sites: Sequence[Site], call: Call) -> fx.Graph:
    """The graph of one module's own forward, with its submodules as single nodes."""
    bound = inspect.signature(owner.forward).bind(*call[0], **call[1])
    given = set(bound.arguments)
    bound.apply_defaults()
    # What is no tensor decides between branches. torch.fx turns these into assertions of the traced forward.
    fixed = {
        key: value
        for key, value in bound.arguments.items()
        if value is None or isinstance(value, (bool, int, float, str)) or (key not in given and value)
    }
    tracer = fx.Tracer()
    tracer.is_leaf_module = lambda *_: True  # type: ignore[method-assign]
    try:
        graph = tracer.trace(owner, fixed or None)
    except Exception as error:  # torch.fx raises many kinds, and all mean that it cannot follow this forward
        functions = ", ".join(sorted({site.function for site in sites}))
        raise ValueError(
            f"module '{name}' ({type(owner).__name__}) calls {functions} in its forward, which torch.fx "
            f"cannot trace ({error}): make its activations submodules, each used once."
        ) from error
    hints = _hints(type(owner))
    for node in graph.nodes:
        if isinstance(node.type, str):  # an annotation that is still text
            node.type = hints.get("return" if node.op == "output" else str(node.target))
    return graph


def _hints(cls: type[nn.Module]) -> dict[str, Any]:
    try:
        return get_type_hints(cls.forward)
    except Exception:  # a name that only type checkers import, say
        return {}


def _is_activation(owner: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return is_activation(owner.get_submodule(str(node.target)))
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
