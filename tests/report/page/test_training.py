"""The page of small runs written by hand: its numbers, its size, and what happens without Bokeh."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nap_rl import checkpoint
from nap_rl.report import page, visits_table
from nap_rl.report.page import runs
from tests.report.small_runs import two_arms, write_run

REPORT = Path(__file__).parents[3] / "report.py"


def load_report() -> Any:
    spec = importlib.util.spec_from_file_location("report_page", REPORT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lines_are_the_iqm_over_seeds_and_tables_those_of_the_visits_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bokeh")
    from nap_rl.report.page import charts, training

    drawn: dict[str, list[Any]] = {}
    real = charts.lines

    def keep(curves: Any, labels: Any, what: str, axis: Any, **more: Any) -> Any:
        drawn[what] = list(curves)
        return real(curves, labels, what, axis, **more)

    monkeypatch.setattr(charts, "lines", keep)
    arms = two_arms(tmp_path)
    html = training.write_page(tmp_path / "p.html", arms, "runs", score="late_return").read_text()
    plain, nap = drawn["return late in the visit"]
    np.testing.assert_allclose(plain.y, [0.5, 0.5, 0.3, 0.3])  # without the lowest and the highest of five
    np.testing.assert_allclose(nap.y, [0.5, 0.5, 0.7, 0.7])
    assert (nap.low <= nap.y).all() and (nap.y <= nap.high).all() and nap.low[-1] < nap.high[-1]
    returns = drawn["return, mean of the last 100"][1]
    assert returns.y[-1] == pytest.approx(0.7) and returns.y[0] == pytest.approx(0.5)
    assert returns.x[-1] == 400 and len(returns.single) == 5
    rows = visits_table.rows([arm.visited for arm in arms if arm.visited], "late_return")
    for cell in visits_table.cells(rows[1]):
        assert f">{cell}<" in html
    assert "0.84 [" in html  # NaP ends above in 21 of 25 pairs
    assert "plain &lt;b&gt;" in html and "plain <b>" not in html


def test_switches_stand_where_tasks_change_with_their_names(tmp_path: Path) -> None:
    pytest.importorskip("bokeh")
    from nap_rl.report.page import charts
    from nap_rl.report.page.charts import Axis, Line

    axis = Axis("emulator frames", [0.0, 100.0, 200.0], ["a", "b", "a"], 300.0)
    chart = charts.lines([Line(0, np.array([50.0, 250.0]), np.array([1.0, np.nan]))], ["NaP"], "return", axis)
    (switches,) = [each for each in chart.renderers if each.tags == ["switches"]]
    assert switches.data_source.data["x"] == [100.0, 200.0]
    (above,) = chart.above[:1]
    assert dict(above.major_label_overrides) == {50.0: "a", 150.0: "b", 250.0: "a"}
    (line,) = [each for each in chart.renderers if each.tags == ["arm", 0]]
    assert line.data_source.data["x"].tolist() == [50.0]


def test_a_page_of_24_long_runs_stays_below_3_megabytes(tmp_path: Path) -> None:
    pytest.importorskip("bokeh")
    from nap_rl.report.page import training

    arms = []
    for arm in range(12):
        of_arm = [
            runs.read(write_run(tmp_path / f"{arm}" / f"{seed}", [0.1] * 10, rows=400, episodes=40), seed, {"arm": arm})
            for seed in range(2)
        ]
        arms.append(runs.TrainingArm(f"arm {arm}", of_arm))
    written = training.write_page(tmp_path / "p.html", arms, "runs", score="late_return")
    assert written.stat().st_size < 3e6


def test_runs_without_a_finished_episode_have_a_page_that_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("bokeh")
    from nap_rl.report.page import training

    run = write_run(tmp_path / "seed_0", [0.5, 0.5], episodes=0)
    summary = json.loads((run / "summary.json").read_text())
    for visit in summary["visits"]:
        visit |= {"late_return": None, "mean_return": None, "auc_return": None}
    (run / "summary.json").write_text(json.dumps(summary))
    arms = [runs.TrainingArm("NaP", [runs.read(run, 0, {"agent.nap": True})])]
    html = training.write_page(tmp_path / "p.html", arms, "runs", score="late_return").read_text()
    assert "norm" in html and "No episode has ended." in html
    assert caplog.messages == []  # such as Bokeh's, of a chart without a line


def test_the_command_writes_the_page_with_films_and_names_what_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bokeh")
    report = load_report()
    monkeypatch.setattr(report, "_seed_and_settings", lambda run, **more: (int(run.name[-1]), {"arm": run.parent.name}))
    for arm in ("a", "b"):
        write_run(tmp_path / "runs" / arm / "seed_0", [0.5, 0.5])
    film = tmp_path / "runs" / "a" / "seed_0" / "evaluations" / "now" / "videos" / "t0 0.mp4"
    film.parent.mkdir(parents=True)
    film.touch()
    result = {"game": "t0", "mean": {"value": 1.25}, "episodes": 3, "video": f"elsewhere/{film.name}"}
    (film.parents[1] / "evaluation.json").write_text(json.dumps({"results": [result]}))
    (tmp_path / "runs" / "new").mkdir()
    (tmp_path / "runs" / "new" / "metrics.csv").write_text("updates,frames\n")
    (tmp_path / "runs" / "new0").mkdir()
    (tmp_path / "runs" / "new").rename(tmp_path / "runs" / "new1")
    assert report.main(["page", str(tmp_path / "runs"), "--label", "A", "--label", "B"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "metrics.csv has no row yet" in said[0] and said[-1] == f"written to {tmp_path / 'runs' / page.NAME}"
    html = (tmp_path / "runs" / page.NAME).read_text()
    assert re.search(r'href="a/seed_0/evaluations/now/videos/t0%200\.mp4"', html) and "1.25 in 3 episodes" in html
    assert report.main(["page", str(tmp_path / "runs" / "new0")]) == 2
    assert "no metrics.csv" in capsys.readouterr().err


def test_without_bokeh_the_command_refuses_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "is_installed", lambda: False)
    assert load_report().main(["page", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "report.py: " + page.MISSING + "\n"


def test_settings_are_those_of_the_newest_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no sound checkpoint"):
        load_report()._seed_and_settings(tmp_path, with_game=True)
    assert checkpoint.latest_meta(tmp_path / "checkpoints") is None
