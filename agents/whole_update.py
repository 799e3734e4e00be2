"""The whole update of a small network as one compiled function of tensors, and its acting as another.

An update takes some 400 operators. Where networks are small, calling them costs ten times what they compute. So
sampling, loss, gradient, clipping, Adam, projection and new priorities become one graph. It is traced from what
`ValueAgent.gradient_step` runs: `ValueAgent.losses`, `Replay.sample_at` and `Replay.update`, over other tensors.
`torch.vmap` of the same function updates several agents of one architecture at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Adam

from nap_rl.agents.batch_statistics import plain_batch_norms, statistics_of
from nap_rl.agents.draws import Draws, Numbers, by_pass, draw_numbers
from nap_rl.agents.flat_weights import FlatWeights, Weights
from nap_rl.agents.value_agent import ValueAgent
from nap_rl.compilation import compiled_function, pick_compile
from nap_rl.nn import HeadLoss, SpectralConv2d
from nap_rl.replay import Replay, Transitions

MOST_PARAMETERS = 500_000
"""Of a small network. Larger ones are bound by arithmetic, no longer by calls."""


class Inputs(NamedTuple):
    """What differs from update to update; with a first dimension S for S agents."""

    numbers: Tensor  # [3] float64: learning rate, importance exponent, 1 if weights are projected now
    u: Tensor  # [2, B] float64: the draw of the replay
    eps: tuple[Tensor, ...]  # ([passes, numbers],), or () where no layer is noisy
    taus: tuple[Tensor, ...]


class Results(NamedTuple):
    """What an update computed; with a first dimension S for S agents."""

    loss: Tensor
    grad_norm: Tensor  # before clipping
    slots: Tensor  # [B]
    weights: Tensor  # [B]: importance weights
    observed: dict[str, Tensor]  # `Method.observed`


def is_small(agent: ValueAgent) -> bool:
    """Whether calls and not arithmetic bound its updates."""
    return sum(parameter.numel() for parameter in agent.network.parameters()) <= MOST_PARAMETERS


def refusal(agent: ValueAgent) -> str | None:
    """Why an update of `agent` cannot be one function, as the end of a sentence; None where it can."""
    network, optimizer = agent.network, agent.optimizer
    kept = {f"network.{name}" for name in network.state_dict()} - set(statistics_of(agent))
    kept -= {f"network.{name}" for name, _ in network.named_parameters()}
    if agent.device.type != "cpu" or agent.replay.device.type != "cpu":
        return f"the learner is on {agent.device.type}"
    if agent.precision is not torch.float32:
        return "its passes are in bfloat16"
    if any("layer" in group for group in optimizer.param_groups):
        return "layers have learning rates of their own (schedule.scope=layer)"
    if not isinstance(optimizer, Adam) or len(optimizer.param_groups) != 1:
        return f"the step of {type(optimizer).__name__} runs eagerly, since the one function has Adam's alone"
    (group,) = optimizer.param_groups
    if group["amsgrad"] or group["maximize"] or isinstance(group["lr"], Tensor):
        return "Adam has amsgrad, maximize or a tensor as learning rate"
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    if frozen and group["weight_decay"]:
        return f"the weights {frozen[0]} are frozen, and Adam's weight decay would change them"
    if any(isinstance(layer, SpectralConv2d) for layer in network.modules()):
        return "the singular vectors of spectral norms follow it"
    if kept:
        return f"a pass changes {min(kept).removeprefix('network.')}"
    if any(isinstance(layer, _BatchNorm) and layer.momentum is None for layer in network.modules()):
        return "a BatchNorm without momentum averages over all batches"
    return None


def learn_whole(agent: ValueAgent) -> str | None:
    """Put one compiled function in the place of the agent's `gradient_step`, and another in that of `q_values`.

    Returns:
        None, or why that cannot be, as the end of a sentence. The agent is as it was then.
    """
    reason = refusal(agent)
    if reason is not None:
        return reason
    flat = FlatWeights([agent])
    update = WholeUpdate(flat)
    try:
        update.trace()
    except Exception as error:  # a torso of the user's may do anything
        return f"a pass cannot be traced ({' '.join(str(error).split()):.200})"
    agent.gradient_step = update  # type: ignore[assignment]
    agent.q_values = WholeActing(flat)  # type: ignore[method-assign]
    agent.compiled = True
    return None


def learn_whole_if_worth(agent: ValueAgent, updates: float, setting: str = "auto") -> None:
    """`learn_whole` for a small network that will make so many `updates`, where compile=`setting` compiles."""
    if agent.device.type == "cpu" and not agent.compiled and is_small(agent) and pick_compile(setting, updates):
        learn_whole(agent)


class WholeUpdate:
    """The `gradient_step` of one agent, or of several of one architecture, as one function.

    Args:
        flat: of agents for which `refusal` gives None. Replays of several move into common memory.
        compiled: False runs the function operator by operator.
    """

    def __init__(self, flat: FlatWeights, *, compiled: bool = True) -> None:
        self.flat = flat
        self.agents = flat.agents
        self.first = flat.agents[0]
        self._is_stacked = len(flat.agents) > 1
        self._compiled = compiled
        self._losses = _Losses(self.first)
        self._buffers = _constant(self._losses, flat)
        replays = [agent.replay for agent in flat.agents]
        self._ring = Replay.share(replays) if self._is_stacked else self.first.replay.tensors()
        self._ring_dims = {name: None if name in Replay.CONSTANT else 0 for name in self._ring}
        self._numbers = torch.zeros(len(flat.agents), 3, dtype=torch.float64)
        self._rows = self._numbers.numpy()
        self._function: Callable[..., Any] | None = None
        self._results: Results | None = None

    def __call__(self, importance_exponent: float) -> tuple[Tensor, Tensor]:
        """`ValueAgent.gradient_step` of the one agent."""
        results = self.update([importance_exponent])
        agent = self.first
        agent.batch = None if math.isfinite(float(results.loss) + float(results.grad_norm)) else self.batch()
        return results.loss, results.grad_norm

    def update(self, exponents: Sequence[float]) -> Results:
        """One optimiser step of every agent, under its importance exponent.

        Raises:
            ValueError: a replay holds nothing that can be sampled yet.
        """
        flat = self.flat
        if not all(len(agent.replay) for agent in self.agents):
            raise ValueError("the replay holds no complete transition yet")
        flat.lay_out()
        function = self.trace() if self._function is None else self._function
        self._results = Results(*function(self._draw(exponents)))
        for row, agent in enumerate(self.agents):
            agent.method.observed.update(
                {name: each[row] if self._is_stacked else each for name, each in self._results.observed.items()}
            )
            if agent.projector is not None:
                agent.projector.updates += 1
        return self._results

    def trace(self) -> Callable[..., Any]:
        """The function. Draws numbers for their shapes, and puts the generators back."""
        flat = self.flat
        step = (
            torch.vmap(self._step, in_dims=(0, self._ring_dims, 0, 0, 0, None, 0)) if self._is_stacked else self._step
        )
        generators = [g for agent in self.agents for g in (agent.generator, agent.replay.generator)]
        states = [generator.get_state() for generator in generators]
        fixed, inputs = (
            (flat.weights, self._ring, flat.norms, flat.anchors, flat.statistics, self._buffers),
            self._draw([1.0] * len(self.agents)),
        )
        self._function = compiled_function(step, fixed, [inputs]) if self._compiled else partial(step, *fixed)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        return self._function

    def batch(self, row: int = 0) -> Transitions:
        """What the last update sampled for an agent, as long as its replay is as it was."""
        assert self._results is not None
        slots, weights = self._results.slots, self._results.weights
        slots, weights = (slots[row], weights[row]) if self._is_stacked else (slots, weights)
        replay = self.agents[row].replay
        return Transitions(*replay.gather(slots), weights, slots, replay.serials.take(slots))

    def _draw(self, exponents: Sequence[float]) -> Inputs:
        """The draws of each agent, from its own generators, in the order of `ValueAgent.gradient_step`."""
        drawn: list[tuple[Tensor, ...]] = []
        for row, agent, exponent in zip(self._rows, self.agents, exponents, strict=True):
            replay, projector = agent.replay, agent.projector
            row[:] = agent.optimizer.param_groups[0]["lr"], exponent, projector is not None and projector.due
            u = replay.priorities.draw(agent.batch_size, replay.generator)
            eps, taus = draw_numbers(agent.network, agent.passes, agent.batch_size, agent.generator)
            drawn.append((u, *taus) if eps is None else (u, *taus, eps))
        numbers, (u, *rest) = self._numbers[0], drawn[0]
        if self._is_stacked:
            numbers, (u, *rest) = self._numbers, map(torch.stack, zip(*drawn, strict=True))
        levels = len(rest) if eps is None else -1
        return Inputs(numbers, u, tuple(rest[levels:]) if eps is not None else (), tuple(rest[:levels]))

    # The function.

    def _step(
        self,
        weights: Weights,
        ring: Mapping[str, Tensor],
        norms: Tensor,
        anchors: Mapping[str, Tensor],
        statistics: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        inputs: Inputs,
    ) -> Results:
        """One update of one agent, of tensors alone. Changes weights, statistics and the ring's priorities in place."""
        agent, flat = self.first, self.flat
        rate, exponent, project = inputs.numbers.unbind()
        replay = agent.replay.over(ring)
        batch = replay.sample_at(inputs.u, exponent.float())
        draws = by_pass(agent.passes, Numbers(inputs.eps[0] if inputs.eps else None, inputs.taus))
        fixed = {**buffers, **flat.named("target", weights.target)}
        fixed |= {f"anchors.{name}": tensor for name, tensor in anchors.items()}
        places = [f"network.{name}" for name in flat.names]

        def loss_of(
            online: tuple[Tensor, ...], statistics: dict[str, Tensor]
        ) -> tuple[Tensor, tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]]:
            own = [each if trained else each.detach() for each, trained in zip(online, flat.is_trained, strict=True)]
            tensors = {**fixed, **statistics, **dict(zip(places, own, strict=True))}
            (losses, priorities), penalty, observed = torch.func.functional_call(self._losses, tensors, (batch, draws))
            loss = (batch.weights * losses).mean()
            return loss if penalty is None else loss + penalty, (loss, priorities, statistics, observed)

        gradient_of = torch.func.grad_and_value(loss_of, has_aux=True)
        followed = {name: statistic.clone() for name, statistic in statistics.items()}  # which the passes change
        gradients, (_, (loss, priorities, followed, observed)) = gradient_of(
            tuple(flat.pieces(weights.online)), followed
        )
        gradient = torch.cat([each.reshape(-1) for each in gradients])
        grad_norm = gradient.square().sum().sqrt()
        if agent.max_grad_norm is not None:
            share = torch.where(grad_norm <= agent.max_grad_norm, 1.0, agent.max_grad_norm / (grad_norm + 1e-6))
            gradient = gradient * share
        online = self._project(self._adam(weights, gradient, rate), norms, rate, project)
        weights.online.copy_(online)
        weights.gradient.copy_(gradient)
        for name, statistic in statistics.items():
            statistic.copy_(followed[name])
        replay.update(batch.slots, batch.serials, priorities)
        return Results(loss, grad_norm, batch.slots, batch.weights, observed)

    def _adam(self, weights: Weights, gradient: Tensor, rate: Tensor) -> Tensor:
        """The new parameters [P] (Kingma & Ba 2015, arXiv 1412.6980); moments and counts change in place."""
        (group,) = self.first.optimizer.param_groups
        (beta1, beta2), decay, online = group["betas"], group["weight_decay"], weights.online
        if decay and group["decoupled_weight_decay"]:
            online = online * (1.0 - rate * decay).float()
        elif decay:
            gradient = gradient + decay * online
        step = weights.steps.double() + 1.0
        step = self._for_each(step) if self.first.method.renews_parameters else step[0]
        exp_avg = torch.lerp(weights.exp_avg, gradient, 1.0 - beta1)
        exp_avg_sq = beta2 * weights.exp_avg_sq + (1.0 - beta2) * gradient * gradient
        step_size = (rate / (1.0 - beta1**step)).float()
        correction = (1.0 - beta2**step).sqrt().float()
        weights.exp_avg.copy_(exp_avg)
        weights.exp_avg_sq.copy_(exp_avg_sq)
        weights.steps.copy_(weights.steps + 1.0)
        moved: Tensor = online - step_size * (exp_avg / (exp_avg_sq.sqrt() / correction + group["eps"]))
        return moved

    def _for_each(self, numbers: Tensor) -> Tensor:
        """A number for each parameter tensor -> one for each of its elements [P]."""
        return torch.cat([each.expand(size) for each, size in zip(numbers.unbind(), self.flat.sizes, strict=True)])

    def _project(self, online: Tensor, norms: Tensor, rate: Tensor, project: Tensor) -> Tensor:
        """`Projector.after_step` on parameters [P], to `norms` [norms] float64 where `project` is 1."""
        projection, pieces = self.flat.projection, list(torch.split(online, self.flat.sizes))
        pull = (rate * projection.coefficient).float()
        for index in projection.gains | projection.offsets:
            pieces[index] = pieces[index] * (1.0 - pull)
        for index in projection.gains:
            pieces[index] = pieces[index] + pull
        for indices, norm in zip(projection.groups, torch.split(norms, list(projection.counts)), strict=True):
            rows = {index: pieces[index].view(len(norm), -1) for index in indices}
            squares = torch.stack([row.double().square().sum(1) for row in rows.values()]).sum(0)
            factor = torch.where(project > 0, norm / squares.sqrt().clamp_min(1e-30), 1.0).float()
            for index, row in rows.items():
                pieces[index] = (row * factor[:, None]).view(-1)
        return torch.cat(pieces)


