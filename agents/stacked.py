"""Several runs in one process: their agents act by one call and learn by another, and each run sees nothing of it.

The agents' weights, moments and replays are rows of common tensors. Each agent is whole: it draws from its own
generators, and what reads or writes its state (checkpoints, monitors, switches, copies into the target network) does so
as ever. Only the two calls that `Trainer.play` asks for are answered for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from nap_rl.agents.divergence import Diverged, Update
from nap_rl.agents.flat_weights import FlatWeights
from nap_rl.agents.trainer import Act, Learn, Play, Request, Trainer
from nap_rl.agents.value_agent import ValueAgent
from nap_rl.agents.whole_update import WholeActing, WholeUpdate

Answers = list[Any]
"""By agent: what was asked for, or the `Diverged` that came of it. None where nothing was asked for."""


class StackedAgents:
    """Two agents or more of one configuration but for their seeds.

    Args:
        agents: for which `whole_update.refusal` gives None. An agent's own `act` and `update` stay, and stay right.
        compiled: torch.compile both calls.
    """

    def __init__(self, agents: Sequence[ValueAgent], *, compiled: bool) -> None:
        self.agents = agents
        flat = FlatWeights(agents)
        self._update = WholeUpdate(flat, compiled=compiled)
        self._q_values = WholeActing(flat, compiled=compiled)
        for agent in agents:
            agent.compiled = compiled

    @torch.inference_mode()
    def act(self, requests: Sequence[Act | None]) -> Answers:
        """Actions for every request. Where none is made, the stacks of another agent are looked at, and forgotten."""
        some = next(request for request in requests if request is not None)
        stacks = torch.stack([torch.as_tensor((request or some).stacks) for request in requests])
        draws = [agent.draw_to_act(stacks.shape[1]) for agent in self.agents]
        eps, taus = (None if each[0] is None else torch.stack(each) for each in zip(*draws, strict=True))
        q = self._q_values(stacks, eps, taus)
        rows = zip(self.agents, q, requests, strict=True)
        return [None if request is None else agent.choose(values, request.epsilon) for agent, values, request in rows]

    def update(self, requests: Sequence[Learn | None]) -> Answers:
        """One update for every request. An agent that makes none is at its end: its weights move on unseen."""
        results = self._update.update([0.0 if request is None else request.importance_exponent for request in requests])
        answers: Answers = []
        rows = zip(self.agents, requests, results.loss, results.grad_norm, strict=True)
        for row, (agent, request, loss, grad_norm) in enumerate(rows):
            if request is None:
                answers.append(None)
                continue
            finite = math.isfinite(float(loss) + float(grad_norm))
            agent.batch = None if finite else self._update.batch(row)
            try:
                answers.append(agent.finish(Update(loss, grad_norm)))
            except Diverged as error:
                answers.append(error)
        return answers

    def one_by_one(self, requests: Sequence[Request | None]) -> Answers:
        """Every agent's own answer."""
        answers: Answers = []
        for agent, request in zip(self.agents, requests, strict=True):
            try:
                answers.append(None if request is None else request.ask(agent))
            except Diverged as error:
                answers.append(error)
            agent.on_new_state()  # `update` made gradients of its own
        return answers


def play_together(
    trainers: Sequence[Trainer], stacked: StackedAgents, stops: Sequence[Callable[[], bool]]
) -> Iterator[tuple[int, Exception | None]]:
    """`Trainer.run` of all trainers in step. Yields (index, what ended it or None) as each run ends."""
    plays: list[Play] = [trainer.play(stop) for trainer, stop in zip(trainers, stops, strict=True)]
    requests: list[Request | None] = [None] * len(plays)
    answers: Answers = [None] * len(plays)
    running = list(range(len(plays)))
    while running:
        for index in [*running]:
            try:
                answer = answers[index]
                requests[index] = (
                    plays[index].throw(answer) if isinstance(answer, Diverged) else plays[index].send(answer)
                )
            except Exception as error:
                running.remove(index)
                requests[index] = answers[index] = None
                yield index, None if isinstance(error, StopIteration) else error
        answers = _answer(requests, stacked)


def _answer(requests: Sequence[Request | None], stacked: StackedAgents) -> Answers:
    acts = [request if isinstance(request, Act) else None for request in requests]
    learns = [request if isinstance(request, Learn) else None for request in requests]
    if not any(learns):
        return stacked.act(acts) if any(acts) else [None] * len(requests)
    if not any(acts):
        return stacked.update(learns)
    return stacked.one_by_one(requests)  # runs that went on from different steps
