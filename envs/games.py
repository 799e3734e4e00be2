"""Names of games, as ale-py spells them: snake_case, one for each ROM that it ships."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from ale_py.roms import get_all_rom_ids


def check_game(name: str) -> str:
    """The name itself.

    Raises:
        ValueError: ale-py ships no such ROM; names the nearest one that it does.
    """
    known = get_all_rom_ids()
    if name in known:
        return name
    near = difflib.get_close_matches(str(name).lower().replace("-", "_").replace(" ", "_"), known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"ale-py knows {len(known)} games, for example 'pong'"
    raise ValueError(f"unknown game '{name}': {hint}")


def check_games(names: Sequence[str]) -> list[str]:
    """The names as a list.

    Raises:
        ValueError: one is unknown, or there is none.
    """
    if not names:
        raise ValueError("env.games is empty: name at least one game, for example env.games=[pong,breakout]")
    return [check_game(name) for name in names]
