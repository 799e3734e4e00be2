"""Texts and questions to score a language model on, each in its published formats.

wikitext   wiki.test.raw or wiki.test.tokens (Merity et al. 2016), or rows of lines under "text"
lambada    JSON lines with "text" (OpenAI's lambada_test.jsonl), or with "request" (OLMo's), or plain text, a line a
           passage (Paperno et al. 2016)
piqa       JSON lines with "goal", "sol1", "sol2" (Bisk et al. 2020), answers 0 or 1
siqa       JSON lines with "context", "question", "answerA" to "answerC" (Sap et al. 2019), answers 1 to 3

Answers stand under "label" or in NAME-labels.lst beside NAME.jsonl. Rows may also come as .arrow or .parquet, as the
Hugging Face hub has them; then pyarrow must be installed. The questions' wording is lm-eval's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nap_rl.text.corpora import check_corpus, open_corpus
from nap_rl.text.files import read_lines, read_records, read_text, text_field

ARTICLE = re.compile(r"^ = [^=].* = $", re.MULTILINE)  # the title of a WikiText article; sections have " = = "
TABLES = (".arrow", ".parquet")


@dataclass(frozen=True)
class Question:
    """A context, possible continuations of it, and the number of the right one. A continuation begins with a space."""

    context: str
    continuations: tuple[str, ...]
    answer: int


def lambada(path: Path) -> Iterator[Question]:
    """Passages without their last word, and that word."""
    if path.suffix == ".txt":
        passages = (line.rstrip("\n") for line in read_lines(path))
    else:
        passages = (_passage(path, number, row) for number, row in enumerate(_rows(path), start=1))
    for passage in passages:
        context, _, word = passage.rpartition(" ")
        yield Question(context, (f" {word}",), 0)


def piqa(path: Path) -> Iterator[Question]:
    for number, row, label in _labelled(path):
        goal, *answers = (text_field(path, number, row, key) for key in ("goal", "sol1", "sol2"))
        yield _question(path, number, f"Question: {goal}\nAnswer:", answers, label, first=0)


def siqa(path: Path) -> Iterator[Question]:
    keys = ("context", "question", "answerA", "answerB", "answerC")
    for number, row, label in _labelled(path):
        context, question, *answers = (text_field(path, number, row, key) for key in keys)
        yield _question(path, number, f"Q: {context} {question}\nA:", answers, label, first=1)


def wikitext(path: Path) -> Iterator[str]:
    """Articles."""
    if path.suffix in TABLES:
        text = "".join(text_field(path, number, row) for number, row in enumerate(_rows(path), start=1))
    else:
        text = read_text(path)
    starts = [match.start() for match in ARTICLE.finditer(text)]
    for start, end in zip([0, *starts], [*starts, len(text)], strict=True):
        if text[start:end].strip():
            yield text[start:end]


QUESTIONS: dict[str, Callable[[Path], Iterator[Question]]] = {"lambada": lambada, "siqa": siqa, "piqa": piqa}
TEXTS = ("c4", "pile", "wikitext")
FILES = {  # what is looked for in a folder
    "wikitext": ("wiki.test.raw", "wiki.test.tokens", "test-*.parquet", "*.arrow"),
    "lambada": ("lambada_test*.jsonl", "lambada_test_plain_text.txt", "requests.jsonl.gz", "test-*.parquet"),
    "piqa": ("valid.jsonl", "dev.jsonl", "validation-*.parquet", "*.arrow"),
    "siqa": ("dev.jsonl", "validation-*.parquet", "*.arrow"),
}


def find_task(name: str, path: Path) -> Path:
    """The file of a task: `path`, or the first of FILES in it. c4 and pile stay folders, looked at as corpora.

    Raises FileNotFoundError, or ValueError for a file that is broken at its beginning, each one sentence.
    """
    if name in ("c4", "pile"):
        check_corpus(open_corpus(name, path, held_out=True))
        return path
    found = [path] if path.is_file() else [file for pattern in FILES[name] for file in sorted(path.glob(pattern))]
    if not found:
        raise FileNotFoundError(f"scores.{name}={path} is no file and holds none called {' or '.join(FILES[name])}.")
    first: object = next(wikitext(found[0]) if name == "wikitext" else QUESTIONS[name](found[0]), None)
    if first is None:
        raise ValueError(f"{found[0]} is empty: copy or download it again.")
    return found[0]


def texts_of(name: str, path: Path) -> Iterator[str]:
    """The documents of wikitext, or of the held-out part of a corpus."""
    return wikitext(path) if name == "wikitext" else open_corpus(name, path, held_out=True).texts()


def _passage(path: Path, number: int, row: dict[str, Any]) -> str:
    request = row.get("request")
    if isinstance(request, dict):
        return "".join(text_field(path, number, request, key) for key in ("context", "continuation"))
    return text_field(path, number, row)


def _question(path: Path, number: int, context: str, answers: list[str], label: object, first: int) -> Question:
    labels = [str(first + n) for n in range(len(answers))]
    if str(label) not in labels:
        raise ValueError(f"{path}, line {number}, has the label {label!r}, not one of {', '.join(labels)}.")
    return Question(context, tuple(f" {answer}" for answer in answers), labels.index(str(label)))


def _labelled(path: Path) -> Iterator[tuple[int, dict[str, Any], object]]:
    """Line numbers, rows and labels."""
    file = path.with_name(f"{path.name.split('.')[0]}-labels.lst")
    labels = [line.strip() for line in read_lines(file)] if file.is_file() else None
    number = 0
    for number, row in enumerate(_rows(path), start=1):
        if labels is not None and number > len(labels):
            raise ValueError(f"{file} holds {len(labels)} labels, fewer than {path} has questions.")
        label = labels[number - 1] if labels is not None else row.get("label")
        if label is None:
            raise ValueError(f"{path}, line {number}, has no label, and there is no {file.name} beside it.")
        yield number, row, label
    if labels is not None and number < len(labels):
        raise ValueError(f"{file} holds {len(labels)} labels, but {path} has {number} questions.")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix not in TABLES:
        yield from read_records(path)
        return
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{path} needs pyarrow (pip install pyarrow), or take the JSON lines.") from error
    try:
        if path.suffix == ".parquet":
            table = pyarrow.parquet.read_table(path)
        else:
            with pyarrow.OSFile(str(path)) as file:
                table = pyarrow.ipc.open_stream(file).read_all()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is no whole {path.suffix} file ({error}): copy or download it again.") from error
    yield from table.to_pylist()
