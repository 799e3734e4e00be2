"""Tokenizers: trained on texts, stored, read from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.text.corpus_files import sentences

pytest.importorskip("tokenizers")

from nap_rl.text.tokenizer import (  # noqa: E402
    encode,
    end_of_text,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)


def test_a_trained_tokenizer_gives_every_text_back_and_fewer_tokens_than_bytes(tmp_path: Path) -> None:
    text = sentences(0, 200)
    tokenizer = train_tokenizer([text], 300)
    assert tokenizer.get_vocab_size() == 300
    for each in (text, "ünïcode \U0001f600 and\n\n  spaces ", ""):
        assert tokenizer.decode(encode(tokenizer, each), skip_special_tokens=False) == each
    assert len(encode(tokenizer, text)) < len(text) / 1.5
    save_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert encode(again, text) == encode(tokenizer, text) and end_of_text(again) == end_of_text(tokenizer)


def test_training_twice_gives_one_tokenizer() -> None:
    texts = [sentences(seed, 20) for seed in range(10)]
    assert train_tokenizer(texts, 400).to_str() == train_tokenizer(texts, 400).to_str()


def test_the_end_of_text_is_no_part_of_a_text() -> None:
    tokenizer = train_tokenizer([sentences(0, 50)], 300)
    assert end_of_text(tokenizer) not in encode(tokenizer, sentences(1, 50))


def test_what_is_no_tokenizer_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no file: name a tokenizer.json"):
        load_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(ValueError, match="is no tokenizer.json of the library tokenizers"):
        load_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="at least 257.*got 256"):
        train_tokenizer(["text"], 256)
