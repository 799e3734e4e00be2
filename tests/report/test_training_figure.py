"""Curves of trainings by arm: the IQM over seeds at common frames, from the runs' own files."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from nap_rl.report import training_figure
from nap_rl.report.page import runs
from tests.report.small_runs import two_arms, write_run


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """What was saved."""
    saved: list[Figure] = []

    def save(figure: Figure, out: Path) -> Path:
        saved.append(figure)
        return out

    monkeypatch.setattr(training_figure, "save", save)
    return saved


def test_lines_are_the_iqm_over_seeds_and_bands_hold_them(tmp_path: Path, figures: list[Figure]) -> None:
    training_figure.draw(two_arms(tmp_path), tmp_path / "x.png")
    returns, *layers = figures[0].axes
    ends = {str(line.get_label()): float(np.asarray(line.get_ydata())[-1]) for line in returns.lines}
    assert [*ends.values()] == pytest.approx([0.3, 0.7])  # the means of the middle three of five
    for band, end in zip(returns.collections, ends.values(), strict=True):
        low, high = np.asarray(band.get_paths()[0].vertices)[:, 1].min(), band.get_datalim(returns.transData).y1
        assert low <= end <= high
    assert [axes.get_ylabel() for axes in layers] == [
        "norm of all layers / its first",
        "effective learning rate",
        "degrees that an update turns a layer",
        "share of dormant units",
    ]
    (norm, _) = layers[0].lines
    assert np.asarray(norm.get_ydata())[-1] == pytest.approx(2.0 / 1.125)


def test_a_run_in_progress_has_what_it_logged_and_no_band(tmp_path: Path, figures: list[Figure]) -> None:
    run = write_run(tmp_path / "run", [0.5])
    (run / "summary.json").unlink()
    (run / "metrics.csv").write_text("updates,frames,task/index,nap/param_norm/head\n1,50,0,2.0\n2,100,0,3.0\n")
    training_figure.draw([runs.TrainingArm("one", [runs.read(run, 0, {})])], tmp_path / "x.png")
    returns, norms = figures[0].axes
    assert {*np.asarray(returns.lines[0].get_ydata()).tolist()} == {0.5} and not returns.collections
    assert np.asarray(norms.lines[0].get_ydata()).tolist() == [1.0, 1.5]


def test_the_table_has_every_seed_at_the_frames_of_the_picture(tmp_path: Path, figures: list[Figure]) -> None:
    arms = two_arms(tmp_path)
    rows: list[dict[str, Any]] = [*csv.DictReader(io.StringIO(training_figure.returns_csv(arms)))]
    training_figure.draw(arms, tmp_path / "x.png")
    at = np.asarray(figures[0].axes[0].lines[1].get_xdata())
    of_nap = [row for row in rows if row["arm"] == "NaP"]
    assert [int(row["frames"]) for row in of_nap if row["seed"] == "0"] == [round(frame) for frame in at]
    assert [float(row["return"]) for row in of_nap if int(row["frames"]) == round(at[-1])] == [0.5, 0.6, 0.7, 0.8, 1.0]
