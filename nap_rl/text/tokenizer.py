"""Tokenizers of the library `tokenizers`: read from a tokenizer.json, or a byte-level BPE trained on texts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nap_rl.files import write_atomic

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = "<|endoftext|>"  # stands behind every document
ENDS = (END, "</s>", "<|end_of_text|>", "<eos>", "[SEP]")  # its names in other tokenizers
BYTES = 256


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE of `vocabulary` tokens (fewer if the texts hold fewer pairs), END among them.

    Raises ValueError if `vocabulary` has no room for all bytes and END.
    """
    tokenizers = import_tokenizers()
    if vocabulary <= BYTES:
        raise ValueError(f"vocabulary must be at least {BYTES + 1}, all bytes and an end of text; got {vocabulary}.")
    tokenizer: Tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json. Raises FileNotFoundError, or ValueError for what is no tokenizer."""
    tokenizers = import_tokenizers()
    if not path.is_file():
        raise FileNotFoundError(f"tokenizer={path} is no file: name a tokenizer.json of the library tokenizers.")
    try:
        tokenizer: Tokenizer = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"tokenizer={path} is no tokenizer.json of the library tokenizers ({error}).") from error
    end_of_text(tokenizer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    write_atomic(path, tokenizer.to_str())


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text; nothing is put in front of it or behind it."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def end_of_text(tokenizer: Tokenizer) -> int:
    """The token behind every document; ValueError if the tokenizer has none of the usual names."""
    for name in ENDS:
        token: int | None = tokenizer.token_to_id(name)
        if token is not None:
            return token
    raise ValueError(f"the tokenizer has no end of text: it needs a token called {' or '.join(ENDS)}.")


def import_tokenizers() -> Any:
    """The library. Raises ModuleNotFoundError, one sentence."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # threads belong to torch
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("study=language needs tokenizers: pip install -e '.[language]'.") from error
    return tokenizers
