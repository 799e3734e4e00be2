"""The pictures of docs/pictures/: all are made by one command, and small. Making them takes minutes: not done here."""

from __future__ import annotations

from tests.docs.pictures import ERASE, MOST_BYTES, NAMES, PICTURES, UP, Screen, Studio


def test_every_picture_has_its_maker_and_is_small() -> None:
    sizes = {path.stem: path.stat().st_size for path in PICTURES.glob("*.png")}
    assert set(sizes) == set(NAMES) and all(callable(getattr(Studio, name)) for name in NAMES)
    assert max(sizes.values()) < MOST_BYTES


def test_a_screen_shows_the_last_state_of_lines_that_are_redrawn() -> None:
    screen = Screen()
    screen.feed("begun\r\n\x1b[?25lrow 1\n\x1b[1mrow\x1b[0m 2")
    screen.feed(f"\r{ERASE}{UP}{ERASE}a note\nrow 3\nrow 4")
    assert screen.plain() == "begun\na note\nrow 3\nrow 4"
