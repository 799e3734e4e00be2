"""Runs of three layers that were written by hand."""

from __future__ import annotations

import json
from pathlib import Path

from nap_rl.report.page import runs

LAYERS = ("torso.0", "torso.2", "head")


def write_run(folder: Path, scores: list[float], *, rows: int = 8, episodes: int = 4) -> Path:
    """A finished run of visits of 100 frames to tasks t0, t1, t0, t1, ...; every episode of a visit has its score."""
    folder.mkdir(parents=True)
    tasks = [f"t{i % 2}" for i in range(len(scores))]
    visited = [
        {"task": task, "cycle": i // 2, "frames": 100, "late_return": score, "mean_return": score, "auc_return": score}
        for i, (task, score) in enumerate(zip(tasks, scores, strict=True))
    ]
    summary = {"status": "finished", "frames": 100 * len(scores), "fps": 50.0, "wall_seconds": 8.0, "visits": visited}
    versions = {"versions": {"torch": "2.13.0"}, "device": "cpu", "machine": {"cores": 2}}
    (folder / "summary.json").write_text(json.dumps({**summary, **versions}))
    tags = [f"{prefix}/{layer}" for prefix in ("nap/param_norm", "nap/effective_lr") for layer in LAYERS]
    lines = [",".join(["updates", "frames", "task/index", *tags, "nap/rotation/head", "plasticity/dormant/head"])]
    for row in range(1, rows + 1):
        frames = 100 * len(scores) * row // rows
        norms = [1 + row / rows] * len(LAYERS)
        lines.append(",".join(map(str, [row, frames, (frames - 1) // 100, *norms, *norms, 0.1, 0.5])))
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    ended = [
        f"{100 * i + 100 * k // episodes},{task},{i // 2},0,{score},9"
        for i, (task, score) in enumerate(zip(tasks, scores, strict=True))
        for k in range(1, episodes + 1)
    ]
    (folder / "episodes.csv").write_text("\n".join(["frames,game,cycle,env,return,length_frames", *ended]) + "\n")
    return folder


def two_arms(folder: Path) -> list[runs.TrainingArm]:
    """Five seeds each; NaP ends higher with every seed but one."""
    found = []
    for label, late in (("plain <b>", [0.1, 0.2, 0.3, 0.4, 0.9]), ("NaP", [0.5, 0.6, 0.7, 0.8, 1.0])):
        of_arm = []
        for seed, score in enumerate(late):
            run = write_run(folder / f"{len(found)}" / f"seed_{seed}", [0.5, 0.5, score, score])
            of_arm.append(runs.read(run, seed, {"agent.nap": label == "NaP"}))
        found.append(runs.TrainingArm(label, of_arm))
    return found
