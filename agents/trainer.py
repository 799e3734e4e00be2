"""The loop that trains a value agent: act, step, store, learn when it is due, switch tasks.

    act --> collector.send --> the environments step --> collector.recv --> records.add --> updates due --> switch?
                                (a GPU learns meanwhile)

Three counters: `agent_steps` are transitions over all environments, `frames` are agent steps times the environment's
frame skip, and `agent.updates` are steps of the optimiser.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from nap_rl.agents.collector import Collector
from nap_rl.agents.divergence import Diverged, Update
from nap_rl.agents.evaluation import Evaluator, evaluated_tasks
from nap_rl.agents.records import Records
from nap_rl.agents.trainer_config import TrainerConfig
from nap_rl.agents.value_agent import ValueAgent
from nap_rl.envs.step import TaskStream
from nap_rl.logging import Progress, RunLog, Status
from nap_rl.schedules import Stall, progress


@dataclass(frozen=True)
class Clock:
    """Where updates and the learning rate's schedule count from. Both wait until the replay is filled."""

    learning_from_step: int
    learning_from_update: int
    schedule_from_frame: int

    def updates_due(self, agent_steps: int, updates: int, update_every_steps: float) -> int:
        """Updates to make now, so that they keep their ratio to transitions."""
        due = math.floor((agent_steps - self.learning_from_step) / update_every_steps)
        return max(due - (updates - self.learning_from_update), 0)


class Act(NamedTuple):
    """Asks for actions [N]."""

    stacks: npt.NDArray[Any]  # [N, C, *frame]
    epsilon: float

    def ask(self, agent: ValueAgent) -> npt.NDArray[np.int64]:
        """The agent's answer."""
        return agent.act(*self)


class Learn(NamedTuple):
    """Asks for an update: an `Update`."""

    importance_exponent: float

    def ask(self, agent: ValueAgent) -> Update:
        """The agent's answer."""
        return agent.update(*self)


Request = Act | Learn
Play = Generator[Request, Any, None]
"""Yields requests, and is sent the answer to each."""


