"""Normalise: a norm in front of every nonlinearity, and behind every other weight that sets a scale."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from typing import Literal

import torch
from torch import Tensor, nn

from nap_rl.nap.groups import unwrap, weight_groups, weight_layers
from nap_rl.nap.invariance import output_changes, scale_invariance
from nap_rl.nap.layers import EPS, TORCH_NORMS, Axes, NormKind, build_norm
from nap_rl.nap.rewrite import norm_after, norm_before, norm_inside, remove_bias, replace_module
from nap_rl.nap.trace import Example, Site, Trace, trace_forward

Role = Literal["invariant", "output", "hidden", "free"]
Build = Callable[[tuple[int, ...], bool], nn.Module]

# A layer counts as scale-invariant if 256 times its weights change the output less than a hundredth of what
# other weights of the same norm do: the scale of a small branch shows at such a factor, a tiny output layer does
# not hide the layers before it, and as a power of two the factor itself rounds nothing.
FACTOR = 256.0
INVARIANT = 1e-2

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
    4. Every weight layer is marked as scale-invariant, output or free, by scaling its weights and looking at
       the output. `Projector` reads these marks.

    An activation module that stands in one place becomes `Sequential(norm, activation)`. Where a function
    such as F.relu follows a weight layer, the norm hangs on that layer as `nap_norm`. Where it follows
    something else, a residual sum say, or an activation module stands in several places, torch.fx rewrites
    the forward that makes the call. Names of weights do not change. A second call changes nothing.

    Args:
        module: on its final device; DistributedDataParallel and torch.compile go around it afterwards.
        example_input: a tensor or a tuple of positional arguments. A few samples will do, more than one for
            "batch". They run in evaluation mode; RNGs and buffers are put back.
        norm: "layer", "rms", "group" (16 channels or more a group) or "batch".
        axes: of convolutions: "all", channels and positions together, or "channels", at each position alone.
        affine: whether new norms have gain and offset, one pair a channel. False is the paper's "omit".
        existing: what happens to torch norms that are there: "keep" (their epsilon becomes 1e-8), or
            "replace".
        free: paths of submodules (or parameters) to leave as they are. A projection leaves them alone as well.

    Returns:
        `module`.

    Raises:
        ValueError: naming the module that cannot be normalised. The module may be half rewritten then.
    """
    check_choice("norm", norm, "layer", "rms", "group", "batch")
    check_choice("axes", axes, "all", "channels")
    check_choice("existing", existing, "keep", "replace")
    if unwrap(module) is not module:
        raise ValueError("normalize the module first and wrap it in DistributedDataParallel or compile it after.")
    _refuse_closed(module, free)
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))

    def build(shape: tuple[int, ...], convolutional: bool) -> nn.Module:
        return build_norm(norm, shape, convolutional, axes, affine).to(like.device, like.dtype)

    if existing == "replace":
        for path, layout in trace_forward(module, example_input).norms.items():
            new = build(*layout)
            # The same text means the same kind, sizes and options: such a norm stays, with all it has learnt.
            if not within(path, free) and repr(new) != repr(module.get_submodule(path)):
                replace_module(module, path, new)
    for path, each in module.named_modules():
        if isinstance(each, TORCH_NORMS) and not within(path, free):
            each.eps = EPS

    trace = trace_forward(module, example_input)
    _norm_activations(module, trace, _missing(trace, free), build)
    trace = trace_forward(module, example_input)
    for site in _missing(trace, free):
        raise ValueError(
            f"module '{site.module or site.owner}': no normalisation could be put in front of its "
            f"{site.function}. Make it a submodule that is used once, or leave it out with free=[...]."
        )
    _norm_hidden_layers(module, trace, example_input, free, build)
    layers = weight_layers(module)
    for name, role in assign_roles(module, example_input, free).items():
        if role == "hidden":
            raise ValueError(
                f"layer '{name}' ({type(layers[name]).__name__}) still sets the scale of the output with all "
                "norms put in. Leave it out with free=[...]."
            )
        object.__setattr__(layers[name], "nap_role", role)
    for path, each in module.named_modules():
        if within(path, free):
            object.__setattr__(each, "nap_role", "free")
    return module


