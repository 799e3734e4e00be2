"""Measuring fairly: variants in turn, medians, ratios within a turn, tables in Markdown, and what was measured on."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from nap_rl.machine import keep_freed_memory

Times = dict[str, list[float]]
"""Milliseconds, or any figure, of each variant: the k-th of all were taken in the same turn."""

WARM_UP = 3
"""Turns that nobody counts: they warm caches and allocators."""


def parser(doc: str | None) -> argparse.ArgumentParser:
    """With what every benchmark has: `--threads`, `--repetitions`, `--quick` and `--details`."""
    options = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    options.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="of torch (default: its own choice)"
    )
    options.add_argument("--repetitions", type=int, help="turns that are counted")
    options.add_argument("--quick", action="store_true", help="a look at whether it runs: figures mean little")
    options.add_argument("--details", action="store_true", help="further tables, which docs/benchmarks.md leaves out")
    return options


def prepare(threads: int) -> None:
    """For all in this process alike, peers included: threads, and freed memory stays with the process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    keep_freed_memory()


def interleaved(variants: Mapping[str, Callable[[], object]], repetitions: int, warm_up: int = WARM_UP) -> Times:
    """Milliseconds of each variant, one run of each in turn: a drift of the machine's speed is the same for all."""
    times: Times = {name: [] for name in variants}
    for repetition in range(warm_up + repetitions):
        for name, run in variants.items():
            begin = time.perf_counter()
            run()
            elapsed = (time.perf_counter() - begin) * 1e3
            if repetition >= warm_up:
                times[name].append(elapsed)
    return times


def rates(variants: Mapping[str, Callable[[int], int]], seconds: float, turns: int) -> Times:
    """Units a second of each variant, in turns of about `seconds`.

    A variant takes how many units to do and returns how many it did. Its first calls, until one takes a tenth of
    `seconds`, warm it up and tell how many fill a turn.
    """
    units = {name: _units(run, seconds) for name, run in variants.items()}
    measured: Times = {name: [] for name in variants}
    for _ in range(turns):
        for name, run in variants.items():
            begin = time.perf_counter()
            done = run(units[name])
            measured[name].append(done / (time.perf_counter() - begin))
    return measured


def _units(run: Callable[[int], int], seconds: float) -> int:
    units = 1
    while True:
        begin = time.perf_counter()
        done = run(units)
        elapsed = time.perf_counter() - begin
        if elapsed >= seconds / 10:
            return max(1, round(done * seconds / elapsed))
        units *= 4


def median(times: Times, name: str) -> float:
    return statistics.median(times[name])


def ratio(times: Times, numerator: str, *denominators: str) -> float:
    """Median of numerator / sum of denominators within each turn."""
    sums = [sum(row) for row in zip(*(times[name] for name in denominators), strict=True)]
    return float(statistics.median(a / b for a, b in zip(times[numerator], sums, strict=True)))


def say(*paragraphs: str) -> None:
    """Print Markdown paragraphs, filled to a line's width, with an empty line after each."""
    for paragraph in paragraphs:
        print(fill(paragraph) + "\n", flush=True)


def fill(paragraph: str) -> str:
    """Lines of at most 120 characters."""
    return textwrap.fill(paragraph, 120, break_long_words=False, break_on_hyphens=False)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table with aligned columns; floats get three figures."""
    cells = [list(header), *([_text(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _text(cell: object) -> str:
    if not isinstance(cell, float):
        return str(cell)
    if abs(cell) >= 100:
        return f"{cell:,.0f}"
    return f"{cell:.1f}" if abs(cell) >= 10 else f"{cell:.2f}" if abs(cell) >= 1 else f"{cell:.3f}"


def resident() -> int:
    """Bytes of this process in memory (its RSS); 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def machine() -> str:
    """Processor and cores, in words."""
    name, flags = platform.processor() or platform.machine(), ""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        name, flags = fields.get("model name", name), fields.get("flags", "")
    except OSError:
        pass
    capability = torch.backends.cpu.get_cpu_capability()
    amx = ", AMX bf16" if "amx_bf16" in flags else ""
    return f"{name}, {os.cpu_count()} cores, {capability}{amx}"


def versions(*packages: str) -> str:
    """The versions of Python and of these packages, in words."""
    installed = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            installed.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            installed.append(f"{package} not installed")
    return ", ".join(installed)
