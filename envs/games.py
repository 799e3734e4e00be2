"""Names of games, as ale-py spells them: snake_case, one for each ROM that it ships and plays."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import ale_py
from ale_py.roms import get_all_rom_ids, get_rom_path

from nap_rl.envs import roms


def check_game(name: str) -> str:
    """Returns the name of a game that surely opens. Starts no emulator in this process.

    With an ale-py other than the table's, a game that the table does not know as playable is opened once in a child
    process.

    Raises ValueError if ale-py has no such game, cannot play it, or lacks its ROM file; says what was meant, or why.
    """
    if name not in get_all_rom_ids():
        near = _nearest(name)
        if near is None:
            raise ValueError(f"unknown game '{name}': ale-py knows {len(get_all_rom_ids())} games, for example 'pong'")
        if _opened(near).plays:
            raise ValueError(f"unknown game '{name}': did you mean '{near}'?")
        name = near
    game = _opened(name)
    if not game.plays:
        raise ValueError(f"game '{name}' cannot be played: {game.reason}")
    try:
        get_rom_path(name)
    except OSError as error:  # ALE_ROMS_DIR names a folder without it, or with another file of its name
        raise ValueError(f"game '{name}' cannot be played: {' '.join(str(error).split())}") from None
    return name


def check_games(names: Sequence[str]) -> list[str]:
    """Returns the names as a list.

    Raises ValueError if there is none, or as `check_game` does.
    """
    if not names:
        raise ValueError("env.games is empty: name at least one game, for example env.games=[pong,breakout]")
    return [check_game(name) for name in names]


def _opened(name: str) -> roms.Game:
    game = roms.table().get(name)
    if game is None or (not game.plays and game.ale_py != ale_py.__version__):
        return roms.open_once(name)
    return game


def _nearest(name: str) -> str | None:
    """Reads gymnasium's ids too: ALE/Pong-v5, PongNoFrameskip-v4, Pong-ram-v0."""
    known = {_letters(game): game for game in get_all_rom_ids()}
    bare = re.sub(r"-v\d+$", "", str(name).rsplit("/", 1)[-1])
    bare = re.sub(r"(-ram)?(NoFrameskip|Deterministic)?$", "", bare)
    near = difflib.get_close_matches(_letters(bare), known, n=1, cutoff=0.5)
    return known[near[0]] if near else None


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
