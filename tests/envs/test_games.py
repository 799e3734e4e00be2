"""Names of games: only games that have really been opened are accepted, and slips are told what was meant."""

from __future__ import annotations

import csv
from pathlib import Path

import ale_py
import numpy as np
import pytest
from ale_py.roms import get_all_rom_ids

from nap_rl.envs import AtariEnvs, SequentialAtari, check_game, check_games, games, roms

NO_RULES = "ale-py has its ROM, but not its rules"


def test_the_table_that_ships_is_of_all_roms_of_the_installed_ale_py_and_104_of_108_play() -> None:
    table = roms.table()
    assert set(table) == set(get_all_rom_ids())
    assert {game.ale_py for game in table.values()} == {ale_py.__version__}
    refused = {name for name, game in table.items() if not game.plays}
    assert refused == {"combat", "joust", "maze_craze", "warlords"} and len(table) == 108
    assert table["pong"] == ("pong", True, 6, 0, "", ale_py.__version__)
    assert all(game.reason and game.actions is None for game in table.values() if not game.plays)


def test_every_game_with_a_human_score_plays() -> None:
    with (Path(games.__file__).parent / "atari57.csv").open() as file:
        assert all(roms.table()[row["game"]].plays for row in csv.DictReader(file))


@pytest.mark.parametrize("name", ["combat", "joust", "maze_craze", "warlords"])
def test_a_rom_that_would_end_the_process_is_refused_by_name_with_the_reason(name: str) -> None:
    sentence = f"game '{name}' cannot be played: {NO_RULES}"
    with pytest.raises(ValueError, match=sentence):
        check_game(name)
    with pytest.raises(ValueError, match=sentence):
        check_games(["pong", name])
    with pytest.raises(ValueError, match=sentence):
        AtariEnvs(name, 1)
    with pytest.raises(ValueError, match=sentence):
        SequentialAtari(["pong", name], 400, 1, 1)


@pytest.mark.parametrize("asked", ["Joust", "ALE/Joust-v5", "JoustNoFrameskip-v4"])
def test_another_spelling_of_such_a_rom_is_refused_for_the_same_reason(asked: str) -> None:
    with pytest.raises(ValueError, match=f"game 'joust' cannot be played: {NO_RULES}"):
        check_game(asked)


def test_opening_a_rom_in_a_child_process_outlives_ale_pys_exit() -> None:
    pong, joust = roms.open_once("pong"), roms.open_once("joust")
    assert pong == roms.table()["pong"] and joust == roms.table()["joust"]


@pytest.mark.parametrize(
    ("known", "plays"),
    [
        ({}, True),  # a game that is new in another ale-py
        ({}, False),
        ({"pong": roms.Game("pong", False, None, None, "no", "0.0.1")}, True),  # it plays since
    ],
)
def test_with_another_ale_py_an_unknown_game_is_tried_in_a_child_process(
    known: dict[str, roms.Game], plays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def open_once(game: str) -> roms.Game:
        tried.append(game)
        return roms.Game(game, plays, 6 if plays else None, 0, "" if plays else "it hangs", "9.9")

    monkeypatch.setattr(roms, "table", lambda: known)
    monkeypatch.setattr(roms, "open_once", open_once)
    if plays:
        assert check_game("pong") == "pong"
    else:
        with pytest.raises(ValueError, match="game 'pong' cannot be played: it hangs"):
            check_game("pong")
    assert tried == ["pong"]


def test_a_known_game_is_accepted_without_a_child_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roms, "open_once", lambda _: pytest.fail("a process was started"))
    assert check_game("pong") == "pong"


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("Pong", "pong"),
        ("pogn", "pong"),
        ("ALE/Pong-v5", "pong"),
        ("PongNoFrameskip-v4", "pong"),
        ("PongDeterministic-v0", "pong"),
        ("Pong-ram-v4", "pong"),
        ("Pong-ramNoFrameskip-v4", "pong"),
        ("SpaceInvadersNoFrameskip-v4", "space_invaders"),
        ("space-invaders", "space_invaders"),
        ("ALE/MontezumaRevenge-v5", "montezuma_revenge"),
        ("Ms. Pac-Man", "ms_pacman"),
        ("river_raid", "riverraid"),
        ("UpNDown-v4", "up_n_down"),
    ],
)
def test_other_spellings_are_told_the_games_own(asked: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"unknown game '.*': did you mean '{meant}'\\?"):
        check_game(asked)


def test_a_rom_file_that_is_not_there_or_another_is_found_before_the_first_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=r"game 'pong' cannot be played: .*pong\.bin"):
        check_game("pong")
    (tmp_path / "pong.bin").write_bytes(b"another")
    with pytest.raises(ValueError, match=r"game 'pong' cannot be played: The hash of pong\.bin does not match"):
        check_game("pong")


@pytest.mark.parametrize("action", [-1, 6, 17])
def test_an_action_that_the_game_has_not_is_refused_where_ale_py_would_wait_for_ever(action: int) -> None:
    envs = AtariEnvs("pong", 2)
    envs.reset()
    with pytest.raises(ValueError, match=rf"actions \[0, {action}\] of pong, expected 0 to 5"):
        envs.step(np.array([0, action]))
    envs.step(np.array([0, 5]))
    envs.close()


def test_the_table_is_written_as_it_is_read(tmp_path: Path) -> None:
    roms.write_table(tmp_path / "games.csv", roms.table().values())
    shipped = Path(games.__file__).with_name("games.csv")
    assert (tmp_path / "games.csv").read_bytes() == shipped.read_bytes()
