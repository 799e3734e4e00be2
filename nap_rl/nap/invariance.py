"""Does the output stay the same when a weight is scaled? The premise of Normalize-and-Project, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nap_rl.nap.groups import unwrap, weight_groups
from nap_rl.nap.trace import Example, positional, undisturbed


def scale_invariance(
    module: nn.Module, example_input: Example, *, factors: Sequence[float] = (0.1, 10.0)
) -> dict[str, float]:
    """How much the output changes, relatively, when the weights of one layer are multiplied by each of
    `factors`.

    f(c W) = f(W) is what makes the norm of W free to be projected: 0 says that it holds, up to rounding and
    the epsilon of the norms; values near 1 and above that it does not.

    Args:
        module: in any state, and left exactly in it, RNGs and buffers included.
        example_input: a tensor or a tuple of positional arguments.

    Returns:
        For each group of `weight_groups(module)` the largest ||f(c W) - f(W)|| / ||f(W)|| over factors and
        output tensors. Parameters that are all zero, such as new biases or the last layer of a fresh policy,
        hold small random values during the check, since zeros would hide what stands behind them.

    Raises:
        ValueError: the output holds no floating-point tensor, or one that is not finite.
    """
    changes = [output_changes(module, example_input, partial(_times, factor)) for factor in factors]
    return {name: max(change[name] for change in changes) for name in weight_groups(module)}


def output_changes(
    module: nn.Module, example: Example, change: Callable[[list[Tensor]], list[Tensor]]
) -> dict[str, float]:
    """||f(change(W)) - f(W)|| / ||f(W)|| for each group of weights W, as in `scale_invariance`."""
    module = unwrap(module)
    changes: dict[str, float] = {}
    with _without_zeros(module), torch.no_grad():
        before = _outputs(module, example)
        for name, tensors in weight_groups(module).items():
            kept = [tensor.clone() for tensor in tensors]
            try:
                torch._foreach_copy_(tensors, change(kept))
                after = _outputs(module, example)
            finally:
                torch._foreach_copy_(tensors, kept)
            changes[name] = max(_relative_change(a, b) for a, b in zip(after, before, strict=True))
    return changes


def _times(factor: float, tensors: list[Tensor]) -> list[Tensor]:
    return [factor * tensor for tensor in tensors]


def _outputs(module: nn.Module, example: Example) -> list[Tensor]:
    with undisturbed(module):
        leaves = tree_leaves(module(*positional(example)))
    outputs = [leaf.double() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not outputs or not all(bool(out.isfinite().all()) for out in outputs):
        raise ValueError("the module's output for the example must hold finite floating-point tensors.")
    return outputs


def _relative_change(after: Tensor, before: Tensor) -> float:
    difference, size = (after - before).norm().item(), before.norm().item()
    return difference / size if size else float(difference > 0)


@contextmanager
def _without_zeros(module: nn.Module) -> Iterator[None]:
    """All-zero parameters hold normal values of standard deviation 1 / sqrt(fan in), 0.1 for vectors."""
    generator = torch.Generator().manual_seed(0)
    zeros = [parameter for parameter in module.parameters() if not bool(parameter.detach().any())]
    with torch.no_grad():
        for parameter in zeros:
            size = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
        try:
            yield
        finally:
            for parameter in zeros:
                parameter.zero_()
