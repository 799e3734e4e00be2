from __future__ import annotations

import io
import math
import os
import pty
import select
import subprocess
import sys
from typing import Any

import pytest

from nap_rl.logging import Progress, RecentRate, Status

STATE: dict[str, Any] = {
    "total_frames": 1_200_000,
    "frames": 120_000,
    "task": "space_invaders",
    "cycle": 1,
    "fps": 1234.4,
    "episode_return": 12.345,
    "loss": 0.01234,
    "norm_drift": 1.2e-7,
    "learning_rate": 6.25e-5,
    "updates": 7_500,
}


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_a_pipe_gets_every_reading_on_one_plain_line() -> None:
    stream = io.StringIO()
    Progress(stream=stream).update(Status(**STATE))
    (line,) = lines(stream)
    expected = (
        "10.0% 120,000 / 1,200,000 frames space_invaders cycle 1 fps 1,234 return 12.35 loss 0.01234 "
        "drift 1.2e-07 lr 6.25e-05 updates 7,500 left 0:14:34"  # 1,080,000 / 1,234.4 = 874.9 s
    )
    assert " ".join(line.split()) == expected
    assert line.isascii()


def test_plain_lines_keep_their_columns_as_numbers_grow_or_are_missing() -> None:
    stream = io.StringIO()
    with Progress(stream=stream, plain_every_seconds=0.0) as progress:
        long = {**STATE, "total_frames": 40_000_000}
        progress.update(Status(**long))
        progress.update(
            Status(**{**long, "frames": 39_999_996, "fps": 98765.0, "episode_return": -1234.5, "task": "pong"})
        )
        progress.update(Status(**{**long, **dict.fromkeys(["fps", "episode_return", "loss", "norm_drift"])}))
    shown = lines(stream)
    assert len(shown) == 3
    names = ["frames", "cycle", "fps", "return", "loss", "drift", "lr", "updates", "left"]
    places = {tuple(line.index(f" {name} ") for name in names) for line in shown}
    assert len(places) == 1
    assert len({len(line) for line in shown}) == 1


@pytest.mark.parametrize("missing", [None, math.nan])
def test_what_is_not_known_yet_is_a_dash(missing: float | None) -> None:
    stream = io.StringIO()
    unknown = dict.fromkeys(["fps", "episode_return", "loss", "norm_drift", "learning_rate"], missing)
    Progress(stream=stream).update(Status(**{**STATE, **unknown}))
    words = lines(stream)[0].split()
    for name in ["fps", "return", "loss", "drift", "lr", "left"]:
        assert words[words.index(name) + 1] == "-"


def test_lines_come_every_so_often_and_the_last_state_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(monkeypatch), io.StringIO()
    progress = Progress(stream=stream, plain_every_seconds=10.0)
    for second in range(25):
        clock.now = 100.0 + second
        progress.update(Status(**{**STATE, "updates": second}))
    assert [line.split("updates")[1].split()[0] for line in lines(stream)] == ["0", "10", "20"]
    progress.close()
    progress.close()
    assert [line.split("updates")[1].split()[0] for line in lines(stream)] == ["0", "10", "20", "24"]


def test_closing_does_not_repeat_a_line_already_shown() -> None:
    stream = io.StringIO()
    with Progress(stream=stream) as progress:
        progress.update(Status(**STATE))
    assert len(lines(stream)) == 1


def test_a_note_is_a_line_of_its_own_at_once() -> None:
    stream = io.StringIO()
    progress = Progress(stream=stream)
    progress.note("task switch: breakout -> space_invaders (cycle 1, 40,000 frames)")
    assert lines(stream) == ["task switch: breakout -> space_invaders (cycle 1, 40,000 frames)"]


@pytest.mark.parametrize(("fps", "left"), [(0.0, "-"), (1.0, "12d 12:00:00"), (30.0, "10:00:00"), (1e9, "0:00:00")])
def test_time_left_in_days_hours_minutes_seconds(fps: float, left: str) -> None:
    stream = io.StringIO()
    Progress(stream=stream).update(Status(**{**STATE, "fps": fps}))
    assert lines(stream)[0].split(" left ")[1].strip() == left


def test_more_frames_than_planned_is_still_a_hundred_percent() -> None:
    stream = io.StringIO()
    Progress(stream=stream).update(Status(**{**STATE, "total_frames": 1000, "frames": 1004}))
    assert lines(stream)[0].startswith("100.0%")
    assert lines(stream)[0].endswith("0:00:00")