class WholeActing:
    """The `q_values` of one agent, or of several of one architecture, as one function.

    It is made for as many rows as a step of the environments has, under noise. Other inputs pass the network plainly.
    """

    def __init__(self, flat: FlatWeights, *, compiled: bool = True) -> None:
        self.flat = flat
        self._is_stacked = len(flat.agents) > 1
        self._compiled = compiled
        self._values = _Values(flat.agents[0])
        self._buffers = _constant(self._values, flat)
        self._rows = len(flat.agents[0].replay.counts)
        self._is_noisy = bool(flat.agents[0].network.streams.noise_sizes)
        self._function: Callable[..., Any] | None = None

    def __call__(self, stacks: Tensor, eps: Tensor | None, taus: Tensor | None) -> Tensor:
        """Expected returns [N, A] for stacks [N, C, *frame]; of S agents [S, N, A] for [S, N, C, *frame]."""
        q: Tensor
        if not self._is_stacked and (len(stacks) != self._rows or (eps is None) == self._is_noisy):
            q = self._values(stacks, eps, taus)
            return q
        self.flat.lay_out()
        random = tuple(each for each in (eps, taus) if each is not None)
        if self._function is None:
            function = torch.vmap(self._pass, in_dims=(0, 0, None, 0, 0)) if self._is_stacked else self._pass
            fixed, inputs = (self.flat.weights.online, self.flat.statistics, self._buffers), (stacks, random)
            self._function = compiled_function(function, fixed, inputs) if self._compiled else partial(function, *fixed)
        q = self._function(stacks, random)
        return q

    def _pass(
        self,
        online: Tensor,
        statistics: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        stacks: Tensor,
        random: tuple[Tensor, ...],
    ) -> Tensor:
        """Of one agent; `random` is what was drawn of (eps, taus)."""
        eps, *taus = random if self._is_noisy else (None, *random)
        own = {name: statistic for name, statistic in statistics.items() if name.startswith("network.")}
        tensors = {**buffers, **own, **self.flat.named("network", online)}
        with self.flat.agents[0].acting():
            q: Tensor = torch.func.functional_call(self._values, tensors, (stacks, eps, taus[0] if taus else None))
        return q


