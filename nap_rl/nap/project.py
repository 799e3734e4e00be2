"""Project: after each optimiser step, every scale-invariant weight goes back to its initial norm."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from nap_rl.nap.binding import MARK, follow, hold, release, unfollow
from nap_rl.nap.groups import (
    Weights,
    check_choice,
    check_paths,
    gains_and_offsets,
    is_transposed,
    unwrap,
    weight_groups,
    weight_layers,
)
from nap_rl.nap.norms import GroupNorms, scale, unit_norms
from nap_rl.nap.roles import Role, assign_roles
from nap_rl.nap.trace import Example

Affine = Literal["regularize", "project", "free"]


class Group(NamedTuple):
    """Tensors that are scaled together, as one vector, to `norm`."""

    tensors: Weights
    norm: float


class Projector:
    """W <- rho W / ||W|| with rho = ||W_0||, after every step of `optimizer`.

    The constructor takes the initial norms and hooks the optimiser (`register_step_post_hook`); nothing else
    is to be called. Only parameters that the optimiser owns are touched, and its state never is. Tensors
    that share one scale, such as those of a noisy layer, are projected as one vector. A layer of which any
    tensor is frozen (`requires_grad` off) is left alone, and goes back to its norm once thawed.

    Args:
        module: as `normalize` left it, whose marks say what is scale-invariant, or any module with an
            `example_input`. DistributedDataParallel and torch.compile may be around it.
        optimizer: any torch optimiser.
        every: updates (steps of the optimiser) from one projection to the next. None never projects, so that
            `affine="regularize"` acts alone: the control of every claim about projection.
        affine: what happens to gain and offset (gamma, beta) of the norms that the optimiser owns.
            "regularize": gamma <- gamma - lr k (gamma - 1) and beta <- beta - lr k beta, after every update.
            "project": (gamma, beta) <- sqrt(d) (gamma, beta) / ||(gamma, beta)||, d the number of gains of
            the norm: gamma = 1, beta = 0 stays as it is. Only where f(c x) = c f(x), as for ReLU. Offsets
            can still kill all units, and do in long streams.
            "free": nothing.
        output: "project" includes the layers that give the output, which no norm follows.
        scope: "tensor", one norm a weight tensor, as in the paper; "unit", one for each output unit.
        unnormalized: "project" includes hidden layers that are not scale-invariant (an ablation); "error"
            refuses.
        regularize_coefficient: k of "regularize". The paper's value is not stated. A gain that Adam pushes
            the same way at every update comes to rest at 1 +- 1 / k.
        example_input: a tensor or a tuple of positional arguments; None takes the marks of `normalize`.
        free: paths of submodules whose weights stay as they are.

    Raises:
        ValueError: naming the layer: it is hidden and not scale-invariant, its role is not known, its norm
            is 0, or the optimiser owns only some of its tensors. Also where nothing is to be projected.
    """

    projects: ClassVar[bool] = True

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        *,
        every: int | None = 1,
        affine: Affine = "regularize",
        output: Literal["free", "project"] = "free",
        scope: Literal["tensor", "unit"] = "tensor",
        unnormalized: Literal["error", "project"] = "error",
        regularize_coefficient: float = 0.1,
        example_input: Example | None = None,
        free: Collection[str] = (),
    ) -> None:
        check_choice("affine", affine, "regularize", "project", "free")
        check_choice("output", output, "free", "project")
        check_choice("scope", scope, "tensor", "unit")
        check_choice("unnormalized", unnormalized, "error", "project")
        if every is not None and every < 1:
            raise ValueError(f"every={every} must be a number of updates of 1 or more.")
        if every is None and affine != "regularize":
            raise ValueError(f"every=None with affine={affine!r} does nothing: use affine='regularize'.")
        self.module = unwrap(module)
        self.optimizer = optimizer
        self.every = every
        self.affine = affine
        self.output = output
        self.scope = scope
        self.unnormalized = unnormalized
        self.regularize_coefficient = regularize_coefficient
        self.updates = 0
        check_paths(self.module, free)
        self.free = tuple(free)
        self._roles = _find_roles(self.module, example_input, free)
        self._weights = self._choose_weights()
        self._pairs = self._owned(gains_and_offsets(self.module, free))
        if not self._weights and (affine == "free" or not self._pairs):
            raise ValueError("the optimizer owns nothing of this module that is to be projected.")
        self._targets = {name: self._initial_norm(name) for name in self._weights}
        if affine == "project":
            for name, (gain, *_) in self._pairs.items():
                norm = gain.numel() ** 0.5
                self._targets[name] = torch.tensor(norm, dtype=torch.float64, device=gain.device)
        self._projected = {**self._weights, **(self._pairs if affine == "project" else {})}
        self._projected_tensors = [tensor for tensors in self._projected.values() for tensor in tensors]
        self._changed = {**self._projected, **(self._pairs if affine == "regularize" else {})}
        self._watched: list[int] = []
        self._update_active()
        self._hook: RemovableHandle | None = None
        self._attach()
        hold(self.module, self.optimizer, self._layers())

    @property
    def groups(self) -> dict[str, Tensor]:
        """What is projected, by path of layer or norm, and to which norm: 0-dim float64, or [units]."""
        return dict(self._targets)

    @property
    def gains_and_offsets(self) -> dict[str, Weights]:
        """(gain, offset), or (gain,), of each norm that the optimiser owns, by path."""
        return dict(self._pairs)

    @property
    def due(self) -> bool:
        """Whether the optimiser's next step is followed by a projection."""
        return self._is_due(self.updates + 1)

    def _is_due(self, updates: int) -> bool:
        return self.every is not None and updates % self.every == 0

    def whole_groups(self) -> tuple[Group, ...]:
        """What a projection scales as whole tensors now; units with norms of their own are left out.

        The same tuple is returned as long as nothing is frozen, thawed or loaded.
        """
        self._update_active()
        return self._whole_groups

    def unit_groups(self) -> tuple[tuple[Weights, Tensor], ...]:
        """Tensors [units, ...] that a projection scales unit by unit now, and to which norms: [units] float64."""
        self._update_active()
        return tuple((tensors, self._targets[name]) for name, tensors in self._by_unit.items())

    # What is projected.

    def _choose_weights(self) -> dict[str, Weights]:
        chosen: dict[str, Weights] = {}
        if self.every is None:
            return chosen
        for name, tensors in self._owned(weight_groups(self.module, free=self.free)).items():
            role = self._roles.get(name)
            if role is None:
                raise ValueError(
                    f"nothing is known of layer '{name}': it came after normalize, or the example does not "
                    "use it. Normalize with an example that does, or name the layer in free=[...]."
                )
            if role == "unreached":
                raise ValueError(
                    f"no gradient reaches layer '{name}' from the output for the example: a dead or detached layer, an "
                    "example of zeros, or an output that holds no tensor. Mend it, or name it in free=[...]."
                )
            if role == "hidden" and self.unnormalized == "error":
                raise ValueError(
                    f"hidden layer '{name}' is not scale-invariant: no normalisation follows it, or it kept "
                    "its bias. Call normalize(module, example_input) first, or ask for it with "
                    "unnormalized='project'."
                )
            if role in ("invariant", "hidden") or (role == "output" and self.output == "project"):
                chosen[name] = tensors
            layer = self.module.get_submodule(name)
            if self.scope == "unit" and (isinstance(layer, _ConvTransposeNd) or is_transposed(layer)):
                raise ValueError(f"layer '{name}' has a transposed weight: its rows are no units.")
        return chosen

    def _owned(self, groups: Mapping[str, Weights]) -> dict[str, Weights]:
        """Those of which the optimiser owns all tensors; owning only some is an error."""
        parameters = {parameter for group in self.optimizer.param_groups for parameter in group["params"]}
        owned: dict[str, Weights] = {}
        for name, tensors in groups.items():
            count = sum(tensor in parameters for tensor in tensors)
            if 0 < count < len(tensors):
                raise ValueError(
                    f"the optimizer owns {count} of the {len(tensors)} tensors of '{name}', which share one scale."
                )
            if count:
                owned[name] = tensors
        return owned

    def _initial_norm(self, name: str) -> Tensor:
        exact = [tensor.detach().double() for tensor in self._weights[name]]
        norm = unit_norms(exact) if self.scope == "unit" else GroupNorms([exact])()[0]
        if not bool((norm > 0).all()):
            where = "a unit of layer" if self.scope == "unit" else "layer"
            raise ValueError(
                f"{where} '{name}' starts at norm 0 and would be kept there: initialise it otherwise, or "
                "name it in free=[...]."
            )
        return norm

    def _update_active(self) -> None:
        """Follow what was frozen, thawed or added to the optimiser since the last update."""
        watched: list[int] = [tensor.requires_grad for tensor in self._projected_tensors]
        watched.append(sum(len(group["params"]) for group in self.optimizer.param_groups))
        if watched == self._watched:
            return
        self._watched = watched
        for name in self._choose_weights():
            if name not in self._weights:
                raise ValueError(
                    f"layer '{name}' joined the optimizer after the Projector was built, which does not know "
                    "the layer's initial norm: build a new Projector."
                )
        active = {n: ts for n, ts in self._owned(self._projected).items() if all(t.requires_grad for t in ts)}
        self._by_unit = {n: ts for n, ts in active.items() if self.scope == "unit" and n in self._weights}
        whole = {n: ts for n, ts in active.items() if n not in self._by_unit}
        self._norms = GroupNorms(list(whole.values())) if whole else None
        self._whole_targets = torch.stack([self._targets[n] for n in whole]) if whole else torch.empty(0)
        norms = self._whole_targets.tolist()
        self._whole_groups = tuple(Group(*pair) for pair in zip(whole.values(), norms, strict=True))

    # Projection.

    def _after_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        self.after_step()

    def after_step(self) -> None:
        """What is due after a step of the optimiser; its hook calls it."""
        if _was_skipped(self.optimizer):
            return
        self.updates += 1
        self._update_active()
        if self.affine == "regularize":
            self._regularize()
        if self._is_due(self.updates):
            self.project()

    def project(self) -> None:
        """Project now. One read and one write of the weights, no host sync."""
        self.project_whole()
        self._project_by_unit()

    @torch.no_grad()
    def project_whole(self) -> None:
        """Project what `whole_groups` lists."""
        if self._norms is not None:
            factors = self._whole_targets / self._norms().clamp_min(1e-30)
            scale(self._norms.tensors, factors.to(self._norms.dtype)[self._norms.owner].unbind())

    @torch.no_grad()
    def _project_by_unit(self) -> None:
        for name, tensors in self._by_unit.items():
            factors = self._targets[name] / unit_norms(tensors).clamp_min(1e-30)
            scale(tensors, [factors.view(-1, *[1] * (tensor.ndim - 1)) for tensor in tensors])

    @torch.no_grad()
    def _regularize(self) -> None:
        """Outside the loss, like AdamW's decay: from a term of the loss, Adam would divide k out."""
        for group in self.optimizer.param_groups:
            parameters = set(group["params"])
            pairs = [pair for pair in self._pairs.values() if pair[0] in parameters and pair[0].requires_grad]
            if pairs:
                pull = group["lr"] * self.regularize_coefficient
                torch._foreach_mul_([tensor for pair in pairs for tensor in pair], 1 - pull)
                for gain, *_ in pairs:
                    gain.add_(pull)  # _foreach_add_ would read a learning rate that is a tensor

    @torch.no_grad()
    def max_relative_drift(self) -> Tensor:
        """max | ||W|| / rho - 1 | over all that is projected now: 0-dim float64, no host sync."""
        ratios = [unit_norms(tensors) / self._targets[name] for name, tensors in self._by_unit.items()]
        if self._norms is not None:
            ratios.append(self._norms() / self._whole_targets)
        return (torch.cat(ratios) - 1).abs().max() if ratios else torch.zeros((), dtype=torch.float64)

    def adopt_norms(self) -> None:
        """From now on project each weight to the norm that it has now, for example after re-initialising it."""
        self._targets |= {name: self._initial_norm(name) for name in self._weights}
        self._watched = []
        self._update_active()

    # The optimiser that is followed.

    def rebind(self, optimizer: Optimizer) -> None:
        """Follow `optimizer` instead, made anew over the same weights. Norms and the count of updates stay.

        Raises ValueError where it does not own all that this one projects or regularises.
        """
        parameters = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        for name, tensors in self._changed.items():
            if not all(tensor in parameters for tensor in tensors):
                raise ValueError(f"the new optimizer does not own '{name}', which is projected or regularized.")
        self.remove()
        self.optimizer = optimizer
        self._watched = []
        self._update_active()
        self._attach()
        hold(self.module, self.optimizer, self._layers())

    def remove(self) -> None:
        """Unhook from the optimiser: from now on nothing is projected, unless by `project()`."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        self.optimizer.defaults.pop(MARK, None)
        unfollow(self)
        release(self._layers())

    def _attach(self) -> None:
        self._hook = self.optimizer.register_step_post_hook(self._after_step)
        self.optimizer.defaults[MARK] = True
        follow(self)

    def followed(self) -> Sequence[Tensor]:
        """All that is projected or regularised."""
        return [tensor for tensors in self._changed.values() for tensor in tensors]

    def _layers(self) -> list[nn.Module]:
        return [self.module.get_submodule(name) for name in self._changed]

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which optimisers leave without their hooks."""
        return {**self.__dict__, "_hook": self._hook is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "_hook": None})
        if state["_hook"]:
            self._attach()

    # State.

    def state_dict(self) -> dict[str, Any]:
        """{"updates": int, "norms": {layer: its initial norm, 0-dim float64 or [units]}}."""
        return {
            "updates": self.updates,
            "norms": {name: self._targets[name].clone() for name in self._weights},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over norms and the count of updates. Raises ValueError where layers or shapes differ."""
        norms: Mapping[str, Tensor] = state["norms"]
        if different := sorted(set(norms) ^ set(self._weights)):
            side = "the state" if different[0] in norms else "this Projector"
            raise ValueError(f"projected layers differ: '{different[0]}' is in {side} alone.")
        for name, norm in norms.items():
            if norm.shape != self._targets[name].shape:
                raise ValueError(
                    f"the norm of layer '{name}' has shape {list(norm.shape)} in the state, but "
                    f"{list(self._targets[name].shape)} here: compare scope and the sizes of the layer."
                )
        for name, norm in norms.items():
            self._targets[name] = norm.to(self._targets[name], copy=True)
        self.updates = int(state["updates"])
        self._watched = []
        self._update_active()


def _find_roles(module: nn.Module, example: Example | None, free: Collection[str]) -> Mapping[str, Role]:
    if example is not None:
        return assign_roles(module, example, free)
    marked = {name: getattr(layer, "nap_role", None) for name, layer in weight_layers(module).items()}
    marks: dict[str, Role] = {name: role for name, role in marked.items() if role is not None}
    if not marks:
        raise ValueError(
            "nothing says which layers of this module a normalisation follows: call normalize(module, "
            "example_input) before, or give Projector an example_input."
        )
    return marks


def _was_skipped(optimizer: Optimizer) -> bool:
    """Whether GradScaler let a fused step find infinite gradients, which leaves the weights as they were."""
    found: Tensor | None = getattr(optimizer, "found_inf", None)  # there only while GradScaler calls the step
    if found is None or (found.is_cuda and torch.cuda.is_current_stream_capturing()):
        return False
    return bool(found.item())
