"""Length and rhythm of a training run, in emulator frames, agent steps and updates."""

from __future__ import annotations

from dataclasses import dataclass

from nap_rl.schedules import Linear, Schedule


@dataclass(frozen=True)
class OnSwitch:
    """What starts anew at a task switch: replay, Adam's moments, target network, learning-rate schedule."""

    reset_replay: bool = False
    reset_optimizer: bool = False
    reset_target: bool = False
    restart_schedule: bool = False


@dataclass(frozen=True)
class TrainerConfig:
    """Length and rhythm of a run.

    Attributes:
        frames: emulator frames of the run.
        update_every_steps: agent steps to an update, whatever the number of environments.
        min_replay_steps: agent steps before the first update (again after the replay was cleared).
        schedule_frames: emulator frames at which the learning rate's schedule ends, having begun with the updates; with
            `on_switch.restart_schedule` it runs over each visit instead.
        epsilon, epsilon_frames: uniformly random actions, over the first frames.
        importance, importance_frames: importance exponent, and the emulator frames over which it runs (None: `frames`).
        log_every_updates: updates between two rows of metrics.csv.
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
    importance_frames: int | None = None
    on_switch: OnSwitch = OnSwitch()
