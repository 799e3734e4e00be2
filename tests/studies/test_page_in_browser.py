"""The pages of studies in a headless Chromium, opened from disk where no host can be reached."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("bokeh")
from nap_rl.studies import page  # noqa: E402
from tests.report.page import browser  # noqa: E402
from tests.studies import image_files  # noqa: E402
from tests.studies.study_runs import study_py  # noqa: E402
from tests.text import corpus_files  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.installed() is None, reason="no Chromium is installed"),
]
COMMON = ["device=cpu", "threads=1", "log_every=2"]
IMAGES = ["study=images", "recipe=narrow", "width=4", "batch_size=16", "epochs=2", "warmup_updates=1", *COMMON]
LANGUAGE = ["study=language", "vocabulary=300", "context=16", "batch_size=4", "tokens=640", "warmup_updates=2", *COMMON]
LABELS = ["data=digits", "data.images=16", "width=4", "batch_size=4", "tasks=4", "steps_per_task=1"]


def train(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Four tiny studies of a kind, two arms with two seeds, below folder/runs; returns the titles of its charts."""
    if kind == "images":
        arguments = [*IMAGES, f"data.root={image_files.fashion_mnist(folder / 'fashion')}"]
        arms, charts = ["variant=nap", "variant=norm"], ["Accuracy", "Loss"]
    elif kind == "language":
        arguments = [*LANGUAGE, "score_tokens=200", "shuffle=10", "data=c4"]
        arguments.append(f"data.root={corpus_files.write_c4(folder / 'c4')}")
        arms, charts = ["variant=nap", "variant=norm"], ["Held-out accuracy", "Held-out loss"]
    else:
        arguments, arms = LABELS, ["nap=true", "nap=false"]
        charts = ["Online accuracy", "Loss at end of task", "Jacobian norm", "Parameter norm"]
    for arm in arms:
        for seed in (0, 1):
            place = folder / "runs" / f"{arm.partition('=')[2]}{seed}"
            assert study_py(monkeypatch, *arguments, arm, f"seed={seed}", f"hydra.run.dir={place}") == 0
    return charts


@pytest.mark.parametrize("kind", ["images", "language", "random_labels"])
def test_every_chart_is_drawn_nothing_is_requested_and_the_console_is_silent(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "language":
        pytest.importorskip("tokenizers")
    charts = train(kind, tmp_path, monkeypatch)
    out = tmp_path / "report.html"
    page.write([tmp_path / "runs"], out)
    assert out.stat().st_size < 3e6
    with browser.chromium(tmp_path / "profile") as opened:
        opened.open(out)
        titles = opened.value("[...document.querySelectorAll('h2')].map((each) => each.textContent.trim())")
        assert titles == ["Numbers", *charts, "Settings"]
        assert opened.value("tagged('chart').length") == len(charts)
        assert opened.value("tagged('chart').every((each) => each.inner_height > 100 && each.inner_width > 100)")
        drawn = opened.value("tagged('arm').filter((each) => each.tags[1] === 0).length")
        assert drawn >= len(charts)  # the first arm has its line in each
        opened.open(out, width=390, height=800, dark=True)
        assert opened.value("document.documentElement.scrollWidth") == 390
        assert set(opened.requests()) == {out.absolute().as_uri()}
        assert opened.complaints() == []
