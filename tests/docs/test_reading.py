"""The code and the preset that docs/reading-the-code.md prints are the project's own."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from omegaconf import OmegaConf

sys.path.append(str(Path(__file__).parent))
from commands import ROOT, blocks  # noqa: E402

from nap_rl import cli  # noqa: E402
from nap_rl.conf import schema  # noqa: E402

PAGE = ROOT / "docs" / "reading-the-code.md"


def code(text: str) -> list[str]:
    """The lines without indentation and comments."""
    return [line for raw in text.splitlines() if (line := re.sub(r"\s+# .*$", "", raw).strip())]


def test_the_update_on_the_page_is_the_agents() -> None:
    (block,) = blocks(PAGE, "python")
    source = code((ROOT / "agents" / "value_agent.py").read_text())
    assert [line for line in code(block) if line not in source] == []


def test_the_preset_on_the_page_is_what_the_command_composes() -> None:
    (block,) = blocks(PAGE, "yaml")
    (command,) = re.findall(r"`python train\.py ([^`]+)`", PAGE.read_text())
    schema.register()
    cli.register_resolvers()
    config = cli.compose("config", command.split())
    config = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    composed = OmegaConf.create(OmegaConf.to_yaml(config, resolve=True))
    assert OmegaConf.create(block) == composed, "print the preset anew in docs/reading-the-code.md"


def test_the_files_to_read_are_there() -> None:
    assert len(re.findall(r"^\| [1-5] \|", PAGE.read_text(), re.M)) == 5  # that the links resolve: test_links.py
