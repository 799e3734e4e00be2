"""Batches of tokens: every token once an epoch, shuffled, divided among ranks, resumed to the token."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from nap_rl.text.corpora import Corpus, open_corpus
from nap_rl.text.stream import TokenStream
from tests.text.corpus_files import write_c4

END = 0


def encode(text: str) -> list[int]:
    """A token a letter."""
    return [ord(letter) for letter in text]


def stream(corpus: Corpus, **options: int) -> TokenStream:
    return TokenStream(corpus, encode, END, 16, **{"shuffle": 7, **options})


def documents(tokens: list[int]) -> list[str]:
    """Whole documents in a sequence of tokens; the first and the last piece may be cut."""
    return "".join(chr(token) for token in tokens).split(chr(END))


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return open_corpus("c4", write_c4(tmp_path, shards=3, documents=20), held_out=False)


def epoch_length(corpus: Corpus) -> int:
    return sum(len(text) + 1 for text in corpus.texts())


def test_targets_are_the_next_tokens_and_batches_follow_each_other(corpus: Corpus) -> None:
    source = stream(corpus)
    batches = [source.batch(3) for _ in range(10)]
    for x, y in batches:
        assert x.shape == y.shape == (3, 16) and x.dtype == np.int64
        assert (x.reshape(-1)[1:] == y.reshape(-1)[:-1]).all()
    for (_, y), (x, _) in zip(batches, batches[1:], strict=False):
        assert y[-1, -1] == x[0, 0]


def test_an_epoch_holds_every_document_once_in_another_order_than_the_files(corpus: Corpus) -> None:
    source = stream(corpus)
    length = epoch_length(corpus)
    tokens = np.concatenate([source.batch(1)[0][0] for _ in range(2 * length // 16 + 1)]).tolist()
    first, second = documents(tokens[:length])[:-1], documents(tokens[length : 2 * length])[:-1]
    texts = list(corpus.texts())
    assert Counter(first) == Counter(second) == Counter(texts)
    assert first != texts and first != second


def test_the_seed_decides_the_order(corpus: Corpus) -> None:
    one, same, other = (stream(corpus, seed=seed).batch(20)[0] for seed in (1, 1, 2))
    assert (one == same).all() and not (one == other).all()


def test_ranks_share_the_documents_of_an_epoch(corpus: Corpus) -> None:
    texts: list[str] = []
    for rank in range(3):
        source = stream(corpus, rank=rank, ranks=3)
        own = [text for number, text in enumerate(corpus.texts()) if number % 20 % 3 == rank]
        length = sum(len(text) + 1 for text in own)
        tokens = np.concatenate([source.batch(1)[0][0] for _ in range(length // 16 + 1)]).tolist()
        texts += documents(tokens[:length])[:-1]
    assert Counter(texts) == Counter(corpus.texts())


@pytest.mark.parametrize("shuffle", [1, 7, 1000])
def test_a_stream_goes_on_to_the_token_from_any_batch(corpus: Corpus, shuffle: int) -> None:
    whole = stream(corpus, shuffle=shuffle, rank=1, ranks=2)
    states, batches = [], []
    for _ in range(150):  # more than two epochs of this rank
        states.append(json.loads(json.dumps(whole.state_dict())))
        batches.append(whole.batch(2))
    for number in range(0, 150, 7):
        again = stream(corpus, shuffle=shuffle, rank=1, ranks=2)
        again.load_state_dict(states[number])
        for x, y in batches[number : number + 9]:
            x_again, y_again = again.batch(2)
            assert (x == x_again).all() and (y == y_again).all()


def test_a_broken_line_is_met_where_it_stands_and_nothing_is_lost_once_it_is_mended(corpus: Corpus) -> None:
    whole = stream(corpus)
    expected = [whole.batch(8) for _ in range(200)]
    path = corpus.shards[1]
    sound = path.read_bytes()
    lines = gzip.decompress(sound).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join([*lines[:9], b'{"text": "cut\n', *lines[10:]])))
    source = stream(corpus)
    for number in count():
        state = source.state_dict()
        try:
            x, _ = source.batch(8)
        except ValueError as error:
            assert "line 10, is no JSON" in str(error) and path.name in str(error)
            break
        assert (x == expected[number][0]).all()
    assert source.state_dict() == state
    path.write_bytes(sound)
    for x, y in expected[number:]:
        x_again, y_again = source.batch(8)
        assert (x == x_again).all() and (y == y_again).all()


def test_a_truncated_shard_is_a_sentence(corpus: Corpus) -> None:
    for path in corpus.shards:
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="ends too early"):
        stream(corpus).batch(200)


def test_more_ranks_than_documents_are_a_sentence(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="rank 40 of 50 finds no document"):
        stream(corpus, rank=40, ranks=50).batch(1)
