"""MkDocs: pages from files outside docs/, and links that lead out of it.

A link to a page outside leads to its copy in the site. A link to any other file of the repository becomes plain text,
because the site holds no source files. Whatever else leads nowhere stays as it is, for `--strict` to refuse.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
OUTSIDE = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "runs.md": "runs/README.md",
}
PAGE_OF = {ROOT / path: name for name, path in OUTSIDE.items()}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Adds a page for each file outside docs/."""
    for name, path in OUTSIDE.items():
        files.append(File.generated(config, name, content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with links that stay inside the site."""
    name = page.file.src_uri
    source = ROOT / OUTSIDE[name] if name in OUTSIDE else DOCS / name

    def rewritten(link: re.Match[str]) -> str:
        picture, text, target, anchor = link.groups()
        path = Path(os.path.normpath(source.parent / target))
        if "://" in target or not path.exists():
            return link[0]
        if path in PAGE_OF:
            path = DOCS / PAGE_OF[path]
        elif not path.is_relative_to(DOCS) or path.suffix not in (".md", ".png"):
            return text
        inside = os.path.relpath(path, (DOCS / name).parent)
        return f"{picture}[{text}]({inside}{anchor or ''})"

    return LINK.sub(rewritten, markdown)
