"""One forward pass of an example, watched: where activations and norms stand, and what feeds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from nap_rl.nap.groups import check_forward, weight_layers
from nap_rl.nap.layers import is_norm

Example = Tensor | tuple[Any, ...]
Call = tuple[tuple[Any, ...], dict[str, Any]]
Layout = tuple[tuple[int, ...], bool]  # shape, and whether it is [batch, channels, *positions]

# fmt: off
ACTIVATION_MODULES: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Softplus, nn.Softsign, nn.Tanhshrink, nn.Hardtanh, nn.Hardswish,
    nn.Hardsigmoid, nn.Hardshrink, nn.Softshrink, nn.Threshold, nn.GLU,
)
# Functions and methods by name, without the trailing underscore of those that work in place.
ACTIVATIONS = frozenset((
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "celu", "selu", "gelu", "silu", "mish", "tanh",
    "sigmoid", "logsigmoid", "log_sigmoid", "softplus", "softsign", "tanhshrink", "hardtanh", "hardswish",
    "hardsigmoid", "hardshrink", "softshrink", "threshold", "glu",
))
# Modules of other libraries that compute one of them, by a part of the class name.
ACTIVATION_NAMES = ("relu", "gelu", "silu", "swish", "mish", "activation")
# Bounded ones: what they do to a last layer's output (a policy's tanh) is left alone even where it is read again.
SQUASHES = frozenset(("tanh", "sigmoid", "logsigmoid", "log_sigmoid", "softsign", "hardtanh", "hardsigmoid"))
NORM_FUNCTIONS = frozenset((
    "layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm", "normalize",
))
# What may lie between a weight layer and its norm, since it mixes in nothing else: changes of shape and type,
# signs, dropout (off in this pass) and pooling (through which a bias per channel passes unchanged).
PASSES = frozenset((
    "view", "view_as", "reshape", "flatten", "unflatten", "contiguous", "squeeze", "unsqueeze", "permute",
    "transpose", "movedim", "swapaxes", "chunk", "split", "unbind", "narrow", "__getitem__", "__get__",
    "clone", "to", "float", "half", "bfloat16", "type", "type_as", "detach", "neg", "__neg__", "dropout",
    "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "max_pool1d",
    "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d",
))
REORDERS = frozenset(("permute", "transpose", "movedim", "swapaxes", "__get__"))
WEIGHTED = frozenset((
    "linear", "matmul", "__matmul__", "mm", "bmm", "addmm", "einsum", "conv1d", "conv2d", "conv3d",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "bilinear",
))
# fmt: on


class Flow(NamedTuple):
    """What is known of one tensor of the forward pass."""

    data: bool = False  # made from the example
    learned: bool = False  # made from parameters
    layers: frozenset[str] = frozenset()  # weight layers that reach it past no norm and no other weight layer
    sites: frozenset[int] = frozenset()  # activation calls that reach it past no weight layer
    parameters: frozenset[str] = frozenset()  # those that it is made from, if nothing of the example is in it
    origins: frozenset[str] = frozenset()  # modules with parameters, and activations, since the last one of either
    direct: str | None = None  # the weight layer whose output it is, past nothing but PASSES
    normalized: bool = False  # whether it is the output of a norm, likewise
    convolutional: bool = False  # [batch, channels, *positions], as convolutions give


@dataclass(frozen=True, eq=False)
class Site:
    """One call of an activation.

    Attributes:
        function: its name, such as "relu".
        module: path of the activation module, None for a function.
        owner: path of the module whose forward makes the call; call: which run of that forward, a key of
            Trace.calls.
        flow, shape: of the input.
    """

    function: str
    module: str | None
    owner: str
    call: int
    flow: Flow
    shape: tuple[int, ...]

    @property
    def layout(self) -> Layout:
        return self.shape, self.flow.convolutional


@dataclass
class Trace:
    """What the pass showed. Modules and layers are given by their paths.

    Attributes:
        sites: calls of activations on what the network has computed from the example, in order.
        final: numbers of the sites that shape an output after the last weight layer, and nothing else.
        used: weight layers that took part, and layouts: of their outputs, where they were called as modules.
        normed: weight layers whose output goes straight into a norm.
        outputs: weight layers whose scale reaches an output past no norm and no other weight layer.
        strangers: parameters that the network multiplies by and that are no weight layer's or embedding's.
        norms: norm modules, with the layout of their input.
        calls: arguments of each run of a module's forward, by number.
        origins: by activation module and weight layer, one entry a run: the modules with parameters and the
            activations that its input comes from, past no other activation or weight layer.
    """

    sites: list[Site] = field(default_factory=list)
    final: set[int] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    layouts: dict[str, Layout] = field(default_factory=dict)
    normed: set[str] = field(default_factory=set)
    outputs: set[str] = field(default_factory=set)
    strangers: set[str] = field(default_factory=set)
    norms: dict[str, Layout] = field(default_factory=dict)
    calls: dict[int, Call] = field(default_factory=dict)
    origins: dict[str, list[frozenset[str]]] = field(default_factory=dict)


def trace_forward(module: nn.Module, example: Example) -> Trace:
    """Run `module` on the example once, undisturbed, and report what happened inside."""
    check_forward(module)
    _check_example(example)
    watch = _Watch(module)
    for tensor in tree_leaves(example):
        watch.set_flow(tensor, Flow(data=True))
    with torch.no_grad(), undisturbed(module), watch.hooks(), watch:
        try:
            out = module(*positional(example))
        except (RuntimeError, TypeError) as error:  # torch's and Python's, of shapes, dtypes and arguments
            raise ValueError(f"the module does not run on the example, {_described(example)}: {error}") from error
    flows = [watch.flow(leaf) for leaf in tree_leaves(out)]
    trace = watch.trace
    trace.outputs = set().union(*(flow.layers for flow in flows))
    last = set().union(*(flow.sites for flow in flows))
    trace.final = {n for n in last if n not in watch.read_on or trace.sites[n].function in SQUASHES}
    return trace


def _check_example(example: Example) -> None:
    leaves = tree_leaves(example)
    if not any(isinstance(each, Tensor) for each in leaves):
        kind = type(leaves[0] if leaves else example)
        raise TypeError(f"the example holds {kind.__module__}.{kind.__name__} and no tensor: see torch.as_tensor.")
    if any(isinstance(each, Tensor) and each.numel() == 0 for each in leaves):
        raise ValueError("the example is empty: a few samples are needed to see what the module does with them.")


def _described(example: Example) -> str:
    return ", ".join(
        f"{str(each.dtype).removeprefix('torch.')} {list(each.shape)}" if isinstance(each, Tensor) else repr(each)[:40]
        for each in tree_leaves(example)
    )


def is_activation(module: nn.Module) -> bool:
    """Whether the module is a nonlinearity as a whole: one of torch's, or a leaf without parameters named like one."""
    if isinstance(module, ACTIVATION_MODULES):
        return True
    leaf = next(module.children(), None) is None and next(module.parameters(), None) is None
    return leaf and any(name in type(module).__name__.lower() for name in ACTIVATION_NAMES)


