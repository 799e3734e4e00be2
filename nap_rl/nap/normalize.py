"""Normalise: a norm in front of every nonlinearity, and behind every other weight that sets a scale."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nap_rl.nap.groups import check_choice, check_forward, check_paths, unwrap, weight_groups, weight_layers, within
from nap_rl.nap.layers import EPS, TORCH_NORMS, Axes, NormKind, RMSNorm, build_norm
from nap_rl.nap.rewrite import norm_after, norm_before, norm_inside, remove_bias, replace_module
from nap_rl.nap.roles import assign_roles, is_narrow
from nap_rl.nap.trace import Example, Layout, Site, Trace, positional, trace_forward, undisturbed

LARGEST = 1e18  # its square, summed over 100 numbers, is a float32
CLOSED = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, torch.jit.ScriptModule)


def normalize(
    module: nn.Module,
    example_input: Example,
    *,
    norm: NormKind = "layer",
    axes: Axes = "all",
    affine: bool = True,
    existing: Literal["keep", "replace"] = "keep",
    free: Collection[str] = (),
) -> nn.Module:
    """Make every hidden weight of `module` scale-invariant, in place.

    1. A normalisation is put in front of every nonlinearity that has none.
    2. Biases that go straight into a normalisation are removed: its offset takes their place.
    3. A hidden layer whose scale still reaches the output (the last one of a residual branch, the first one
       of a residual stream, a query projection, ...) gets a normalisation right behind it and loses its
       bias. The paper does not state a rule for such layers.
    4. Every weight layer is marked with its role (`nap_rl.nap.roles`), which `Projector` reads.

    Two kinds of layers get no norm, and a projection leaves them alone. The last weight layer gives the output,
    whatever activation follows it. And a norm over one number or two, or behind a layer with a single input, would
    leave a constant or a sign.

    An activation module that stands in one place becomes `Sequential(norm, activation)`. Where a function
    such as F.relu follows a weight layer, the norm hangs on that layer as `nap_norm`. Where it follows
    something else, a residual sum say, or an activation module stands in several places, torch.fx rewrites
    the forward that makes the call. Names of weights do not change. A second call changes nothing.

    Args:
        module: on its final device; DistributedDataParallel and torch.compile go around it afterwards.
        example_input: a tensor or a tuple of positional arguments. A few samples will do, eight or more for
            "batch". They run in evaluation mode; RNGs and buffers are put back.
        norm: "layer", "rms", "group" (16 channels or more a group) or "batch".
        axes: of convolutions: "all", channels and positions together, or "channels", at each position alone.
        affine: whether new norms have gain and offset, one pair a channel. False is the paper's "omit".
        existing: what happens to torch norms that are there: "keep" (their epsilon becomes 1e-8), or
            "replace".
        free: paths of submodules (or parameters) to leave as they are. A projection leaves them alone as well.

    Returns:
        `module`.

    Warns:
        UserWarning: what reaches a norm is below its epsilon, which takes most of it for nothing.

    Raises:
        ValueError: naming the module that cannot be normalised. The module may be half rewritten then.
        TypeError: `module` is no module, or the example holds no tensor.
    """
    check_choice("norm", norm, "layer", "rms", "group", "batch")
    check_choice("axes", axes, "all", "channels")
    check_choice("existing", existing, "keep", "replace")
    _refuse(module, free)
    norms = Norms(module, norm, axes, affine)
    for each in module.modules():
        each.__dict__.pop("nap_role", None)
    for path in (path for path, _ in module.named_modules() if within(path, free)):
        _mark(module, path, "free")

    if existing == "replace":
        for path, layout in trace_forward(module, example_input).norms.items():
            new = norms.build(layout)
            # The same text means the same kind, sizes and options: such a norm stays, with all it has learnt.
            if not within(path, free) and repr(new) != repr(module.get_submodule(path)) and norms.fit(layout):
                replace_module(module, path, new)
    for path, each in module.named_modules():
        if isinstance(each, TORCH_NORMS) and not within(path, free):
            each.eps = EPS

    trace = trace_forward(module, example_input)
    _norm_activations(module, trace, _missing(module, trace, free, norms), free, norms)
    trace = trace_forward(module, example_input)
    for site in _missing(module, trace, free, norms):
        raise ValueError(
            f"module '{site.module or site.owner}': no normalisation could be put in front of its "
            f"{site.function}. Make it a submodule that is used once, or leave it out with free=[...]."
        )
    _norm_hidden_layers(module, trace, example_input, free, norms)
    _look_at_norms(module, example_input, free)
    for name, role in assign_roles(module, example_input, free).items():
        if role == "hidden":
            rows = ", or give an example of eight rows or more: over two, norm='batch' leaves a sign"
            raise ValueError(
                f"layer '{name}' ({type(module.get_submodule(name)).__name__}) still sets the scale of the output with "
                f"all norms put in. Leave it out with free=[...]{rows if norm == 'batch' else ''}."
            )
        _mark(module, name, role)
    return module


def _mark(module: nn.Module, path: str, role: str) -> None:
    object.__setattr__(module.get_submodule(path), "nap_role", role)


@dataclass(frozen=True)
class Norms:
    """The norms that are put into one module: all of one kind."""

    module: nn.Module
    kind: NormKind
    axes: Axes
    affine: bool

    def build(self, layout: Layout) -> nn.Module:
        """A norm for inputs of this layout, with dtype and device of the module."""
        like = next((p for p in self.module.parameters() if p.is_floating_point()), torch.empty(0))
        return build_norm(self.kind, *layout, self.axes, self.affine).to(like.device, like.dtype)

    def fit(self, layout: Layout, layer: nn.Module | None = None) -> bool:
        """Whether a norm of what `layer` gives, in this layout, leaves anything of it."""
        return not is_narrow(layer, layout, self.kind, self.axes)


def _refuse(module: nn.Module, free: Collection[str]) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"normalize takes a torch.nn.Module, but this is a {type(module).__name__}.")
    if unwrap(module) is not module:
        raise ValueError("normalize the module first and wrap it in DistributedDataParallel or compile it after.")
    check_paths(module, free)
    check_forward(module)
    for path, parameter in module.named_parameters():
        if parameter.is_meta:
            raise ValueError(f"parameter '{path}' is on the meta device, without memory: give it values first.")
    weight_groups(module, free=free)
    for path, each in module.named_modules():
        if isinstance(each, CLOSED) and not within(path, free):
            raise ValueError(
                f"module '{path}' ({type(each).__name__}) keeps its nonlinearities inside one call, where no "
                "normalisation can be put. Write it with Linear layers, or leave it out with free=[...]."
            )


def _missing(module: nn.Module, trace: Trace, free: Collection[str], norms: Norms) -> list[Site]:
    """The activation calls that need a norm and have none."""
    layers = weight_layers(module)
    return [
        site
        for number, site in enumerate(trace.sites)
        if not (site.flow.normalized or number in trace.final or within(site.module or site.owner, free))
        and norms.fit(site.layout, layers.get(site.flow.direct or ""))
    ]


def _norm_activations(
    module: nn.Module, trace: Trace, missing: list[Site], free: Collection[str], norms: Norms
) -> None:
    """Put a norm before each activation call in `missing`, in the least intrusive way that is right."""
    layers = weight_layers(module)
    several = _used_in_several_places(trace.sites)
    before: dict[str, Site] = {}  # activation modules that stand in one place
    after: dict[str, Site] = {}  # weight layers that feed an activation elsewhere
    inside: dict[str, list[Site]] = defaultdict(list)  # calls that torch.fx has to reach, by owner
    for site in missing:
        if site.module is not None and site.module not in several:
            _check_same_channels(before.setdefault(site.module, site), site)
        elif site.flow.direct is not None and not within(site.flow.direct, free):
            _check_same_channels(after.setdefault(site.flow.direct, site), site)
        else:
            inside[site.owner].append(site)
    for owner, wanted in inside.items():
        call = wanted[0].call  # where the owner runs more than once in a pass, its first run stands for all
        sites = [site for site in trace.sites if site.call == call]
        new = {number: norms.build(site.layout) for number, site in enumerate(sites) if site in wanted}
        norm_inside(module.get_submodule(owner), owner, sites, new, trace.calls[call])
    for path, site in before.items():
        norm_before(module, path, norms.build(site.layout))
    for path in after:
        norm_after(layers[path], norms.build(trace.layouts[path]))


def _norm_hidden_layers(module: nn.Module, trace: Trace, example: Example, free: Collection[str], norms: Norms) -> None:
    """Remove biases that go into norms; hang a norm on every hidden layer that is not scale-invariant yet."""
    layers = weight_layers(module)
    for name in trace.normed - trace.outputs:
        if not within(name, free):
            remove_bias(layers[name])
    for name, role in assign_roles(module, example, free).items():
        layer = layers[name]
        if role == "hidden" and name in trace.layouts and not norms.fit(trace.layouts[name], layer):
            _mark(module, name, "narrow")
        elif role == "hidden":
            if name not in trace.layouts or hasattr(layer, "nap_norm"):
                raise ValueError(
                    f"layer '{name}' ({type(layer).__name__}) sets the scale of the output, and a norm "
                    "behind it cannot help, since its weight is used elsewhere. Leave it out with free=[...]."
                )
            norm_after(layer, norms.build(trace.layouts[name]))
            remove_bias(layer)


def _look_at_norms(module: nn.Module, example: Example, free: Collection[str]) -> None:
    """What the example sends into each norm of vectors or whole images.

    ValueError where it comes in one direction only, c w with a number c, so that the norm gives +- w, or where it is
    too large for the norm's squares. A warning where it is below the norm's epsilon.
    """
    constant: list[str] = []

    def watch(norm: nn.Module, path: str) -> RemovableHandle:
        def look(norm: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            whole = isinstance(norm, nn.GroupNorm) or getattr(norm, "positions", 0) > 0
            x = args[0].detach().double()
            rows = x.flatten(1) if whole else x.reshape(-1, x.shape[-1])
            if not isinstance(norm, RMSNorm):
                rows = rows - rows.mean(1, keepdim=True)
            size, eps = float(rows.square().mean(1).max()) ** 0.5, float(norm.eps or 0.0)  # type: ignore[arg-type]
            seen = f"what reaches the normalisation '{path}' has a standard deviation of {size:.1e}"
            if size > LARGEST or (isfinite(size) and not bool(out.isfinite().all())):
                raise ValueError(f"{seen}, whose square is too large: scale down the weights or inputs that feed it.")
            if 0 < size < 10 * eps**0.5:
                small = f"but its epsilon takes {eps**0.5:.0e} for nothing: scale up the weights or inputs that feed it"
                warnings.warn(f"{seen}, {small}.", stacklevel=2)
            if _has_one_direction(rows):
                constant.append(path)

        return norm.register_forward_hook(look)

    kinds = (nn.LayerNorm, nn.GroupNorm, RMSNorm)
    norms = {path: each for path, each in module.named_modules() if isinstance(each, kinds) and not within(path, free)}
    handles = [watch(norm, path) for path, norm in norms.items()]
    try:
        with torch.no_grad(), undisturbed(module):
            module(*positional(example))
    finally:
        for handle in handles:
            handle.remove()
    if constant:
        raise ValueError(
            f"the normalisation '{constant[0]}' would give the same for every input, up to its sign, since a single "
            f"number reaches it: leave '{constant[0].rpartition('.')[0]}' out with free=[...], or widen what feeds it."
        )


def _has_one_direction(rows: Tensor) -> bool:
    """Whether rows [samples, numbers] of different lengths lie on one line through 0; three or more are needed."""
    lengths = rows.norm(dim=1)
    rows, lengths = rows[lengths > 0], lengths[lengths > 0]
    if len(rows) < 3 or lengths.max() < 1.001 * lengths.min():
        return False
    cosines = (rows @ rows[0]) / (lengths * lengths[0])
    return bool((cosines.abs() > 1 - 1e-10).all())


def _used_in_several_places(sites: list[Site]) -> set[str]:
    """Activation modules that two modules call, or that one calls twice in one run of its forward."""
    owners = defaultdict(set)
    for site in sites:
        owners[site.module].add(site.owner)
    calls = Counter((site.module, site.call) for site in sites)
    twice = {module for (module, _), count in calls.items() if count > 1}
    return {module for module in owners if module and (module in twice or len(owners[module]) > 1)}


def _check_same_channels(one: Site, other: Site) -> None:
    """One norm has to serve both calls."""

    def channels(site: Site) -> int:
        return site.shape[1] if site.flow.convolutional else site.shape[-1]

    if channels(one) != channels(other) or one.flow.convolutional != other.flow.convolutional:
        raise ValueError(
            f"module '{one.module or one.owner}': its {one.function} is called on shapes {one.shape} and "
            f"{other.shape}, which one normalisation cannot serve. Use one activation module for each."
        )
