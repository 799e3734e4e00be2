"""Asynchronous successive halving: who ends, by which scores, and that a killed driver forgets nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from nap_rl.sweep import halving, local, record, table
from nap_rl.sweep.attempts import Surroundings
from nap_rl.sweep.commands import Command
from nap_rl.sweep.halving import Halving, Judge, Verdict
from nap_rl.sweep.trials import Trial

HALVING = Halving("score", grace=200, longest=1000)
FAKE = Command("train", str(Path(__file__).parent / "fake_run.py"), has_status=True, resume="resume")


def folders(parent: Path, count: int) -> list[Path]:
    found = [parent / str(number) for number in range(count)]
    for folder in found:
        folder.mkdir()
    return found


@pytest.mark.parametrize(
    ("grace", "longest", "rungs"), [(200, 1000, [200, 800]), (200, 800, [200]), (1, 65, [1, 4, 16, 64]), (9, 5, [9])]
)
def test_rungs_are_four_times_apart_and_before_the_end(grace: int, longest: int, rungs: list[int]) -> None:
    assert Halving("score", grace, longest).rungs == rungs


def test_a_run_ends_below_the_best_quarter_of_those_before_it(tmp_path: Path) -> None:
    places = folders(tmp_path, 6)
    judge = Judge(HALVING, places)
    scores = [3.0, 1.0, 2.0, 9.0, 3.0, 4.0]
    # limits, as interpolated 75th percentiles: none, 3, 2.5 of {1, 3}, 2.5 of {1, 2, 3}, 4.5 of {1, 2, 3, 9}, 3
    assert [judge.ends(place, [(200, score)]) for place, score in zip(places, scores, strict=True)] == [
        False,
        True,
        True,
        False,
        True,
        False,
    ]
    assert halving.verdicts_of(places[1]) == [Verdict(200, "score", 1.0, False)]
    assert [halving.ended_at(place) for place in places] == [None, 200, 200, None, 200, None]


def test_a_verdict_is_given_once_and_known_to_the_next_driver(tmp_path: Path) -> None:
    best, worse, later = folders(tmp_path, 3)
    first = Judge(HALVING, [best, worse, later])
    assert not first.ends(best, [(200, 5.0)]) and first.ends(worse, [(200, 1.0)])
    second = Judge(HALVING, [best, worse, later])
    assert not second.ends(worse, [(200, 1.0)])  # it is decided
    assert not second.ends(best, [(200, 0.0), (800, -1.0)])  # the first there
    assert second.ends(later, [(200, 3.0)])  # 75th percentile of 1 and 5 is 4
    assert halving.verdicts_of(best) == [Verdict(200, "score", 5.0, True), Verdict(800, "score", -1.0, True)]


def test_scores_of_another_metric_do_not_count(tmp_path: Path) -> None:
    before, now = folders(tmp_path, 2)
    Judge(HALVING, [before]).ends(before, [(200, 5.0)])
    assert not Judge(HALVING._replace(metric="loss"), [before, now]).ends(now, [(200, 1.0)])


def test_a_finished_run_counts_for_others_and_stays_finished(tmp_path: Path) -> None:
    best, done, later = folders(tmp_path, 3)
    judge = Judge(HALVING, [best, done, later])
    judge.ends(best, [(200, 5.0)])
    assert not judge.ends(done, [(200, 1.0)], finished=True) and halving.ended_at(done) is None
    assert judge.ends(later, [(200, 3.0)])


def test_a_score_is_the_first_at_or_behind_a_rung(tmp_path: Path) -> None:
    assert halving.scores_of(tmp_path, HALVING) == []
    (tmp_path / "metrics.csv").write_text("updates,frames,score\n1,150,1\n2,200,\n3,250,2\n4,790,3\n")
    assert halving.scores_of(tmp_path, HALVING) == [(200, 2.0)]
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("5,800,4\n6,900,5\n")
    assert halving.scores_of(tmp_path, HALVING) == [(200, 2.0), (800, 4.0)]
    assert halving.scores_of(tmp_path, HALVING._replace(metric="loss")) == []


def sweep(folder: Path, *scores: int) -> list[tuple[str, int, object]]:
    """(status, starts, reason) of runs with these scores, one after the other."""
    trials = [
        Trial((f"code=score-{score}",), (f"seed={i}",), folder / f"seed={i}", frames=1000)
        for i, score in enumerate(scores)
    ]
    found = record.Record(folder, FAKE, trials, {})
    judge = Judge(HALVING, [trial.folder for trial in trials])
    with local.Signals() as signals:
        lines = table.Lines(found, beginnings=False)
        local.run(found, found.unfinished(), [Surroundings(threads=1)], lines, signals, judge)
    assert local.exit_code(found, signals) == 0
    return [(row["status"], row["starts"], row["reason"]) for row in found.to_dict()["runs"]]


def test_a_sweep_that_goes_on_keeps_its_verdicts_and_counts_earlier_results(tmp_path: Path) -> None:
    before = [("finished", 1, None), ("stopped", 1, "asha ended it at 200 frames")]
    assert sweep(tmp_path, 5, 1) == before
    (tmp_path / record.NAME).unlink()  # as an earlier driver may have left it: only the folders count
    assert sweep(tmp_path, 5, 1, 3) == [*before, ("stopped", 1, "asha ended it at 200 frames")]