def test_while_the_replay_fills_the_line_says_so_and_no_time_is_left() -> None:
    stream = io.StringIO()
    words = "filling the replay: learning begins at 80,000 frames"
    Progress(stream=stream).update(Status(**{**STATE, "waiting": words}))
    assert lines(stream)[0].endswith(words)
    assert lines(stream)[0].split(" left ")[1].split()[0] == "-"


def test_the_recent_rate_is_that_of_the_last_minute_and_begins_anew_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, rate = Clock(monkeypatch), RecentRate(60.0)
    assert rate(0) is None
    for second in range(1, 101):  # 100 a second
        clock.now = 100.0 + second
        assert rate(100 * second) == pytest.approx(100.0)
    for second in range(1, 61):  # 10 a second
        clock.now = 200.0 + second
        slow = rate(10_000 + 10 * second)
    assert slow == pytest.approx(10.0)
    rate.restart()
    clock.now += 1.0
    assert rate(10_000) is None
    clock.now += 2.0
    assert rate(10_100) == pytest.approx(50.0)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_letters_that_the_stream_lacks_are_replaced(encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    progress = Progress(stream=stream)
    progress.note("checkpoint in runs/模型")
    progress.update(Status(**STATE))
    progress.close()
    first, second = raw.getvalue().decode(encoding).splitlines()
    assert first == "checkpoint in runs/" + ("模型" if encoding == "utf-8" else "??")
    assert "space_invaders" in second


@pytest.mark.parametrize(
    "error", [BrokenPipeError(), OSError(5, "terminal gone"), OSError(28, "no space left"), ValueError("closed")]
)
def test_a_stream_that_is_gone_does_not_stop_the_run(error: Exception) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    progress = Progress(stream=Gone(), plain_every_seconds=0.0)
    progress.update(Status(**STATE))
    progress.update(Status(**STATE))
    progress.note("still here")
    progress.close()


def run_in_terminal(code: str, term: str = "xterm-256color", encoding: str = "utf-8") -> str:
    """What a program prints in a terminal of 100 columns."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": term, "COLUMNS": "100", "LINES": "30", "PYTHONIOENCODING": encoding}
    with subprocess.Popen([sys.executable, "-c", code], stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        seen = b""
        while select.select([master], [], [], 30.0)[0]:
            try:
                chunk = os.read(master, 65536)
            except OSError:  # Linux: the other end is closed
                break
            if not chunk:
                break
            seen += chunk
    os.close(master)
    assert process.returncode == 0, seen.decode()
    return seen.decode()


TERMINAL_RUN = f"""
from nap_rl.logging import Progress, Status
with Progress() as progress:
    progress.update(Status(**{STATE!r}))
    progress.note("task switch: [breakout] -> pong")
    progress.update(Status(**{{**{STATE!r}, "frames": 1_200_000, "updates": 75_000}}))
"""


def test_a_terminal_gets_the_live_display_with_notes_above_it() -> None:
    seen = run_in_terminal(TERMINAL_RUN)
    assert "\x1b[" in seen  # cursor movements: it is live
    for text in ["space_invaders", "120,000 / 1,200,000 frames", "1,234", "1.2e-07", "75,000"]:
        assert text in seen
    assert "task switch: [breakout] -> pong" in seen  # not taken for rich's markup
    assert seen.rfind("\x1b[?25h") > seen.rfind("\x1b[?25l")  # the cursor is shown again


def test_an_ascii_terminal_gets_the_live_display_without_other_letters() -> None:
    seen = run_in_terminal(TERMINAL_RUN.replace("[breakout]", "模型"), encoding="ascii")
    assert seen.isascii() and "\x1b[" in seen and "task switch: ?? -> pong" in seen


def test_a_dumb_terminal_gets_plain_lines() -> None:
    seen = run_in_terminal(TERMINAL_RUN, term="dumb")
    assert "\x1b[" not in seen
    assert "120,000 / 1,200,000 frames" in seen
    assert "task switch: [breakout] -> pong" in seen


def test_plain_lines_do_not_import_rich() -> None:
    code = (
        "import io, sys; from nap_rl.logging import Progress; Progress(stream=io.StringIO()).close(); "
        "assert 'rich' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
