"""Scores against plain loops over a model whose probabilities are known: a table of letter after letter."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nap_rl.text.scores import Scorer
from nap_rl.text.tasks import Question

END, LETTERS = 0, "abcdefgh "


def encode(text: str) -> list[int]:
    """A token a letter."""
    return [LETTERS.index(letter) + 1 for letter in text]


TABLE = torch.randn(len(LETTERS) + 1, len(LETTERS) + 1, generator=torch.Generator().manual_seed(0)) * 2
TABLE[:, END] -= 10  # no end is foretold
LOGS = TABLE.double().log_softmax(-1)


def model(tokens: Tensor) -> Tensor:
    """Logits of the next letter, from the present one alone."""
    assert tokens.shape[1] <= 8
    return TABLE[tokens]


SCORER = Scorer(model, encode, END, length=8, rows=3)


@pytest.mark.parametrize("limit", [5, 8, 9, 23, 1000])
def test_loss_and_accuracy_are_means_over_the_first_tokens_each_predicted_once(limit: int) -> None:
    texts = ["abba ca", "d", "", "hgfe dcba abc", "bad cab"]
    tokens = [token for text in texts for token in (*encode(text), END)][:limit]
    before = [END, *tokens[:-1]]
    loss = -sum(LOGS[a, b].item() for a, b in zip(before, tokens, strict=True)) / len(tokens)
    right = sum(int(TABLE[a].argmax()) == b for a, b in zip(before, tokens, strict=True)) / len(tokens)
    found = SCORER.texts(texts, limit)
    assert found["loss"] == pytest.approx(loss, rel=1e-6)
    assert found["accuracy"] == pytest.approx(right)


def likelihood(context: str, continuation: str) -> float:
    """Spaces at the end of the context count as the continuation's, as in lm-eval."""
    letters = [END, *encode(context + continuation)]
    pairs = list(zip(letters, letters[1:], strict=False))[len(context.rstrip()) :]
    return sum(LOGS[a, b].item() for a, b in pairs)


QUESTIONS = [
    Question("ab", (" ca", " dab", " h"), 0),
    Question("", (" a", " bb"), 1),
    Question("hg ", (" c", " ee"), 1),
    Question("dad", (" fed", " fee"), 0),
]


def test_the_likeliest_continuation_is_the_answer() -> None:
    answers = SCORER.answers(QUESTIONS)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        expected = [likelihood(question.context, continuation) for continuation in question.continuations]
        assert answer.logs == pytest.approx(expected, rel=1e-5)
        assert answer.likeliest() == expected.index(max(expected))
    right = [a.likeliest() == q.answer for a, q in zip(answers, QUESTIONS, strict=True)]
    assert SCORER.questions(QUESTIONS)["accuracy"] == sum(right) / 4


def test_by_length_divides_by_characters() -> None:
    found = SCORER.questions(QUESTIONS)["accuracy_by_length"]
    right = 0
    for question in QUESTIONS:
        each = [likelihood(question.context, c) / len(c[1:]) for c in question.continuations]
        right += each.index(max(each)) == question.answer
    assert found == right / 4


def test_one_continuation_is_right_if_every_token_is_foretold() -> None:
    start = encode("a")[0]
    letters: list[int] = []
    while len(letters) < 3:
        letters.append(int(TABLE[letters[-1] if letters else start].argmax()))
    word = "".join(LETTERS[token - 1] for token in letters)
    other = "".join(LETTERS[token - 1] for token in [*letters[:-1], letters[-1] % len(LETTERS) + 1])
    found = SCORER.questions([Question("a", (word,), 0), Question("a", (other,), 0)])
    assert found["accuracy"] == 0.5
    assert found["loss"] == pytest.approx(-(likelihood("a", word) + likelihood("a", other)) / 2, rel=1e-5)


def test_a_long_context_is_cut_on_the_left_and_batches_do_not_matter() -> None:
    long = Question("a" * 20, (" bad", " cab"), 0)
    short = Question("aaa", (" bad", " cab"), 0)
    answers = SCORER.answers([long, short, *QUESTIONS])
    assert answers[0].logs == pytest.approx(answers[1].logs)
    assert [a.logs for a in replace(SCORER, rows=1).answers([long, short, *QUESTIONS])] == [a.logs for a in answers]
    assert all(math.isfinite(log) for answer in answers for log in answer.logs)
