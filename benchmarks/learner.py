"""Learner: milliseconds an update, ours in each precision with NaP and without, and Stable-Baselines3's.

    python -m benchmarks.learner [--batches 32 128 512] [--no-compile]

An update is sampling, losses, backward, clipping, Adam, projection and new priorities. Nature torso, 6 actions.
Rainbow's update has three passes and 6.9M weights in its dueling noisy streams; DQN has SB3's own network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sb3_contrib import QRDQN
from stable_baselines3 import DQN
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure
from benchmarks.contenders import VARIANTS, compose, fill, sb3, sb3_env, variants
from nap_rl.agents import ValueAgent
from nap_rl.conf import build

CAPACITY, ACTIONS = 4_000, 6  # of Pong
AGENTS = {
    "Rainbow + NaP": ("agent=rainbow", "agent.nap=true"),
    "Rainbow": ("agent=rainbow",),
    "DQN": ("agent=dqn", "agent.max_grad_norm=10"),  # clipped as SB3 clips
}


def ours(batch: int, *overrides: str) -> ValueAgent:
    """An agent with a full replay."""
    small = (f"replay.capacity={CAPACITY}", "agent.min_replay_steps=1000", f"agent.batch_size={batch}", "device=cpu")
    agent, _ = build.build_agent(compose(*overrides, *small), ACTIONS, torch.device("cpu"))
    fill(agent.replay, CAPACITY // 8)
    agent.update()  # compiles
    return agent


def peer(kind: type[Any], batch: int) -> Callable[[], object]:
    """One gradient step of SB3's `train`, on a full buffer; its environment only gives the shapes."""
    env = sb3_env("pong", 1)
    model = sb3(kind, env, capacity=CAPACITY, batch=batch, learning_starts=1)
    model.learn(4)  # sets its logger up
    buffer = model.replay_buffer
    random = np.random.default_rng(0)
    for array in (buffer.observations, buffer.next_observations):
        array[:] = random.integers(0, 256, array.shape, dtype=np.uint8)
    buffer.full = True
    return lambda: model.train(gradient_steps=1, batch_size=batch)


def updates(batches: list[int], compiled: bool, repetitions: int) -> list[list[object]]:
    """Rows of milliseconds; the first batch size has every agent, the others Rainbow + NaP and the peers."""
    rows: list[list[object]] = []
    for batch in batches:
        agents = AGENTS if batch == batches[0] else {"Rainbow + NaP": AGENTS["Rainbow + NaP"]}
        runs: dict[str, Callable[[], object]] = {
            f"nap_rl {agent}, {variant}": ours(batch, *overrides, *settings).update
            for agent, overrides in agents.items()
            for variant, settings in variants(compiled).items()
        }
        runs["SB3 DQN"] = peer(DQN, batch)
        runs["SB3 QR-DQN"] = peer(QRDQN, batch)
        times = measure.interleaved(runs, repetitions)
        for name in runs:
            rows.append([batch, name, measure.median(times, name), measure.ratio(times, name, "SB3 DQN")])
        if batch == batches[0]:
            for variant in variants(compiled):
                with_nap, without = (f"nap_rl {agent}, {variant}" for agent in ("Rainbow + NaP", "Rainbow"))
                rows.append([batch, f"NaP on over off, {variant}", "-", measure.ratio(times, with_nap, without)])
    return rows


def projection(compiled: bool, updates_a_turn: int, turns: int) -> list[list[object]]:
    """Rows of milliseconds an update, means over a turn, against the same network without projection."""
    settings = VARIANTS["compiled bf16" if compiled else "fp32"]
    runs = {}
    for name, overrides in {
        "never": ["nap=norm_only"],
        **{str(every): [f"nap.every={every}"] for every in (1, 10, 100, 1_000)},
    }.items():
        agent = ours(32, "agent=rainbow", "agent.nap=true", *overrides, *settings)

        def run(agent: ValueAgent = agent) -> None:
            for _ in range(updates_a_turn):
                agent.update()

        runs[name] = run
    times = measure.interleaved(runs, turns, warm_up=1)
    return [[name, measure.median(times, name) / updates_a_turn, measure.ratio(times, name, "never")] for name in runs]


def limits(repetitions: int) -> dict[str, float]:
    """What the machine does at best: GFLOP/s of products of 2,048 x 2,048 matrices, GB/s of copying 256 MB."""
    a, b = torch.randn(2, 2_048, 2_048)
    half_a, half_b = a.bfloat16(), b.bfloat16()
    source = torch.empty(1 << 26)
    copy = torch.empty_like(source)
    runs = {"fp32": lambda: a @ b, "bf16": lambda: half_a @ half_b, "memory": lambda: copy.copy_(source)}
    times = measure.interleaved(runs, repetitions)
    flop, moved = 2 * 2_048**3, 2 * 4 * source.numel()
    return {name: (moved if name == "memory" else flop) / measure.median(times, name) / 1e6 for name in runs}


