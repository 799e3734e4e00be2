"""Settings of study=language, and what can be wrong with them before anything is computed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

from nap_rl.studies.ranks import here
from nap_rl.studies.stationary_config import TrainingConfig, check_numbers
from nap_rl.text.corpora import Corpus, check_corpus, open_corpus
from nap_rl.text.tasks import find_task
from nap_rl.text.tokenizer import BYTES, import_tokenizers, load_tokenizer

MODELS = {"transformer_tiny": 128, "transformer_400m": 1024}  # and the tokens of a row, at most
CORPORA = ("text", "c4", "pile")


@dataclass
class CorpusConfig:
    name: str = "text"  # text: a folder of .txt, .md, .rst | c4, pile: as published
    root: str | None = None  # the corpus's folder


@dataclass
class ScoresConfig:
    """Files or folders of further texts and questions; what is null is not scored."""

    c4: str | None = None  # c4-validation.*.json.gz
    pile: str | None = None  # val.jsonl.zst
    wikitext: str | None = None  # wiki.test.raw
    lambada: str | None = None  # lambada_test.jsonl
    siqa: str | None = None  # dev.jsonl and dev-labels.lst
    piqa: str | None = None  # valid.jsonl and valid-labels.lst


@dataclass
class LanguageConfig(TrainingConfig):
    """What `studies/language.py` reads, beside the shared settings."""

    study: str = "language"
    data: CorpusConfig = field(default_factory=CorpusConfig)
    scores: ScoresConfig = field(default_factory=ScoresConfig)
    score_tokens: int = 100_000  # of each text, the first so many
    score_questions: int | None = None  # of each set of questions, the first so many; null: all

    tokenizer: str | None = None  # a tokenizer.json; null: trained on the corpus
    vocabulary: int = 1024  # of a tokenizer that is trained
    tokenizer_documents: int = 20_000  # that it is trained on

    model: str = "transformer_tiny"  # transformer_tiny | transformer_400m
    pre_norm: str = "rms"  # the decoder's own norms: rms | layer
    tied: bool = False  # the head's weight is the embedding's
    context: int = 128  # tokens in a row
    tokens: int = 1_000_000  # to train on; a run has tokens / (batch_size * context) updates
    shuffle: int = 10_000  # documents in the buffer

    def updates(self) -> int:
        return self.tokens // (self.batch_size * self.context)

    def corpus(self, held_out: bool) -> Corpus:
        """Raises FileNotFoundError or ValueError."""
        if self.data.root is None:
            raise FileNotFoundError(f"data={self.data.name} needs data.root=FOLDER, the folder of the corpus.")
        return open_corpus(self.data.name, Path(self.data.root), held_out)

    def tasks(self) -> dict[str, Path]:
        """What is scored beside the held-out part of the corpus: name -> file or folder, looked at."""
        given = {name: path for name, path in asdict(self.scores).items() if path is not None}
        return {name: find_task(name, Path(path)) for name, path in given.items()}

    def validate(self) -> None:
        super().validate()
        for key, choices in {"model": MODELS, "pre_norm": ("rms", "layer")}.items():
            if getattr(self, key) not in choices:
                raise ValueError(f"{key}={getattr(self, key)} is not one of {', '.join(choices)}")
        if self.variant == "project":  # nothing follows the decoder's queries, keys and values
            raise ValueError(
                "variant=project needs a norm behind every hidden layer, which the decoder lacks: take nap"
            )
        if self.data.name not in CORPORA:
            raise ValueError(f"data={self.data.name} is not one of {', '.join(CORPORA)}")
        if self.norm not in ("layer", "rms"):
            raise ValueError(f"norm={self.norm} would mix tokens or needs images: take norm=layer or norm=rms")
        if self.context > MODELS[self.model]:
            raise ValueError(
                f"context={self.context} is more than the {MODELS[self.model]} tokens of model={self.model}"
            )
        counts = ("score_tokens", "score_questions", "tokenizer_documents", "context", "tokens", "shuffle")
        check_numbers(self, counts, "of 1 or more", lambda value: value >= 1)
        check_numbers(self, ("vocabulary",), f"of {BYTES + 1} or more", lambda value: value > BYTES)
        if self.updates() <= self.warmup_updates:
            raise ValueError(
                f"tokens={self.tokens} make {self.updates()} updates of batch_size={self.batch_size} rows with "
                f"context={self.context} tokens, which must be more than warmup_updates={self.warmup_updates}"
            )
        if self.batch_size % here().processes:
            raise ValueError(f"batch_size={self.batch_size} is no multiple of the {here().processes} processes")

    def check_data(self) -> None:
        import_tokenizers()
        for held_out in (False, True):
            check_corpus(self.corpus(held_out))
        if self.tokenizer is not None:
            load_tokenizer(Path(self.tokenizer))
        self.tasks()

    def tokenizer_texts(self) -> list[str]:
        """What a tokenizer is trained on: the first documents."""
        return list(islice(self.corpus(held_out=False).texts(), self.tokenizer_documents))
