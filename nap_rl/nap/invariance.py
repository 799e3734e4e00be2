"""Does the output stay the same when a weight is scaled? The premise of Normalize-and-Project, checked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import torch
from torch import Generator, Tensor, nn
from torch.utils.hooks import RemovableHandle

from nap_rl.nap.groups import Weights, check_forward, unwrap, weight_groups
from nap_rl.nap.stand_ins import outputs, precision, stand_ins
from nap_rl.nap.trace import Example

PROBES = 4
# A ratio below it, or a relative change of the output below it, is that of a scale-invariant layer.
INVARIANT = 1e-2
# A layer is unreached if random weights would change the output by less than this fraction.
UNREACHED = 1e-12
# A power of two: scaling by it rounds nothing.
FACTOR = 256.0


def scale_invariance(
    module: nn.Module, example_input: Example, *, factors: Sequence[float] = (0.1, 10.0), free: Collection[str] = ()
) -> dict[str, float]:
    """How much the output changes, relatively, when the weights of one layer are multiplied by each of `factors`.

    f(c W) = f(W) is what makes the norm of W free to be projected: 0 says that it holds, up to the epsilon of the
    norms; values near 1 and above that it does not. Runs in float64, `len(factors)` forwards a layer.

    Args:
        module: in any state, and left exactly in it, RNGs and buffers included.
        example_input: a tensor or a tuple of positional arguments.
        free: paths of submodules to leave out.

    Returns:
        For each group of `weight_groups(module)` the largest ||f(c W) - f(W)|| / ||f(W)|| over factors and
        output tensors. Infinity if no gradient reaches the layer, since then nothing is known of it. Parameters that
        are all zero, such as new biases or the last layer of a fresh policy, hold small random values during the
        check: zeros would hide what stands behind them.

    Raises:
        ValueError: the output holds no floating-point tensor, or one that is not finite.
    """
    module = unwrap(module)
    check_forward(module)
    groups = weight_groups(module, free=free)
    generator = Generator().manual_seed(0)
    exact = torch.float64
    with stand_ins(module, lambda parameter: _without_zeros(parameter, generator, exact), exact) as found:
        weights = {name: [found[tensor] for tensor in tensors] for name, tensors in groups.items()}
        squares = _euler(module, example_input, weights, generator)
        changes = {name: 0.0 if across > UNREACHED**2 else float("inf") for name, (_, across) in squares.items()}
        with torch.no_grad():
            before = outputs(module, example_input, exact)
            for name, own in weights.items():
                scaled = [_change(module, example_input, before, own, factor) for factor in factors]
                changes[name] = max(changes[name], *scaled)
    return changes


def scale_ratios(module: nn.Module, example: Example, groups: Mapping[str, Weights]) -> dict[str, float]:
    """How much the scale of each group of weights W matters: one backward pass a probe, however many groups.

    Euler's identity: if f(c W) = f(W) for all c, then <W, grad_W (v . f)> = 0 for every v. With random v,

        ratio = rms <W, g> / (||W|| rms ||g|| / sqrt(size of W)),    g = grad_W (v . f), rms over the probes,

    is the output's change along W over its change along random directions of the same length: 0 if W is
    scale-invariant, about 1 if not. A last test scales many invariant groups at once, to confirm.

    The answer belongs to the architecture and not to the present weights: a residual branch that starts at 1e-6 will
    grow. So each probe has its own gains, offsets and biases, and what is tiny is scaled up.

    Returns:
        The ratio by group; infinity if the last test moves the output; NaN if no gradient reaches the group.

    Raises:
        ValueError: the output holds no floating-point tensor, or one that is not finite.
    """
    try:
        return _ratios(module, example, groups, _generic)
    except ValueError:  # not every parameter can have any value, such as one whose square root is taken
        return _ratios(module, example, groups, _without_zeros)


Draw = Callable[[Tensor, Generator, torch.dtype], Tensor]


def _ratios(module: nn.Module, example: Example, groups: Mapping[str, Weights], draw: Draw) -> dict[str, float]:
    dtype = precision(module)
    generator = Generator().manual_seed(0)
    along, across = dict.fromkeys(groups, 0.0), dict.fromkeys(groups, 0.0)
    moved: list[str] = []
    for probe in range(PROBES):
        with stand_ins(module, lambda parameter: draw(parameter, generator, dtype), dtype) as found:
            weights = {name: [found[tensor] for tensor in tensors] for name, tensors in groups.items()}
            for name, squares in _euler(module, example, weights, generator).items():
                along[name] += squares[0]
                across[name] += squares[1]
            if probe == PROBES - 1:
                reached = [name for name in groups if across[name] > UNREACHED**2]
                invariant = [name for name in reached if along[name] <= INVARIANT**2 * across[name]]
                some = [name for name in invariant if torch.rand((), generator=generator) < 0.5]
                with torch.no_grad():
                    before = outputs(module, example, dtype)
                    for names in (invariant, some):
                        moved += _movers(module, example, before, {name: weights[name] for name in names})
    ratios = {n: (along[n] / across[n]) ** 0.5 if across[n] > UNREACHED**2 else float("nan") for n in groups}
    return {**ratios, **dict.fromkeys(moved, float("inf"))}


def _euler(
    module: nn.Module, example: Example, weights: Mapping[str, list[nn.Parameter]], generator: Generator
) -> dict[str, tuple[float, float]]:
    """By group (<W, g>^2, ||W||^2 ||g||^2 / size of W), g the gradient of the sum over outputs f of <v, f> / ||f||."""
    every = [weight for own in weights.values() for weight in own]
    sums = dict.fromkeys(every, (0.0, 0.0))  # <W, g> and ||g||^2

    def take(weight: nn.Parameter, gradient: Tensor) -> Tensor:
        sums[weight] = (_dot(weight.detach(), gradient), _dot(gradient, gradient))
        return gradient.new_zeros(()).expand_as(gradient)  # so that one gradient at a time is in memory

    with torch.inference_mode(False), torch.enable_grad():
        hooks: list[RemovableHandle] = [
            weight.requires_grad_().register_hook(partial(take, weight))  # type: ignore[no-untyped-call]
            for weight in every
        ]
        found = [out for out in outputs(module, example, every[0].dtype) if out.requires_grad] if every else []
        if found:
            parts = [(_normal(out, generator) * out).sum() / (out.detach().norm() or 1.0) for out in found]
            torch.autograd.grad(torch.stack(parts).sum(), every, allow_unused=True)
        for weight, hook in zip(every, hooks, strict=True):
            weight.requires_grad_(False)
            hook.remove()
    squares = {}
    for name, own in weights.items():
        along = sum(sums[weight][0] for weight in own)
        across = sum(sums[weight][1] for weight in own) * sum(_dot(weight, weight) for weight in own)
        squares[name] = (along**2, across / sum(weight.numel() for weight in own))
    return squares


def _dot(a: Tensor, b: Tensor) -> float:
    """The inner product; of float32, by rows summed in float64."""
    if a.dtype == torch.float64 or a.ndim < 2:
        return torch.dot(a.flatten().double(), b.flatten().double()).item()
    total: float = torch.linalg.vecdot(a.flatten(1), b.flatten(1)).double().sum().item()
    return total


def _movers(
    module: nn.Module, example: Example, before: list[Tensor], weights: Mapping[str, list[nn.Parameter]]
) -> list[str]:
    """Which of these groups move the output when scaled: all are scaled at once, then halves of those that do."""
    every = [weight for own in weights.values() for weight in own]
    if not every or _change(module, example, before, every, FACTOR) <= INVARIANT:
        return []
    names = list(weights)
    if len(names) == 1:
        return names
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    return [mover for half in halves for mover in _movers(module, example, before, {n: weights[n] for n in half})]


@torch.no_grad()
def _change(
    module: nn.Module, example: Example, before: list[Tensor], weights: Sequence[Tensor], factor: float
) -> float:
    """The largest ||f(c W) - f(W)|| / ||f(W)|| of all outputs f, f(W) given as `before`."""
    try:
        torch._foreach_mul_(list(weights), factor)
        after = outputs(module, example, before[0].dtype)
    finally:
        torch._foreach_mul_(list(weights), 1 / factor)
    changes = []
    for out, old in zip(after, before, strict=True):
        difference, size = (out - old).norm().item(), old.norm().item()
        changes.append(difference / size if size else float(difference > 0))
    return max(changes)


def _without_zeros(parameter: Tensor, generator: Generator, dtype: torch.dtype) -> Tensor:
    """The parameter; if it is all zero, normal values of standard deviation 1 / sqrt(fan in), 0.1 for vectors."""
    if not parameter.is_floating_point():
        return parameter
    if bool(parameter.any()):
        return parameter.to(dtype, copy=True)
    return (0.1 if parameter.ndim < 2 else _usual_size(parameter)) * _normal(parameter, generator)


def _generic(parameter: Tensor, generator: Generator, dtype: torch.dtype) -> Tensor:
    """Another value of the parameter, as it may be later in training: of a usual size, and no two gains alike."""
    if not parameter.is_floating_point():
        return parameter
    size = torch.linalg.vector_norm(parameter.float()).item() / max(parameter.numel(), 1) ** 0.5
    if size == 0:
        return _usual_size(parameter) * _normal(parameter, generator)
    factor = _usual_size(parameter) / size
    value = parameter.to(dtype, copy=dtype == torch.float64)  # what is large is shared
    value = value * factor if factor > 10 else value
    if value.ndim < 2:
        value = value * (0.5 + torch.rand(value.shape, generator=generator).to(value))
    return value


def _usual_size(parameter: Tensor) -> float:
    """1 / sqrt(fan in), 1 for scalars and vectors."""
    return 1.0 if parameter.ndim < 2 else float(parameter[0].numel() ** -0.5)


def _normal(like: Tensor, generator: Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator).to(like)
