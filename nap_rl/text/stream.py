"""Batches of tokens from a corpus, without end: shuffled, divided among ranks, resumable to the token.

epoch e    the shards in an order drawn from (seed, e); of each shard, rank r takes the documents r, r + ranks, ...
buffer b   the next `shuffle` documents, in an order drawn from (seed, e, b)
tokens     document, end of text, document, end of text, ...
batch      rows * length tokens and one more:  x = tokens[:-1], y = tokens[1:], each [rows, length]
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nap_rl.text.corpora import Corpus

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Position:
    """Of a token. The buffer's first document is `document` of the shard that comes as number `shard` in its epoch."""

    epoch: int = 0
    buffer: int = 0
    shard: int = 0
    document: int = 0
    place: int = 0  # in the shuffled buffer
    token: int = 0  # of that document


class TokenStream:
    """Gives batches of a corpus.

    Args:
        encode: text -> tokens.
        end: the token behind each document.
        length: tokens in a row.
        shuffle: documents in a buffer.

    What is wrong in the corpus is a ValueError of one sentence when it is reached. The stream then stands where it was
    before the call.
    """

    def __init__(
        self,
        corpus: Corpus,
        encode: Callable[[str], list[int]],
        end: int,
        length: int,
        *,
        shuffle: int = 10_000,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.corpus = corpus
        self.encode = encode
        self.end = end
        self.length = length
        self.shuffle = shuffle
        self.seed = seed
        self.rank, self.ranks = rank, ranks
        self._go_to(Position())

    def batch(self, rows: int) -> tuple[Tokens, Tokens]:
        """The next x and y, [rows, length] int64 each. The last token of y is the first of the next batch's x."""
        count = rows * self.length
        try:
            while self._waiting <= count:
                position, tokens = next(self._source)
                self._queue.append((position, tokens))
                self._waiting += len(tokens) - position.token
        except BaseException:
            self._go_to(self.position)
            raise
        flat = np.concatenate([tokens[position.token :] for position, tokens in self._queue])[: count + 1]
        self._drop(count)
        return flat[:-1].reshape(rows, self.length), flat[1:].reshape(rows, self.length)

    @property
    def position(self) -> Position:
        """Of the next batch's first token."""
        return self._queue[0][0] if self._queue else self._start

    def state_dict(self) -> dict[str, int]:
        return asdict(self.position)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on where a stream of the same corpus, tokenizer, seed, `shuffle` and ranks stood."""
        self._go_to(Position(**state))

    def _go_to(self, position: Position) -> None:
        self._start = position
        self._source = self._documents(position)
        self._queue: deque[tuple[Position, Tokens]] = deque()  # documents read and not used up; the first in part
        self._waiting = 0  # tokens in the queue

    def _drop(self, count: int) -> None:
        self._waiting -= count
        while count:
            position, tokens = self._queue[0]
            if len(tokens) - position.token > count:
                self._queue[0] = (replace(position, token=position.token + count), tokens)
                return
            count -= len(tokens) - position.token
            self._queue.popleft()

    def _documents(self, start: Position) -> Iterator[tuple[Position, Tokens]]:
        """The tokens of each document from `start` on, and the position of the first one that is to be used."""
        for first, texts in self._buffers(start):
            order = self._generator(first.epoch, first.buffer).permutation(len(texts))
            for place in range(first.place, len(texts)):
                position = replace(first, place=place, token=first.token if place == first.place else 0)
                tokens = np.array([*self.encode(texts[order[place]]), self.end], dtype=np.int64)
                if position.token < len(tokens):
                    yield position, tokens

    def _buffers(self, start: Position) -> Iterator[tuple[Position, list[str]]]:
        """Each buffer's documents in the order of the files, and its position."""
        at = start
        while True:
            texts: list[str] = []
            order = self._generator(at.epoch).permutation(len(self.corpus.shards))
            for shard in range(at.shard, len(order)):
                for number, text in enumerate(self.corpus.documents(self.corpus.shards[order[shard]])):
                    if number % self.ranks != self.rank or (shard == at.shard and number < at.document):
                        continue
                    texts.append(text())
                    if len(texts) == self.shuffle:
                        yield at, texts
                        at = Position(at.epoch, at.buffer + 1, shard, number + 1)
                        texts = []
            if texts:
                yield at, texts
            elif at.buffer == 0:
                raise ValueError(f"rank {self.rank} of {self.ranks} finds no document in the corpus: take fewer ranks.")
            at = Position(at.epoch + 1)

    def _generator(self, *numbers: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, *numbers))
