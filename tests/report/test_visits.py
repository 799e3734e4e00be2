"""`report.py visits` on runs whose scores are known, against statistics by hand."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from nap_rl.report import visits, visits_figure, visits_table
from nap_rl.report.layers import LAYERS
from nap_rl.report.statistics import Estimate
from nap_rl.report.visits import Arm, Run

REPORT = Path(__file__).parents[2] / "report.py"
FRESH = {"env.on_switch.network": "reset"}
KEPT = {"env.on_switch.network": "keep"}


def load_report() -> Any:
    spec = importlib.util.spec_from_file_location("report_visits", REPORT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_run(folder: Path, scores: Sequence[float | None], *, status: str = "finished", tasks: int = 0) -> Path:
    """A run of as many visits as scores, with two rows of metrics in each; norms double over the run."""
    folder.mkdir(parents=True)
    n = len(scores)
    visit_rows = [
        {
            "task": f"t{i % tasks if tasks else i}",
            "cycle": i // tasks if tasks else 0,
            "frames": 100,
            "episodes": 9,
            "mean_return": score,
            "late_return": score,
            "auc_return": None if score is None else score / 2,
        }
        for i, score in enumerate(scores)
    ]
    (folder / "summary.json").write_text(json.dumps({"status": status, "visits": visit_rows}))
    tags = ("param_norm/a", "param_norm/b", "effective_lr/a", "effective_lr/b", "rotation/a", "rotation/b")
    lines = [",".join(["updates,frames,task/index,other", *(f"nap/{tag}" for tag in tags), "plasticity/dormant/a"])]
    for row in range(2 * n):
        size = 1 + row / (2 * n - 1)
        lines.append(f"{row},{row},{row // 2},,{3 * size},{4 * size},{0.1 / size},{0.4 / size},{row},0,0.5")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


def run_of(folder: Path, seed: int = 0, settings: dict[str, Any] | None = None) -> Run:
    return visits.read(folder, seed, KEPT if settings is None else settings)


def test_runs_are_found_in_folders_of_folders_and_studies_are_not_runs(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "one", [1.0]), write_run(tmp_path / "seeds" / "seed_0", [1.0])
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "summary.json").write_text('{"config": {"study": 1}}')
    write_run(tmp_path / "seeds" / "seed_0" / "evaluations" / "x", [1.0])
    assert visits.find([tmp_path, a]) == [a, b]
    with pytest.raises(FileNotFoundError, match=r"no summary\.json with visits"):
        visits.find([tmp_path / "study"])


def test_a_visit_without_an_episode_is_nan_and_an_interrupted_one_is_left_out(tmp_path: Path) -> None:
    run = run_of(write_run(tmp_path / "a", [0.5, None, 0.1], status="interrupted"))
    np.testing.assert_array_equal(run.scores["late_return"], [0.5, np.nan])
    with pytest.raises(ValueError, match="has not finished a visit"):
        run_of(write_run(tmp_path / "b", [0.5], status="interrupted"))


def test_norms_are_relative_to_the_first_row_rates_a_geometric_mean_and_the_rest_means(
    tmp_path: Path,
) -> None:
    run = run_of(write_run(tmp_path / "a", [0.0] * 4))
    sizes = 1 + np.arange(8) / 7
    np.testing.assert_allclose(run.layers["norm"], sizes.reshape(4, 2).mean(axis=1))
    np.testing.assert_allclose(run.layers["effective_lr"], (0.2 / sizes).reshape(4, 2).mean(axis=1))
    np.testing.assert_allclose(run.layers["rotation"], np.array([0.5, 2.5, 4.5, 6.5]) / 2)
    np.testing.assert_allclose(run.layers["dormant"], 0.5)


def test_what_a_run_did_not_log_is_nan(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [0.0] * 4)
    metrics = (folder / "metrics.csv").read_text().replace("nap/rotation", "other").replace("plasticity/dormant", "x")
    (folder / "metrics.csv").write_text(metrics)
    run = run_of(folder)
    assert np.isnan(run.layers["rotation"]).all() and np.isnan(run.layers["dormant"]).all()
    assert np.isfinite(run.layers["norm"]).all()


def test_an_arm_is_of_equal_settings_and_named_by_what_differs(tmp_path: Path) -> None:
    runs = [
        run_of(write_run(tmp_path / f"{nap}{seed}", [float(seed)]), seed, {**KEPT, "agent.nap": nap, "x": 1})
        for nap in (True, False)
        for seed in (1, 0)
    ]
    found = visits.arms(runs)
    assert [arm.label for arm in found] == ["agent.nap=true", "agent.nap=false"]
    assert [[run.seed for run in arm.runs] for arm in found] == [[0, 1], [0, 1]]
    assert [arm.label for arm in visits.arms(runs, ["NaP", "plain"])] == ["NaP", "plain"]
    with pytest.raises(
        ValueError, match="one --label for each of the 2 arms, in this order: agent.nap=true; agent.nap"
    ):
        visits.arms(runs, ["NaP"])
    with pytest.raises(ValueError, match="the same settings and the same seed"):
        visits.arms([runs[0], runs[0]])


def arm_of(scores: Any, settings: dict[str, Any], name: str = "arm", tasks: int = 0) -> Arm:
    """An arm with scores[run][visit]; its areas are half of them."""
    table = np.array(scores, dtype=np.float64)
    n = table.shape[1]
    runs = [
        Run(
            folder=Path(name),
            seed=seed,
            settings=settings,
            tasks=tuple(f"t{i % tasks if tasks else i}" for i in range(n)),
            cycles=tuple(i // tasks if tasks else 0 for i in range(n)),
            frames=(100,) * n,
            scores={key: row * (0.5 if key == "auc_return" else 1) for key in visits.SCORES},
            layers=dict.fromkeys(LAYERS, np.ones(n)),
        )
        for seed, row in enumerate(table)
    ]
    return Arm(name, settings, runs)


def test_early_and_late_are_tenths_of_the_visits_averaged_in_each_run_before_the_iqm() -> None:
    scores = np.arange(4 * 20, dtype=np.float64).reshape(4, 20)
    (row,) = visits_table.rows([arm_of(scores, KEPT)], "late_return")
    early, late = scores[:, :2].mean(axis=1), scores[:, -2:].mean(axis=1)
    assert row.early is not None and row.late is not None
    assert row.early.value == np.sort(early)[1:3].mean()
    assert row.late.value == np.sort(late)[1:3].mean()
    assert row.late.low is not None and late.min() <= row.late.low < row.late.value
    assert (row.seeds, row.visits, row.ratio, row.plasticity) == (4, 20, None, None)


def test_the_ratio_is_of_late_scores_above_chance_and_plasticity_of_areas() -> None:
    kept, fresh = arm_of([[0.8, 0.3], [0.8, 0.3]], KEPT), arm_of([[0.9, 0.9], [0.9, 0.9]], FRESH, "fresh")
    row, of_fresh = visits_table.rows([kept, fresh], "late_return", chance=-0.6)
    assert row.ratio == pytest.approx(Estimate(0.9 / 1.5, 0.9 / 1.5, 0.9 / 1.5))
    assert row.plasticity is not None and row.plasticity.value == pytest.approx((0.15 + 0.6) / (0.45 + 0.6))
    assert row.reference == "fresh" and of_fresh.ratio is None and of_fresh.reference is None
    low = arm_of([[-0.6, -0.6]], FRESH, "no better than chance")
    assert visits_table.rows([kept, low], "late_return", chance=-0.6)[0].ratio is None


def test_the_reference_of_an_arm_differs_from_it_in_the_fewest_settings() -> None:
    nap, plain = ({"agent.nap": nap, "nap.affine": affine} for nap, affine in ((True, "omit"), (False, "project")))
    fresh_nap, fresh_plain = arm_of([[1.0]], {**nap, **FRESH}), arm_of([[1.0]], {**plain, **FRESH})
    found = [arm_of([[1.0]], {**nap, **KEPT}), fresh_plain, fresh_nap]
    assert visits.reference(found[0], found) is fresh_nap
    assert visits.reference(fresh_nap, found) is None
    assert visits.reference(found[0], found[:1]) is None


def test_first_and_second_visits_of_the_same_tasks_have_a_column_each() -> None:
    arm = arm_of([[1.0, 2.0, 5.0, 6.0], [3.0, 4.0, 7.0, 8.0]], KEPT, tasks=2)
    (row,) = visits_table.rows([arm], "late_return")
    assert [estimate.value for estimate in row.cycles if estimate] == [2.5, 6.5]
    assert visits_table.header([row])[5:7] == ("cycle 1", "cycle 2")


def test_the_command_writes_picture_tables_and_csv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = load_report()
    monkeypatch.setattr(
        report, "_seed_and_settings", lambda run: (int(run.name[-1]), FRESH if "fresh" in str(run) else KEPT)
    )
    drawn: list[Figure] = []
    real = visits_figure.save
    monkeypatch.setattr(visits_figure, "save", lambda figure, out: drawn.append(figure) or real(figure, out))
    for seed in range(3):
        write_run(tmp_path / "kept" / f"seed_{seed}", [0.9, 0.5, 0.4, 0.3], tasks=2)
        write_run(tmp_path / "fresh" / f"seed_{seed}", [0.8] * 4, tasks=2)
    assert (
        report.main(["visits", str(tmp_path), "--label", "fresh", "--label", "kept", "--out", str(tmp_path / "o")]) == 0
    )
    printed = capsys.readouterr().out
    assert "0.30 [0.30, 0.30]" in printed and "0.80 [0.80, 0.80]" in printed
    rows = list(csv.DictReader((tmp_path / "o" / "visits.csv").open()))
    assert [(row["arm"], row["visit"], row["task"], row["cycle"]) for row in rows[4:6]] == [
        ("kept", "0", "t0", "0"),
        ("kept", "1", "t1", "0"),
    ]
    assert [float(row["iqm"]) for row in rows[4:]] == pytest.approx([0.9, 0.5, 0.4, 0.3])
    assert [float(row["ratio"]) for row in rows[4:]] == pytest.approx([9 / 8, 5 / 8, 4 / 8, 3 / 8])
    table = list(csv.DictReader((tmp_path / "o" / "arms.csv").open()))
    assert float(table[1]["ratio"]) == pytest.approx(3 / 8) and table[1]["reference"] == "fresh"
    assert (tmp_path / "o" / "arms.md").read_text().startswith("| arm | seeds |")
    assert imread(tmp_path / "o" / "visits.png").shape[1] == 1600
    scores, shares, again, *layers = drawn[0].axes
    np.testing.assert_allclose(scores.lines[1].get_ydata(), [0.9, 0.5, 0.4, 0.3])
    np.testing.assert_allclose(shares.lines[0].get_ydata(), [9 / 8, 5 / 8, 4 / 8, 3 / 8])
    assert [text.get_text() for text in scores.texts] == ["t0", "t1", "t0", "t1"]
    assert len(again.lines) == 4 and [len(axes.lines) for axes in layers] == [2] * len(LAYERS)


def test_bad_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = load_report()
    assert report.main(["visits", str(tmp_path)]) == 2
    assert "no summary.json with visits" in capsys.readouterr().err
    write_run(tmp_path / "a", [1.0])
    assert report.main(["visits", str(tmp_path / "a")]) == 2
    assert "has no sound checkpoint" in capsys.readouterr().err
