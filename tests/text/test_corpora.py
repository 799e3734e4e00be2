"""Corpora as published: documents, held-out parts, and what is missing or broken."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from nap_rl.text.corpora import check_corpus, open_corpus
from tests.text.corpus_files import write_c4, write_text_folder


def test_c4_gives_the_documents_of_all_shards_in_order(tmp_path: Path) -> None:
    write_c4(tmp_path, shards=3, documents=4)
    texts = list(open_corpus("c4", tmp_path, held_out=False).texts())
    assert [text.split(":")[0] for text in texts] == [f"Document {s}.{n}" for s in range(3) for n in range(4)]
    held_out = list(open_corpus("c4", tmp_path, held_out=True).texts())
    assert [text.split(":")[0] for text in held_out] == [f"Document 3.{n}" for n in range(4)]


def test_c4_is_found_in_its_language_folder_too(tmp_path: Path) -> None:
    write_c4(tmp_path / "en")
    assert len(open_corpus("c4", tmp_path, held_out=False).shards) == 3


def test_the_pile_is_read_from_zstd(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    (tmp_path / "train").mkdir()
    rows = "".join(json.dumps({"text": f"page {n}", "meta": {"pile_set_name": "Pile-CC"}}) + "\n" for n in range(5))
    for name in ("train/00.jsonl.zst", "val.jsonl.zst"):
        (tmp_path / name).write_bytes(zstandard.compress(rows.encode()))
    for held_out in (False, True):
        assert list(open_corpus("pile", tmp_path, held_out).texts()) == [f"page {n}" for n in range(5)]


def test_a_text_folder_is_parted_into_training_and_held_out_documents_that_make_up_all_of_it(tmp_path: Path) -> None:
    write_text_folder(tmp_path, files=8)
    training, held_out = (list(open_corpus("text", tmp_path, each).texts()) for each in (False, True))
    whole = 0
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        whole += len((gzip.decompress(content) if path.suffix == ".gz" else content).decode())
    assert sum(map(len, training + held_out)) == whole
    assert not set(training) & set(held_out)
    assert 1 <= len(held_out) < len(training) / 5
    assert list(open_corpus("text", tmp_path, held_out=True).texts()) == held_out


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("c4", r"data=c4 finds no c4-train.\*.json.gz in .*: put the files there as published"),
        ("pile", r"data=pile finds no train/\*.jsonl.zst in"),
        ("text", r"holds no text: data=text reads files called .txt"),
    ],
)
def test_a_missing_corpus_says_what_to_put_where(name: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=sentence):
        open_corpus(name, tmp_path, held_out=False)


def test_an_unknown_corpus_and_a_missing_folder_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no corpus 'books'; there are c4, pile, text"):
        open_corpus("books", tmp_path, held_out=False)
    with pytest.raises(FileNotFoundError, match="finds no folder"):
        open_corpus("text", tmp_path / "nowhere", held_out=False)


@pytest.mark.parametrize("content", [b"", gzip.compress(b"")])
def test_an_empty_shard_is_named(content: bytes, tmp_path: Path) -> None:
    write_c4(tmp_path)
    (tmp_path / "c4-train.00001-of-00003.json.gz").write_bytes(content)
    corpus = open_corpus("c4", tmp_path, held_out=False)
    if not content:
        with pytest.raises(ValueError, match="c4-train.00001-of-00003.json.gz is empty"):
            check_corpus(corpus)
    with pytest.raises(ValueError, match="c4-train.00001-of-00003.json.gz is empty"):
        list(corpus.texts())


def test_a_record_without_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "c4-train.00000-of-00001.json.gz").write_bytes(gzip.compress(b'{"url": "x"}\n'))
    with pytest.raises(ValueError, match="line 1, has no text under 'text'"):
        check_corpus(open_corpus("c4", tmp_path, held_out=False))


def test_a_folder_too_small_to_hold_anything_out_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("short\n")
    with pytest.raises(ValueError, match="too little text"):
        check_corpus(open_corpus("text", tmp_path, held_out=True))
        check_corpus(open_corpus("text", tmp_path, held_out=False))
