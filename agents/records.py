"""What a run tells about itself: visits and episodes, rows of metrics.csv, the display's readings."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch

from nap_rl.agents.collector import Collector
from nap_rl.agents.diagnostics import Diagnostics
from nap_rl.agents.divergence import Update, check_finite
from nap_rl.agents.evaluation import Evaluation
from nap_rl.agents.signs import Signs
from nap_rl.agents.value_agent import ValueAgent
from nap_rl.envs.step import Episode, Step, Visit
from nap_rl.logging import RecentRate, RunLog, Status
from nap_rl.logging.tags import LAYER_MEASURES
from nap_rl.nap import LayerMonitor
from nap_rl.nap.groups import frozen_paths

RECENT_EPISODES = 100
MOST_TASK_COLUMNS = 64
LATE = 0.7  # of a visit's frames: what comes after them is late


@dataclass
class VisitRecord:
    """What happened in a visit so far. Episodes cut by a task switch are left out."""

    task: str
    cycle: int
    frames: int = 0
    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)  # frames
    ends: list[int] = field(default_factory=list)  # frames of the visit when each episode ended
    planned_frames: int | None = None

    @property
    def mean_return(self) -> float | None:
        """Of all episodes; None without any."""
        return sum(self.returns) / len(self.returns) if self.returns else None

    @property
    def late_return(self) -> float | None:
        """Mean return of the episodes that ended in the last 30 % of the visit; None without any."""
        if self.planned_frames is None:
            return None
        late = [score for score, end in zip(self.returns, self.ends, strict=True) if end > LATE * self.planned_frames]
        return sum(late) / len(late) if late else None

    @property
    def auc_return(self) -> float | None:
        """Area under the curve of returns over frames, per frame: each episode counts as long as it lasted."""
        return float(np.average(self.returns, weights=self.lengths)) if self.returns else None


class Records:
    """Keeps a run's numbers and writes them to `log`.

    Args:
        tasks: names of all tasks of the run. Each has a column `task/<name>/return`, unless they are more than 64.
        log_every_updates: updates between two rows of metrics.csv. The first update has a row too: it shows the norms
            as they were initialised.
        diagnostics_every_updates: updates between two rows with diagnostics; None for none. The first row has them. A
            run whose metrics.csv began without them goes on without them.

    Attributes:
        visits: the last one is being played.
        max_norm_drift: largest |norm / initial norm - 1| of a projected layer in any row; of any layer without NaP.
        checkpoint_seconds: spent on checkpoints so far; the checkpointer adds to it.
    """

    def __init__(
        self,
        agent: ValueAgent,
        collector: Collector,
        log: RunLog,
        *,
        tasks: Sequence[str],
        log_every_updates: int,
        diagnostics_every_updates: int | None = None,
    ) -> None:
        self.agent = agent
        self.collector = collector
        self.log = log
        names = list(dict.fromkeys(tasks))
        self.tasks = names if len(names) <= MOST_TASK_COLUMNS else []
        self.log_every_updates = log_every_updates
        self.diagnostics_every_updates = diagnostics_every_updates
        self.monitor = LayerMonitor(
            agent.network, agent.optimizer, power=agent.effective_lr_power, free=frozen_paths(agent.network)
        )
        self.diagnostics = Diagnostics(agent, self.monitor.names)
        self.visits: list[VisitRecord] = []
        self.max_norm_drift = 0.0
        self.checkpoint_seconds = 0.0
        self._recent: deque[Episode] = deque(maxlen=RECENT_EPISODES)
        self._updates: list[Update] = []  # since the last row
        self._signs = Signs()
        self._started = time.monotonic()
        self._recent_rate = RecentRate()
        self._waited = False

    @property
    def elapsed_seconds(self) -> float:
        """Since the start of the run, without the time between two processes."""
        return time.monotonic() - self._started

    @property
    def fps(self) -> float:
        """Frames a second since the start."""
        return self.collector.frames / max(self.elapsed_seconds, 1e-9)

    def enter(self, visit: Visit) -> None:
        """A visit begins."""
        self.visit = visit
        self.visits.append(VisitRecord(visit.task, visit.cycle, planned_frames=visit.end - visit.begin))
        self._recent.clear()

    def add(self, step: Step) -> None:
        """Count a step to the visit, and write the episodes that it ended."""
        record, env = self.visits[-1], self.collector.env
        record.frames += env.num_envs * env.frame_skip
        for episode in step.episodes:
            record.returns.append(episode.score)
            record.lengths.append(episode.frames)
            record.ends.append(record.frames)
            self._recent.append(episode)
            self.log.episode(
                frames=self.collector.frames,
                game=self.visit.task,
                cycle=self.visit.cycle,
                episode_return=episode.score,
                length=episode.frames,
                env_index=episode.env,
            )

    def network_was_renewed(self) -> None:
        """The weights are fresh ones: measure the layers against these from now on."""
        agent = self.agent
        self.monitor = LayerMonitor(agent.network, agent.optimizer, power=agent.effective_lr_power)

    def before_update(self) -> None:
        """Look at the weights before an update that gets a row."""
        update = self.agent.updates + 1
        if self._has_row(update):
            self.monitor.snapshot()
        if self._has_diagnostics(update):
            self.diagnostics.before_update()

    def after_update(self, update: Update, learning_rate: float) -> list[str]:
        """Keep what the update computed, and write a row where one is due.

        Returns:
            What the user should hear of it: see `Signs`.

        Raises:
            Diverged: the loss, the gradient or the norm of a layer is NaN or infinite.
        """
        self._updates.append(update)
        if self._has_row(self.agent.updates):
            self.agent.check_finite(update)
            row = self._row(learning_rate)
            self.log.metrics(self.agent.updates, self.collector.agent_steps, self.collector.frames, row)
            self._updates.clear()
            return self._signs.new(row)
        return []

    def evaluated(self, evaluation: Evaluation, task: str) -> None:
        """Write an evaluation of the network in `task`, which need not be the one that is played."""
        self.log.evaluation(
            frames=self.collector.frames,
            game=task,
            cycle=self.visit.cycle,
            episodes=[(episode.seed, episode.score, episode.frames) for episode in evaluation.played],
            frame_skip=self.collector.env.frame_skip,
            current=task == self.visit.task,
            scalars={f"eval/{task}/{name}": value for name, value in evaluation.extra_scores.items()},
        )

    def status(self, total_frames: int, learning_rate: float, waiting: str | None) -> Status:
        """The display's readings. The loss is None on a GPU, where reading it at every step would stall the host."""
        if self._waited and waiting is None:  # now it learns, and is slower
            self._recent_rate.restart()
        self._waited = waiting is not None
        return Status(
            total_frames=total_frames,
            frames=self.collector.frames,
            task=self.visit.task,
            cycle=self.visit.cycle,
            fps=self._recent_rate(self.collector.frames),
            episode_return=self.mean_score,
            loss=float(self._updates[-1].loss) if self._updates and self.agent.device.type == "cpu" else None,
            norm_drift=self.max_norm_drift if self.agent.updates else None,
            learning_rate=learning_rate,
            updates=self.agent.updates,
            waiting=waiting,
        )

    def _has_row(self, update: int) -> bool:
        return update == 1 or update % self.log_every_updates == 0

    def _has_diagnostics(self, update: int) -> bool:
        """Whether the update's row is the first one, or the first one at or past a multiple of the rhythm."""
        every, tags = self.diagnostics_every_updates, self.log.tags
        if every is None or not self._has_row(update):
            return False
        if tags is not None and not any(tag.startswith("plasticity/") for tag in tags):
            return False
        return update == 1 or update // every > (update - self.log_every_updates) // every

    @property
    def mean_score(self) -> float | None:
        """Of the last 100 episodes of the visit; None without any."""
        return sum(episode.score for episode in self._recent) / len(self._recent) if self._recent else None

    def _mean_steps(self) -> float | None:
        if not self._recent:
            return None
        return sum(episode.frames for episode in self._recent) / len(self._recent) / self.collector.env.frame_skip

    def _row(self, learning_rate: float) -> dict[str, float | None]:
        """Means since the last row, and every layer's norms: two host syncs."""
        losses, grad_norms = (torch.stack(column).mean() for column in zip(*self._updates, strict=True))
        layers = self.monitor.measure()
        norms = {f"norm of {name}": layer["param_norm"] for name, layer in layers.items()}
        check_finite(norms, f"at update {self.agent.updates}")
        drift = self._norm_drift(layers)
        self.max_norm_drift = max(self.max_norm_drift, drift)
        values: dict[str, float | None] = {
            "rollout/ep_rew_mean": self.mean_score,
            "rollout/ep_len_mean": self._mean_steps(),
            "time/fps": self.fps,
            "time/elapsed_seconds": self.elapsed_seconds,
            "time/checkpoint_seconds": self.checkpoint_seconds,
            "train/loss": float(losses),
            "train/grad_norm": float(grad_norms),
            "train/learning_rate": learning_rate,
            "task/index": float(self.visit.number),
            "task/cycle": float(self.visit.cycle),
        }
        for task in self.tasks:
            values[f"task/{task}/return"] = self.mean_score if task == self.visit.task else None
        values["nap/norm_drift"] = drift
        for measure in LAYER_MEASURES:
            for name, layer in layers.items():
                values[f"nap/{measure}/{name}"] = layer[measure]
        if self._has_diagnostics(self.agent.updates):
            values |= self.diagnostics.after_update()
        return values

    def _norm_drift(self, layers: Mapping[str, Mapping[str, float]]) -> float:
        projector = self.agent.projector
        if projector is not None:
            return float(projector.max_relative_drift())
        return max(abs(layer["relative_drift"]) for layer in layers.values())

    def state_dict(self) -> dict[str, Any]:
        """All but the monitor's, which has a section of its own in a checkpoint."""
        updates = [torch.stack([update.loss, update.grad_norm]) for update in self._updates]
        return {
            "max_norm_drift": self.max_norm_drift,
            "elapsed_seconds": self.elapsed_seconds,
            "checkpoint_seconds": self.checkpoint_seconds,
            "recent": [list(episode) for episode in self._recent],
            "records": [(r.task, r.cycle, r.frames, len(r.returns)) for r in self.visits],
            "returns": np.array([score for r in self.visits for score in r.returns], dtype=np.float64),
            "lengths": np.array([length for r in self.visits for length in r.lengths], dtype=np.int64),
            "ends": np.array([end for r in self.visits for end in r.ends], dtype=np.int64),
            "losses": torch.stack(updates) if updates else torch.empty(0, 2),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Into new records, after the environment has its state."""
        self.max_norm_drift = state["max_norm_drift"]
        self.checkpoint_seconds = state["checkpoint_seconds"]
        self._started = time.monotonic() - state["elapsed_seconds"]
        self._recent.extend(Episode(*episode) for episode in state["recent"])
        self._updates = [Update(loss, grad_norm) for loss, grad_norm in state["losses"].to(self.agent.device)]
        has_ends = "ends" in state  # checkpoints of older versions have none
        returns, lengths = iter(state["returns"].tolist()), iter(state["lengths"].tolist())
        ends = iter(state["ends"].tolist() if has_ends else [])
        for (task, cycle, frames, count), visit in zip(state["records"], self.collector.env.visits, strict=False):
            record = VisitRecord(task, cycle, frames, [*islice(returns, count)], [*islice(lengths, count)])
            if has_ends:
                record.ends, record.planned_frames = [*islice(ends, count)], visit.end - visit.begin
            self.visits.append(record)
        self.visit = self.collector.env.visit
