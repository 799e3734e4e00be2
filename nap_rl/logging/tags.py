"""Every tag of a run's log, in one table: a column of metrics.csv and a scalar in TensorBoard have the same name.

<layer> stands for a weight layer of the network, such as torso.0; <task> for a task, such as pong.
"""

from __future__ import annotations

METRICS = {
    "rollout/ep_rew_mean": "mean score of the last 100 episodes in this visit, unclipped",
    "rollout/ep_len_mean": "mean length of these episodes, in agent steps",
    "time/fps": "frames a second since the start",
    "time/elapsed_seconds": "seconds since the start, without the time between two processes",
    "time/checkpoint_seconds": "seconds of these that were spent on checkpoints",
    "train/loss": "mean loss of the updates since the last row",
    "train/grad_norm": "mean global gradient norm of these updates, before clipping",
    "train/learning_rate": "learning rate of the last update",
    "task/index": "number of the visit, from 0",
    "task/cycle": "number of the cycle, from 0",
    "task/<task>/return": "rollout/ep_rew_mean, only while this task is played",
    "nap/norm_drift": "largest |norm / initial norm - 1| of the projected layers; without projection, of all layers",
    "nap/param_norm/<layer>": "norm of the layer's weights",
    "nap/grad_norm/<layer>": "norm of their gradient, after clipping",
    "nap/effective_lr/<layer>": "learning rate times initial norm / norm",
    "nap/update_ratio/<layer>": "norm of the last update / norm of the weights",
    "nap/rotation/<layer>": "angle between the weights before and after the last update, in degrees",
}
"""In each row of metrics.csv: one for the first update, one every `logger.every_updates`."""

DIAGNOSTICS = {
    "plasticity/dormant/<layer>": "share of units with at most 2.5 % of the layer's mean activity (Sokar et al. 2023)",
    "plasticity/rank/<layer>": "singular values that hold 99 % of the sum, of the activations (Kumar et al. 2021)",
    "plasticity/feature_norm": "mean norm of the last hidden layer's activations",
    "plasticity/churn": "mean change of the expected returns by one update, in states outside its batch",
    "plasticity/hessian_max": "largest eigenvalue of the loss's Hessian (Klein et al. 2024)",
}
"""In a row every `logger.diagnostics_every_updates` and in the first; empty cells in the other rows."""

EVALUATION = {
    "eval/mean_reward": "mean score of an evaluation's episodes, unclipped",
    "eval/mean_ep_length": "their mean length, in agent steps",
    "eval/<task>/mean_return": "the mean score again, by task",
    "eval/<task>/human_normalized": "the mean score with 0 for random play and 1 for a human; for Atari's 57 games",
}
"""With `eval.every`, in TensorBoard; evaluations.csv has a row an episode instead."""

TAGS = {**METRICS, **DIAGNOSTICS, **EVALUATION}

LAYER_MEASURES = ("param_norm", "grad_norm", "effective_lr", "update_ratio", "rotation")
"""`nap/<measure>/<layer>`, in the order of the columns."""

CHARTS = {
    "nap": {measure: f"nap/{measure}/.+" for measure in LAYER_MEASURES},
    "plasticity": {"dormant": "plasticity/dormant/.+", "rank": "plasticity/rank/.+"},
    "task": {"return": "task/.+/return", "evaluation": "eval/.+/mean_return"},
}
"""Category -> chart -> regular expression of its tags, for TensorBoard's custom scalars.

The expressions name no layer and no task. The plugin merges the layouts of all runs in a folder and drops equal charts:
networks and tasks may differ, the charts stand there once.
"""
