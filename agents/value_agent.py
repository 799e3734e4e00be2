"""One value-based agent: DQN, C51, QR-DQN, IQN, Munchausen-DQN and Rainbow are settings of it.

The update reads like Rainbow (Hessel et al. 2018, arXiv 1710.02298): sample -> noise -> loss -> backward -> clip ->
Adam -> (project) -> new priorities -> target copy. Normalize-and-Project takes no part in it: the normalisations are in
the network that it is given, and the projection is a hook of the optimiser's step.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nap_rl.agents.captured import Captured
from nap_rl.compilation import compiled_method
from nap_rl.losses import Munchausen
from nap_rl.native import Adam, Factors, Outer
from nap_rl.nn import NoisyLinear, QNetwork
from nap_rl.nn.heads import Part
from nap_rl.nn.linear import leaves_factors
from nap_rl.nn.noisy import draw_noise, noise_sizes, scale_noise, split_noise
from nap_rl.plasticity import Method
from nap_rl.replay import Replay, Transitions

STATISTICS_BATCH = 64
"""States that a plasticity method looks at, for the shares of dormant units (Sokar et al. 2023: 64)."""


class Update(NamedTuple):
    """What one update computed; tensors of no dimension on the agent's device, so that nobody waits for them."""

    loss: Tensor  # mean over the batch, importance weights included, without a method's penalty
    grad_norm: Tensor  # global, before clipping


class Draw(NamedTuple):
    """The random part of one pass through a network; None where the network has none."""

    noise: Tensor | None  # of all layers side by side: one tensor to hand over and not a dozen
    taus: Tensor | None


