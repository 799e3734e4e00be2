"""Which scores are averaged, and what the table says of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nap_rl.report.scores import Checkpoint, Score, cautions, interval, summarize, tables

NAP, PLAIN = {"agent.name": "rainbow", "agent.nap": True}, {"agent.name": "rainbow", "agent.nap": False}


def checkpoint(
    name: str, settings: dict[str, Any], seed: int | None, games: tuple[str, ...] = ("pong",), **known: Any
) -> Checkpoint:
    known = {"frames": 800, "of_frames": 800, "updates": 40, **known}
    return Checkpoint(Path("runs") / name, Path("runs") / name / "checkpoints" / "x", games, settings, seed, **known)


def score(source: Checkpoint, mean: float, game: str = "pong") -> Score:
    return Score(source, game, {}, [mean - 1, mean + 1], [400, 400], mean / 10)


SIX = [
    score(checkpoint(f"{'nap' if nap else 'plain'}-{seed}", NAP if nap else PLAIN, seed), 10 * nap + seed)
    for nap in (True, False)
    for seed in (0, 1, 2)
]


def test_six_runs_with_nap_on_and_off_are_two_groups_with_their_seeds_shown() -> None:
    summary = summarize(SIX, mix=False)
    assert summary["aggregate"] is None and summary["groups"] == 2
    assert [total["settings"] for total in summary["aggregates"]] == [{"agent.nap": True}, {"agent.nap": False}]
    assert [total["seeds"] for total in summary["aggregates"]] == [[0, 1, 2], [0, 1, 2]]
    assert [total["human_normalized"]["mean"]["value"] for total in summary["aggregates"]] == pytest.approx([1.1, 0.1])
    printed = tables(summary)
    assert "human-normalised, 3 runs of 1 game, seeds 0 1 2, at 800 frames, agent.nap=true:" in printed
    assert "human-normalised, 3 runs of 1 game, seeds 0 1 2, at 800 frames, agent.nap=false:" in printed
    assert "2 different settings are not put into one number; mix=true does it." in printed


def test_mix_puts_different_settings_into_one_number() -> None:
    summary = summarize(SIX, mix=True)
    assert summary["aggregate"] == summary["aggregates"][0]
    assert summary["aggregate"]["runs"] == 6
    assert summary["aggregate"]["human_normalized"]["mean"]["value"] == pytest.approx(0.6)
    assert "mix=true" not in tables(summary)


def test_runs_of_equal_settings_on_different_games_are_one_aggregate() -> None:
    runs = [score(checkpoint(game, NAP, 0, (game,)), 5, game) for game in ("pong", "breakout")]
    summary = summarize(runs, mix=False)
    assert (summary["aggregate"]["games"], summary["aggregate"]["runs"], summary["groups"]) == (2, 2, 1)


def test_one_run_in_two_games_is_one_run() -> None:
    run = checkpoint("sequence", NAP, 0, ("pong", "breakout"))
    printed = tables(summarize([score(run, 5, game) for game in run.games], mix=False))
    assert "human-normalised, 1 run of 2 games, seed 0, at 800 frames:" in printed


def test_one_score_alone_has_no_aggregate() -> None:
    summary = summarize(SIX[:1], mix=False)
    assert summary["aggregate"] is None and summary["aggregates"] == []


def test_the_table_says_of_which_checkpoint_each_score_is() -> None:
    (header, row) = tables(
        summarize([score(checkpoint("nap/0-a", NAP, 7, frames=1_000_000, updates=62_500), 3)], mix=False)
    ).splitlines()
    assert header.split()[:5] == ["run", "game", "seed", "frames", "updates"]
    assert row.split()[:5] == ["nap/0-a", "pong", "7", "1,000,000", "62,500"]


def test_what_a_zip_does_not_say_is_a_dash_and_zips_are_not_averaged_unasked() -> None:
    zips = [score(Checkpoint(Path(name), Path(name), ["pong"], {"zip": name}), 1) for name in ("a.zip", "b.zip")]
    summary = summarize(zips, mix=False)
    assert summary["aggregates"] == [] and summary["groups"] == 2
    assert tables(summary).splitlines()[1].split()[:5] == ["a.zip", "pong", "-", "-", "-"]
    assert summarize(zips, mix=True)["aggregate"]["seeds"] == []


def test_a_heading_names_four_settings_and_counts_the_rest() -> None:
    other = dict.fromkeys("abcdef", "x")
    runs = [score(checkpoint(str(seed), settings, seed), 1) for settings in (NAP, other) for seed in (0, 1)]
    printed = tables(summarize(runs, mix=False))
    assert "agent.name=rainbow, agent.nap=true:" in printed and "a=x, b=x, c=x, d=x, and 2 more:" in printed


def test_an_aggregate_of_checkpoints_of_different_age_says_so() -> None:
    runs = [score(checkpoint(str(frames), NAP, frames, frames=frames), 1) for frames in (400, 800)]
    assert "at 400 to 800 frames:" in tables(summarize(runs, mix=False))


def test_an_untrained_and_an_unfinished_run_and_a_seed_counted_twice_are_said() -> None:
    assert cautions([each.checkpoint for each in SIX]) == []
    assert cautions([checkpoint("a", NAP, 0, frames=0)]) == [
        "runs/a: its checkpoint is of frame 0, an untrained network"
    ]
    unfinished = cautions([checkpoint("a", NAP, 0, frames=4_000, of_frames=8_000)])
    assert unfinished == ["runs/a is unfinished: its checkpoint is of 4,000 of 8,000 frames"]
    twice = cautions([checkpoint("a", NAP, 0), checkpoint("b", NAP, 0), checkpoint("c", NAP, 0, ("breakout",))])
    assert twice == ["2 runs with seed 0 of pong have the same settings: they count as 2"]


def test_an_interval_is_left_out_if_there_is_none() -> None:
    assert interval({"value": 1.2, "low": 1.0, "high": 1.4}, ".2f") == "1.20 [1.00, 1.40]"
    assert interval({"value": 1.2, "low": None, "high": None}, ".2f") == "1.20"
