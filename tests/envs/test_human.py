"""The table of human and random scores, and the scale that it gives."""

from __future__ import annotations

import pytest

from nap_rl.envs import check_game
from nap_rl.envs.human import human_normalized, references


def test_the_table_holds_57_games_that_ale_py_ships_in_order_and_a_human_beats_chance_in_each() -> None:
    table = references()
    assert len(table) == 57 and list(table) == sorted(table)
    for game, (random, human) in table.items():
        assert check_game(game) == game
        assert human > random


@pytest.mark.parametrize(
    ("game", "score", "expected"),
    [
        ("pong", -20.7, 0.0),
        ("pong", 14.6, 1.0),
        ("breakout", 404.7, (404.7 - 1.7) / 28.8),
        ("skiing", -30_000.0, -1.011),
    ],
)
def test_0_is_chance_1_is_a_human_and_the_scale_goes_on_both_ways(game: str, score: float, expected: float) -> None:
    assert human_normalized(game, score) == pytest.approx(expected, abs=1e-3)


def test_a_game_outside_the_57_has_no_scale() -> None:
    assert human_normalized("tetris", 100.0) is None