def distance(compiled: bool, repetitions: int) -> tuple[list[list[object]], dict[str, float], float]:
    """Rows of an update's time beside that of its arithmetic and of its optimiser's memory traffic at the limits."""
    rates = limits(repetitions)
    rows: list[list[object]] = []
    agent = ours(32, *AGENTS["Rainbow + NaP"], *VARIANTS["fp32"])
    with FlopCounterMode(display=False) as counter:
        agent.update()
    gflop = counter.get_total_flops() / 1e9
    weights = sum(parameter.numel() for parameter in agent.network.parameters())
    adam = (
        4 * weights * 7 / rates["memory"] / 1e6
    )  # weight, gradient and two moments read; all but the gradient written
    for name, settings in variants(compiled).items():
        agent = ours(32, *AGENTS["Rainbow + NaP"], *settings)
        took = measure.median(measure.interleaved({"update": agent.update}, repetitions), "update")
        arithmetic = gflop / rates["bf16" if "bf16" in name else "fp32"] * 1e3
        rows.append([name, took, arithmetic, adam, (arithmetic + adam) / took])
    return rows, rates, gflop


def kernels(variant: str, updates: int, top: int = 14) -> list[list[object]]:
    """Rows of the operations that take most of an update, by the time in themselves."""
    agent = ours(32, *AGENTS["Rainbow + NaP"], *VARIANTS[variant])
    for _ in range(measure.WARM_UP):
        agent.update()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(updates):
            agent.update()
    events = sorted(profiler.key_averages(), key=lambda event: event.self_cpu_time_total, reverse=True)
    total = sum(event.self_cpu_time_total for event in events)
    return [
        [f"`{event.key}`", event.count / updates, event.self_cpu_time_total / 1e3 / updates,
         f"{event.self_cpu_time_total / total:.0%}"]
        for event in events[:top]
    ]  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--batches", type=int, nargs="+")
    parser.add_argument("--no-compile", action="store_true", help="leave compiled variants out")
    arguments = parser.parse_args(argv)
    measure.prepare(arguments.threads)
    quick = arguments.quick
    compiled = not (quick or arguments.no_compile)
    repetitions = arguments.repetitions or (3 if quick else 30)

    measure.say(
        "## Learner",
        "Milliseconds an update, medians of turns. `x` is over SB3's DQN in the same turn, or NaP on over off. "
        "`native`: with `native=on`, otherwise `native=off`.",
    )
    batches = arguments.batches or ([32] if quick else [32, 128, 512])
    print(measure.table(["batch", "update", "ms", "x"], updates(batches, compiled, repetitions)), end="\n\n")

    if arguments.details:
        _details(quick, compiled, repetitions)


def _details(quick: bool, compiled: bool, repetitions: int) -> None:
    last = "compiled bf16" if compiled else "fp32"
    measure.say(f"Projection every so many updates, Rainbow + NaP, {last}: milliseconds an update, and over never.")
    a_turn, turns = (2, 2) if quick else (100, 5)
    print(measure.table(["projected every", "ms", "x"], projection(compiled, a_turn, turns)), end="\n\n")

    rows, rates, gflop = distance(compiled, repetitions)
    measure.say(
        "Distance to the machine's limits, Rainbow + NaP, batch 32. Measured here: matrix products at "
        f"{rates['fp32']:.0f} GFLOP/s in fp32 and {rates['bf16']:.0f} in bf16, copying at {rates['memory']:.1f} GB/s "
        f"(read and write). An update has {gflop:.2f} GFLOP by plain sums (convolutions by Winograd's "
        "algorithm do with a third to a little over half of theirs); `arithmetic` and `Adam` are the milliseconds that "
        "these and the optimiser's traffic take at those rates, `share` is both over the whole."
    )
    print(measure.table(["update", "ms", "arithmetic", "Adam", "share"], rows), end="\n\n")

    for variant in dict.fromkeys(["fp32", last]):
        measure.say(
            f"One update by operation, Rainbow + NaP, {variant}, batch 32, time in each itself (profiling slows it)."
        )
        operations = kernels(variant, 2 if quick else 20)
        print(measure.table(["operation", "calls", "ms", "share"], operations), end="\n\n")


if __name__ == "__main__":
    main()
