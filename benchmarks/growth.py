"""Memory of a long training run: what the process takes on the way, once its replay is full.

    python -m benchmarks.growth [--updates 200000]

All of Rainbow + NaP on Pong, compiled, with a small network (what leaks does not depend on its width): emulators,
acting, replay, updates, projection, target copies, logging.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks import measure
from benchmarks.contenders import trainer
from nap_rl.agents import Trainer

ENVS, CAPACITY = 8, 5_000
SMALL = ("agent=data_efficient_rainbow", "agent.nap=true", "agent.hidden=32", "agent.batch_size=8")
SETTINGS = (
    "env.game=pong",
    f"env.num_envs={ENVS}",
    f"replay.capacity={CAPACITY}",
    "agent.min_replay_steps=400",
    "agent.update_every_steps=1",
    "agent.target_every_updates=100",
    "precision=fp32",
)


def sizes(loop: Trainer, begin: int, updates: int) -> list[tuple[int, float]]:
    """(updates, resident MB) at each tenth of the way from `begin` on."""
    points = [begin + updates * tenth // 10 for tenth in range(11)]
    sizes_so_far = []
    for point in points:
        loop.run(lambda point=point: loop.agent.updates >= point)  # type: ignore[misc]
        sizes_so_far.append((loop.agent.updates, measure.resident() / 1e6))
    return sizes_so_far


def main(argv: list[str] | None = None) -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--updates", type=int, help="over which to look (default: 200,000)")
    arguments = parser.parse_args(argv)
    measure.prepare(1)  # what leaks does not depend on threads either, and small tensors are faster so
    updates = arguments.updates or (50 if arguments.quick else 200_000)
    compiled = "off" if arguments.quick else "on"
    measure.say(
        "## Memory",
        "A whole training run of a small Rainbow + NaP on Pong, 8 environments, one thread of torch, an update an "
        f"agent step, from where its replay of {CAPACITY:,} is full: memory of the process.",
    )
    with tempfile.TemporaryDirectory() as folder:
        loop = trainer(Path(folder), *SMALL, *SETTINGS, f"compile={compiled}")
        rows = sizes(loop, 0 if arguments.quick else CAPACITY, updates)
    print(measure.table(["updates", "MB"], [[f"{count:,}", f"{size:.1f}"] for count, size in rows]))


if __name__ == "__main__":
    main()
