"""Opens every ROM of the ale-py that is installed, and writes games.csv: `python -m nap_rl.envs`, about a minute."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ale_py
from ale_py.roms import get_all_rom_ids

from nap_rl.envs.roms import open_once, write_table


def main() -> None:
    """Writes the table beside this file and says which games it refuses."""
    path = Path(__file__).resolve().with_name("games.csv")
    with ThreadPoolExecutor() as pool:
        games = list(pool.map(open_once, sorted(get_all_rom_ids())))
    write_table(path, games)
    refused = [game for game in games if not game.plays]
    print(f"ale-py {ale_py.__version__}: {len(games) - len(refused)} of {len(games)} games play; written: {path}")
    for game in refused:
        print(f"  {game.game}: {game.reason}")


if __name__ == "__main__":
    main()
