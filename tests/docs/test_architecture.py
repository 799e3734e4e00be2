"""docs/architecture.md names rooms and files that are there, and all of them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
from commands import ROOT, blocks  # noqa: E402

PAGE = ROOT / "docs" / "architecture.md"
PLACES = [
    ROOT,
    ROOT / "agents",
    ROOT / "envs",
    ROOT / "nap_rl",
    *(p for p in (ROOT / "nap_rl").iterdir() if p.is_dir()),
]


def test_every_file_on_the_map_is_there() -> None:
    house = blocks(PAGE, "")[0]
    named = set(re.findall(r"\b(\w+\.py|\w+/)(?=[\s:;]|$)", house))
    assert len(named) > 50
    assert [name for name in sorted(named) if not any((place / name).exists() for place in PLACES)] == []


def test_every_room_of_the_library_is_on_the_map_or_a_floor() -> None:
    text = PAGE.read_text()
    rooms = [p.stem for p in (ROOT / "nap_rl").iterdir() if p.stem[0] not in "_." and p.name != "py.typed"]
    assert [room for room in rooms if not re.search(rf"\b{room}\b", text)] == []


def test_the_floors_are_those_that_the_test_of_imports_holds() -> None:
    floors = dict(re.findall(r"^\| (\d) \| (.*) \|$", PAGE.read_text(), re.M))
    source = (ROOT / "tests" / "test_house.py").read_text()
    held = re.search(r"^FLOORS = \((.*?)^\)", source, re.M | re.S)
    assert held is not None
    sets = [set(re.findall(r'"(\w+)"', line)) for line in re.findall(r"\{(.*?)\}", held[1], re.S)]
    assert [set(re.findall(r"`(\w+)`", floors[str(number)])) for number in range(len(sets))] == sets
