"""Small corpora in their published formats, made where a test needs them."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

WORDS = "the a cat dog sat ran on under over mat tree house and then while it she he saw heard".split()  # noqa: SIM905


def sentences(seed: int, count: int) -> str:
    """`count` sentences of a few words."""
    draw = random.Random(seed)
    return " ".join(" ".join(draw.choices(WORDS, k=draw.randint(3, 9))).capitalize() + "." for _ in range(count))


def write_c4(root: Path, shards: int = 3, documents: int = 20) -> Path:
    """c4-train.*.json.gz and one c4-validation.*.json.gz below `root`, as published."""
    root.mkdir(parents=True, exist_ok=True)
    names = [f"c4-train.{n:05d}-of-{shards:05d}.json.gz" for n in range(shards)]
    for number, name in enumerate([*names, "c4-validation.00000-of-00001.json.gz"]):
        rows = [
            {
                "text": f"Document {number}.{n}: {sentences(100 * number + n, 1 + n % 7)}",
                "timestamp": "2019-04-25T12:57:54Z",
                "url": f"https://example.org/{number}/{n}",
            }
            for n in range(documents)
        ]
        (root / name).write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return root


def write_text_folder(root: Path, files: int = 4, characters: int = 60_000) -> Path:
    """.txt, .md and .rst files with blank lines between paragraphs."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        text = ""
        while len(text) < characters:
            text += f"{sentences(1_000_000 * number + len(text), 5)}\n\n"
        suffix = (".txt", ".md", ".rst", ".md.gz")[number % 4]
        path = root / f"book{number}{suffix}"
        path.write_bytes(gzip.compress(text.encode()) if suffix.endswith(".gz") else text.encode())
    return root