class ValueAgent:
    """Acts and learns with a value network.

    Args:
        network: online network; the target network starts as its copy.
        optimizer: over the online network's parameters.
        replay: where `update` samples from.
        double: the online network picks the action that the target network values (van Hasselt et al. 2016).
        batch_size: transitions an update.
        target_every_updates: updates between two copies of the online network into the target network.
        max_grad_norm: global gradient norm to clip to; None for no clipping.
        seed: of the noise and of epsilon-greedy exploration.
        munchausen: the log-policy as reward and a soft maximum, for one-step returns and heads that are linear in their
            outputs (all but the categorical one); None for Q-learning.
        method: of plasticity, for `network` and `optimizer`; None for none.
        precision: of the passes of an update. With bfloat16 their matrix products and convolutions are computed in it
            (autocast), but for the output layers, over float32 weights, gradients and moments, and the target network
            is kept in it. Acting is float32.
        compiled: the passes of an update, and on a CPU those of acting, run as the graphs that torch.compile makes of
            them at the first one.
        captured: on a GPU an update runs as one CUDA graph, and so does acting under noise. Needs the replay on that
            GPU, an optimiser that is `capturable` with a tensor as learning rate, no plasticity method, and a
            projection at every update or none.
    """

    def __init__(
        self,
        network: QNetwork,
        optimizer: torch.optim.Optimizer,
        replay: Replay,
        *,
        double: bool = True,
        batch_size: int = 32,
        target_every_updates: int = 2_000,
        max_grad_norm: float | None = 10.0,
        seed: int = 0,
        munchausen: Munchausen | None = None,
        method: Method | None = None,
        precision: torch.dtype = torch.float32,
        compiled: bool = False,
        captured: bool = False,
    ) -> None:
        self.network = network
        self.target = copy.deepcopy(network).requires_grad_(False)
        if precision is torch.bfloat16:  # cast once a copy instead of once an update
            self.target.body_to(precision)
        self.optimizer = optimizer
        self.replay = replay
        self.double = double
        self.munchausen = munchausen
        self.batch_size = batch_size
        self.target_every_updates = target_every_updates
        self.max_grad_norm = max_grad_norm
        self.device = next(network.parameters()).device
        self.generator = torch.Generator(device=self.device).manual_seed(seed)
        self.exploration = np.random.default_rng(seed)
        self.method = Method(network, optimizer) if method is None else method
        self.precision = precision
        self.compiled = compiled
        self._noisy = {name: m for name, m in network.named_modules() if isinstance(m, NoisyLinear)}
        self._noise_sizes = noise_sizes(list(self._noisy.values()))
        on_cpu = self.device.type == "cpu"
        self._passes = compiled_method(self._run_passes, on_cpu) if compiled else self._run_passes
        # On a GPU acting is captured instead.
        self._values = compiled_method(self._run_values, on_cpu) if compiled and on_cpu else self._run_values
        self._captured = Captured(self._learn, self.device, [self.generator, replay.generator]) if captured else None
        self._choice = Captured(self._choose, self.device, [self.generator]) if captured else None
        self.updates = 0
        self.batch: Transitions | None = None  # of the last update, for whoever has to explain it

    @torch.inference_mode()
    def act(
        self, stacks: npt.NDArray[np.uint8 | np.float32], epsilon: float = 0.0, noisy: bool = True
    ) -> npt.NDArray[np.int64]:
        """Greedy actions [N] for stacks [N, C, *frame], each under its own noise; uniform with probability epsilon."""
        choose = self._choice if noisy and self._choice is not None else partial(self._choose, noisy=noisy)
        (q,) = choose(torch.as_tensor(stacks))
        actions: npt.NDArray[np.int64] = q.argmax(dim=1).cpu().numpy()
        if epsilon > 0.0:
            explore = self.exploration.random(len(stacks)) < epsilon
            actions[explore] = self.exploration.integers(0, q.shape[1], int(explore.sum()))
        return actions

    def _choose(self, stacks: Tensor, noisy: bool = True) -> tuple[Tensor]:
        sizes, eps = self._noise_sizes, None
        if noisy and sizes:
            eps = torch.randn(len(stacks), sum(sizes), generator=self.generator, device=self.generator.device)
        taus = self.network.sample_taus("acting", len(stacks), self.generator)
        return (self._values(stacks.to(self.device), eps, taus),)

    def _run_values(self, stacks: Tensor, eps: Tensor | None, taus: Tensor | None) -> Tensor:
        """Expected returns [N, A]; of eps [N, sum of sizes] ~ N(0, 1) the noise is made here, in the graph."""
        noise = None if eps is None else split_noise(scale_noise(eps), self._noise_sizes)
        return self.network.q_values(stacks, noise, taus)

    def update(self, importance_exponent: float = 1.0) -> Update:
        """One optimiser step on a batch from the replay; no host sync in it."""
        learn = self._learn if self._captured is None else self._captured
        update = Update(*learn(importance_exponent))
        self.updates += 1
        if self.updates % self.target_every_updates == 0:
            self.copy_to_target()
        return update

    def _learn(self, importance_exponent: float | Tensor) -> tuple[Tensor, Tensor]:
        """All of an update that happens in the learner's memory: (loss, gradient's norm)."""
        batch = self.batch = self.replay.sample(self.batch_size, importance_exponent).to(self.device)
        penalty = self.method.penalty()
        losses, priorities = self.losses(batch, sigma_apart=penalty is None)
        loss = (batch.weights * losses).mean()  # the weights scale the gradient and never the priorities
        self.optimizer.zero_grad()
        (loss if penalty is None else loss + penalty).backward()  # type: ignore[no-untyped-call]
        if isinstance(self.optimizer, Adam):
            self.optimizer.max_norm = self.max_grad_norm
            self.optimizer.step()  # clips and projects as well
            grad_norm = torch.tensor(self.optimizer.gradient_norm)
        else:
            grad_norm = self._clip_gradients()
            self.optimizer.step()  # a projector's hook acts here
        self.replay.update(batch.slots, batch.serials, priorities)
        return loss.detach(), grad_norm

    def set_learning_rate(self, rate: float) -> None:
        """For the next updates."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):  # which a captured update reads
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def reset_optimizer(self) -> None:
        """Forget the moments, and the updates that they count."""
        self.optimizer.state.clear()
        if self._captured is not None:
            self._captured.forget()

    def intervene(self) -> bool:
        """What the plasticity method does to the weights, once after each update; whether it changed any.

        The projector has to project again then. The target network is left alone until its next copy.
        """
        return self.method.after_update(
            self.updates, lambda: self.replay.sample(STATISTICS_BATCH).to(self.device).s_tm1
        )

    def losses(self, batch: Transitions, sigma_apart: bool = False) -> tuple[Tensor, Tensor]:
        """(loss, priority), [B] each, under independent draws of noise and levels for every pass.

        Args:
            sigma_apart: a native optimiser works out the gradients of the noisy layers' sigma from those of mu. Right
                where nothing but the losses is differentiated.
        """
        implicit = self.network.head.levels is not None  # drawn levels that value an action have no part in choosing it
        choosing, soft = self.double or implicit, self.munchausen is not None
        parts: list[Part] = ["online", "target"]
        parts += ["acting"] * (choosing + soft)
        online, target, *acting = self._draws(parts, len(batch.a_tm1))
        chooser, policy = acting[0] if choosing else None, acting[-1] if soft else None
        constant, factors = self._leave_gradients(online if sigma_apart else None, len(batch.a_tm1))
        losses: tuple[Tensor, Tensor] = self._passes(batch, online, chooser, target, policy, constant, factors)
        return losses

    def _run_passes(
        self,
        batch: Transitions,
        online: Draw,
        chooser: Draw | None,
        target: Draw,
        policy: Draw | None,
        constant: tuple[str, ...],
        factors: Mapping[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """`losses` under given draws; a pure function of tensors, which compiles as a whole.

        Args:
            constant: names of parameters that get no gradient.
            factors: of gradients, by the names that layers have for them.
        """
        head = self.network.head
        outputs_tm1 = self._outputs(self.network, batch.s_tm1, online, constant, factors)
        with torch.no_grad():
            q_t = None
            if chooser is not None:
                q_t = head.q_values(self._outputs(self.network if self.double else self.target, batch.s_t, chooser))
            outputs_t = self._outputs(self.target, batch.s_t, target)
            if q_t is None:
                q_t = head.q_values(outputs_t)
            r_t, a_t = batch.r_t, q_t.argmax(dim=1)
            if self.munchausen is not None and policy is not None:
                q_tm1 = head.q_values(self._outputs(self.target, batch.s_tm1, policy))
                r_t = self.munchausen.reward(r_t, q_tm1, batch.a_tm1)
                # The mixture over actions stands where the value of one action would: as that of a single action.
                outputs_t = self.munchausen.bootstrap(outputs_t, q_t)[:, None]
                a_t = torch.zeros_like(a_t)
        loss, priority = head.loss(outputs_tm1, batch.a_tm1, r_t, batch.discount_t, outputs_t, a_t, online.taus)
        return loss, priority

    def _leave_gradients(self, draw: Draw | None, batch: int) -> tuple[tuple[str, ...], dict[str, Tensor]]:
        """Leave gradients of noisy layers' weights to a native optimiser: all of sigma, and of mu in hidden layers.

        Returns:
            The names of those that are left to it, and what gets the factors of some (see `Factors`).
        """
        left: list[str] = []
        factors: dict[str, Tensor] = {}
        if not isinstance(self.optimizer, Adam):
            return (), factors
        self.optimizer.outer, self.optimizer.factors = {}, {}
        if draw is None or draw.noise is None:
            return (), factors
        rows = batch if draw.taus is None else draw.taus.numel()  # that go through the streams
        hidden = [stream.hidden for stream in self.network.streams.children()]
        of_layers = split_noise(draw.noise, self._noise_sizes)
        for (name, layer), (eps_in, eps_out) in zip(self._noisy.items(), of_layers, strict=True):
            mu, sigma = layer.weight_mu, layer.weight_sigma
            if not (mu.requires_grad and sigma.requires_grad):
                continue
            self.optimizer.outer[sigma] = Outer(mu, rows=eps_out, columns=eps_in)
            left.append(f"{name}.weight_sigma")
            native_code = self.compiled and layer.native_code and layer in hidden
            if native_code and leaves_factors(mu, rows, self.precision):
                self.optimizer.factors[mu] = found = Factors.of(mu, rows, self.precision)
                left.append(f"{name}.weight_mu")
                factors |= {f"{name}.factor_dy": found.dy, f"{name}.factor_x": found.x}
        return tuple(left), factors

    def _outputs(
        self,
        network: QNetwork,
        stacks: Tensor,
        draw: Draw,
        constant: tuple[str, ...] = (),
        factors: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """A pass in the agent's precision, [B, A, N] float32; what is computed from it is computed in float32."""
        noise = None if draw.noise is None else split_noise(draw.noise, self._noise_sizes)
        arguments = (stacks, noise, draw.taus)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not torch.float32):
            if constant:
                instead = {name: network.get_parameter(name).detach() for name in constant} | dict(factors or {})
                outputs: Tensor = torch.func.functional_call(network, instead, arguments)
            else:
                outputs = network(*arguments)
        return outputs.float()

    def _draws(self, parts: Sequence[Part], rows: int) -> list[Draw]:
        """One for each pass; the noise of all comes from one call."""
        sizes, generator = self._noise_sizes, self.generator
        noise: Sequence[Tensor | None] = [None] * len(parts)
        if sizes:
            noise = draw_noise(sizes, (len(parts),), generator, generator.device).unbind()
        taus = [self.network.sample_taus(part, rows, self.generator) for part in parts]
        return [Draw(*of_pass) for of_pass in zip(noise, taus, strict=True)]

    def _clip_gradients(self) -> Tensor:
        """Scale the gradients down to `max_grad_norm` where their global norm is larger; returns the norm before."""
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        grad_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.max_grad_norm is None:
            return grad_norm
        # On the CPU a number can be read for nothing, which saves most updates a pass that multiplies by 1.
        if self.device.type != "cpu" or not grad_norm <= self.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, grad_norm)
        return grad_norm

    def complete_gradients(self) -> None:
        """After an update: put its gradients into `.grad`, for whoever looks at them, where they are not there yet."""
        if isinstance(self.optimizer, Adam):
            self.optimizer.complete_gradients()

    def state_dict(self) -> dict[str, Any]:
        """All but the replay: networks, the optimiser's moments, the method's, random streams, the count of updates."""
        return {
            "network": dict(self.network.state_dict()),
            "target": dict(self.target.state_dict()),
            "optimizer": {str(index): dict(moments) for index, moments in self.optimizer.state_dict()["state"].items()},
            "method": dict(self.method.state_dict()),
            "generator": self.generator.get_state(),
            "exploration": self.exploration.bit_generator.state,
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError where the networks differ."""
        try:
            self.network.load_state_dict(state["network"])
            self.target.load_state_dict(state["target"])
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"the saved network is not the configured one: {reason}") from None
        optimizer: dict[str, Any] = self.optimizer.state_dict()
        optimizer["state"] = {int(index): moments for index, moments in state["optimizer"].items()}
        self.optimizer.load_state_dict(optimizer)
        if self._captured is not None:
            self._captured.forget()
        self.method.load_state_dict(state["method"])
        self.generator.set_state(state["generator"])
        self.exploration.bit_generator.state = state["exploration"]
        self.updates = int(state["updates"])

    @torch.no_grad()
    def copy_to_target(self) -> None:
        """target <- online; a target network is copied and never projected by itself."""
        torch._foreach_copy_(list(self.target.state_dict().values()), list(self.network.state_dict().values()))
