"""Length and rhythm of a training run, in frames, agent steps and updates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nap_rl.schedules import Linear, Rewarming, Schedule


@dataclass(frozen=True)
class OnSwitch:
    """What starts anew at a task switch.

    Attributes:
        reset_replay, reset_optimizer, reset_target: replay, Adam's moments, target network.
        restart_schedule: the learning rate's schedule runs over each visit.
        restart_exploration: epsilon begins at its start in each visit.
        reset_network: fresh weights, and with them fresh moments, a fresh target and the fresh weights' norms.
    """

    reset_replay: bool = False
    reset_optimizer: bool = False
    reset_target: bool = False
    restart_schedule: bool = False
    restart_exploration: bool = False
    reset_network: bool = False


@dataclass(frozen=True)
class TrainerConfig:
    """Length and rhythm of a run.

    Attributes:
        frames: length of the run, over all environments.
        update_every_steps: agent steps per update, over all environments.
        min_replay_steps: agent steps before the first update, and again after the replay was cleared.
        schedule_frames: frame at which the learning rate's schedule ends. It begins with the first update. With
            `on_switch.restart_schedule` it runs over each visit instead.
        layer_factors: progress of that schedule -> {layer: what the rate of its weights is multiplied by}; None for one
            rate. Needs an optimiser whose groups name their layers.
        rewarming: the schedule runs over `rewarming.cycle_frames`, and anew when learning stalls; None for never.
        epsilon, epsilon_frames: share of uniformly random actions, and the first frames (of the run, or of each visit)
            over which it changes.
        epsilon_until_frames: frames (likewise) after which no action is uniformly random; None for never.
        importance, importance_frames: importance exponent, and the frames over which it changes (None: `frames`).
        log_every_updates: updates between two rows of metrics.csv.
        diagnostics_every_updates: updates between two rows that have `plasticity/...` too; None for none.
    """

    frames: int
    update_every_steps: float
    min_replay_steps: int
    schedule_frames: int
    learning_rate: Schedule
    epsilon: Schedule
    epsilon_frames: int
    importance: Linear
    log_every_updates: int
    epsilon_until_frames: int | None = None
    importance_frames: int | None = None
    diagnostics_every_updates: int | None = None
    on_switch: OnSwitch = OnSwitch()
    layer_factors: Callable[[float], Mapping[str, float]] | None = None
    rewarming: Rewarming | None = None
