"""The shell commands and Python blocks that stand on the pages for users."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
ALL_PAGES = [
    *PAGES,
    *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "runs/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
EXAMPLE_RUN = re.compile(r"runs/default/[\w./-]+")  # the made-up run of the examples


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in a language; the empty language is a shell's."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.S)
    return [text for kind, text in fences if kind == language]


def commands(page: Path) -> list[list[str]]:
    """Every `python x.py ...` of the page's blocks and tables as its arguments, without usage lines in brackets."""
    found = []
    for block in [*blocks(page, ""), *blocks(page, "sh")]:
        lines = [re.sub(r"^torchrun --\S+", "python", line) for line in block.replace("\\\n", " ").splitlines()]
        found += [line for line in lines if re.match(r"python \w+\.py ", line)]
    found += re.findall(r"`(python \w+\.py [^`]+)`", page.read_text())
    split = [shlex.split(line, comments=True)[1:] for line in found]
    return [command for command in split if not any(word in ("...", "[RUN") or "..." in word for word in command)]
