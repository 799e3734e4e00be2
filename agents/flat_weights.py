"""The weights and moments of agents of one architecture, each in one tensor, so that one call can take them all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nap_rl.agents.batch_statistics import statistics_of
from nap_rl.agents.value_agent import ValueAgent


class Weights(NamedTuple):
    """What an update reads and writes, float32: a vector of P parameters each, or [S, P] for S agents."""

    online: Tensor
    target: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    gradient: Tensor  # clipped
    steps: Tensor  # [parameters]: Adam's count of the updates of each


class Projection(NamedTuple):
    """Which parameters are projected and regularised, by their places in `network.parameters()`."""

    groups: tuple[tuple[int, ...], ...] = ()  # scaled together, as one vector or unit by unit
    counts: tuple[int, ...] = ()  # norms of each group: 1, or one for each unit
    gains: frozenset[int] = frozenset()  # pulled to 1
    offsets: frozenset[int] = frozenset()  # pulled to 0
    coefficient: float = 0.0


class FlatWeights:
    """Parameters side by side: [P] of one agent, rows of [S, P] of several.

    Networks, their `.grad` and the optimisers hold views of it, so that everything else finds what it always found.

    Args:
        agents: of one architecture.

    Attributes:
        weights: the memory, which stays the same.
        is_trained: for each parameter whether it is no frozen one, which has neither moments nor a gradient.
        projection, norms: what each agent's projector does after a step, and to which norms: [norms] float64, those of
            all groups side by side, or [S, norms].
        anchors: what the plasticity methods hold the weights to, by name; with a first dimension S for S agents.
        statistics: the running ones of BatchNorm, by network and name; likewise.
    """

    def __init__(self, agents: Sequence[ValueAgent]) -> None:
        self.agents = agents
        parameters = dict(agents[0].network.named_parameters())
        self.names = list(parameters)
        self._shapes = [parameter.shape for parameter in parameters.values()]
        self.sizes = [shape.numel() for shape in self._shapes]
        self.is_trained = [parameter.requires_grad for parameter in parameters.values()]
        self._is_single = len(agents) == 1
        seeds = () if self._is_single else (len(agents),)
        lengths = [*[sum(self.sizes)] * len(Weights._fields[:-1]), len(self.names)]
        self.weights = Weights(*(torch.zeros(*seeds, length) for length in lengths))
        self.projection, norms = projection_of(agents[0])
        self.norms = norms.expand(*seeds, len(norms)).clone()
        anchors, statistics = anchors_of(agents[0]), statistics_of(agents[0])
        self.anchors = {name: tensor.new_zeros((*seeds, *tensor.shape)) for name, tensor in anchors.items()}
        self.statistics = {name: tensor.new_zeros((*seeds, *tensor.shape)) for name, tensor in statistics.items()}
        self._is_laid_out = False
        for agent in agents:
            agent.on_new_state = self.forget
        self.lay_out()

    def forget(self) -> None:
        """The optimiser or the projector of an agent gets another state: the next `lay_out` takes it over."""
        self._is_laid_out = False

    def pieces(self, row: Tensor) -> Iterable[Tensor]:
        """[P] -> the parameters in their shapes: views."""
        return (piece.view(shape) for piece, shape in zip(torch.split(row, self.sizes), self._shapes, strict=True))

    def named(self, network: str, row: Tensor) -> dict[str, Tensor]:
        """[P] -> {"<network>.<name of the parameter>": view}."""
        return {f"{network}.{name}": piece for name, piece in zip(self.names, self.pieces(row), strict=True)}

    @torch.inference_mode(False)
    def lay_out(self) -> None:
        """Move into the memory whatever was put in the place of its views since the last call."""
        if self._is_laid_out:
            return
        for row, agent in enumerate(self.agents):
            *vectors, steps = (each if self._is_single else each[row] for each in self.weights)
            views = [self.pieces(vector) for vector in vectors]
            parameters = zip(agent.network.parameters(), agent.target.parameters(), *views, steps, strict=True)
            for online, target, at_online, at_target, exp_avg, exp_avg_sq, gradient, step in parameters:
                online.data = at_online.copy_(online.detach())
                target.data = at_target.copy_(target)
                if not online.requires_grad:
                    continue
                online.grad = gradient.zero_() if online.grad is None else gradient.copy_(online.grad)
                moments = agent.optimizer.state[online]
                for name, view in (("step", step), ("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)):
                    moments[name] = view.copy_(moments[name]) if name in moments else view.zero_()
            self.projection, norms = projection_of(agent)
            (self.norms if self._is_single else self.norms[row]).copy_(norms)
            for memories, own in ((self.anchors, anchors_of(agent)), (self.statistics, statistics_of(agent))):
                for name, tensor in own.items():
                    memory = memories[name] if self._is_single else memories[name][row]
                    tensor.data = memory.copy_(tensor.detach())
        self._is_laid_out = True


def anchors_of(agent: ValueAgent) -> dict[str, Tensor]:
    """The tensors of `Method.anchors`."""
    anchors = agent.method.anchors
    return {**dict(anchors.named_parameters()), **dict(anchors.named_buffers())}


def projection_of(agent: ValueAgent) -> tuple[Projection, Tensor]:
    """What the agent's projector does after a step, and the norms [norms] float64 that it keeps."""
    projector = agent.projector
    if projector is None:
        return Projection(), torch.zeros(0, dtype=torch.float64)
    place = {parameter: index for index, parameter in enumerate(agent.network.parameters())}
    groups = [(group.tensors, torch.tensor([group.norm], dtype=torch.float64)) for group in projector.whole_groups()]
    groups += projector.unit_groups()
    pairs = [pair for pair in projector.gains_and_offsets.values() if pair[0].requires_grad]
    pairs = pairs if projector.affine == "regularize" else []
    projection = Projection(
        groups=tuple(tuple(place[tensor] for tensor in tensors) for tensors, _ in groups),
        counts=tuple(len(norms) for _, norms in groups),
        gains=frozenset(place[gain] for gain, *_ in pairs),
        offsets=frozenset(place[each] for _, *offset in pairs for each in offset),
        coefficient=projector.regularize_coefficient,
    )
    return projection, torch.cat([norms for _, norms in groups] or [torch.zeros(0, dtype=torch.float64)])
