"""Scores of one trained decoder by nap_rl.text.scores and by lm-eval, on the same rows, item by item.

python -m benchmarks.lm_eval_scores RUN lambada=FILE siqa=FILE piqa=FILE [questions=N]

RUN is the folder of a finished study=language. lm-eval (0.4.13) takes the same weights in transformers' LLaMA, which
computes the same function; its tasks are local files with the wording of its own piqa, social_iqa and lambada_openai.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from nap_rl import checkpoint
from nap_rl.nap import normalize
from nap_rl.nn.transformer import EPS, SIZES, Transformer
from nap_rl.text.scores import Answer, Scorer
from nap_rl.text.tasks import QUESTIONS, Question
from nap_rl.text.tokenizer import END, encode, end_of_text, load_tokenizer

NAMES = {  # of a decoder's parts, in LLaMA's words
    "embedding": "model.embed_tokens",
    "blocks": "model.layers",
    "attention_norm": "input_layernorm",
    "feedforward_norm": "post_attention_layernorm",
    "norm": "model.norm",
    "head": "lm_head",
    "attention": "self_attn",
    "feedforward": "mlp",
    "activation": "act_fn",
    **{each: f"{each}_proj" for each in ("q", "k", "v", "o", "gate", "up", "down")},
}
TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{validation: {file}}}
output_type: {kind}
validation_split: validation
doc_to_text: "{{{{context}}}}"
target_delimiter: ""
{target}
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


def as_llama(model: Transformer, *, norm: str | None = None) -> Any:
    """transformers' LlamaForCausalLM with the decoder's function; the decoder has a gated feed-forward and RMS norms.

    Args:
        norm: what `normalize` has put into the decoder; None if it was not normalised.
    """
    transformers = importlib.import_module("transformers")
    size = model.size
    config = transformers.LlamaConfig(
        vocab_size=model.embedding.num_embeddings,
        hidden_size=size.width,
        intermediate_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=size.context,
        rms_norm_eps=EPS if norm is None else 1e-8,
        tie_word_embeddings=False,
    )
    llama = transformers.LlamaForCausalLM(config)
    if norm is not None:
        normalize(llama, torch.zeros(2, 4, dtype=torch.int64).random_(config.vocab_size), norm=norm)  # type: ignore[arg-type]
    state = {llama_name(name): value for name, value in model.state_dict().items()}
    state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"] * size.width**0.5
    llama.load_state_dict(state)
    return llama.eval()


def llama_name(name: str) -> str:
    """blocks.3.attention.q.weight -> model.layers.3.self_attn.q_proj.weight."""
    parts = name.split(".")
    if parts[0] == "norm":
        return ".".join([NAMES["norm"], *parts[1:]])
    return ".".join(part if part == "norm" else NAMES.get(part, part) for part in parts)


def lm_eval_answers(
    llama: Any, tokenizer_file: Path, tasks: Mapping[str, Sequence[Question]], length: int
) -> dict[str, list[Answer]]:
    """What lm-eval finds for each question of each task."""
    lm_eval = importlib.import_module("lm_eval")
    huggingface = importlib.import_module("lm_eval.models.huggingface")
    manager = importlib.import_module("lm_eval.tasks").TaskManager
    transformers = importlib.import_module("transformers")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file), eos_token=END)
    model = huggingface.HFLM(pretrained=llama, tokenizer=fast, batch_size=32, max_length=length, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        for name, questions in tasks.items():
            file = Path(folder) / f"{name}.jsonl"
            file.write_text("".join(json.dumps(as_row(question)) + "\n" for question in questions))
            several = len(questions[0].continuations) > 1
            target = "doc_to_choice: continuations\ndoc_to_target: answer" if several else "doc_to_target: '{{word}}'"
            kind = "multiple_choice" if several else "loglikelihood"
            text = TASK.format(name=f"local_{name}", file=file, kind=kind, target=target)
            (Path(folder) / f"{name}.yaml").write_text(text)
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=[f"local_{name}" for name in tasks],
            task_manager=manager(include_path=folder),
            log_samples=True,
            bootstrap_iters=0,
        )
    answers = {}
    for name, questions in tasks.items():
        samples = sorted(found["samples"][f"local_{name}"], key=lambda sample: sample["doc_id"])
        answers[name] = [
            as_answer(question, sample["resps"]) for question, sample in zip(questions, samples, strict=True)
        ]
        accuracy = found["results"][f"local_{name}"]["acc,none"]
        ours = [is_right(q, a) for q, a in zip(questions, answers[name], strict=True)]
        assert abs(sum(ours) / len(ours) - accuracy) < 1e-9, (name, accuracy)  # we read its samples as it does
    return answers


def as_row(question: Question) -> dict[str, Any]:
    return {
        "context": question.context,
        "continuations": list(question.continuations),
        "word": question.continuations[0],
        "answer": question.answer,
    }


def as_answer(question: Question, responses: Sequence[Any]) -> Answer:
    pairs = [response[0] for response in responses]
    lengths = tuple(len(each) - 1 for each in question.continuations)
    return Answer(tuple(float(log) for log, _ in pairs), tuple(bool(greedy) for _, greedy in pairs), lengths)


def is_right(question: Question, answer: Answer) -> bool:
    return answer.foretold[0] if len(answer.logs) == 1 else answer.likeliest() == question.answer


def load_run(folder: Path) -> tuple[Transformer, str | None]:
    """The decoder of a finished study=language, and the norm that `normalize` has put into it."""
    config = json.loads((folder / "summary.json").read_text())["config"]
    state = checkpoint.load_tensors(checkpoint.newest_of_run(folder), "network")
    vocabulary = state["embedding.weight"].shape[0]
    model = Transformer(SIZES[config["model"]], vocabulary, norm=config["pre_norm"], tied=config["tied"])
    norm = None if config["variant"] == "baseline" else config["norm"]
    if norm is not None:
        normalize(model, torch.zeros(2, 4, dtype=torch.int64).random_(vocabulary), norm=norm)
    model.load_state_dict(state)
    return model.eval(), norm


def compare(
    model: Transformer, norm: str | None, tokenizer_file: Path, tasks: Mapping[str, Sequence[Question]]
) -> bool:
    """Prints a line a task; returns whether every item is judged alike."""
    tokenizer = load_tokenizer(tokenizer_file)
    length = model.size.context

    def fits(question: Question) -> bool:
        """lm-eval refuses continuations longer than the context."""
        return all(len(encode(tokenizer, each)) < length for each in question.continuations)

    tasks = {name: list(filter(fits, questions)) for name, questions in tasks.items()}
    scorer = Scorer(model, lambda text: encode(tokenizer, text), end_of_text(tokenizer), length, rows=32)
    theirs = lm_eval_answers(as_llama(model, norm=norm), tokenizer_file, tasks, length)
    alike = True
    print("| task | rows | ours | lm-eval | items judged differently | largest difference of a log-likelihood |")
    print("|---|---|---|---|---|---|")
    for name, questions in tasks.items():
        ours = scorer.answers(questions)
        both = list(zip(questions, ours, theirs[name], strict=True))
        right = [sum(is_right(q, each[n]) for q, *each in both) / len(both) for n in (0, 1)]
        different = sum(is_right(q, a) != is_right(q, b) or a.likeliest() != b.likeliest() for q, a, b in both)
        largest = max(abs(x - y) for _, a, b in both for x, y in zip(a.logs, b.logs, strict=True))
        print(f"| {name} | {len(both)} | {right[0]:.4f} | {right[1]:.4f} | {different} | {largest:.1e} |", flush=True)
        alike &= different == 0
    return alike


def main(arguments: Sequence[str]) -> int:
    folder, options = Path(arguments[0]), dict(each.split("=", 1) for each in arguments[1:])
    limit = int(options.pop("questions", 10**9))
    tasks = {name: list(islice(QUESTIONS[name](Path(file)), limit)) for name, file in options.items()}
    model, norm = load_run(folder)
    torch.set_num_threads(1)
    return 0 if compare(model, norm, folder / "tokenizer.json", tasks) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
