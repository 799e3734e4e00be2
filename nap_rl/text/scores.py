"""Scores of a language model: accuracy and loss a token, and questions answered by likelihood.

A model takes tokens [B, T] int64 and gives logits [B, T, vocabulary]: those at position t are of token t + 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import torch
import torch.nn.functional as F
from torch import Tensor

from nap_rl.text.tasks import Question

Model = Callable[[Tensor], Tensor]
Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Scorer:
    """A model with its tokenizer.

    Args:
        end: the token behind each document.
        length: tokens that the model takes at most.
        rows: in a batch.
    """

    model: Model
    encode: Encode
    end: int
    length: int
    rows: int
    device: torch.device = torch.device("cpu")

    @torch.no_grad()
    def texts(self, texts: Iterable[str], tokens: int) -> dict[str, float]:
        """Accuracy and loss (nats) a token, over the first `tokens` tokens of the texts, an end behind each.

        They are cut into windows of `length`. A token is predicted from those before it in its window, and the first
        from the last token of the window before.
        """
        windows = self._windows(texts, tokens)
        loss = right = count = 0.0
        while batch := list(islice(windows, self.rows)):
            x, y = self._padded([window[:-1] for window in batch], 0), self._padded([w[1:] for w in batch], -1)
            logits = self.model(x).float()
            loss += F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1, reduction="sum").item()
            right += (logits.argmax(-1) == y).sum().item()
            count += (y >= 0).sum().item()
        return {"accuracy": right / count, "loss": loss / count}

    def questions(self, questions: Sequence[Question]) -> dict[str, float]:
        """The share of questions whose right continuation is the likeliest; of one continuation, if it is foretold.

        "accuracy_by_length" divides each log-likelihood by the continuation's number of characters, without the space
        in front. For one continuation "loss" is the mean of -log p, in nats.
        """
        answers = self.answers(questions)
        count = len(questions)
        if all(len(question.continuations) == 1 for question in questions):
            foretold = sum(answer.foretold[0] for answer in answers)
            return {"accuracy": foretold / count, "loss": -sum(a.logs[0] for a in answers) / count}
        right, by_length = (
            sum(chosen == question.answer for chosen, question in zip(each, questions, strict=True))
            for each in ([a.likeliest() for a in answers], [a.likeliest_by_length() for a in answers])
        )
        return {"accuracy": right / count, "accuracy_by_length": by_length / count}

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        """What the model thinks of each question's continuations."""
        pairs = [(q.context, continuation) for q in questions for continuation in q.continuations]
        scores = iter(self._continuations(pairs))
        answers = []
        for question in questions:
            own = list(islice(scores, len(question.continuations)))
            lengths = tuple(len(continuation) - 1 for continuation in question.continuations)
            answers.append(Answer(tuple(log for log, _ in own), tuple(foretold for _, foretold in own), lengths))
        return answers

    @torch.no_grad()
    def _continuations(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """For each (context, continuation): log p(continuation | context), and whether each token is the likeliest."""
        rows = [self._encoded(*pair) for pair in pairs]
        order = sorted(range(len(rows)), key=lambda n: -len(rows[n][0]))  # rows of like length share a batch
        found: list[tuple[float, bool]] = [(0.0, False)] * len(rows)
        for start in range(0, len(order), self.rows):
            numbers = order[start : start + self.rows]
            x = self._padded([rows[n][0][:-1] for n in numbers], 0)
            y = self._padded([rows[n][0][1:] for n in numbers], 0)
            logits = self.model(x).float()
            logs = logits.log_softmax(-1).gather(-1, y[..., None])[..., 0]
            likeliest = logits.argmax(-1) == y
            for row, n in enumerate(numbers):
                whole, size = rows[n]
                places = slice(len(whole) - 1 - size, len(whole) - 1)
                found[n] = (logs[row, places].sum().item(), bool(likeliest[row, places].all()))
        return found

    def _encoded(self, context: str, continuation: str) -> tuple[list[int], int]:
        """The tokens of both, cut on the left to length + 1, and how many of them belong to the continuation.

        They are encoded together, since a token may reach over the border, as in lm-eval. An empty context is an end of
        text.
        """
        text = context.rstrip()
        continuation = context[len(text) :] + continuation
        if not text:
            own = self.encode(continuation)
            whole = [self.end, *own]
        else:
            whole = self.encode(text + continuation)
            own = whole[len(self.encode(text)) :]
        whole = whole[-(self.length + 1) :]
        return whole, min(len(own), len(whole) - 1)

    def _windows(self, texts: Iterable[str], tokens: int) -> Iterator[list[int]]:
        documents = chain.from_iterable([*self.encode(text), self.end] for text in texts)
        stream = chain([self.end], islice(documents, tokens))
        window = list(islice(stream, self.length + 1))
        while len(window) > 1:
            yield window
            window = [window[-1], *islice(stream, self.length)]

    def _padded(self, rows: Sequence[Sequence[int]], value: int) -> Tensor:
        """[rows, longest] int64. What is added at the end is not seen by the tokens before it."""
        longest = max(len(row) for row in rows)
        return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], device=self.device)


@dataclass(frozen=True)
class Answer:
    """By continuation: its log-likelihood, whether it is foretold token by token, and its length in characters."""

    logs: tuple[float, ...]
    foretold: tuple[bool, ...]
    lengths: tuple[int, ...]

    def likeliest(self) -> int:
        return max(range(len(self.logs)), key=lambda n: self.logs[n])

    def likeliest_by_length(self) -> int:
        return max(range(len(self.logs)), key=lambda n: self.logs[n] / self.lengths[n])
