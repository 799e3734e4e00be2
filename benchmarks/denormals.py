"""What numbers too small for full precision cost: the optimiser's step in training, with and without flushing them.

    python -m benchmarks.denormals [--updates 4000] [--repetitions 30]

A weight without gradient (of a unit that is dead, of pixels that never change) has moments that shrink by a factor an
update until they are denormal, below 1.2e-38, where the CPU falls back on microcode. `train.py` flushes them to zero
(`nap_rl.machine.flush_denormals`); Stable-Baselines3 leaves them. Here each agent trains on a game without flushing;
then its last Adam step is repeated from the same moments, with and without, in turns.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
from stable_baselines3 import DQN

from benchmarks import measure
from benchmarks.contenders import sb3, sb3_env, trainer

GAME, FILL, CAPACITY = "kung_fu_master", 1_600, 20_000
OURS = {
    "nap_rl data-efficient Rainbow": ("agent=data_efficient_rainbow", "agent.update_every_steps=4"),
    "nap_rl Rainbow + NaP": ("agent=rainbow", "agent.nap=true", f"agent.min_replay_steps={FILL}"),
}
SMALLEST = torch.finfo(torch.float32).tiny


def ours(folder: Path, updates: int, *overrides: str) -> torch.optim.Optimizer:
    """The optimiser of an agent after so many updates on a game."""
    loop = trainer(folder, f"env.game={GAME}", f"replay.capacity={CAPACITY}", "precision=fp32", *overrides)
    loop.run(lambda: loop.agent.updates >= updates)
    return loop.agent.optimizer


def theirs(updates: int) -> torch.optim.Optimizer:
    """The same of SB3's DQN."""
    model = sb3(DQN, sb3_env(GAME, 8), capacity=CAPACITY, batch=32, learning_starts=FILL)
    model.learn(FILL + 4 * updates)
    optimizer: torch.optim.Optimizer = model.policy.optimizer
    return optimizer


def step_times(optimizer: torch.optim.Optimizer, repetitions: int) -> tuple[float, measure.Times]:
    """Share of the moments that is denormal, and milliseconds of a step, `as they are` and `flushed`."""
    tensors = [
        moment for state in optimizer.state.values() for name, moment in state.items() if name.startswith("exp_avg")
    ]
    saved = [moment.clone() for moment in tensors]
    count = sum(moment.numel() for moment in saved)
    denormal = sum(int(((moment != 0) & (moment.abs() < SMALLEST)).sum()) for moment in saved)
    times: measure.Times = {"as they are": [], "flushed": []}
    for _ in range(repetitions):
        for name, flush in (("as they are", False), ("flushed", True)):
            torch._foreach_copy_(tensors, saved)
            torch.set_flush_denormal(flush)
            begin = time.perf_counter()
            optimizer.step()
            times[name].append((time.perf_counter() - begin) * 1e3)
            torch.set_flush_denormal(False)
    return denormal / count, times


def main(argv: list[str] | None = None) -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--updates", type=int, help="of training before anything is measured")
    arguments = parser.parse_args(argv)
    measure.prepare(1)  # the flag is a thread's own: a pool of threads would keep what it began with
    updates = arguments.updates or (50 if arguments.quick else 4_000)
    repetitions = arguments.repetitions or (5 if arguments.quick else 30)

    measure.say(
        "## Denormal moments",
        f"Milliseconds of Adam's step after {updates:,} updates on {GAME} without flushing, one thread; medians of "
        f"{repetitions} turns from the same moments.",
    )
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        optimizers = {name: ours(Path(folder) / name, updates, *overrides) for name, overrides in OURS.items()}
    optimizers["SB3 DQN"] = theirs(updates)
    for name, optimizer in optimizers.items():
        share, times = step_times(optimizer, repetitions)
        as_they_are, flushed = (statistics.median(times[which]) for which in ("as they are", "flushed"))
        rows.append([name, f"{share:.1%}", as_they_are, flushed, measure.ratio(times, "as they are", "flushed")])
    print(measure.table(["agent", "denormal moments", "as they are", "flushed", "x"], rows))


if __name__ == "__main__":
    main()
