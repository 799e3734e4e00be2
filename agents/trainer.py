"""The loop that trains a value agent: act, step, store, learn when it is due, switch tasks, and tell.

Clocks: `agent_steps` counts transitions over all environments, `frames` emulator frames (4 to an agent step), and
`agent.updates` steps of the optimiser.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from nap_rl.agents.divergence import Diverged
from nap_rl.agents.evaluation import Evaluator
from nap_rl.agents.frame_stack import FrameStack
from nap_rl.agents.trainer_config import TrainerConfig
from nap_rl.agents.value_agent import Update, ValueAgent
from nap_rl.envs.atari import FRAME_SKIP
from nap_rl.envs.human import human_normalized
from nap_rl.envs.sequential import Visit
from nap_rl.envs.step import Episode, Step
from nap_rl.logging import Progress, RunLog
from nap_rl.nap import LayerMonitor, Projector
from nap_rl.schedules import progress


class Envs(Protocol):
    """N environments that step together, and the visit that they are in."""

    num_envs: int
    visit: Visit

    @property
    def switch_is_due(self) -> bool: ...
    def reset(self) -> npt.NDArray[np.uint8]: ...
    def send(self, actions: npt.NDArray[np.int64]) -> None: ...
    def recv(self) -> Step: ...
    def switch(self) -> npt.NDArray[np.uint8]: ...
    def close(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> npt.NDArray[np.uint8]: ...


@dataclass
class VisitRecord:
    """What happened in a visit so far; episodes are those that ended of themselves."""

    game: str
    cycle: int
    frames: int = 0  # emulator frames played
    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)  # emulator frames


class Trainer:
    """Runs `agent` in `env` until `config.frames`, writing to `log` and `display`."""

    def __init__(
        self,
        env: Envs,
        agent: ValueAgent,
        config: TrainerConfig,
        *,
        games: Sequence[str],
        projector: Projector | None,
        log: RunLog,
        display: Progress,
        evaluator: Evaluator | None = None,
    ) -> None:
        self.env = env
        self.agent = agent
        self.config = config
        self.games = list(dict.fromkeys(games))
        self.projector = projector
        self.log = log
        self.display = display
        self.evaluator = evaluator
        # On a GPU the updates run while the emulators step; on a CPU the two would want the same cores.
        self.overlap = agent.device.type != "cpu"
        self.monitor = LayerMonitor(agent.network, agent.optimizer)
        self.stack = FrameStack(env.num_envs, agent.replay.stack, tuple(agent.replay.frames.shape[1:]))
        self.agent_steps = 0
        self.records: list[VisitRecord] = []
        self.max_norm_drift = 0.0
        # Updates are due since this agent step and this update; both move when the replay is cleared.
        self._learning_since = (config.min_replay_steps, 0)
        # Where nothing is learnt yet, no schedule passes: a warm-up would be over before the first update.
        self._schedule_begin = config.min_replay_steps * FRAME_SKIP
        self._recent: deque[Episode] = deque(maxlen=100)
        self._losses: list[Update] = []
        self.checkpoint_seconds = 0.0  # spent on them so far; told by whoever writes them
        self._started = time.monotonic()
        # What to act on next, and whether it begins an episode: with these a step boundary is the whole state.
        self._frames = np.zeros(agent.replay.frames.shape[1:], dtype=np.uint8)
        self._first = np.ones(env.num_envs, dtype=bool)

    @property
    def frames(self) -> int:
        """Emulator frames played, over all environments."""
        return self.agent_steps * FRAME_SKIP

    def run(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Train until the frames are played, or until `stop` says so, which is asked at every step boundary.

        Raises:
            Diverged: loss, gradient or a weight is NaN or infinite.
        """
        if not self.records:
            self._frames = self.env.reset()
            self._enter(self.env.visit)
        while self.frames < self.config.frames and not stop():
            stacks = self.stack.push(self._frames, self._first)
            actions = self.agent.act(stacks, self._epsilon())
            self.env.send(actions)
            self.agent_steps += self.env.num_envs
            if self.overlap:
                self._learn()
            step = self.env.recv()
            self._store(self._frames, actions, step, self._first)
            self._record(step)
            if not self.overlap:
                self._learn()
            self._evaluate_if_due()
            if self.env.visit is not self._visit:
                self._switch()
            self._frames, self._first = step.frames, step.ended

    def _store(
        self,
        frames: npt.NDArray[np.uint8],
        actions: npt.NDArray[np.int64],
        step: Step,
        first: npt.NDArray[np.bool_],
    ) -> None:
        replay = self.agent.replay
        replay.add(frames, actions, step.rewards, step.discounts, first)
        if step.ended.any():
            envs = np.flatnonzero(step.ended)
            replay.end_episode(step.last_frames[envs], envs)

    def _learn(self) -> None:
        for _ in range(self._updates_due()):
            self._update()

    def _updates_due(self) -> int:
        """So many that updates keep their ratio to transitions."""
        if len(self.agent.replay) == 0:
            return 0
        since_step, since_update = self._learning_since
        due = math.floor((self.agent_steps - since_step) / self.config.update_every_steps)
        return max(due - (self.agent.updates - since_update), 0)

    def _update(self) -> None:
        agent, config = self.agent, self.config
        agent.set_learning_rate(self._learning_rate())
        # The first update has a row of its own: norms as they were initialised, to compare the others with.
        logging = agent.updates == 0 or (agent.updates + 1) % config.log_every_updates == 0
        if logging:
            self.monitor.snapshot()
        update = agent.update(config.importance(progress(self.frames, 0, config.importance_frames or config.frames)))
        if agent.intervene() and self.projector is not None:
            self.projector.project()
        self._losses.append(update)
        if logging or agent.device.type == "cpu":  # reading a GPU's number at every update would make the host wait
            self._check_finite(update)
        if logging:
            self._log()

    def _evaluate_if_due(self) -> None:
        """Score the network as it is now, in the game that was just played."""
        before = self.frames - self.env.num_envs * FRAME_SKIP
        if self.evaluator is None or not self.evaluator.is_due(before, self.frames):
            return
        game = self._visit.game
        played = self.evaluator(self.agent.network, game, self.frames)
        mean = sum(episode.score for episode in played) / len(played)
        normalized = human_normalized(game, mean)
        self.log.evaluation(
            frames=self.frames,
            game=game,
            cycle=self._visit.cycle,
            episodes=[(episode.seed, episode.score, episode.frames) for episode in played],
            scalars={} if normalized is None else {f"eval/{game}/human_normalized": normalized},
        )
        self.display.note(
            f"evaluation: {game} at {self.frames:,} frames, {len(played)} episodes, mean return {mean:.2f}"
        )

    def _check_finite(self, update: Update) -> None:
        for name, value in (("loss", float(update.loss)), ("gradient's norm", float(update.grad_norm))):
            if not math.isfinite(value):
                raise Diverged(f"the {name} is {value} at update {self.agent.updates}, frame {self.frames}")

    def _learning_rate(self) -> float:
        end = self._visit.end if self.config.on_switch.restart_schedule else self.config.schedule_frames
        span = max(end - self._schedule_begin, 1)
        return self.config.learning_rate(progress(self.frames, self._schedule_begin, span))

    def _epsilon(self) -> float:
        return self.config.epsilon(progress(self.frames, 0, self.config.epsilon_frames))

    def _enter(self, visit: Visit) -> None:
        self._visit = visit
        self.records.append(VisitRecord(visit.game, visit.cycle))
        self._recent.clear()

    def _switch(self) -> None:
        before, on_switch = self._visit, self.config.on_switch
        self._enter(self.env.visit)
        self.display.note(
            f"task switch: {before.game} -> {self._visit.game} (cycle {self._visit.cycle}, {self.frames:,} frames)"
        )
        if on_switch.reset_replay:
            self.agent.replay.clear()
            self._learning_since = (self.agent_steps + self.config.min_replay_steps, self.agent.updates)
        if on_switch.reset_optimizer:
            self.agent.reset_optimizer()
        if on_switch.reset_target:
            self.agent.copy_to_target()
        if on_switch.restart_schedule:
            self._schedule_begin = max(self.frames, self._learning_since[0] * FRAME_SKIP)

    def _record(self, step: Step) -> None:
        record = self.records[-1]
        record.frames += self.env.num_envs * FRAME_SKIP
        for episode in step.episodes:
            record.returns.append(episode.score)
            record.lengths.append(episode.frames)
            self._recent.append(episode)
            self.log.episode(
                frames=self.frames,
                game=self._visit.game,
                cycle=self._visit.cycle,
                episode_return=episode.score,
                length=episode.frames,
                env_index=episode.env,
            )
        self.display.update(
            frames=self.frames,
            game=self._visit.game,
            cycle=self._visit.cycle,
            fps=self.fps,
            episode_return=self._recent_mean("score"),
            loss=float(self._losses[-1].loss) if self._losses and self.agent.device.type == "cpu" else None,
            norm_drift=self.max_norm_drift if self.agent.updates else None,
            learning_rate=self._learning_rate(),
            updates=self.agent.updates,
        )

    @property
    def elapsed_seconds(self) -> float:
        """Since the start, without the time between two processes."""
        return time.monotonic() - self._started

    @property
    def fps(self) -> float:
        """Emulator frames a second since the start."""
        return self.frames / max(self.elapsed_seconds, 1e-9)

    def _recent_mean(self, name: str) -> float:
        values = [getattr(episode, name) for episode in self._recent]
        return sum(values) / len(values) if values else math.nan

    def _log(self) -> None:
        """One row of metrics: the means since the last, and every layer's norms."""
        losses, grad_norms = (torch.stack(column).mean() for column in zip(*self._losses, strict=True))
        self._losses.clear()
        values = {
            "rollout/ep_rew_mean": self._recent_mean("score"),
            "rollout/ep_len_mean": self._recent_mean("frames") / FRAME_SKIP,
            "time/fps": self.fps,
            "time/elapsed_seconds": self.elapsed_seconds,
            "time/checkpoint_seconds": self.checkpoint_seconds,
            "train/loss": float(losses),
            "train/grad_norm": float(grad_norms),
            "train/learning_rate": self._learning_rate(),
            "task/index": float(self._visit.number),
            "task/cycle": float(self._visit.cycle),
        }
        for game in self.games:
            values[f"task/{game}/return"] = self._recent_mean("score") if game == self._visit.game else math.nan
        layers = self.monitor.measure()
        for name, layer in layers.items():
            if not math.isfinite(layer["param_norm"]):
                norm = layer["param_norm"]
                raise Diverged(f"the norm of {name} is {norm} at update {self.agent.updates}, frame {self.frames}")
        drift = self._norm_drift(layers)
        self.max_norm_drift = max(self.max_norm_drift, drift)
        values["nap/norm_drift"] = drift
        for kind in ("param_norm", "grad_norm", "effective_lr", "update_ratio", "rotation"):
            for name, layer in layers.items():
                values[f"nap/{kind}/{name}"] = layer[kind]
        self.log.metrics(self.agent.updates, self.agent_steps, self.frames, values)

    def _norm_drift(self, layers: Mapping[str, Mapping[str, float]]) -> float:
        """Largest |norm / initial norm - 1| of the projected layers; of all layers where nothing is projected."""
        if self.projector is not None:
            return float(self.projector.max_relative_drift())
        return max(abs(layer["relative_drift"]) for layer in layers.values())

    # State, at a step boundary.

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on, but the replay's records: dicts of tensors, arrays and JSON."""
        agent = self.agent.state_dict()
        losses = [torch.stack([update.loss, update.grad_norm]) for update in self._losses]
        return {
            "network": agent.pop("network"),
            "target": agent.pop("target"),
            "optimizer": agent.pop("optimizer"),
            "agent": agent,
            "replay": self.agent.replay.state_dict(),
            "env": self.env.state_dict(),
            "monitor": self.monitor.state_dict(),
            "projector": None if self.projector is None else self.projector.state_dict(),
            "trainer": {
                "agent_steps": self.agent_steps,
                "learning_since": list(self._learning_since),
                "schedule_begin": self._schedule_begin,
                "max_norm_drift": self.max_norm_drift,
                "elapsed_seconds": self.elapsed_seconds,
                "checkpoint_seconds": self.checkpoint_seconds,
                "recent": [list(episode) for episode in self._recent],
                "records": [(r.game, r.cycle, r.frames, len(r.returns)) for r in self.records],
                "returns": np.array([score for r in self.records for score in r.returns], dtype=np.float64),
                "lengths": np.array([length for r in self.records for length in r.lengths], dtype=np.int64),
                "losses": torch.stack(losses) if losses else torch.empty(0, 2),
                "frames": self._frames,
                "first": self._first,
                "stacks": self.stack.stacks,
                "torch_rng": torch.get_rng_state(),
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Into a new trainer, before `run`; the replay's records are put back by the caller.

        Raises:
            ValueError: the state is of another configuration, or the emulators do not play as they did.
        """
        if (state["projector"] is None) != (self.projector is None):
            raise ValueError("the saved run was projected and this one is not, or the other way round")
        own = state["trainer"]
        self.agent.load_state_dict(
            {**state["agent"], **{key: state[key] for key in ("network", "target", "optimizer")}}
        )
        self.agent.replay.load_state_dict(state["replay"])
        self.monitor.load_state_dict(state["monitor"])
        if self.projector is not None:
            self.projector.load_state_dict(state["projector"])
        self._frames, self._first = self.env.load_state_dict(state["env"]), own["first"].numpy().copy()
        if not np.array_equal(self._frames, own["frames"]):
            raise ValueError(
                "the emulators do not show what they showed at the checkpoint: is ale-py of another version?"
            )
        self.stack.stacks[:] = own["stacks"]
        self.agent_steps = own["agent_steps"]
        self._learning_since = (own["learning_since"][0], own["learning_since"][1])
        self._schedule_begin = own["schedule_begin"]
        self.max_norm_drift = own["max_norm_drift"]
        self._started = time.monotonic() - own["elapsed_seconds"]
        self.checkpoint_seconds = own["checkpoint_seconds"]
        self._recent.extend(Episode(*episode) for episode in own["recent"])
        self._losses = [Update(loss, grad_norm) for loss, grad_norm in own["losses"].to(self.agent.device)]
        returns, lengths = iter(own["returns"].tolist()), iter(own["lengths"].tolist())
        for game, cycle, frames, count in own["records"]:
            record = VisitRecord(game, cycle, frames, [*islice(returns, count)], [*islice(lengths, count)])
            self.records.append(record)
        torch.set_rng_state(own["torch_rng"])
        self._visit = self.env.visit
        if self.env.switch_is_due:
            self._begin_visit_after_the_end()

    def _begin_visit_after_the_end(self) -> None:
        """Where the saved run had ended, with its sequence, the longer sequence switches."""
        running = np.flatnonzero(~self._first)
        self.agent.replay.end_episode(self._frames[running], running)
        self._frames, self._first = self.env.switch(), np.ones(self.env.num_envs, dtype=bool)
        self._switch()