class _Losses(nn.Module):
    """Both networks as one module whose pass is the loss and the method's penalty.

    That is what torch.func.functional_call takes.
    """

    def __init__(self, agent: ValueAgent) -> None:
        super().__init__()
        self.network, self.target, self.anchors = agent.network, agent.target, agent.method.anchors
        self._losses, self._method = agent.losses, agent.method

    def forward(self, batch: Transitions, draws: Draws) -> tuple[HeadLoss, Tensor | None, dict[str, Tensor]]:
        with plain_batch_norms(self.network, self.target):
            losses = self._losses(batch, draws)
            observed = {**self._method.observed}  # before a penalty passes the network again
            return losses, self._method.penalty(), observed


class _Values(nn.Module):
    """A network whose pass is `ValueAgent.q_values`."""

    def __init__(self, agent: ValueAgent) -> None:
        super().__init__()
        self.network = agent.network

    def forward(self, stacks: Tensor, eps: Tensor | None, taus: Tensor | None) -> Tensor:
        with plain_batch_norms(self.network):
            return self.network.q_values(stacks, self.network.noise(eps), taus)


def _constant(module: nn.Module, flat: FlatWeights) -> dict[str, Tensor]:
    """The buffers that no agent has for itself."""
    buffers = {name: buffer for name, buffer in module.named_buffers() if name not in flat.statistics}
    return {name: buffer for name, buffer in buffers.items() if not name.startswith("anchors.")}
