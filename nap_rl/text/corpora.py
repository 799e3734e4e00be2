"""Corpora: shards on the disk, each a sequence of documents.

c4     as published (https://huggingface.co/datasets/allenai/c4): c4-train.*.json.gz and c4-validation.*.json.gz, JSON
       lines with "text"
pile   as published: train/*.jsonl.zst and val.jsonl.zst, JSON lines with "text"
text   any folder of .txt, .md, .rst (or those with .gz); a long file is several documents, cut at blank lines. One in
       twenty documents, by a hash of its place, is held out; the others are for training
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nap_rl.text.files import parse_record, read_lines, text_field

DOCUMENT = 4_000  # characters, at least, of a document cut from a text file
HELD_OUT = 20  # one document of a text folder in so many
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".txt.gz", ".md.gz", ".rst.gz")


@dataclass(frozen=True)
class Corpus:
    """Files with documents, and how to read one.

    `documents(path)` gives a function for each document, in order, that returns its text: what is only counted is
    not parsed. Its errors are ValueErrors of one sentence.
    """

    shards: tuple[Path, ...]
    documents: Callable[[Path], Iterator[Callable[[], str]]]

    def texts(self) -> Iterator[str]:
        """All documents, shard by shard."""
        for path in self.shards:
            for document in self.documents(path):
                yield document()


def open_corpus(name: str, root: Path, held_out: bool) -> Corpus:
    """The corpus `name` in the folder `root`, its held-out part or its training part. Looks at names only.

    Raises:
        ValueError: there is no such corpus.
        FileNotFoundError: its files are missing; the sentence says what to put where.
    """
    if name == "c4":
        part = "validation" if held_out else "train"
        return _json_lines(root, (f"c4-{part}.*.json.gz", f"en/c4-{part}.*.json.gz"), name)
    if name == "pile":
        return _json_lines(root, ("val.jsonl.zst",) if held_out else ("train/*.jsonl.zst",), name)
    if name == "text":
        return _text_folder(root, held_out)
    raise ValueError(f"There is no corpus {name!r}; there are c4, pile, text.")


def check_corpus(corpus: Corpus) -> None:
    """Looks at the size of all shards and at the first document. Raises ValueError, one sentence."""
    for path in corpus.shards:
        if path.stat().st_size == 0:
            raise ValueError(f"{path} is empty: copy or download it again, or remove it.")
    if next(corpus.texts(), None) is None:
        raise ValueError(f"{corpus.shards[0].parent} holds too little text to hold out one document in {HELD_OUT}.")


def _json_lines(root: Path, patterns: tuple[str, ...], name: str) -> Corpus:
    shards = sorted({path for pattern in patterns for path in root.glob(pattern)})
    if not shards:
        raise FileNotFoundError(
            f"data={name} finds no {patterns[0]} in {root}: put the files there as published, still compressed, "
            "or let data.root name their folder."
        )
    return Corpus(tuple(shards), _read_json_lines)


def _read_json_lines(path: Path) -> Iterator[Callable[[], str]]:
    number = 0
    for number, line in enumerate(read_lines(path), start=1):

        def text(number: int = number, line: str = line) -> str:
            return text_field(path, number, parse_record(path, number, line))

        yield text
    if number == 0:
        raise ValueError(f"{path} is empty: copy or download it again, or remove it.")


def _text_folder(root: Path, held_out: bool) -> Corpus:
    if not root.is_dir():
        raise FileNotFoundError(f"data=text finds no folder {root}: let data.root name a folder of .txt, .md or .rst.")
    files = sorted(path for path in root.rglob("*") if path.name.endswith(TEXT_SUFFIXES) and path.is_file())
    shards = tuple(path for path in files if path.stat().st_size > 0)
    if not shards:
        raise FileNotFoundError(f"{root} holds no text: data=text reads files called {', '.join(TEXT_SUFFIXES)}.")

    def read(path: Path) -> Iterator[Callable[[], str]]:
        place = path.relative_to(root).as_posix()
        for number, text in enumerate(_pieces(path)):
            if (zlib.crc32(f"{place}:{number}".encode()) % HELD_OUT == 0) == held_out:
                yield lambda text=text: text  # type: ignore[misc]

    return Corpus(shards, read)


def _pieces(path: Path) -> Iterator[str]:
    """The text of a file, cut at the first blank line after every `DOCUMENT` characters."""
    lines: list[str] = []
    size = 0
    for line in read_lines(path):
        lines.append(line)
        size += len(line)
        if size >= DOCUMENT and not line.strip():
            yield "".join(lines)
            lines, size = [], 0
    if "".join(lines).strip():
        yield "".join(lines)