def positional(example: Example) -> tuple[Any, ...]:
    return example if isinstance(example, tuple) else (example,)


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, on copies of the buffers; afterwards RNGs, buffers and training flags are as before.

    BatchNorm works from its batch as in training: with its running statistics nothing would be
    scale-invariant.
    """
    training = {each: each.training for each in module.modules()}
    buffers = [(each._buffers, name, b) for each in training for name, b in each._buffers.items() if b is not None]
    copies = {buffer: buffer.clone() for _, _, buffer in buffers}
    devices = {tensor.device for tensor in (*module.parameters(), *copies)}
    cuda = [str(device) for device in devices if device.type == "cuda"]
    try:
        for each in training:
            each.training = isinstance(each, _BatchNorm)
        for holder, name, buffer in buffers:
            holder[name] = copies[buffer]
        with torch.random.fork_rng(cuda):
            yield
    finally:
        for each, flag in training.items():
            each.training = flag
        for holder, name, buffer in buffers:
            holder[name] = buffer


class _Run(NamedTuple):
    module: nn.Module
    number: int
    site: int | None  # of an activation module: its own
    origins: frozenset[str]  # of its inputs


class _Watch(TorchFunctionMode):
    """Follows every tensor through functions (as a mode) and through modules (by hooks)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.trace = Trace()
        self.flows: dict[int, Flow] = {}
        self.alive: list[Tensor] = []  # an id means one tensor only as long as that tensor lives
        self.names = {each: name for name, each in module.named_modules()}
        self.layers = {layer: name for name, layer in weight_layers(module).items()}
        # By parameter: the weight layer that it belongs to, "" for an embedding.
        self.layer_of: dict[str, str] = {}
        paths = {parameter: name for name, parameter in module.named_parameters()}
        for owner in module.modules():
            if owner in self.layers or isinstance(owner, nn.Embedding):
                for parameter in owner.parameters(recurse=False):
                    self.layer_of[paths[parameter]] = self.layers.get(owner) or self.layer_of.get(paths[parameter], "")
        for parameter, name in paths.items():
            self.set_flow(parameter, Flow(learned=True, parameters=frozenset({name})))
        self.running: list[_Run] = []
        self.runs = 0
        self.read_on: set[int] = set()  # sites whose output reaches a weight layer

    def flow(self, value: object) -> Flow:
        return self.flows.get(id(value), Flow())

    def set_flow(self, value: object, flow: Flow) -> None:
        if isinstance(value, Tensor):
            self.flows[id(value)] = flow
            self.alive.append(value)

    def add_site(self, function: str, module: str | None, value: Tensor) -> int | None:
        """The number of a new site; None for a function of inputs or parameters alone: it needs no norm."""
        flow = self.flow(value)
        if not (flow.data and flow.learned and self.running):
            return None
        run = self.running[-1]
        site = Site(function, module, self.names[run.module], run.number, flow, tuple(value.shape))
        self.trace.sites.append(site)
        return len(self.trace.sites) - 1

    def after_norm(self, flow: Flow) -> Flow:
        if flow.direct is not None:
            self.trace.normed.add(flow.direct)
        return flow._replace(layers=frozenset(), direct=None, normalized=True)

    # Functions.

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        name = name if name.startswith("__") else name.rstrip("_")
        inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        flows = [self.flow(value) for value in inputs]
        dims = [value.ndim for value in inputs]
        site = None
        if name in ACTIVATIONS and inputs:
            site = self.running[-1].site if self.inside_whole() else self.add_site(name, None, inputs[0])
        out = func(*args, **kwargs)
        if inputs:
            for value in tree_leaves(out):
                if isinstance(value, Tensor):
                    image = any(f.convolutional and d == value.ndim for f, d in zip(flows, dims, strict=True))
                    image = (image and name not in REORDERS) or name.startswith("conv")
                    self.set_flow(value, self.after(name, inputs, flows, site)._replace(convolutional=image))
        return out

    def inside_whole(self) -> bool:
        """Whether the running module is seen as a whole, so that what it calls is its own affair."""
        if not self.running:
            return False
        module = self.running[-1].module
        return is_activation(module) or module in self.layers or is_norm(module)

    def after(self, name: str, inputs: list[Tensor], flows: list[Flow], site: int | None) -> Flow:
        if name in NORM_FUNCTIONS:
            return self.after_norm(flows[0])
        if name in PASSES:
            return flows[0]
        data, learned = any(flow.data for flow in flows), any(flow.learned for flow in flows)
        parameters = frozenset[str]().union(*(flow.parameters for flow in flows))
        origins = frozenset[str]().union(*(flow.origins for flow in flows))
        sites = frozenset[int]().union(*(flow.sites for flow in flows), () if site is None else (site,))
        if name in WEIGHTED and data and parameters:
            self.read_on |= sites
            weights = frozenset(self.layer_of[each] for each in parameters if self.layer_of.get(each))
            self.trace.used |= weights
            if not self.inside_whole():
                self.trace.strangers |= parameters - self.layer_of.keys()
            return Flow(data, learned, weights, origins=origins)
        layers = frozenset[str]().union(*(flow.layers for flow in flows))
        return Flow(data, learned, layers, sites, frozenset() if data else parameters, origins)

    # Modules.

    @contextmanager
    def hooks(self) -> Iterator[None]:
        handles = []
        for module in self.names:
            handles.append(module.register_forward_pre_hook(self.enter, prepend=True, with_kwargs=True))
            # First of the layer's hooks, so that it sees the output that a norm, hung on as a hook, works on.
            handles.append(module.register_forward_hook(self.leave, prepend=True, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        flows = [self.flow(value) for value in tree_leaves((args, kwargs))]
        site = None
        if is_activation(module) and args and isinstance(args[0], Tensor):
            site = self.add_site(type(module).__name__.lower(), self.names[module], args[0])
        if module in self.layers:
            self.read_on.update(*(flow.sites for flow in flows))
        self.runs += 1
        origins = frozenset[str]().union(*(flow.origins for flow in flows))
        self.running.append(_Run(module, self.runs, site, origins))
        self.trace.calls[self.runs] = (args, kwargs)

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: object) -> None:
        run = self.running.pop()
        name = self.names[module]
        value = next(iter((*args, *kwargs.values())), None)
        if module in self.layers and isinstance(out, Tensor):
            self.trace.used.add(name)
            image = self.flow(out).convolutional
            self.trace.layouts[name] = (tuple(out.shape), image)
            self.set_flow(out, Flow(True, True, frozenset({name}), direct=name, convolutional=image))
        elif is_norm(module) and isinstance(value, Tensor) and not self.inside_whole():
            self.trace.norms[name] = (tuple(value.shape), self.flow(value).convolutional)
            self.set_flow(out, self.after_norm(self.flow(value)))
        if run.site is not None and isinstance(out, Tensor):
            flow = self.flow(out)
            self.set_flow(out, flow._replace(sites=flow.sites | {run.site}))
        if module in self.layers or is_activation(module):
            self.trace.origins.setdefault(name, []).append(run.origins)
            self.set_origins(out, frozenset((name, *(self.names[each] for each in module.modules() if _owns(each)))))
        elif next(module.children(), None) is None:
            self.set_origins(out, run.origins | {name} if _owns(module) else run.origins)

    def set_origins(self, out: object, origins: frozenset[str]) -> None:
        for value in tree_leaves(out):
            self.set_flow(value, self.flow(value)._replace(origins=origins))


def _owns(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None
