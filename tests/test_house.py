"""The house: which room may import which. An arrow points down, from a floor to one below it."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = (  # from the ground up; a file beside rooms, such as nap_rl/losses.py, is a room
    {
        "checkpoint",
        "compilation",
        "dotted",
        "files",
        "images",
        "losses",
        "machine",
        "nap",
        "optimizers",
        "process",
        "schedules",
        "threads",
    },
    {"diagnostics", "logging", "nn", "plasticity", "replay", "report", "text"},
    {"envs"},
    {"agents", "cli"},
    {"native", "sb3", "sweep"},
    {"studies"},
    {"conf"},
    {"scoring", "training"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FOLDERS_OUTSIDE = ("agents", "conf", "envs", "studies")  # nap_rl/<name> is a link to them


def sources() -> Iterator[tuple[str, Path]]:
    """(room, file) of every module of the package."""
    for folder in FOLDERS_OUTSIDE:
        for path in (ROOT / folder).rglob("*.py"):
            yield folder, path
    for entry in (ROOT / "nap_rl").iterdir():
        if entry.is_symlink() or entry.name == "__init__.py":
            continue
        for path in entry.rglob("*.py") if entry.is_dir() else [entry]:
            if path.suffix == ".py":
                yield entry.stem, path


def imported_rooms(source: str) -> set[str]:
    """Rooms that a module imports, wherever in it the import stands."""
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "nap_rl":
            modules |= {f"nap_rl.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            modules.add(node.module)
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in modules if name.startswith("nap_rl.")} - {"__version__"}


def test_every_room_has_a_floor() -> None:
    assert {room for room, _ in sources()} <= set(FLOOR_OF)


def test_no_room_imports_one_on_its_own_floor_or_above() -> None:
    upward = {
        f"{path.relative_to(ROOT)} imports {room}"
        for here, path in sources()
        for room in imported_rooms(path.read_text(encoding="utf-8")) - {here}
        if FLOOR_OF[room] >= FLOOR_OF[here]
    }
    assert not upward


@pytest.mark.parametrize(
    ("source", "rooms"),
    [
        ("from nap_rl.nap import Projector", {"nap"}),
        ("from nap_rl import __version__, checkpoint", {"checkpoint"}),
        ("import nap_rl.nn.heads as heads", {"nn"}),
        ("def f():\n    from nap_rl.sb3 import load", {"sb3"}),
        ("import torch\nfrom numpy import nan", set()),
    ],
)
def test_imports_are_found_wherever_they_stand(source: str, rooms: set[str]) -> None:
    assert imported_rooms(source) == rooms


def test_no_module_imports_itself_by_way_of_others() -> None:
    paths = {name_of(room, path): path for room, path in sources()}
    graph = {name: imported_modules(path.read_text(encoding="utf-8"), paths) for name, path in paths.items()}

    def reached(name: str) -> set[str]:
        seen, left = set[str](), [name]
        while left:
            new = graph[left.pop()] - seen
            seen |= new
            left += new
        return seen

    assert [name for name in graph if name in reached(name)] == []


def name_of(room: str, path: Path) -> str:
    """Dotted name of a module: `nap_rl.nn.heads`, or that of the package for its __init__."""
    parts = path.relative_to(ROOT if room in FOLDERS_OUTSIDE else ROOT / "nap_rl").with_suffix("").parts
    return ".".join(("nap_rl", *parts)).removesuffix(".__init__")


def imported_modules(source: str, known: Collection[str]) -> set[str]:
    """Modules among `known` that a module imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & set(known)


def test_native_code_is_named_in_its_own_room_and_where_agents_are_built() -> None:
    naming = {
        str(path.relative_to(ROOT))
        for room, path in sources()
        if room != "native" and "native" in path.read_text(encoding="utf-8").lower()
    }
    assert naming == {"conf/build.py", "conf/schema.py"}
