"""On a GPU: what an update, acting, stepping and storing take, and frames a second of whole training.

    python -m benchmarks.gpu [--seconds 10] [--envs 8 64]

The standard ratio, one update of 32 to 4 agent steps (16 frames), Pong, and replay on the GPU where it fits. Compiled
updates are captured as CUDA graphs. SB3's DQN stands beside them with its own network, its replay in the host's memory.
"""

from __future__ import annotations

import gc
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from stable_baselines3 import DQN

from benchmarks import measure
from benchmarks.contenders import VARIANTS, sb3, sb3_env
from benchmarks.end_to_end import BATCH, CAPACITY, DQN_AS_SB3, GAME, RAINBOW, RAINBOW_NAP, Run, ours, training
from nap_rl.agents import Trainer, ValueAgent
from nap_rl.agents.captured import Captured
from nap_rl.envs.atari import FRAME_SKIP

FRAMES, FILL = 200_000_000, 4_000
AGENTS = {"Rainbow + NaP": RAINBOW_NAP, "Rainbow": RAINBOW, "DQN": DQN_AS_SB3}


def main(argv: list[str] | None = None) -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--seconds", type=float, help="of each turn")
    parser.add_argument("--envs", type=int, nargs="+", default=[8, 64], help="environments (default: 8 64)")
    arguments = parser.parse_args(argv)
    measure.prepare(arguments.threads)
    measure.say("## GPU")
    if not torch.cuda.is_available():
        measure.say("No CUDA GPU was found on this machine, so nothing was measured on one.")
        return
    turns = arguments.repetitions or (2 if arguments.quick else 5)
    seconds = arguments.seconds or (1.0 if arguments.quick else 10.0)
    measure.say(f"{torch.cuda.get_device_name()}, medians of {turns} turns of {seconds:g} s.")
    if arguments.details:
        measure.say("Milliseconds of the parts:")
        header = ["Rainbow + NaP, bf16", "environments", "update", "acting", "stepping", "storing"]
        print(measure.table(header, _told(_parts(arguments.envs, seconds, turns))), end="\n\n")
    header = ["training", "precision", "environments", "replay", "frames/s", "updates/s alone", "hours for 200M frames"]
    print(measure.table(header, _told(_trainings(arguments.envs, seconds, turns))))


def _told(rows: Iterator[list[object]]) -> Iterator[list[object]]:
    """The rows, each also printed as soon as it is there: a run that is stopped has shown something."""
    for row in rows:
        print(*row, sep=" | ", file=sys.stderr, flush=True)
        yield row
        gc.collect()  # a replay and its agent, which refer to each other, make room on the GPU for the next
        torch.cuda.empty_cache()


def _parts(counts: list[int], seconds: float, turns: int) -> Iterator[list[object]]:
    for envs in counts:
        for name in ("uncompiled", "compiled", "captured"):
            yield [name, envs, *_milliseconds(name, envs, seconds, turns)]


def _milliseconds(name: str, envs: int, seconds: float, turns: int) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        settings = ("precision=bf16", "compile=off" if name == "uncompiled" else "compile=on")
        _, trainer = _ours(Path(folder), envs, *RAINBOW_NAP, *settings)
        if name == "compiled":
            _uncapture(trainer.agent)
        rates = measure.rates(_pieces(trainer, envs), seconds, turns)
        return [1e3 / measure.median(rates, piece) for piece in rates]


def _uncapture(agent: ValueAgent) -> None:
    for name in ("gradient_step", "q_values"):
        function = getattr(agent, name)
        setattr(agent, name, function.function if isinstance(function, Captured) else function)


def _pieces(trainer: Trainer, envs: int) -> dict[str, Run]:
    agent, random = trainer.agent, np.random.default_rng(0)
    stacks = random.integers(0, 256, (envs, 4, 84, 84), dtype=np.uint8)
    actions, ones, first = random.integers(0, 6, envs), np.ones(envs, dtype=np.float32), np.zeros(envs, dtype=bool)

    def step() -> None:
        trainer.env.send(actions)
        trainer.env.recv()

    return {
        "update": _repeated(agent.update),
        "acting": _repeated(lambda: agent.act(stacks)),
        "stepping": _repeated(step),
        "storing": _repeated(lambda: agent.replay.add(stacks[:, -1], actions, ones, ones, first)),
    }


def _trainings(counts: list[int], seconds: float, turns: int) -> Iterator[list[object]]:
    for envs in counts:
        yield ["SB3 DQN", "fp32", envs, *_of_sb3(envs, seconds, turns)]
        for precision in ("fp32", "compiled fp32", "compiled bf16"):
            settings = VARIANTS[precision]
            for name, overrides in AGENTS.items():
                if name == "Rainbow + NaP" or "compiled" in precision:
                    yield [name, precision, envs, *_of_ours(envs, (*overrides, *settings), seconds, turns)]


def _of_sb3(envs: int, seconds: float, turns: int) -> list[object]:
    model = sb3(DQN, sb3_env(GAME, envs), capacity=CAPACITY, batch=BATCH, learning_starts=FILL, device="cuda")
    return ["cpu", *_speed(training(model, FILL), _repeated(lambda: model.train(1, BATCH)), seconds, turns)]


def _of_ours(envs: int, overrides: tuple[str, ...], seconds: float, turns: int) -> list[object]:
    with tempfile.TemporaryDirectory() as folder:
        run, trainer = _ours(Path(folder), envs, *overrides)
        return [trainer.agent.replay.device.type, *_speed(run, _repeated(trainer.agent.update), seconds, turns)]


def _ours(folder: Path, envs: int, *overrides: str) -> tuple[Run, Trainer]:
    return ours(folder, FILL, "device=cuda", f"env.num_envs={envs}", "replay.capacity=1000000", *overrides)


def _speed(steps: Run, updates: Run, seconds: float, turns: int) -> list[object]:
    """The updates alone come last: a trainer leaves out those that it finds done."""
    frames = measure.median(measure.rates({"steps": _waiting(steps)}, seconds, turns), "steps") * FRAME_SKIP
    alone = measure.median(measure.rates({"updates": updates}, seconds, turns), "updates")
    return [frames, alone, FRAMES / frames / 3_600]


def _repeated(function: Callable[[], object]) -> Run:
    def run(count: int) -> int:
        for _ in range(count):
            function()
        return count

    return _waiting(run)


def _waiting(run: Run) -> Run:
    """`run`, and wait until the GPU has done its work."""

    def done(count: int) -> int:
        units = run(count)
        torch.cuda.synchronize()
        return units

    return done


if __name__ == "__main__":
    main()
