"""study=language: a decoder on a corpus, the language half of the paper's Table 1. The loop is stationary.py's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nap_rl.nn.transformer import SIZES, Transformer
from nap_rl.studies import ranks as processes
from nap_rl.studies import stationary
from nap_rl.studies.language_config import LanguageConfig
from nap_rl.studies.ranks import Ranks
from nap_rl.studies.stationary import Batch, DataError, Task
from nap_rl.text.scores import Scorer
from nap_rl.text.stream import TokenStream
from nap_rl.text.tasks import QUESTIONS, texts_of
from nap_rl.text.tokenizer import encode, end_of_text, load_tokenizer, save_tokenizer, train_tokenizer

TOKENIZER = "tokenizer.json"
MULTIPLE = 64  # the vocabulary is rounded up to one: GPUs multiply such matrices faster
EXAMPLE = (2, 32)  # rows and tokens that `normalize` looks at


class TokenBatches:
    """x and y [rows, context] int64 of a token stream, as the loop takes them."""

    def __init__(self, stream: TokenStream, rows: int) -> None:
        self.stream, self.rows = stream, rows

    def __iter__(self) -> TokenBatches:
        return self

    def __next__(self) -> Batch:
        try:
            x, y = self.stream.batch(self.rows)
        except (ValueError, OSError) as error:
            raise DataError(str(error).rstrip(".")) from error  # the loop goes on with what to do
        return torch.from_numpy(x), torch.from_numpy(y)

    def state_dict(self) -> dict[str, Any]:
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream.load_state_dict(state)


def run(config: LanguageConfig, folder: Path) -> int:
    """Trains in `folder`; codes and errors as `stationary.run`. tokenizer.json stays beside the other files."""
    return stationary.run(config, folder, partial(build, config, folder))


def build(config: LanguageConfig, folder: Path, ranks: Ranks, device: torch.device) -> Task:
    """The decoder, its batches, its loss and its scores."""
    tokenizer = shared_tokenizer(config, folder, ranks)
    own_encode, end = partial(encode, tokenizer), end_of_text(tokenizer)
    vocabulary = -(-tokenizer.get_vocab_size() // MULTIPLE) * MULTIPLE
    pre_norm, affine = cast(Any, config.pre_norm), config.affine != "omit"
    model = Transformer(SIZES[config.model], vocabulary, norm=pre_norm, affine=affine, tied=config.tied)
    stream = TokenStream(
        config.corpus(held_out=False),
        own_encode,
        end,
        config.context,
        shuffle=config.shuffle,
        seed=config.seed,
        rank=ranks.rank,
        ranks=ranks.processes,
    )
    generator = torch.Generator().manual_seed(config.seed)
    updates = config.updates()
    return Task(
        model=model,
        example=torch.randint(vocabulary, (EXAMPLE[0], min(EXAMPLE[1], config.context)), generator=generator),
        batches=TokenBatches(stream, config.batch_size // ranks.processes),
        loss=partial(loss, config.label_smoothing),
        evaluate=partial(
            evaluate,
            config,
            Scorer(
                model=model,
                encode=own_encode,
                end=end,
                length=config.context,
                rows=config.eval_batch_size,
                device=device,
            ),
        ),
        updates=updates,
        eval_every=config.eval_every or updates,
        samples=config.batch_size * config.context,
    )


def loss(label_smoothing: float, module: nn.Module, batch: Batch) -> Tensor:
    """The mean cross-entropy a token, in nats."""
    x, y = batch
    logits: Tensor = module(x)
    return F.cross_entropy(logits.flatten(0, 1).float(), y.flatten(), label_smoothing=label_smoothing)


def evaluate(config: LanguageConfig, scorer: Scorer, model: nn.Module) -> dict[str, float]:
    """Scores by name, such as "held_out/accuracy"; every process computes all. Raises DataError."""
    scorer = replace(scorer, model=model)
    try:
        found = {"held_out": scorer.texts(config.corpus(held_out=True).texts(), config.score_tokens)}
        for name, path in config.tasks().items():
            if name in QUESTIONS:
                found[name] = scorer.questions(list(islice(QUESTIONS[name](path), config.score_questions)))
            else:
                found[name] = scorer.texts(texts_of(name, path), config.score_tokens)
    except (ValueError, OSError) as error:
        raise DataError(str(error).rstrip("."), of_test=True) from error
    return {f"{name}/{key}": value for name, scores in found.items() for key, value in scores.items()}


def shared_tokenizer(config: LanguageConfig, folder: Path, ranks: Ranks) -> Any:
    """The run's tokenizer, from its folder if it is there. Process 0 makes it, the others wait."""
    file = folder / TOKENIZER
    if ranks.writes and not file.is_file():
        if config.tokenizer is not None:
            tokenizer = load_tokenizer(Path(config.tokenizer))
        else:
            tokenizer = train_tokenizer(config.tokenizer_texts(), config.vocabulary)
        save_tokenizer(tokenizer, file)
    processes.gathered(None)
    return load_tokenizer(file)
