"""Replay: drawing, gathering, updating and adding at 10,000 to 1,000,000 transitions, ours and the peers'.

    python -m benchmarks.replay [--capacities 10000 100000 1000000] [--batches 32 256 512]

All hold 84x84 frames in stacks of 4, from 8 environments (cpprb knows one). What they do differs:

    nap_rl       prioritised, 3-step returns derived when sampled, single frames; sampling gives importance weights
    SB3          uniform, 1-step, whole stacks stored once (optimize_memory_usage) or twice
    cpprb        prioritised, 1-step, single frames (stack_compress, next_of)
    Tianshou     prioritised, 1-step, single frames (save_only_last_obs), without next observations
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from stable_baselines3.common.buffers import ReplayBuffer

from benchmarks import measure
from benchmarks.contenders import fill
from nap_rl.machine import available_memory
from nap_rl.replay import Replay

ENVS, FRAME, STACK = 8, 84 * 84, 4
OURS = "nap_rl"


class Buffer(NamedTuple):
    """A full buffer: add a step of all environments, draw a batch, and give a batch new priorities."""

    add: Callable[[], Any]
    sample: Callable[[int], Any]
    update: Callable[[int], Any] | None  # None: it has no priorities


class Kind(NamedTuple):
    """A buffer's maker and the bytes that it takes for a transition."""

    make: Callable[[int], Buffer]
    transition_bytes: int


def ours(capacity: int) -> Buffer:
    return _ours(capacity)[0]


