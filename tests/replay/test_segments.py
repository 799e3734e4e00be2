"""The replay on disk: only new records are written, old ones are dropped, forged files are refused."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from nap_rl.replay import Replay, segments
from nap_rl.replay.segments import Segment


def make() -> Replay:
    return Replay(40, 2, frame_shape=(3,), stack=4, n_steps=2)


def play(replay: Replay, steps: int) -> None:
    for t in range(steps):
        frames = np.full((2, 3), (int(replay.counts[0]) + t) % 256, dtype=np.uint8)
        replay.add(frames, np.zeros(2), np.zeros(2), np.ones(2), np.zeros(2, dtype=bool))


def test_each_plan_adds_what_was_played_since_and_drops_what_nobody_can_read() -> None:
    replay = make()
    plans: list[list[Segment]] = [segments.plan(replay, [])]
    assert plans == [[]]
    for _ in range(6):
        play(replay, 8)
        plans.append(segments.plan(replay, plans[-1]))
    for before, after in zip(plans[1:-1], plans[2:], strict=True):
        assert after[-1].begins == before[-1].ends and after[-1].ends == [b + 8 for b in before[-1].ends]
        assert [segment for segment in after if segment in before] == after[:-1]
    # 20 slots can begin a transition and 3 more stand in their stacks: 23 of 48, in three segments of 8.
    assert [segment.begins[0] for segment in plans[-1]] == [24, 32, 40]
    assert len({segment.name for plan in plans for segment in plan}) == 6


def test_a_long_gap_is_cut_into_pieces_and_its_lost_part_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "RECORDS", 10)
    replay = make()
    play(replay, 200)
    plan = segments.plan(replay, [])
    assert plan[0].begins == [177, 177] and plan[-1].ends == [200, 200]
    assert all(segment.size <= 10 for segment in plan) and sum(segment.size for segment in plan) == 46
    assert all(a.ends == b.begins for a, b in zip(plan[:-1], plan[1:], strict=True))


def test_what_is_encoded_comes_back_into_another_ring() -> None:
    replay, other = make(), make()
    play(replay, 60)
    plan = segments.plan(replay, [])
    other.load_state_dict(replay.state_dict())
    for segment in plan:
        segments.decode(other, segment, segments.encode(replay, segment))
    envs = np.repeat([0, 1], 23)
    serials = np.tile(np.arange(37, 60), 2)
    assert np.array_equal(replay.records(envs, serials), other.records(envs, serials))


def test_a_segment_that_is_written_late_holds_what_is_left_of_it() -> None:
    replay, other = make(), make()
    play(replay, 30)
    (early,) = segments.plan(replay, [])
    play(replay, 10)
    other.load_state_dict(replay.state_dict())
    segments.decode(other, early, segments.encode(replay, early))  # serials 17 .. 29 of 7 .. 29
    assert (other.serials >= 0).sum() == 2 * 13


@pytest.mark.parametrize("forged", ["text", "bomb", "cut", "env", "serial", "odd"])
def test_forged_bytes_are_refused_in_a_sentence(forged: str) -> None:
    replay = make()
    play(replay, 30)
    (segment,) = segments.plan(replay, [])
    records = np.frombuffer(zlib.decompress(segments.encode(replay, segment)), dtype=replay.record).copy()
    whole = zlib.compress(records.tobytes())
    if forged == "env":
        records["env"][3] = 2
    if forged == "serial":
        records["serial"][3] = 30
    data = {
        "text": b"no compressed data",
        "bomb": zlib.compress(bytes(100_000_000)),
        "cut": whole[:-3],
        "odd": zlib.compress(records.tobytes()[:-1]),
    }.get(forged, zlib.compress(records.tobytes()))
    with pytest.raises(ValueError, match=segment.name) as error:
        segments.decode(make(), segment, data)
    assert "\n" not in str(error.value)
