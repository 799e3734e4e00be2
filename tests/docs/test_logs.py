"""docs/guides/logs.md explains every tag and every column of a run's log, and no others."""

from __future__ import annotations

import re
from pathlib import Path

from nap_rl.logging.run_log import CLOCKS, EPISODE_COLUMNS, EVALUATION_COLUMNS
from nap_rl.logging.tags import TAGS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "guides" / "logs.md").read_text()


def section(heading: str) -> str:
    return PAGE.split(f"\n## {heading}", 1)[1].split("\n## ", 1)[0]


def test_every_tag_is_explained_and_no_other() -> None:
    rows = re.findall(r"^\| (`[^|]*`) \|", PAGE, re.M)
    explained = {tag for row in rows for tag in re.findall(r"`([\w<>]+/[\w<>/]+)`", row)}
    assert explained == set(TAGS)


def test_every_column_of_the_csv_files_is_explained() -> None:
    assert set(CLOCKS) <= set(re.findall(r"`(\w+)`", section("metrics.csv")))
    assert set(EPISODE_COLUMNS) == set(
        re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`.*?) \|", section("episodes.csv"), re.M)))
    )
    assert set(EVALUATION_COLUMNS) <= set(re.findall(r"`(\w+)`", section("evaluations.csv")))