def _ours(capacity: int) -> tuple[Buffer, Replay]:
    replay = Replay(capacity, ENVS)
    fill(replay, capacity // ENVS + STACK)
    frames = np.random.default_rng(0).integers(0, 256, (ENVS, 84, 84), dtype=np.uint8)
    actions, rewards = np.zeros(ENVS, dtype=np.int64), np.ones(ENVS, dtype=np.float32)
    first = np.zeros(ENVS, dtype=bool)

    def update(batch: int) -> None:
        slots = torch.randint(replay.length * ENVS, (batch,))
        replay.update(slots, replay.serials[slots], torch.rand(batch))

    return Buffer(lambda: replay.add(frames, actions, rewards, rewards, first), replay.sample, update), replay


def sb3(capacity: int, optimize: bool) -> Buffer:
    space = Box(0, 255, (STACK, 84, 84), np.uint8)
    handle = {"optimize_memory_usage": optimize, "handle_timeout_termination": not optimize}
    buffer = ReplayBuffer(capacity, space, Discrete(18), "cpu", ENVS, **handle)
    stacks = np.random.default_rng(0).integers(0, 256, (ENVS, STACK, 84, 84), dtype=np.uint8)
    numbers = np.zeros(ENVS)
    add = partial(buffer.add, stacks, stacks, numbers, numbers, numbers, [{} for _ in range(ENVS)])
    for _ in range(capacity // ENVS + 1):
        add()
    return Buffer(add, buffer.sample, None)


def cpprb(capacity: int) -> Buffer:
    module = importlib.import_module("cpprb")
    spec = {"obs": {"shape": (84, 84, STACK), "dtype": np.uint8}, "act": {"dtype": np.int64}, "rew": {}, "done": {}}
    buffer = module.PrioritizedReplayBuffer(capacity, spec, alpha=0.5, next_of="obs", stack_compress="obs")
    stack = np.random.default_rng(0).integers(0, 256, (84, 84, STACK), dtype=np.uint8)
    one = partial(buffer.add, obs=stack, next_obs=stack, act=0, rew=1.0, done=0.0)

    def add() -> None:
        for _ in range(ENVS):
            one()

    for _ in range(capacity // ENVS):
        add()
    random = np.random.default_rng(0)

    def update(batch: int) -> None:
        buffer.update_priorities(random.integers(0, capacity, batch), random.random(batch))

    return Buffer(add, partial(buffer.sample, beta=0.4), update)


def tianshou(capacity: int) -> Buffer:
    data = importlib.import_module("tianshou.data")
    buffer = data.PrioritizedVectorReplayBuffer(
        capacity, ENVS, alpha=0.5, beta=0.4, stack_num=STACK, ignore_obs_next=True, save_only_last_obs=True
    )
    stacks = np.random.default_rng(0).integers(0, 256, (ENVS, STACK, 84, 84), dtype=np.uint8)
    false, numbers = np.zeros(ENVS, dtype=bool), np.zeros(ENVS)
    step = data.Batch(
        obs=stacks, act=np.zeros(ENVS, dtype=np.int64), rew=numbers, terminated=false, truncated=false, info={}
    )
    add = partial(buffer.add, step)
    for _ in range(capacity // ENVS):
        add()
    random = np.random.default_rng(0)

    def update(batch: int) -> None:
        buffer.update_weight(random.integers(0, capacity, batch), random.random(batch))

    return Buffer(add, buffer.sample, update)


KINDS = {
    OURS: Kind(ours, Replay.nbytes(1)),
    "SB3": Kind(partial(sb3, optimize=False), 2 * STACK * FRAME),
    "SB3, optimised memory": Kind(partial(sb3, optimize=True), STACK * FRAME),
    "cpprb": Kind(cpprb, FRAME + 100),
    "Tianshou": Kind(tianshou, FRAME + 200),
}


def build(capacity: int) -> tuple[dict[str, Buffer], list[str]]:
    """Full buffers of all kinds that are installed and fit into memory beside the others, and why the rest is left."""
    buffers, reasons = {}, []
    for name, kind in KINDS.items():
        package = name.lower() if name in ("cpprb", "Tianshou") else "torch"
        needed, free = kind.transition_bytes * capacity, available_memory()
        if importlib.util.find_spec(package) is None:
            reasons.append(f"{name} is not installed.")
        elif free is not None and needed * 1.2 > free:
            reasons.append(f"{name} with {capacity:,} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free.")
        else:
            buffers[name] = kind.make(capacity)
    return buffers, reasons


def compare(capacity: int, batches: list[int], repetitions: int) -> tuple[list[list[object]], list[str]]:
    """Rows of milliseconds, one a buffer and batch size."""
    buffers, reasons = build(capacity)
    rows: list[list[object]] = []
    for batch in batches:
        samples = measure.interleaved({n: partial(b.sample, batch) for n, b in buffers.items()}, repetitions)
        able = {name: partial(b.update, batch) for name, b in buffers.items() if b.update is not None}
        updates = measure.interleaved(able, repetitions)
        adds = measure.interleaved({name: b.add for name, b in buffers.items()}, repetitions)
        for name in buffers:
            update = measure.median(updates, name) if name in able else "-"
            times = measure.median(samples, name), measure.ratio(samples, name, OURS)
            rows.append([f"{capacity:,}", batch, name, *times, update, measure.median(adds, name)])
    return rows, reasons


def inside(capacity: int, batches: list[int], repetitions: int, cycles: int) -> tuple[list[list[object]], str]:
    """Where our time goes, and what the memory does."""
    before = measure.resident()
    buffer, replay = _ours(capacity)
    full = measure.resident()
    rows: list[list[object]] = []
    for batch in batches:
        slots = replay.priorities.sample(batch).slots
        parts = {
            "draw": partial(replay.priorities.sample, batch, replay.generator),
            "gather": partial(replay.gather, slots),
            "sample": partial(replay.sample, batch),
            "update": partial(buffer.update or print, batch),
        }
        times = measure.interleaved(parts, repetitions)
        rows.append([f"{capacity:,}", batch, *(measure.median(times, name) for name in parts)])
    settled = measure.resident()
    for cycle in range(cycles):
        drawn = replay.sample(32)
        replay.update(drawn.slots, drawn.serials, torch.rand(32))
        if cycle % 4 == 0:
            buffer.add()
    memory = (
        f"{capacity:,} transitions: {Replay.nbytes(capacity) / 1e9:.2f} GB by `Replay.nbytes`, the process grew by "
        f"{(full - before) / 1e9:.2f} GB while they were stored, and by {(measure.resident() - settled) / 1e6:.1f} MB "
        f"over {cycles:,} further cycles of sampling 32, updating and adding."
    )
    return rows, memory


def _by_parts(capacities: list[int], batches: list[int], repetitions: int, cycles: int) -> None:
    measure.say("Ours by its parts, milliseconds, medians; a sample is draw, gather and importance weights:")
    rows, memories = [], []
    for capacity in capacities:
        measured, memory = inside(capacity, batches, repetitions, cycles if capacity == capacities[-1] else 200)
        rows += measured
        memories.append(memory)
    print(measure.table(["transitions", "batch", "draw", "gather", "sample", "update"], rows), end="\n\n")
    measure.say(*memories)


def main(argv: list[str] | None = None) -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--capacities", type=int, nargs="+")
    parser.add_argument("--batches", type=int, nargs="+")
    parser.add_argument("--cycles", type=int, help="of sampling, updating and adding, to see whether memory grows")
    arguments = parser.parse_args(argv)
    measure.prepare(arguments.threads)
    quick = arguments.quick
    capacities = arguments.capacities or ([10_000] if quick else [10_000, 100_000, 1_000_000])
    batches = arguments.batches or ([32] if quick else [32, 256, 512])
    repetitions = arguments.repetitions or (5 if quick else 200)
    cycles = arguments.cycles or (200 if quick else 200_000)

    measure.say("## Replay")
    if arguments.details:
        _by_parts(capacities, batches, repetitions, cycles)
    measure.say(
        "Milliseconds, medians; ours and the peers' in turns. `x` is the sampling time over ours. An add is one step "
        "of 8 environments. What each does in a sample differs: see the head of `benchmarks/replay.py`."
    )
    rows, reasons = [], []
    for capacity in capacities:
        measured, left_out = compare(capacity, [b for b in batches if b in (batches[0], 256)], repetitions)
        rows += measured
        reasons += [reason for reason in left_out if reason not in reasons]
    print(measure.table(["transitions", "batch", "buffer", "sample", "x", "update", "add"], rows), end="\n\n")
    measure.say(*(f"Left out: {reason}" for reason in reasons))


if __name__ == "__main__":
    main()