def assign_roles(module: nn.Module, example: Example, free: Collection[str] = ()) -> dict[str, Role]:
    """What each group of `weight_groups(module)` is to the output; layers that the example never uses are left out.

    "invariant": scaling the weights does not change the output. "output": it does, and their scale reaches the
    output past no norm and no other weight layer. "hidden": it does in any other way. "free": named so.

    Raises ValueError where the module multiplies by a parameter that is no weight layer's: it would be overlooked.
    """
    trace = trace_forward(module, example)
    for name in sorted(trace.strangers):
        if not within(name, free):
            raise ValueError(
                f"the module multiplies by parameter '{name}', which belongs to no Linear, convolution or layer with "
                "`joint_scale`: give its layer a `joint_scale` that lists it, or leave it out with free=[...]."
            )
    scaled = scale_invariance(module, example, factors=(FACTOR,))
    turned = output_changes(module, example, _random_of_same_norm)
    layers = weight_layers(module)
    roles: dict[str, Role] = {}
    for name, tensors in weight_groups(module).items():
        # Tied weights are one group with several users.
        users = {user for user, layer in layers.items() if any(p is tensors[0] for p in layer.parameters(False))}
        if any(within(user, free) for user in users):
            roles[name] = "free"
        elif users & trace.used and scaled[name] <= INVARIANT * turned[name]:
            roles[name] = "invariant"
        elif users & trace.used:
            roles[name] = "output" if users & trace.outputs else "hidden"
    return roles


def _random_of_same_norm(tensors: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    random = [torch.randn(tensor.shape, generator=generator).to(tensor) for tensor in tensors]
    return [r * (tensor.norm() / r.norm()) for r, tensor in zip(random, tensors, strict=True)]


def within(path: str, free: Collection[str]) -> bool:
    """Whether `path` is one of the submodules in `free`, or inside one."""
    return any(path == name or path.startswith(f"{name}.") for name in free)


def check_choice(name: str, value: str, *choices: str) -> None:
    if value not in choices:
        raise ValueError(f"{name}='{value}' is not one of {', '.join(choices)}.")


def check_paths(module: nn.Module, free: Collection[str]) -> None:
    names = {name for name, _ in (*module.named_modules(), *module.named_parameters())}
    for path in free:
        if path not in names:
            raise ValueError(f"free names '{path}', but the module has no submodule of that path.")


def _refuse_closed(module: nn.Module, free: Collection[str]) -> None:
    check_paths(module, free)
    for path, each in module.named_modules():
        if isinstance(each, CLOSED) and not within(path, free):
            raise ValueError(
                f"module '{path}' ({type(each).__name__}) keeps its nonlinearities inside one call, where no "
                "normalisation can be put. Write it with Linear layers, or leave it out with free=[...]."
            )


def _missing(trace: Trace, free: Collection[str]) -> list[Site]:
    """The activation calls that need a norm and have none."""
    return [
        site
        for number, site in enumerate(trace.sites)
        if not (site.flow.normalized or number in trace.squashes or within(site.module or site.owner, free))
    ]


def _norm_activations(module: nn.Module, trace: Trace, missing: list[Site], build: Build) -> None:
    """Put a norm before each activation call in `missing`, in the least intrusive way that is right."""
    layers = weight_layers(module)
    several = _used_in_several_places(trace.sites)
    before: dict[str, Site] = {}  # activation modules that stand in one place
    after: dict[str, Site] = {}  # weight layers that feed an activation elsewhere
    inside: dict[str, list[Site]] = defaultdict(list)  # calls that torch.fx has to reach, by owner
    for site in missing:
        if site.module is not None and site.module not in several:
            _check_same_channels(before.setdefault(site.module, site), site)
        elif site.flow.direct is not None:
            _check_same_channels(after.setdefault(site.flow.direct, site), site)
        else:
            inside[site.owner].append(site)
    for owner, wanted in inside.items():
        call = wanted[0].call  # where the owner runs more than once in a pass, its first run stands for all
        sites = [site for site in trace.sites if site.call == call]
        norms = {n: build(s.shape, s.flow.convolutional) for n, s in enumerate(sites) if s in wanted}
        norm_inside(module.get_submodule(owner), owner, sites, norms, trace.calls[call])
    for path, site in before.items():
        norm_before(module, path, build(site.shape, site.flow.convolutional))
    for path in after:
        norm_after(layers[path], build(*trace.layouts[path]))


def _norm_hidden_layers(module: nn.Module, trace: Trace, example: Example, free: Collection[str], build: Build) -> None:
    """Remove biases that go into norms; hang a norm on every hidden layer that is not scale-invariant yet."""
    layers = weight_layers(module)
    for name in trace.normed - trace.outputs:
        if not within(name, free):
            remove_bias(layers[name])
    for name, role in assign_roles(module, example, free).items():
        if role == "hidden":
            if name not in trace.layouts or hasattr(layers[name], "nap_norm"):
                raise ValueError(
                    f"layer '{name}' ({type(layers[name]).__name__}) sets the scale of the output, and a norm "
                    "behind it cannot help, since its weight is used elsewhere. Leave it out with free=[...]."
                )
            norm_after(layers[name], build(*trace.layouts[name]))
            remove_bias(layers[name])


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
