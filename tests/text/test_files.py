"""Lines of plain, gzipped and zstd files; what is broken is a sentence that says where."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from nap_rl.text.files import read_lines, read_records, read_text

LINES = [f"line {n} of a file, éü\n" for n in range(5_000)]


def pack(path: Path, content: bytes) -> Path:
    """Writes `content`, compressed as the file's name says."""
    if path.suffix == ".gz":
        content = gzip.compress(content)
    elif path.suffix == ".zst":
        content = pytest.importorskip("zstandard").compress(content)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl.zst"])
def test_all_lines_come_back_whatever_the_compression(name: str, tmp_path: Path) -> None:
    path = pack(tmp_path / name, "".join(LINES).encode())
    assert list(read_lines(path)) == LINES
    assert read_text(path) == "".join(LINES)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.zst"])
def test_members_written_one_after_the_other_are_one_file(name: str, tmp_path: Path) -> None:
    parts = [pack(tmp_path / f"{n}{name}", f"part {n}\n".encode()).read_bytes() for n in range(3)]
    (tmp_path / name).write_bytes(b"".join(parts))
    assert list(read_lines(tmp_path / name)) == ["part 0\n", "part 1\n", "part 2\n"]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.zst"])
def test_a_truncated_file_gives_its_lines_and_then_says_where_it_ends(name: str, tmp_path: Path) -> None:
    import random

    noise = random.Random(0)  # so that half of the file is about half of the lines
    lines = ["".join(noise.choices("abcdefghijklmnop ", k=60)) + "\n" for _ in range(60_000)]
    path = pack(tmp_path / name, "".join(lines).encode())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    given = []
    with pytest.raises(ValueError, match=rf"{name} ends too early, after line \d+: copy or download it again"):
        for line in read_lines(path):
            given.append(line)
    assert 10_000 < len(given) < 50_000
    assert given == lines[: len(given)]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.zst"])
def test_damage_and_foreign_files_are_named(name: str, tmp_path: Path) -> None:
    if name.endswith(".zst"):
        pytest.importorskip("zstandard")
    (tmp_path / name).write_bytes(b"this was never compressed\n" * 10)
    with pytest.raises(ValueError, match=f"{name} is damaged after line 0"):
        list(read_lines(tmp_path / name))


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\n\xff\xfe\n")
    with pytest.raises(ValueError, match="a.txt is not UTF-8 text"):
        list(read_lines(tmp_path / "a.txt"))


def test_a_broken_json_line_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "tw\n')
    records = read_records(path)
    assert next(records) == {"text": "one"}
    with pytest.raises(ValueError, match=r"a.jsonl, line 3, is no JSON \(.*\): mend or delete the line"):
        next(records)
    path.write_text(json.dumps([1, 2]))
    with pytest.raises(ValueError, match="line 1, is no JSON object"):
        list(read_records(path))
