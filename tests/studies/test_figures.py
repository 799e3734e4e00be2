"""From finished folders to a picture, a CSV of what it shows, and a table."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nap_rl.studies import figures
from nap_rl.studies.config import TASKS, DataConfig, StudyConfig
from nap_rl.studies.job import run

TINY = StudyConfig(data=DataConfig(name="digits", images=16), width=4, batch_size=4, tasks=20, steps_per_task=1)
PNG = b"\x89PNG"


def table_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def test_seeds_are_averaged_and_variants_are_not(tmp_path: Path) -> None:
    for nap in (True, False):
        for seed in (0, 1):
            run(replace(TINY, nap=nap, seed=seed), tmp_path / f"{nap}{seed}")
    rows = table_of(figures.report(tmp_path))
    assert [(row[1], row[3]) for row in rows] == [("NaP, layer norm", "2"), ("un-projected, layer norm", "2")]
    assert (tmp_path / "figure.png").read_bytes().startswith(PNG)
    with (tmp_path / "figure.csv").open() as file:
        points = [p for p in csv.DictReader(file) if p["quantity"] == "online_accuracy"]
    assert len(points) == 2 * 20
    accuracies = [
        [float(line.split(",")[1]) for line in (tmp_path / f"True{seed}" / TASKS).read_text().splitlines()[1:]]
        for seed in (0, 1)
    ]
    drawn = [float(p["mean"]) for p in points if p["series"] == "NaP, layer norm"]
    np.testing.assert_allclose(drawn, np.mean(accuracies, axis=0), atol=1e-5)


def test_methods_get_a_row_with_nap_and_one_without(tmp_path: Path) -> None:
    for nap in (True, False):
        for method in ("none", "l2"):
            run(replace(TINY, nap=nap, method=method), tmp_path / f"{nap}{method}")
    assert len(table_of(figures.report(tmp_path))) == 4
    with (tmp_path / "figure.csv").open() as file:
        panels = {(p["network"], p["series"]) for p in csv.DictReader(file)}
    assert panels == {
        (network, method) for network in ("NaP, layer norm", "un-projected, layer norm") for method in ("none", "l2")
    }


@pytest.mark.parametrize("kind", ["dead_units", "schedule_replay"])
def test_the_other_studies_have_their_figures(kind: str, tmp_path: Path) -> None:
    run(replace(TINY, study=kind, measure_every=1 if kind == "dead_units" else 0), tmp_path / "one")
    rows = table_of(figures.report(tmp_path))
    assert len(rows) == (1 if kind == "dead_units" else 5)
    assert (tmp_path / "figure.png").read_bytes().startswith(PNG)


def test_kinds_and_lengths_are_not_mixed(tmp_path: Path) -> None:
    run(TINY, tmp_path / "a" / "0")
    run(replace(TINY, seed=1, tasks=10), tmp_path / "a" / "1")
    with pytest.raises(ValueError, match="10 and 20 points"):
        figures.report(tmp_path / "a")
    run(replace(TINY, study="schedule_replay"), tmp_path / "b")
    with pytest.raises(ValueError, match="several kinds: random_labels, schedule_replay"):
        figures.report(tmp_path)


def test_a_training_among_studies_is_named(tmp_path: Path) -> None:
    run(TINY, tmp_path / "study")
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "summary.json").write_text('{"status": "finished", "frames": 800}')
    with pytest.raises(ValueError, match=r"training is no study: its summary\.json has no configuration"):
        figures.report(tmp_path)


def test_studies_that_the_labels_cannot_tell_apart_are_not_averaged(tmp_path: Path) -> None:
    run(TINY, tmp_path / "4")
    run(replace(TINY, width=8), tmp_path / "8")
    with pytest.raises(ValueError, match="differ in what the figure does not show: report"):
        figures.report(tmp_path)
