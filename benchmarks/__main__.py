"""All benchmarks one after the other, each in a process of its own, into docs/benchmarks.md.

python -m benchmarks [--quick] [--threads 2] [--out docs/benchmarks.md] [--only learner replay]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import measure

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ("end_to_end", "learner", "nap_overhead", "replay", "envs", "gpu")
PACKAGES = ("torch", "numpy", "gymnasium", "ale-py", "stable-baselines3", "sb3-contrib", "cpprb", "tianshou")
HEAD = (
    "# Benchmarks",
    "Written by `{command}` on {machine}, with {threads} threads of torch: {versions}.",
    "What is compared runs in the same process and in turns: one run of each, again and again, so that a drift of the "
    "machine's speed meets all alike. Figures are medians, ratios medians of ratios within a turn. The C library keeps "
    "freed memory for the peers as it does for ours (`nap_rl.runtime.keep_freed_memory`), which makes them faster than "
    "they are by themselves.",
    "Peers that are not installed are left out, and the page says so. `pip install -e .[bench] -c constraints.txt` "
    "brings cpprb; Tianshou asks for an older pandas than ours: install it, and what it imports, with `--no-deps`.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a look at whether all run: figures mean little")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="of torch (default: its own choice)"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks.md")
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=list(SCRIPTS))
    arguments = parser.parse_args()
    options = ["--threads", str(arguments.threads), *(["--quick"] if arguments.quick else [])]
    command = " ".join(["python -m benchmarks", *sys.argv[1:]])
    parts = [
        measure.fill(
            paragraph.format(
                command=command,
                machine=measure.machine(),
                threads=arguments.threads,
                versions=measure.versions(*PACKAGES),
            )
        )
        for paragraph in HEAD
    ]
    for script in arguments.only:
        print(f"{script} ...", file=sys.stderr, flush=True)
        run = [sys.executable, "-m", f"benchmarks.{script}", *options]
        done = subprocess.run(run, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(f"benchmarks.{script} failed with exit code {done.returncode}: nothing was written")
        parts.append(done.stdout.strip())
    arguments.out.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(f"written: {arguments.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
