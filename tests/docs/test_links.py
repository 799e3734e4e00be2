"""Links, pictures and file names in the documentation lead somewhere."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "runs" / "README.md"])


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_and_picture_is_there(page: Path) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            wrong.append(target)
    assert wrong == []


def test_every_picture_stands_on_a_page() -> None:
    shown = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", page.read_text())
    }
    assert [str(path) for path in (ROOT / "docs").rglob("*.png") if path.resolve() not in shown] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_documents_named_in_the_text_are_there(page: Path) -> None:
    named = re.findall(r"\bdocs/[\w/-]+\.(?:md|png)", page.read_text())
    commands = set(re.findall(r"--out (docs/[\w/.$-]+)", page.read_text()))
    assert [name for name in named if name not in commands and not (ROOT / name).exists()] == []


def test_extras_are_installed_from_the_clone_and_exist() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    sources = [*PAGES, *ROOT.glob("*.py"), *(ROOT / "nap_rl").rglob("*.py")]
    told = [line for source in sources for line in re.findall(r"pip install [^\n`]*\[\w+\]", source.read_text())]
    assert told
    for line in told:
        extra = re.search(r"pip install -e '?\.\[(\w+)\]", line)
        assert extra is not None and extra[1] in setup["options.extras_require"], line
