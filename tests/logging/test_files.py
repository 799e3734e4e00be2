"""Files that only grow: full disks, torn pieces, and going on from an earlier place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nap_rl.logging import RunLog
from nap_rl.logging.files import GrowingFile


def break_disk(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Every write takes `after` bytes and then says that the disk is full."""
    real = os.write

    def write(fd: int, data: Any) -> int:
        if after and len(data) > after:
            real(fd, bytes(data)[:after])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", write)


@pytest.mark.parametrize("after", [0, 3])
def test_pieces_that_cannot_be_written_wait_and_nothing_stands_there_twice(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = GrowingFile(tmp_path / "x")
    file.append(b"one\n")
    with monkeypatch.context() as patch:
        break_disk(patch, after)
        for piece in (b"two, longer\n", b"three\n"):
            with pytest.raises(OSError, match="No space"):
                file.append(piece)
            assert (tmp_path / "x").read_bytes() == b"one\n"
    file.append(b"four\n")
    assert (tmp_path / "x").read_bytes() == b"one\ntwo, longer\nthree\nfour\n" and file.size == 27


def test_what_stands_beyond_the_saved_place_is_cut_off_by_the_next_write_and_not_before(tmp_path: Path) -> None:
    file = GrowingFile(tmp_path / "x")
    file.append(b"one\n")
    state = file.state_dict()
    file.append(b"two\nth")
    again = GrowingFile(tmp_path / "x", state)
    assert (tmp_path / "x").read_bytes() == b"one\ntwo\nth"
    again.append(b"2\n")
    assert (tmp_path / "x").read_bytes() == b"one\n2\n"
    assert GrowingFile(tmp_path / "x", again.state_dict()).size == 6


def test_a_file_that_was_changed_or_is_gone_is_refused(tmp_path: Path) -> None:
    file = GrowingFile(tmp_path / "x")
    file.append(b"one\n")
    state = file.state_dict()
    (tmp_path / "x").write_bytes(b"on")
    with pytest.raises(ValueError, match="has been changed"):
        GrowingFile(tmp_path / "x", state)
    (tmp_path / "x").unlink()
    with pytest.raises(ValueError, match="is missing"):
        GrowingFile(tmp_path / "x", state)


def row(log: RunLog, i: int) -> None:
    log.metrics(i, 4 * i, 16 * i, {"a": float(i)})
    log.episode(frames=16 * i, game="pong", cycle=0, episode_return=float(i), length=16, env_index=0)


def test_a_resumed_log_has_no_row_twice_and_none_missing_in_tensorboard_either(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    for i in (1, 2, 3):
        row(log, i)
    log.sync()
    state = log.state_dict()
    for i in (4, 5):  # lost with the process
        row(log, i)
    again = RunLog(tmp_path, state=state, frames=48)
    for i in (4, 5, 6):
        row(again, i)
    again.close()
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("a")] == [(16 * i, i) for i in range(1, 7)]
    metrics = (tmp_path / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in metrics] == ["updates", "1", "2", "3", "4", "5", "6"]
    episodes = (tmp_path / "episodes.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in episodes[1:]] == [str(16 * i) for i in range(1, 7)]


def test_a_full_disk_is_said_once_for_each_file_and_every_row_comes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    log = RunLog(tmp_path, warn=said.append)
    row(log, 1)
    with monkeypatch.context() as patch:
        break_disk(patch, 10)
        for i in (2, 3):
            row(log, i)
        with pytest.raises(OSError, match="No space"):
            log.sync()
    row(log, 4)
    log.close()
    assert len(said) == 3 and all("is kept in memory: [Errno 28] No space left" in text for text in said)
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 5
    assert len((tmp_path / "episodes.csv").read_text().splitlines()) == 5
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("a")] == [16, 32, 48, 64]
