"""The replay on disk: segments of records, each written once and never changed.

A segment holds, for each environment's column, the slots with serials from `begins` to `ends`. A checkpoint names every
segment with a slot that can still be read. Only the steps since the checkpoint before need a new segment.

    column 0   ....[====s1====][======s2======][===s3===]        . overwritten
    column 1   ......[==s1====][======s2======][===s3===]        s3 is new
"""

from __future__ import annotations

import secrets
import zlib
from dataclasses import dataclass

import numpy as np

from nap_rl.replay.buffer import Replay
from nap_rl.replay.slots import Indices

RECORDS = 8_192  # of a segment, at most: 58 MB of Atari frames in memory, 1 to 4 MB on disk
LEVEL = 3  # of zlib


@dataclass(frozen=True)
class Segment:
    """Serials by environment. `name` is random: no other bytes ever get it."""

    name: str
    begins: list[int]
    ends: list[int]

    @property
    def size(self) -> int:
        """Records in it."""
        return sum(self.ends) - sum(self.begins)


def plan(replay: Replay, before: list[Segment]) -> list[Segment]:
    """Segments for every slot that can be read now: those of `before` that still hold one, and new ones."""
    oldest = replay.oldest()
    kept = [segment for segment in before if (np.array(segment.ends) > oldest).any()]
    written = np.array(kept[-1].ends if kept else np.zeros_like(oldest))
    begins = np.maximum(written, oldest)
    new = replay.counts - begins
    pieces = -(-int(new.sum()) // RECORDS)
    cuts = [(begins + new * piece // max(pieces, 1)).tolist() for piece in range(pieces + 1)]
    return kept + [Segment(f"replay-{secrets.token_hex(8)}", *ends) for ends in zip(cuts[:-1], cuts[1:], strict=True)]


def encode(replay: Replay, segment: Segment) -> bytes:
    """The records of a segment that are still in the ring, compressed."""
    begins = np.maximum(segment.begins, replay.oldest())
    spans = [np.arange(begin, end) for begin, end in zip(begins, segment.ends, strict=True)]
    envs: Indices = np.repeat(np.arange(len(spans)), [len(span) for span in spans])
    records = replay.records(envs, np.concatenate(spans))
    return zlib.compress(records.view(np.uint8).data, LEVEL)


def decode(replay: Replay, segment: Segment, data: bytes) -> None:
    """Write the records into the ring. Raises ValueError where `data` does not hold the records of `segment`."""
    size = segment.size * replay.record.itemsize
    unzip = zlib.decompressobj()
    try:
        raw = unzip.decompress(data, size + 1)  # at most so many bytes, whatever the data says
    except zlib.error as error:
        raise ValueError(f"{segment.name} cannot be decompressed: {error}") from None
    if len(raw) > size or not unzip.eof or len(raw) % replay.record.itemsize:
        raise ValueError(f"{segment.name} does not hold the {segment.size} records that it should")
    records = np.frombuffer(raw, dtype=replay.record)
    if not np.isin(records["env"], np.arange(len(replay.counts))).all():
        raise ValueError(f"{segment.name} names environments that this replay does not have")
    ends = np.array(segment.ends)[records["env"]]
    if ((records["serial"] < 0) | (records["serial"] >= ends)).any():
        raise ValueError(f"{segment.name} holds serials beyond its own")
    replay.load_records(records)
