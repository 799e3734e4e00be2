"""One value-based agent: DQN, C51, QR-DQN, IQN, Munchausen-DQN and Rainbow are settings of it.

`gradient_step` reads like Rainbow (Hessel et al. 2018, arXiv 1710.02298). Normalize-and-Project takes no part in it:
the normalisations are in the network, and the projection is a hook of the optimiser's step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from nap_rl.agents.divergence import Update, check_finite
from nap_rl.agents.draws import Draw, Draws, by_pass, draw_numbers, passes
from nap_rl.agents.target import move_target
from nap_rl.checkpoint.optimizer_state import counters, decode_moments, encode_moments, set_counters
from nap_rl.losses import Munchausen
from nap_rl.nap import Projector
from nap_rl.nn import FIRST_ITERATIONS, Head, HeadLoss, QNetwork, Target, iterate_spectral_norms
from nap_rl.plasticity import Method
from nap_rl.replay import Replay, Transitions


class ValueAgent:
    """Acts and learns with a value network.

    Args:
        network: online network; the target network starts as its copy.
        optimizer: over the online network's parameters.
        replay: where `update` samples from.
        projector: projects the network's weights after each step of `optimizer`; None for none.
        double: the online network picks the action that the target network values (van Hasselt et al. 2016).
        batch_size: transitions an update.
        target_every_updates: updates between two copies of the online network into the target network.
        tau: share of the online network in such a copy; below 1 the target network moves softly.
        max_grad_norm: global gradient norm to clip to; None for no clipping.
        seed: of the noise and of epsilon-greedy exploration.
        munchausen: for any head but the categorical one; None for Q-learning.
        method: of plasticity, for `network` and `optimizer`; None for none.
        precision: bfloat16 puts an update's passes under autocast, but for the output layers, and keeps the target
            network in bfloat16. Weights, gradients, moments and acting stay float32.
        effective_lr_power: the k of `nap_rl.nap.LayerMonitor` for `optimizer`; None lets it judge by the class.
    """

    def __init__(
        self,
        network: QNetwork,
        optimizer: torch.optim.Optimizer,
        replay: Replay,
        *,
        projector: Projector | None = None,
        double: bool = True,
        batch_size: int = 32,
        target_every_updates: int = 2_000,
        tau: float = 1.0,
        max_grad_norm: float | None = 10.0,
        seed: int = 0,
        munchausen: Munchausen | None = None,
        method: Method | None = None,
        precision: torch.dtype = torch.float32,
        effective_lr_power: int | None = None,
    ) -> None:
        self.network = network
        self.target = copy.deepcopy(network).requires_grad_(False)
        if precision is torch.bfloat16:  # cast at each copy instead of at each update
            self.target.body_to(precision)
        self.optimizer = optimizer
        self.replay = replay
        self.projector = projector
        self.double = double
        self.munchausen = munchausen
        self.passes = passes(network, double=double, munchausen=munchausen is not None)
        self.batch_size = batch_size
        self.target_every_updates = target_every_updates
        self.tau = tau
        self.max_grad_norm = max_grad_norm
        self.device = next(network.parameters()).device
        self.generator = torch.Generator(device=self.device).manual_seed(seed)
        self.exploration = np.random.default_rng(seed)
        self.method = Method(network, optimizer) if method is None else method
        self.precision = precision
        self.effective_lr_power = effective_lr_power
        self.compiled = False
        self.updates = 0
        self.batch: Transitions | None = None  # of the last update: a divergence report saves it
        self.on_new_state: Callable[[], None] = lambda: None  # called where the moments are replaced by others
        self._other_when_acting = [m for m in network.modules() if isinstance(m, (_BatchNorm, _DropoutNd))]

    @torch.inference_mode()
    def act(self, stacks: npt.NDArray[Any], epsilon: float = 0.0, noisy: bool = True) -> npt.NDArray[np.int64]:
        """Greedy actions [N] for stacks [N, C, *frame], each under its own noise; uniform with probability epsilon."""
        draw = self.draw_to_act(len(stacks), noisy)
        with self.acting():
            q = self.q_values(torch.as_tensor(stacks).to(self.device), *draw)
        return self.choose(q, epsilon)

    @contextmanager
    def acting(self) -> Iterator[None]:
        """BatchNorm works from its running statistics, dropout is off: an action depends on one environment alone."""
        were = [module.training for module in self._other_when_acting]
        for module in self._other_when_acting:
            module.training = False
        try:
            yield
        finally:
            for module, training in zip(self._other_when_acting, were, strict=True):
                module.training = training

    def draw_to_act(self, rows: int, noisy: bool = True) -> Draw:
        """The noise and levels of `rows` actions."""
        eps = self.network.sample_eps(self.generator, rows) if noisy else None
        return Draw(eps, self.network.sample_taus("policy", rows, self.generator))

    def choose(self, q: Tensor, epsilon: float) -> npt.NDArray[np.int64]:
        """The best actions [N] of q [N, A]; uniform ones with probability epsilon."""
        actions: npt.NDArray[np.int64] = q.argmax(dim=1).cpu().numpy()
        if epsilon > 0.0:
            explore = self.exploration.random(len(actions)) < epsilon
            if explore.any():
                actions[explore] = self.exploration.integers(0, q.shape[1], int(explore.sum()))
        return actions

    def q_values(self, stacks: Tensor, eps: Tensor | None, taus: Tensor | None) -> Tensor:
        """Expected returns [N, A]; a pure function of tensors. eps and taus: see `Draw`."""
        return self.network.q_values(stacks, self.network.noise(eps), taus)

    def update(self, importance_exponent: float = 1.0) -> Update:
        """One `gradient_step`, and a copy into the target network where it is due.

        Raises Diverged on a CPU. A GPU would have to be waited for: call `check_finite` there every so many updates.
        """
        return self.finish(Update(*self.gradient_step(importance_exponent)))

    def finish(self, update: Update) -> Update:
        """What follows a `gradient_step`."""
        self.updates += 1
        if self.device.type == "cpu":
            self.check_finite(update)
        if self.updates % self.target_every_updates == 0:
            move_target(self.target, self.network, self.tau)
        return update

    def gradient_step(self, importance_exponent: float | Tensor) -> tuple[Tensor, Tensor]:
        """One optimiser step on a batch from the replay: (loss, gradient norm). No host sync on a GPU."""
        batch = self.batch = self.replay.sample(self.batch_size, importance_exponent).to(self.device)
        draws = self.draw(len(batch.a_tm1))
        losses, priorities = self.losses(batch, draws)
        loss = (batch.weights * losses).mean()  # the weights scale the gradient and never the priorities
        penalty = self.method.penalty()
        self.optimizer.zero_grad()
        (loss if penalty is None else loss + penalty).backward()  # type: ignore[no-untyped-call]
        grad_norm = self.clip_and_step()
        iterate_spectral_norms(self.network)
        self.replay.update(batch.slots, batch.serials, priorities)
        return loss.detach(), grad_norm

    def draw(self, rows: int) -> Draws:
        """The noise and levels of an update on `rows` transitions."""
        return by_pass(self.passes, draw_numbers(self.network, self.passes, rows, self.generator))

    def losses(self, batch: Transitions, draws: Draws) -> HeadLoss:
        """(loss, priority), [B] each; a pure function of the networks' weights, the batch and the draws."""
        outputs_tm1 = self._outputs(self.network, batch.s_tm1, draws.online_tm1)
        with torch.no_grad():
            target = self._target(self.network.head, batch, draws)
        return self.network.head.loss(outputs_tm1, batch.a_tm1, target, draws.online_tm1.taus)

    def _target(self, head: Head, batch: Transitions, draws: Draws) -> Target:
        q_t = None
        if draws.selector_t is not None:
            selector = self.network if self.double else self.target
            q_t = head.q_values(self._outputs(selector, batch.s_t, draws.selector_t))
        outputs_t = self._outputs(self.target, batch.s_t, draws.target_t)
        q_t = head.q_values(outputs_t) if q_t is None else q_t
        if self.munchausen is None or draws.target_tm1 is None:
            return Target(batch.r_t, batch.discount_t, outputs_t, a_t=q_t.argmax(dim=1))
        q_tm1 = head.q_values(self._outputs(self.target, batch.s_tm1, draws.target_tm1))
        r_t = self.munchausen.reward(batch.r_t, q_tm1, batch.a_tm1)
        mixture_t = self.munchausen.bootstrap(outputs_t, q_t)  # [B, N], a mean over actions: it stands as the only one
        return Target(r_t, batch.discount_t, mixture_t[:, None], a_t=torch.zeros_like(batch.a_tm1))

    def _outputs(self, network: QNetwork, stacks: Tensor, draw: Draw) -> Tensor:
        """A pass in the agent's precision: [B, A, N] float32."""
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not torch.float32):
            outputs: Tensor = network(stacks, network.noise(draw.eps), draw.taus)
        return outputs.float()

    def clip_and_step(self) -> Tensor:
        """Clip the gradients to `max_grad_norm` and step the optimiser, whose hook projects; the norm before."""
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        grad_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        # Reading a number waits for a GPU; on a CPU it saves a pass over the gradients, where they are small.
        if self.max_grad_norm is not None and (self.device.type != "cpu" or not grad_norm <= self.max_grad_norm):
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, grad_norm)
        self.optimizer.step()
        return grad_norm

    def check_finite(self, update: Update) -> None:
        """Raise Diverged where loss or gradient norm of the last update is not finite. Waits for a GPU."""
        loss, norm = float(update.loss), float(update.grad_norm)
        check_finite({"loss": loss, "gradient's norm": norm}, f"at update {self.updates}")

    def intervene(self) -> bool:
        """Let the plasticity method change weights, after each update, and project them; whether it changed any."""
        count, states = self.method.statistics_batch, len(self.optimizer.state)
        changed = self.method.after_update(self.updates, lambda: self.replay.sample(count).to(self.device).s_tm1)
        if len(self.optimizer.state) != states:
            self.on_new_state()
        return self._project_if(changed)

    def at_switch(self) -> bool:
        """Let the plasticity method change weights as a new task begins, and project them; whether it changed any."""
        return self._project_if(self.method.at_switch())

    def _project_if(self, changed: bool) -> bool:
        if changed and self.projector is not None:
            self.projector.project()
        if changed:
            iterate_spectral_norms(self.network, FIRST_ITERATIONS)
        return changed

    def copy_to_target(self) -> None:
        """target <- online, also where `tau` is below 1."""
        move_target(self.target, self.network)

    def set_learning_rate(self, rate: float, layer_factors: Mapping[str, float] | None = None) -> None:
        """For the next updates; a group of the optimiser that names its layer has `rate` times the layer's factor."""
        for group in self.optimizer.param_groups:
            own = rate if layer_factors is None else rate * layer_factors.get(group.get("layer", ""), 1.0)
            if isinstance(group["lr"], Tensor):  # which a captured update reads
                group["lr"].fill_(own)
            else:
                group["lr"] = own

    def renew(self, fresh: QNetwork) -> None:
        """Take over the weights of `fresh`: moments, target and norms begin anew. The caller renews the method."""
        self.network.load_state_dict(fresh.state_dict())
        self.reset_optimizer()
        self.copy_to_target()
        if self.projector is not None:
            self.projector.adopt_norms()

    def reset_optimizer(self) -> None:
        """Forget the moments, and the updates that they count."""
        self.optimizer.state.clear()
        self.on_new_state()

    def state_dict(self) -> dict[str, Any]:
        """All but the replay: networks, the optimiser's moments, the method's, random streams, the count of updates."""
        return {
            "network": dict(self.network.state_dict()),
            "target": dict(self.target.state_dict()),
            "optimizer": {
                str(index): encode_moments(moments) for index, moments in self.optimizer.state_dict()["state"].items()
            },
            **({"counters": kept} if (kept := counters(self.optimizer)) else {}),
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
            raise ValueError(f"the saved network is not the configured one: {' '.join(str(error).split())}") from None
        moments = {int(index): decode_moments(moments) for index, moments in state["optimizer"].items()}
        self.reset_optimizer()
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        set_counters(self.optimizer, state.get("counters", {}))
        self.method.load_state_dict(state["method"])
        self.generator.set_state(state["generator"])
        self.exploration.bit_generator.state = state["exploration"]
        self.updates = int(state["updates"])
