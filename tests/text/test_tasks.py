"""Texts and questions in the formats in which they are published."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nap_rl.text.tasks import Question, find_task, lambada, piqa, siqa, wikitext

PIQA = [
    {"goal": "How do I ready a cage?", "sol1": "With bedding.", "sol2": "With jeans."},
    {"goal": "dresser", "sol1": "replace drawer with bobby pin ", "sol2": "finish, woodgrain"},
]
SIQA = [
    {
        "context": "Tracy stayed.",
        "question": "What does Tracy need to do before this?",
        "answerA": "make a plan",
        "answerB": "Go home",
        "answerC": "Find somewhere",
    }
]
PIQA_QUESTIONS = [
    Question("Question: How do I ready a cage?\nAnswer:", (" With bedding.", " With jeans."), 0),
    Question("Question: dresser\nAnswer:", (" replace drawer with bobby pin ", " finish, woodgrain"), 1),
]
SIQA_QUESTIONS = [
    Question(
        "Q: Tracy stayed. What does Tracy need to do before this?\nA:",
        (" make a plan", " Go home", " Find somewhere"),
        2,
    )
]
WIKI = (
    " = Robert Boulter = \n \n Robert Boulter is an actor . \n \n = = Career = = \n \n He acts . \n"
    " = Du Fu = \n \n Poet .\n"
)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def test_piqa_and_siqa_as_published_with_labels_beside_them(tmp_path: Path) -> None:
    (tmp_path / "valid-labels.lst").write_text("0\n1\n")
    assert list(piqa(write_rows(tmp_path / "valid.jsonl", PIQA))) == PIQA_QUESTIONS
    (tmp_path / "dev-labels.lst").write_text("3\n")
    assert list(siqa(write_rows(tmp_path / "dev.jsonl", SIQA))) == SIQA_QUESTIONS


def test_labels_may_stand_in_the_rows_as_numbers_or_text(tmp_path: Path) -> None:
    rows = [{**PIQA[0], "label": 0}, {**PIQA[1], "label": 1}]
    assert list(piqa(write_rows(tmp_path / "valid.jsonl", rows))) == PIQA_QUESTIONS
    assert list(siqa(write_rows(tmp_path / "dev.jsonl", [{**SIQA[0], "label": "3"}]))) == SIQA_QUESTIONS


@pytest.mark.parametrize("suffix", [".arrow", ".parquet"])
def test_rows_may_come_as_tables(suffix: str, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist([{**PIQA[0], "label": 0}, {**PIQA[1], "label": 1}])
    path = tmp_path / f"validation{suffix}"
    if suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    assert list(piqa(path)) == PIQA_QUESTIONS
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=f"is no whole {suffix} file"):
        list(piqa(path))


def test_lambada_in_three_formats(tmp_path: Path) -> None:
    expected = [Question("I can make it there on my own,", (" Shane",), 0), Question("a b", (" c",), 0)]
    passages = ["I can make it there on my own, Shane", "a b c"]
    assert list(lambada(write_rows(tmp_path / "lambada_test.jsonl", [{"text": text} for text in passages]))) == expected
    requests = [{"request": {"context": q.context, "continuation": q.continuations[0]}} for q in expected]
    assert list(lambada(write_rows(tmp_path / "requests.jsonl.gz", requests))) == expected
    (tmp_path / "lambada_test_plain_text.txt").write_text("\n".join(passages) + "\n")
    assert list(lambada(tmp_path / "lambada_test_plain_text.txt")) == expected


def test_wikitext_is_parted_into_articles_and_not_into_sections(tmp_path: Path) -> None:
    (tmp_path / "wiki.test.raw").write_text(f" \n{WIKI}")
    articles = list(wikitext(tmp_path / "wiki.test.raw"))
    assert [article.split("\n")[0] for article in articles] == [" = Robert Boulter = ", " = Du Fu = "]
    assert "".join(articles) == WIKI


def test_files_are_found_in_their_folder(tmp_path: Path) -> None:
    (tmp_path / "wiki.test.raw").write_text(WIKI)
    assert find_task("wikitext", tmp_path) == tmp_path / "wiki.test.raw"
    with pytest.raises(FileNotFoundError, match="scores.piqa=.* is no file and holds none called valid.jsonl or"):
        find_task("piqa", tmp_path)


@pytest.mark.parametrize(
    ("rows", "labels", "sentence"),
    [
        ([{"goal": "x", "sol1": "a"}], "0\n", "line 1, has no text under 'sol2'"),
        (PIQA, "0\n", "valid-labels.lst holds 1 labels, fewer than"),
        (PIQA, "0\n1\n1\n", "valid-labels.lst holds 3 labels, but .* has 2 questions"),
        (PIQA, "0\n2\n", "line 2, has the label '2', not one of 0, 1"),
        (PIQA, None, "line 1, has no label, and there is no valid-labels.lst beside it"),
    ],
)
def test_what_does_not_fit_is_a_sentence(
    rows: list[dict[str, Any]], labels: str | None, sentence: str, tmp_path: Path
) -> None:
    if labels is not None:
        (tmp_path / "valid-labels.lst").write_text(labels)
    with pytest.raises(ValueError, match=sentence):
        list(piqa(write_rows(tmp_path / "valid.jsonl", rows)))


def test_an_empty_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "lambada_test.jsonl").touch()
    with pytest.raises(ValueError, match="is empty"):
        find_task("lambada", tmp_path)
