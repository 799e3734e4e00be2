"""Task switches where they were, and episodes by the visit that they ended in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nap_rl import checkpoint
from nap_rl.report.curves import Episodes
from nap_rl.report.sequence import Switch, plan, stays, switches

PLAN = [Switch(0.0, "asterix"), Switch(8_000.0, "breakout"), Switch(16_000.0, "asterix"), Switch(24_000.0, "breakout")]


def episodes(*ended: tuple[float, str, int]) -> Episodes:
    frames, games, cycles = zip(*ended, strict=True)
    return Episodes(np.array(frames), np.arange(len(ended), dtype=np.float64), tuple(games), tuple(cycles))


def test_the_plan_is_that_of_the_newest_checkpoint(tmp_path: Path) -> None:
    env = {"games": ["asterix", "breakout"], "frames_per_game": 8_000, "cycles": 2}
    checkpoint.save(tmp_path / "checkpoints", "frames-000000000400", tensors={}, meta={"config": {"env": env}})
    assert plan(tmp_path) == PLAN


def test_a_run_on_one_game_or_without_a_checkpoint_has_no_plan(tmp_path: Path) -> None:
    assert plan(tmp_path) == []
    checkpoint.save(tmp_path / "checkpoints", "frames-0", tensors={}, meta={"config": {"env": {"game": "pong"}}})
    assert plan(tmp_path) == []


def test_a_switch_is_where_it_was_planned_and_not_at_the_next_logged_row() -> None:
    columns = {"frames": np.array([1_600.0, 8_800, 15_200, 17_600]), "task/index": np.array([0, 1, 1, 0])}
    assert switches(columns, PLAN) == PLAN[1:3]


def test_two_switches_between_two_rows_are_both_found() -> None:
    columns = {"frames": np.array([7_000.0, 17_000]), "task/index": np.array([0.0, 2.0])}
    assert switches(columns, PLAN) == PLAN[1:3]


def test_without_a_plan_a_switch_is_at_the_first_row_of_the_new_task_empty_cells_aside() -> None:
    columns = {"frames": np.array([0.0, 10, 20, 30, 40, 50]), "task/index": np.array([0, 0, np.nan, 1, 1, 0])}
    assert switches(columns, []) == [Switch(30.0, None), Switch(50.0, None)]
    assert switches({"frames": columns["frames"]}, []) == []


@pytest.mark.parametrize("planned", [PLAN, []])
def test_episodes_are_split_where_the_game_changes_and_visits_are_counted(planned: list[Switch]) -> None:
    ended = episodes((4_000, "asterix", 0), (7_000, "asterix", 0), (9_000, "breakout", 0), (17_000, "asterix", 1))
    found = stays(ended, planned)
    assert [(stay.game, stay.visit, stay.after) for stay in found] == [
        ("asterix", 1, None),
        ("breakout", 1, "asterix"),
        ("asterix", 2, "breakout"),
    ]
    assert [stay.begin for stay in found] == ([0.0, 8_000.0, 16_000.0] if planned else [0.0, 7_000.0, 9_000.0])
    assert [stay.episodes.returns.tolist() for stay in found] == [[0.0, 1.0], [2.0], [3.0]]


def test_two_cycles_of_one_game_are_two_visits() -> None:
    assert [stay.visit for stay in stays(episodes((10, "pong", 0), (20, "pong", 1)), [])] == [1, 2]
