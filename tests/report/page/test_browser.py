"""The page in a headless Chromium, opened from disk where no host can be reached. Skipped where none is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("bokeh")
from nap_rl.report.page import training  # noqa: E402
from tests.report.page import browser  # noqa: E402
from tests.report.page.browser import Browser  # noqa: E402
from tests.report.small_runs import LAYERS, two_arms  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.installed() is None, reason="no Chromium is installed"),
]
LINES = "tagged('arm').filter((each) => each.tags[1] === 0).map((each) => each.visible)"
CHARTS = 7  # returns, by visit, first against later, and four of layers


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    return training.write_page(folder / "report.html", two_arms(folder), "two arms", score="late_return")


@pytest.fixture(scope="module")
def opened(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser.chromium(tmp_path_factory.mktemp("profile")) as started:
        started.open(page)
        yield started


def test_every_chart_is_drawn_nothing_is_requested_and_the_console_is_silent(opened: Browser, page: Path) -> None:
    assert opened.value("tagged('chart').length") == CHARTS
    opened.until("[...document.querySelectorAll('.chart')].every((each) => each.clientHeight > 200)")
    assert opened.value("tagged('chart').every((each) => each.inner_height > 100 && each.inner_width > 100)")
    assert set(opened.requests()) == {page.absolute().as_uri()}
    assert opened.complaints() == []


def test_a_click_on_the_legend_hides_the_arm_in_every_chart_and_another_shows_it(opened: Browser) -> None:
    assert set(opened.value(LINES)) == {True}
    opened.value("document.querySelector('#legend button').click()")
    assert set(opened.value(LINES)) == {False}
    opened.value("document.querySelector('#legend button').click()")
    assert set(opened.value(LINES)) == {True}


def test_a_layer_is_shown_in_the_charts_of_layers(opened: Browser) -> None:
    assert opened.value("[...document.querySelector('select.layer').options].map((each) => each.text)") == [
        "all layers",
        *LAYERS,
    ]
    opened.value("document.querySelector('select.layer').value = 'head'")
    opened.value("document.querySelector('select.layer').dispatchEvent(new Event('change'))")
    same = "tagged('layer').every(({ data_source: { data } }) => data.y.every((y, i) => y === data.head[i]))"
    assert opened.value(same) is True


def test_the_box_at_the_pointer_names_task_and_arms_the_best_first(opened: Browser) -> None:
    lines = "tagged('chart')[0].renderers.filter((each) => each.name !== null && each.tags[0] === 'arm')"
    text = opened.value(f"tip(400, {lines}, 'emulator frames', [0, 100], ['t0', 't1'])").split("\n")
    assert text[0] == "emulator frames 400, t1"
    assert text[1].startswith("NaP: 0.7 [") and text[2].startswith("plain <b>: 0.3 [")


def test_it_fits_a_phone_and_is_dark_where_dark_is_wished(opened: Browser, page: Path) -> None:
    opened.open(page, width=390, height=800, dark=True)
    assert opened.value("document.documentElement.scrollWidth") == 390
    assert opened.value("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 28)"
    ink = opened.value("tagged('chart')[0].below[0].axis_label_text_color")
    assert ink == "#e6e6e6"
    assert opened.complaints() == []
