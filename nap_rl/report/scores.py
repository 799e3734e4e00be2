"""Scores of trained networks: which of them may be averaged, the averages, and the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nap_rl.report.arms import group_by_settings, identity, label
from nap_rl.report.statistics import Estimate, aggregate, estimate, iqm
from nap_rl.report.text import aligned, shown


@dataclass(frozen=True)
class Checkpoint:
    """What is known of the network that is scored; None is unknown, as for a zip.

    Attributes:
        run: the run's folder, or the zip.
        path: the checkpoint's folder, or the zip.
        games: what it is scored in.
        settings: by dotted key, without what one experiment may vary (seed, game). Equal settings may be averaged.
        frames: emulator frames played by the checkpoint.
        of_frames: emulator frames of the whole run.
        updates: optimiser steps made by the checkpoint.
    """

    run: Path
    path: Path
    games: Sequence[str]
    settings: Mapping[str, Any]
    seed: int | None = None
    frames: int | None = None
    of_frames: int | None = None
    updates: int | None = None


@dataclass(frozen=True)
class Score:
    """One checkpoint in one game: raw returns of whole episodes and their lengths in emulator frames.

    `human_normalized` is of the mean return, None for a game without a human score.
    """

    checkpoint: Checkpoint
    game: str
    protocol: Mapping[str, Any]
    returns: Sequence[float]
    lengths: Sequence[int]
    human_normalized: float | None
    video: Path | None = None


def cautions(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Returns a sentence for each checkpoint that is not of a finished run, and for runs that count twice."""
    sentences = []
    for each in checkpoints:
        if each.frames == 0:
            sentences.append(f"{each.run}: its checkpoint is of frame 0, an untrained network")
        elif each.frames is not None and each.of_frames is not None and each.frames < each.of_frames:
            sentences.append(
                f"{each.run} is unfinished: its checkpoint is of {each.frames:,} of {each.of_frames:,} frames"
            )
    same = Counter(
        (f"seed {each.seed} of {', '.join(each.games)}", identity(each.settings))
        for each in checkpoints
        if each.seed is not None
    )
    sentences += [
        f"{n} runs with {name} have the same settings: they count as {n}" for (name, _), n in same.items() if n > 1
    ]
    return sentences


def summarize(scores: Sequence[Score], *, mix: bool) -> dict[str, Any]:
    """Returns "results", a row a score, and "aggregates", one for each group of equal settings of two scores or more.

    With `mix`, all scores are one group. "aggregate" is the only aggregate, or None if there is none or several.
    """
    groups = group(scores, mix=mix)
    totals = [
        {
            "settings": different,
            "checkpoints": len({score.checkpoint.path for score in members}),
            "seeds": _known_of(members, "seed"),
            "frames": _known_of(members, "frames"),
            **over_games(by_game),
        }
        for different, members in groups
        if len(members) > 1 and (by_game := _by_game(members))
    ]
    return {
        "results": [describe(score) for score in scores],
        "aggregates": totals,
        "aggregate": totals[0] if len(groups) == 1 and totals else None,
        "groups": len(groups),
    }


def group(scores: Sequence[Score], *, mix: bool) -> list[tuple[dict[str, Any], list[Score]]]:
    """Scores of equal settings together, each group with those of its settings in which the groups differ."""
    if mix:
        return [({}, list(scores))]
    return [
        (different, [scores[i] for i in members])
        for different, members in group_by_settings([score.checkpoint.settings for score in scores])
    ]


def describe(score: Score) -> dict[str, Any]:
    """One score as JSON; returns are raw unless the name says otherwise."""
    statistics: dict[str, Callable[..., Any]] = {"mean": np.mean, "median": np.median, "iqm": iqm}
    source = score.checkpoint
    return {
        "run": str(source.run),
        "checkpoint": str(source.path),
        "seed": source.seed,
        "frames": source.frames,
        "of_frames": source.of_frames,
        "updates": source.updates,
        "game": score.game,
        "protocol": dict(score.protocol),
        "episodes": len(score.returns),
        **{name: estimate(score.returns, statistic)._asdict() for name, statistic in statistics.items()},
        "human_normalized_mean": score.human_normalized,
        "mean_length_frames": float(np.mean(score.lengths)),
        "returns": list(score.returns),
        "video": None if score.video is None else str(score.video),
    }


def over_games(scores: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Human-normalised scores by game, one a run, put together over games."""
    total = aggregate(list(scores.values()))
    estimates = {name: value._asdict() for name, value in total._asdict().items()}
    return {"games": len(scores), "runs": sum(map(len, scores.values())), "human_normalized": estimates}


def tables(summary: Mapping[str, Any]) -> str:
    """A line a score, then the aggregates, each under the settings in which it differs from the others."""
    header = (
        "run",
        "game",
        "seed",
        "frames",
        "updates",
        "episodes",
        "mean",
        "median",
        "IQM [95 %]",
        "human-normalised",
    )
    lines = aligned([header, *(_row(result) for result in summary["results"])], left=2, rule=False)
    for total in summary["aggregates"]:
        lines.append(f"\nhuman-normalised, {_heading(total)}:")
        lines += [f"  {name:<7}{interval(value, '.3f')}" for name, value in total["human_normalized"].items()]
    if summary["groups"] > 1:
        lines.append(f"\n{summary['groups']} different settings are not put into one number; mix=true does it.")
    return "\n".join(line.rstrip() for line in lines)


def interval(value: Mapping[str, float | None], spec: str) -> str:
    """ "1.20 [1.00, 1.40]", or the number alone if it has no interval."""
    return shown(Estimate(**value), spec)  # type: ignore[arg-type]


def _row(result: Mapping[str, Any]) -> tuple[str, ...]:
    normalised = result["human_normalized_mean"]
    return (
        "/".join(Path(result["run"]).parts[-2:]),
        result["game"],
        _known(result["seed"], "d"),
        _known(result["frames"], ",d"),
        _known(result["updates"], ",d"),
        str(result["episodes"]),
        f"{result['mean']['value']:.2f}",
        f"{result['median']['value']:.2f}",
        interval(result["iqm"], ".2f"),
        _known(normalised, ".3f"),
    )


def _known(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _heading(total: Mapping[str, Any]) -> str:
    """ "3 runs of 1 game, seeds 0 1 2, at 1,000,000 frames, agent.nap=true": what an aggregate is of."""
    parts = [f"{_count(total['checkpoints'], 'run')} of {_count(total['games'], 'game')}"]
    if total["seeds"]:
        parts.append(f"seed{'' if len(total['seeds']) == 1 else 's'} {' '.join(map(str, total['seeds']))}")
    if total["frames"]:
        oldest_and_newest = dict.fromkeys((min(total["frames"]), max(total["frames"])))
        parts.append(f"at {' to '.join(f'{frames:,}' for frames in oldest_and_newest)} frames")
    return ", ".join(filter(None, [*parts, label(total["settings"])]))


def _by_game(scores: Sequence[Score]) -> dict[str, list[float]]:
    by_game: dict[str, list[float]] = {}
    for score in scores:
        if score.human_normalized is not None:
            by_game.setdefault(score.game, []).append(score.human_normalized)
    return by_game


def _known_of(scores: Sequence[Score], name: str) -> list[int]:
    """The different values of one attribute of the checkpoints, in order."""
    return sorted({getattr(score.checkpoint, name) for score in scores} - {None})
