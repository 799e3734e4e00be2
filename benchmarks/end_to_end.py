"""Whole training on Pong: agent steps a second of acting, stepping, storing and learning, ours and SB3's in turns.

    python -m benchmarks.end_to_end [--seconds 3] [--repetitions 5] [--details]

One update of 32 transitions to 4 agent steps everywhere (SB3's `train_freq` counts vector steps and is set so that the
ratio holds), and 8 environments. Each training has a process of its own; one of them works at a time. The replays are
filled to where learning begins before anything is measured. `agent=dqn` has SB3's own network, batch and clipping.
SB3's DQN runs twice: as it is, and with the C library keeping freed memory, as `train.py` does.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from sb3_contrib import QRDQN
from stable_baselines3 import DQN

from benchmarks import measure
from benchmarks.contenders import sb3, sb3_env, trainer, variants
from nap_rl.agents import Trainer
from nap_rl.machine import keep_freed_memory

GAME, BATCH, CAPACITY = "pong", 32, 20_000
RAINBOW, RAINBOW_NAP = ("agent=rainbow",), ("agent=rainbow", "agent.nap=true")
DQN_AS_SB3 = ("agent=dqn", "agent.max_grad_norm=10", "agent.epsilon={start: 0.05, end: 0.05, over_frames: 1}")
AGENTS = {"Rainbow + NaP": RAINBOW_NAP, "DQN": DQN_AS_SB3}
MORE_AGENTS = {"Rainbow": RAINBOW, "DQN + NaP": (*DQN_AS_SB3, "agent.nap=true")}
PEER, PEER_KEPT = "SB3 DQN", "SB3 DQN, freed memory kept"
Run = Callable[[int], int]  # so many agent steps, and how many it was: a whole step of all environments


def ours(folder: Path, fill: int, *overrides: str) -> tuple[Run, Trainer]:
    """Training that goes on for as many agent steps as it is asked, with `fill` steps in its replay."""
    loop = trainer(
        folder,
        f"env.game={GAME}",
        f"replay.capacity={CAPACITY}",
        f"agent.min_replay_steps={fill}",
        f"agent.batch_size={BATCH}",
        *overrides,
    )

    def run(steps: int) -> int:
        begin = loop.agent_steps
        loop.run(lambda: loop.agent_steps >= begin + steps)
        return loop.agent_steps - begin

    run(fill + 64)  # and a few updates, which compile
    return run, loop


def theirs(kind: type[DQN] | type[QRDQN], num_envs: int, fill: int, subprocesses: bool = False) -> Run:
    """The same of SB3."""
    model = sb3(kind, sb3_env(GAME, num_envs, subprocesses), capacity=CAPACITY, batch=BATCH, learning_starts=fill)
    return training(model, fill)


def training(model: Any, fill: int) -> Run:
    """SB3's own loop, with `fill` steps done."""

    def run(steps: int) -> int:
        begin: int = model.num_timesteps
        model.learn(steps, reset_num_timesteps=False)
        return int(model.num_timesteps) - begin

    run(fill + 64)
    return run


def _own(fill: int, overrides: Sequence[str]) -> Run:
    return ours(Path(tempfile.mkdtemp()), fill, "device=cpu", *overrides)[0]


class Elsewhere:
    """A contender in a process of its own, which works when it is called. `make` gives its `Run` from `fill`."""

    def __init__(self, make: Callable[[int], Run], fill: int, threads: int, keep_freed_memory: bool) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.connection, remote = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(remote, make, fill, threads, keep_freed_memory))
        self.process.start()
        remote.close()
        self.connection.recv()  # it is ready

    def __call__(self, steps: int) -> int:
        self.connection.send(steps)
        return int(self.connection.recv())

    def stop(self) -> None:
        self.connection.close()
        self.process.join()


def _serve(connection: Connection, make: Callable[[int], Run], fill: int, threads: int, keep: bool) -> None:
    folder = tempfile.TemporaryDirectory()
    tempfile.tempdir = folder.name
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if keep:
        keep_freed_memory()
    run = make(fill)
    connection.send(0)
    try:
        while True:
            connection.send(run(connection.recv()))
    except EOFError:  # the other end has stopped
        folder.cleanup()


def contenders(compiled: bool, details: bool) -> dict[str, Callable[[int], Run]]:
    """What makes each of them."""
    makers: dict[str, Callable[[int], Run]] = {
        PEER: partial(theirs, DQN, 8),
        PEER_KEPT: partial(theirs, DQN, 8),
        "SB3 QR-DQN": partial(theirs, QRDQN, 8),
    }
    if details:
        makers["SB3 DQN, SubprocVecEnv"] = partial(theirs, DQN, 8, subprocesses=True)
        makers["SB3 DQN, 1 environment"] = partial(theirs, DQN, 1)
    agents = {**AGENTS, **MORE_AGENTS} if details else AGENTS
    for variant, settings in variants(compiled).items():
        for name, overrides in agents.items():
            makers[f"nap_rl {name}, {variant}"] = partial(_own, overrides=(*overrides, *settings))
    return makers


def main(argv: list[str] | None = None) -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--seconds", type=float, help="of each turn")
    parser.add_argument("--fill", type=int, default=2_000, help="agent steps before learning begins")
    parser.add_argument("--no-compile", action="store_true", help="leave compiled variants out")
    arguments = parser.parse_args(argv)
    measure.prepare(arguments.threads)
    compiled = not (arguments.quick or arguments.no_compile)
    seconds = arguments.seconds or (0.2 if arguments.quick else 3.0)
    turns = arguments.repetitions or (2 if arguments.quick else 5)

    measure.say(
        "## End to end",
        "Agent steps a second of whole training on Pong: acting, stepping 8 environments, storing, one update of 32 to "
        f"4 steps. Each training has a process of its own; medians of {turns} turns. `x` is the rate over SB3's DQN in "
        "the same turn, `x kept` over the same DQN with the memory setting that ours has. 200M frames are 50M agent "
        "steps. `native`: with `native=on`, otherwise `native=off`.",
    )
    runs: dict[str, Elsewhere] = {}
    try:
        for name, make in contenders(compiled, arguments.details).items():
            print(f"{name} ...", file=sys.stderr, flush=True)
            keep = name == PEER_KEPT or name.startswith("nap_rl")
            runs[name] = Elsewhere(make, arguments.fill, arguments.threads, keep)
        rates = measure.rates(runs, seconds, turns)
    finally:
        for run in runs.values():
            run.stop()
    rows = []
    for name in runs:
        rate = measure.median(rates, name)
        ratios = [measure.ratio(rates, name, peer) for peer in (PEER, PEER_KEPT)]
        rows.append([name, rate, 1e3 / rate, *ratios, 50e6 / rate / 86_400])
    header = ["training", "agent steps/s", "ms a step", "x", "x kept", "days for 200M frames"]
    print(measure.table(header, rows), end="\n\n")
    pairs = []
    for variant in variants(compiled):
        for agent in ("Rainbow", "DQN"):
            on, off = f"nap_rl {agent} + NaP, {variant}", f"nap_rl {agent}, {variant}"
            if on in runs and off in runs:
                pairs.append([f"{agent}, {variant}", f"{measure.ratio(rates, off, on) - 1:+.1%}"])
    if pairs:
        measure.say("What NaP (LayerNorm, and projection at every update) adds to the time of an agent step:")
        print(measure.table(["agent", "NaP on over off"], pairs))


if __name__ == "__main__":
    main()
