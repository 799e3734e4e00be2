"""All benchmarks one after the other, each in a process of its own, into docs/benchmarks.md.

    python -m benchmarks [--quick] [--threads 2] [--out docs/benchmarks.md] [--only learner replay]

A part is one table. Each script prints further ones with `--details`; `benchmarks.denormals` and `benchmarks.growth`
are not on the page. Each part is written as soon as it is measured. With `--only`, the other parts stay if they were
measured on the same machine with the same versions, threads and `--quick`; otherwise they go.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import measure
from nap_rl.files import write_atomic

ROOT = Path(__file__).resolve().parents[1]
PARTS = {  # script: heading of what it prints
    "end_to_end": "## End to end",
    "learner": "## Learner",
    "nap_overhead": "## Cost of the projection",
    "replay": "## Replay",
    "envs": "## Environments",
    "gpu": "## GPU",
}
PACKAGES = ("torch", "numpy", "gymnasium", "ale-py", "stable-baselines3", "sb3-contrib", "cpprb", "tianshou")
HEAD = (
    "# Benchmarks",
    "Written by `{command}` on {machine}, with {threads} of torch: {versions}.",
    "What is compared runs in turns, one run of each, again and again: a drift of the machine's speed is the same for "
    "all. End to end each has a process of its own. Elsewhere all share one process, in which the C library keeps "
    "freed memory (`nap_rl.machine.keep_freed_memory`); this makes the peers faster than they are by themselves. "
    "Figures are medians, ratios are medians of ratios within a turn.",
    "Peers that are not installed are left out, and the page says so. `pip install -e '.[bench]' -c constraints.txt` "
    "brings cpprb; Tianshou asks for an older pandas than ours: install it, and what it imports, with `--no-deps`.",
)


def head(options: list[str]) -> str:
    """What the page says of how it was made."""
    threads = options[options.index("--threads") + 1]
    words = {
        "command": " ".join(["python -m benchmarks", *options]),
        "machine": measure.machine(),
        "threads": "1 thread" if threads == "1" else f"{threads} threads",
        "versions": measure.versions(*PACKAGES),
    }
    return "\n\n".join(measure.fill(paragraph.format(**words)) for paragraph in HEAD)


def kept(page: Path, beginning: str) -> dict[str, str]:
    """The parts, by heading, of a page that begins like this one; none of another page."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    if not text.startswith(beginning):
        return {}
    parts = [f"## {part.strip()}" for part in text.split("\n## ")[1:]]
    return {part.splitlines()[0]: part for part in parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a look at whether all run: figures mean little")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch (default: its choice)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks.md")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    options = ["--threads", str(arguments.threads), *(["--quick"] if arguments.quick else [])]
    beginning = head(options)
    parts = kept(arguments.out, beginning)
    for script in arguments.only:
        print(f"{script} ...", file=sys.stderr, flush=True)
        run = [sys.executable, "-m", f"benchmarks.{script}", *options]
        done = subprocess.run(run, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(f"benchmarks.{script} failed with exit code {done.returncode}: its part was not written")
        parts[PARTS[script]] = done.stdout.strip()
        page = [beginning, *(parts[heading] for heading in PARTS.values() if heading in parts)]
        write_atomic(arguments.out, "\n\n".join(page) + "\n")
    print(f"written: {arguments.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
