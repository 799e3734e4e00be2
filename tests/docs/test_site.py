"""The documentation as a site: every page in it, no link that leads nowhere, no request to outside."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LOADING = {"img": "src", "script": "src", "iframe": "src", "source": "src", "link": "href"}
"""What a browser fetches by itself."""


class Loads(HTMLParser):
    """Addresses that a page loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in LOADING and values.get("rel") not in ("canonical", "prev", "next", "edit"):
            self.found.append(values.get(LOADING[tag]) or "")


def test_every_page_is_in_the_navigation_once() -> None:
    named = re.findall(r"(?:^|\s)([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert len(named) == len(set(named))
    outside = {"index.md", "changelog.md", "contributing.md", "security.md", "runs.md"}
    assert set(named) == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} | outside


def test_the_reference_names_modules_that_are_there() -> None:
    for page in (DOCS / "reference").glob("*.md"):
        (module,) = re.findall(r"^::: nap_rl\.(\w+)$", page.read_text(), re.M)
        assert page.stem == module
        assert (ROOT / "nap_rl" / module).is_dir() or (ROOT / "nap_rl" / f"{module}.py").is_file()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for library in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(library)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_the_site_is_built_with_its_start_page_and_reference(site: Path) -> None:
    assert "Normalize-and-Project" in (site / "index.html").read_text()
    assert "permuted_catch.png" in (site / "index.html").read_text()
    reference = (site / "reference" / "nap.html").read_text()
    assert "scale_invariance" in reference and 'class="doc' in reference


@pytest.mark.slow
def test_nothing_is_loaded_from_outside(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    outside = {
        (page.name, address)
        for page in pages
        for address in Loads(page.read_text()).found
        if re.match(r"(https?:)?//", address)
    }
    assert not outside
    styles = [
        style for style in site.rglob("*.css") if re.search(r"(@import|url\()\s*['\"]?(https?:)?//", style.read_text())
    ]
    assert not styles


@pytest.mark.slow
def test_what_a_page_loads_is_there(site: Path) -> None:
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue  # its addresses begin at the root of a server
        for address in Loads(page.read_text()).found:
            if address and not address.startswith(("data:", "/")):
                assert (page.parent / address.split("?")[0].split("#")[0]).exists(), f"{page}: {address}"
