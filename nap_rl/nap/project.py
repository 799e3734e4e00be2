"""Project: after each optimiser step, every scale-invariant weight goes back to its initial norm."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nap_rl.nap.groups import GroupNorms, unwrap, weight_groups, weight_layers
from nap_rl.nap.layers import Axes, NormKind, is_norm
from nap_rl.nap.normalize import assign_roles, normalize
from nap_rl.nap.trace import Example

Affine = Literal["project", "regularize", "free"]
Parameters = tuple[nn.Parameter, ...]


class Projector:
    """W <- rho W / ||W||, rho = ||W_0||, after each step of `optimizer` (paper, section on Normalize-and-Project).

    Construction reads the initial norms and hooks the optimiser (`register_step_post_hook`); nothing else is to be
    called. Only parameters that the optimiser owns are ever touched. A frozen layer (`requires_grad` off) is left
    alone while it is frozen, and returns to its old norm afterwards. The optimiser's state is not touched.

    Args:
        module: as `normalize` returned it (its marks tell which weights are scale-invariant), or any module together
            with `example_input`. DistributedDataParallel and torch.compile may already be around it.
        optimizer: any torch optimiser.
        every: updates (optimiser steps) from one projection to the next.
        affine: what happens to gain and offset (gamma, beta) of the norms:
            "project": (gamma, beta) <- sqrt(d) (gamma, beta) / ||(gamma, beta)||, d gains in a norm: right for
                nonlinearities with f(c x) = c f(x), such as ReLU;
            "regularize": gamma <- gamma - lr k (gamma - 1), beta <- beta - lr k beta, after every step;
            "free": nothing.
        output: whether layers that no norm follows because they give the output are projected too.
        scope: "tensor", one norm a weight tensor, as in the paper; "unit", one for each row (output unit).
        unnormalized: "project" projects hidden layers that no norm follows (an ablation); "error" refuses them.
        regularize_coefficient: the k of "regularize"; the paper's value is not stated. A gain that Adam pushes one
            way at every step settles at 1 +- 1/k.
        example_input: tensor or tuple of positional arguments; None takes the marks of `normalize`.
        free: paths of submodules whose weights stay as they are.

    Raises:
        ValueError: naming the layer: a hidden one that no norm follows; one that nothing is known of; one with norm
            0; one of which the optimiser owns only some tensors. Also if there is nothing to project.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        *,
        every: int = 1,
        affine: Affine = "project",
        output: Literal["free", "project"] = "free",
        scope: Literal["tensor", "unit"] = "tensor",
        unnormalized: Literal["error", "project"] = "error",
        regularize_coefficient: float = 0.1,
        example_input: Example | None = None,
        free: Collection[str] = (),
    ) -> None:
        _check("affine", affine, "project", "regularize", "free")
        _check("output", output, "free", "project")
        _check("scope", scope, "tensor", "unit")
        _check("unnormalized", unnormalized, "error", "project")
        if every < 1:
            raise ValueError(f"every={every} must be a number of updates, 1 or more.")
        self.module = unwrap(module)
        self.optimizer = optimizer
        self.every = every
        self.affine = affine
        self.output = output
        self.scope = scope
        self.unnormalized = unnormalized
        self.regularize_coefficient = regularize_coefficient
        self.updates = 0
        self._roles = self._find_roles(example_input, free)
        self._weights = self._choose_weights()
        self._pairs = self._choose_pairs()
        if not self._weights and not (self._pairs and affine != "free"):
            raise ValueError("the optimizer owns no weight of this module that is to be projected.")
        self._targets = {name: self._measure(name, tensors) for name, tensors in self._weights.items()}
        for name, target in self._targets.items():
            if not bool((target > 0).all()):
                raise ValueError(
                    f"layer '{name}' starts at norm 0 (in a unit, for scope='unit') and a projection would keep it "
                    "there; initialise it otherwise, or name it in free=[...]."
                )
        if affine == "project":
            for name, pair in self._pairs.items():
                self._targets[name] = torch.tensor(
                    pair[0].numel() ** 0.5, dtype=torch.float64, device=pair[0].device
                )
        self._watched: tuple[object, ...] = ()
        self._update_active()
        self._hook = optimizer.register_step_post_hook(self._after_step)

    @property
    def groups(self) -> dict[str, Tensor]:
        """What is projected, by path of layer or norm, and to which norm: 0-dim float64, or [units]."""
        return dict(self._targets)

    # What is projected.

    def _find_roles(self, example: Example | None, free: Collection[str]) -> dict[str, str | None]:
        if example is not None:
            return {**assign_roles(self.module, example, free)}
        roles = {name: getattr(layer, "nap_role", None) for name, layer in weight_layers(self.module).items()}
        if roles and not any(roles.values()):
            raise ValueError(
                "nothing tells which layers a normalisation follows: call normalize(module, example_input) before, "
                "or give Projector an example_input."
            )
        for name in roles:
            if any(name == path or name.startswith(f"{path}.") for path in free):
                roles[name] = "free"
        return roles

    def _choose_weights(self) -> dict[str, Parameters]:
        chosen: dict[str, Parameters] = {}
        for name, tensors in self._owned(weight_groups(self.module)).items():
            role = self._roles.get(name)
            if role is None:
                raise ValueError(
                    f"layer '{name}' was not in use when its role was determined: it was added later, or the example "
                    "never reaches it. Normalise again with an example that uses it, or name it in free=[...]."
                )
            if role == "hidden" and self.unnormalized == "error":
                raise ValueError(
                    f"no normalisation follows hidden layer '{name}', so its norm is not free to be projected: call "
                    "normalize(module, example_input) before, or ask for it with unnormalized='project'."
                )
            if role in ("invariant", "hidden") or (role == "output" and self.output == "project"):
                chosen[name] = tensors
        if self.scope == "unit":
            for name in chosen:
                if isinstance(self.module.get_submodule(name), nn.modules.conv._ConvTransposeNd):
                    raise ValueError(f"layer '{name}' is a transposed convolution, whose rows are not units.")
        return chosen

    def _choose_pairs(self) -> dict[str, Parameters]:
        """(gain, offset), or (gain,), of every norm."""
        pairs: dict[str, Parameters] = {}
        for name, module in self.module.named_modules():
            if is_norm(module):
                pair = (getattr(module, "weight", None), getattr(module, "bias", None))
                if isinstance(pair[0], nn.Parameter) and all(
                    pair[0] is not gain for gain, *_ in pairs.values()
                ):
                    pairs[name] = tuple(tensor for tensor in pair if isinstance(tensor, nn.Parameter))
        return self._owned(pairs)

    def _owned(self, groups: Mapping[str, Parameters]) -> dict[str, Parameters]:
        """The groups that the optimiser owns."""
        parameters = {parameter for group in self.optimizer.param_groups for parameter in group["params"]}
        for name, tensors in groups.items():
            if len({tensor in parameters for tensor in tensors}) > 1:
                raise ValueError(
                    f"the optimizer owns only some of the tensors of '{name}', which share one scale."
                )
        return {name: tensors for name, tensors in groups.items() if tensors and tensors[0] in parameters}

    def _update_active(self) -> None:
        """Follow parameters that were frozen or thawed, and those added to the optimiser."""
        projected = {**self._weights, **(self._pairs if self.affine == "project" else {})}
        watched = (
            sum(len(group["params"]) for group in self.optimizer.param_groups),
            *(tensor.requires_grad for tensors in projected.values() for tensor in tensors),
        )
        if watched == self._watched:
            return
        self._watched = watched
        for name in self._choose_weights():
            if name not in self._weights:
                raise ValueError(
                    f"layer '{name}' joined the optimizer after the Projector was built, which does not know its "
                    "initial norm; build a new Projector."
                )
        projected = {n: ts for n, ts in self._owned(projected).items() if all(t.requires_grad for t in ts)}
        self._by_unit = {n: ts for n, ts in projected.items() if self.scope == "unit" and n in self._weights}
        whole = {name: tensors for name, tensors in projected.items() if name not in self._by_unit}
        self._norms = GroupNorms(list(whole.values())) if whole else None
        self._whole_targets = (
            torch.stack([self._targets[name] for name in whole]) if whole else torch.empty(0)
        )

    # Projection.

    def _after_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        self.updates += 1
        self._update_active()
        if self.affine == "regularize":
            self._regularize()
        if self.updates % self.every == 0:
            self.project()

    @torch.no_grad()
    def project(self) -> None:
        """Project now: one read and one write of the weights, no host sync."""
        if self._norms is not None:
            factors = self._whole_targets / self._norms().clamp_min(1e-30)
            _scale(self._norms.tensors, factors[self._norms.owner].unbind())
        for name, tensors in self._by_unit.items():
            factors = self._targets[name] / unit_norms(tensors).clamp_min(1e-30)
            _scale(tensors, [factors.view(-1, *[1] * (tensor.ndim - 1)) for tensor in tensors])

    @torch.no_grad()
    def _regularize(self) -> None:
        """Decoupled from the loss, as weight decay is in AdamW: Adam would turn any coefficient into the same step."""
        for group in self.optimizer.param_groups:
            parameters = set(group["params"])
            pairs = [pair for pair in self._pairs.values() if pair[0] in parameters and pair[0].requires_grad]
            if pairs:
                pull = group["lr"] * self.regularize_coefficient
                torch._foreach_mul_([tensor for pair in pairs for tensor in pair], 1 - pull)
                torch._foreach_add_([gain for gain, *_ in pairs], pull)

    def _measure(self, name: str, tensors: Parameters) -> Tensor:
        exact = [tensor.detach().double() for tensor in tensors]
        if self.scope == "unit" and name in self._weights:
            return unit_norms(exact)
        return GroupNorms([exact])()[0]

    @torch.no_grad()
    def max_relative_drift(self) -> Tensor:
        """max | ||W|| / rho - 1 | over all that is projected: 0-dim float64, no host sync."""
        drifts = [unit_norms(tensors) / self._targets[name] for name, tensors in self._by_unit.items()]
        if self._norms is not None:
            drifts.append(self._norms() / self._whole_targets)
        return (torch.cat(drifts) - 1).abs().max()

    def remove(self) -> None:
        """Unhook from the optimiser: no projection from now on."""
        self._hook.remove()

    # State.

    def state_dict(self) -> dict[str, Any]:
        """{"updates": int, "norms": {layer: initial norm, 0-dim float64 or [units]}}."""
        return {
            "updates": self.updates,
            "norms": {name: self._targets[name].clone() for name in self._weights},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the initial norms and the count of updates. Raises ValueError where they do not fit."""
        norms: Mapping[str, Tensor] = state["norms"]
        if unknown := sorted(set(norms) ^ set(self._weights)):
            side = "the state" if unknown[0] in norms else "this Projector"
            raise ValueError(
                f"projected layers differ: '{unknown[0]}' is only in {side} ({len(unknown)} such layers)."
            )
        for name, norm in norms.items():
            if norm.shape != self._targets[name].shape:
                raise ValueError(
                    f"the norms of layer '{name}' have shape {tuple(norm.shape)} in the state, but "
                    f"{tuple(self._targets[name].shape)} here; check scope='{self.scope}' and the layer's size."
                )
        for name, norm in norms.items():
            self._targets[name] = norm.to(self._targets[name]).clone()
        self.updates = int(state["updates"])
        self._watched = ()
        self._update_active()


def unit_norms(tensors: Iterable[Tensor]) -> Tensor:
    """[units] float64: the norm of everything that leads into each output unit of one layer."""
    squares = [
        torch.linalg.vector_norm(t.flatten(1), dim=1, dtype=torch.float64).square()
        for t in map(_rows, tensors)
    ]
    return torch.stack(squares).sum(0).sqrt()


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.ndim > 1 else tensor.unsqueeze(1)


def _scale(tensors: Iterable[Tensor], factors: Iterable[Tensor]) -> None:
    """Multiply in place; half-precision tensors by a float32 factor, since 1.001 is 1 in bfloat16."""
    tensors = list(tensors)
    if any(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in tensors):
        exact = torch._foreach_mul(
            [tensor.float() for tensor in tensors], [factor.float() for factor in factors]
        )
        torch._foreach_copy_(tensors, exact)
    else:
        torch._foreach_mul_(tensors, [f.to(t.dtype) for f, t in zip(factors, tensors, strict=True)])


def _check(name: str, value: str, *allowed: str) -> None:
    if value not in allowed:
        raise ValueError(f"{name}='{value}' must be one of {', '.join(allowed)}.")


def normalize_and_project(
    module: nn.Module,
    optimizer_factory: Callable[[Iterable[nn.Parameter]], Optimizer],
    example_input: Example,
    *,
    norm: NormKind = "layer",
    axes: Axes = "all",
    affine: Literal["project", "regularize", "free", "omit"] = "project",
    existing: Literal["keep", "replace"] = "keep",
    every: int = 1,
    output: Literal["free", "project"] = "free",
    scope: Literal["tensor", "unit"] = "tensor",
    regularize_coefficient: float = 0.1,
    free: Collection[str] = (),
) -> tuple[nn.Module, Optimizer, Projector]:
    """`normalize`, then the optimiser over the parameters that are left, then its `Projector`.

    Args:
        optimizer_factory: makes the optimiser from the parameters, e.g. `lambda p: torch.optim.Adam(p, lr=1e-4)`.
        affine: the paper's four treatments of gain and offset; "omit" builds norms without them.
        The others are those of `normalize` and `Projector`.
    Returns:
        the module, its optimiser, its projector.
    """
    normalize(
        module, example_input, norm=norm, axes=axes, affine=affine != "omit", existing=existing, free=free
    )
    optimizer = optimizer_factory(module.parameters())
    projector = Projector(
        module,
        optimizer,
        every=every,
        affine="free" if affine == "omit" else affine,
        output=output,
        scope=scope,
        regularize_coefficient=regularize_coefficient,
        free=free,
    )
    return module, optimizer, projector