class Trainer:
    """Trains `agent` in `env` until `config.frames`, writing to `log` and `display`.

    Args:
        evaluator: scores the network during training; None for no evaluation.
        renew: (agent, number of the visit) -> fresh weights, for `config.on_switch.reset_network`.

    Attributes:
        overlap: whether updates run while the environments step. On a CPU both would want the same cores.
    """

    def __init__(
        self,
        env: TaskStream,
        agent: ValueAgent,
        config: TrainerConfig,
        *,
        log: RunLog,
        display: Progress,
        evaluator: Evaluator | None = None,
        renew: Callable[[ValueAgent, int], None] | None = None,
    ) -> None:
        self.env = env
        self.agent = agent
        self.config = config
        self.log = log
        self.display = display
        self.evaluator = evaluator
        self.renew = renew
        self.overlap = agent.device.type != "cpu"
        self.collector = Collector(env, agent)
        self.records = Records(
            agent,
            self.collector,
            log,
            tasks=[visit.task for visit in env.visits],
            log_every_updates=config.log_every_updates,
            diagnostics_every_updates=config.diagnostics_every_updates,
        )
        self.clock = Clock(config.min_replay_steps, 0, config.min_replay_steps * env.frame_skip)
        rewarming = config.rewarming
        self.stall = None if rewarming is None else Stall(rewarming, self.clock.schedule_from_frame)
        self._compilations = {"acting", "the update"} if agent.compiled else set()  # still to come in this process

    @property
    def frames(self) -> int:
        """Frames played, over all environments."""
        return self.collector.frames

    @property
    def agent_steps(self) -> int:
        """Transitions, over all environments."""
        return self.collector.agent_steps

    def run(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Train until all frames are played, or until `stop` returns true; it is asked between two steps.

        Raises:
            Diverged: a loss, gradient or weight is NaN or infinite.
        """
        play = self.play(stop)
        request = next(play, None)
        while request is not None:
            try:
                answer = request.ask(self.agent)
            except Diverged as error:
                play.throw(error)
                raise
            try:
                request = play.send(answer)
            except StopIteration:
                return

    def play(self, stop: Callable[[], bool]) -> Play:
        """`run`, with what the agent computes asked for: yields requests, is sent the answers.

        So that one call can answer the trainers of several agents.
        """
        if not self.records.visits:
            self.collector.begin()
            self.records.enter(self.env.visit)
        self._note_compilation("acting")
        while self.frames < self.config.frames and not stop():
            actions = yield Act(self.collector.stacks(), self._epsilon())
            self.collector.send(actions)
            if self.overlap:
                yield from self._learn()
            step = self.collector.recv()
            self.records.add(step)
            self._rewarm_if_stalled()
            if not self.overlap:
                yield from self._learn()
            self._evaluate_if_due()
            if self.env.visit is not self.records.visit:
                self._switch()
            if self.display.is_due:
                self.display.update(self._status())
        self.display.update(self._status())

    def _learn(self) -> Play:
        if len(self.agent.replay) == 0:
            return
        every = self.config.update_every_steps
        for _ in range(self.clock.updates_due(self.collector.agent_steps, self.agent.updates, every)):
            yield from self._update()

    def _update(self) -> Play:
        self._note_compilation("the update")
        learning_rate, factors = self._learning_rate(), self.config.layer_factors
        self.agent.set_learning_rate(learning_rate, None if factors is None else factors(self._schedule_progress()))
        self.records.before_update()
        try:
            update = yield Learn(self._importance_exponent())
            self.agent.intervene()
            for sign in self.records.after_update(update, learning_rate):
                self.display.note(f"warning: {sign}")
        except Diverged as error:
            raise Diverged(f"{error}, frame {self.frames}") from None

    def _switch(self) -> None:
        """Begin to record the next visit, and reset what the configuration names."""
        before, on_switch = self.records.visit, self.config.on_switch
        visit = self.env.visit
        self.records.enter(visit)
        self.display.note(f"task switch: {before.task} -> {visit.task} (cycle {visit.cycle}, {self.frames:,} frames)")
        self.agent.at_switch()
        if on_switch.reset_network:
            assert self.renew is not None
            self.renew(self.agent, visit.number)
            self.records.network_was_renewed()
        if on_switch.reset_replay:
            self.agent.replay.clear()
            filled = self.collector.agent_steps + self.config.min_replay_steps
            self.clock = replace(self.clock, learning_from_step=filled, learning_from_update=self.agent.updates)
        if on_switch.reset_optimizer:
            self.agent.reset_optimizer()
        if on_switch.reset_target:
            self.agent.copy_to_target()
        if on_switch.restart_schedule:
            learning_from_frame = self.clock.learning_from_step * self.env.frame_skip
            self._begin_schedule(max(self.frames, learning_from_frame))

    def _evaluate_if_due(self) -> None:
        """Score the network in the task that was just played, and in what else `eval.tasks` names."""
        before = self.frames - self.env.num_envs * self.env.frame_skip
        if self.evaluator is None or not self.evaluator.is_due(before, self.frames):
            return
        for task in evaluated_tasks(self.evaluator.tasks, self.env.visits, self.records.visit):
            evaluation = self.evaluator(self.agent.network, task, self.frames)
            self.records.evaluated(evaluation, task)
            self.display.note(
                f"evaluation: {task} at {self.frames:,} frames, {len(evaluation.played)} episodes, "
                f"mean return {evaluation.mean_return:.2f}"
            )

    # Schedules

    def _begin_schedule(self, frame: int) -> None:
        self.clock = replace(self.clock, schedule_from_frame=frame)
        if self.stall is not None:
            self.stall.begin(frame)

    def _rewarm_if_stalled(self) -> None:
        if self.stall is not None and self.stall(self.frames, self.records.mean_score):
            self.display.note(f"learning stalls: the learning rate is warmed again at {self.frames:,} frames")
            self._begin_schedule(self.frames)

    def _schedule_progress(self) -> float:
        begin, rewarming = self.clock.schedule_from_frame, self.config.rewarming
        if rewarming is not None:
            end = begin + rewarming.cycle_frames
        else:
            end = self.records.visit.end if self.config.on_switch.restart_schedule else self.config.schedule_frames
        return progress(self.frames, begin, max(end - begin, 1))

    def _learning_rate(self) -> float:
        return self.config.learning_rate(self._schedule_progress())

    def _importance_exponent(self) -> float:
        return self.config.importance(progress(self.frames, 0, self.config.importance_frames or self.config.frames))

    def _epsilon(self) -> float:
        begin = self.records.visit.begin if self.config.on_switch.restart_exploration else 0
        until = self.config.epsilon_until_frames
        if until is not None and self.frames - begin >= until:
            return 0.0
        return self.config.epsilon(progress(self.frames, begin, self.config.epsilon_frames))

    # Words for the display

    def _note_compilation(self, what: str) -> None:
        if what in self._compilations:
            self._compilations.remove(what)
            self.display.note(f"compiling, once on this machine: about a minute ({what})")

    def _status(self) -> Status:
        return self.records.status(self.config.frames, self._learning_rate(), self._waiting())

    def _waiting(self) -> str | None:
        filled = self.clock.learning_from_step
        if self.collector.agent_steps >= filled + self.config.update_every_steps:
            return None
        return f"filling the replay: learning begins at {filled * self.env.frame_skip:,} frames"

    # State between two steps

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on, without the replay's records: dicts of tensors, arrays and JSON."""
        agent, projector = self.agent.state_dict(), self.agent.projector
        return {
            "network": agent.pop("network"),
            "target": agent.pop("target"),
            "optimizer": agent.pop("optimizer"),
            "agent": agent,
            "replay": self.agent.replay.state_dict(),
            "env": self.env.state_dict(),
            "monitor": self.records.monitor.state_dict(),
            "projector": None if projector is None else projector.state_dict(),
            "trainer": {
                **self.collector.state_dict(),
                **self.records.state_dict(),
                "learning_since": [self.clock.learning_from_step, self.clock.learning_from_update],
                "schedule_begin": self.clock.schedule_from_frame,
                "stall": None if self.stall is None else self.stall.state(),
                "torch_rng": torch.get_rng_state(),
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Into a new trainer, before `run`. The caller puts the replay's records back.

        Raises:
            ValueError: the state is of other settings, or the environments do not play as they did.
        """
        projector, trainer = self.agent.projector, state["trainer"]
        if (state["projector"] is None) != (projector is None):
            raise ValueError("the saved run was projected and this one is not, or the other way round")
        networks = {name: state[name] for name in ("network", "target", "optimizer")}
        self.agent.load_state_dict({**state["agent"], **networks})
        self.agent.replay.load_state_dict(state["replay"])
        if projector is not None:
            projector.load_state_dict(state["projector"])
        self.collector.load_state_dict(trainer, state["env"])
        self.records.monitor.load_state_dict(state["monitor"])
        self.records.load_state_dict(trainer)
        step, update = trainer["learning_since"]
        self.clock = Clock(step, update, trainer["schedule_begin"])
        if self.stall is not None and trainer.get("stall") is not None:
            self.stall.load_state(trainer["stall"])
        torch.set_rng_state(trainer["torch_rng"])
        if self.env.switch_is_due:  # the saved run ended with its last visit; this stream is longer
            self.collector.switch()
            self._switch()
