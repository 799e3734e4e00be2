"""On a GPU: frames and updates a second of whole training, updates alone, and the time of 200M frames.

    python -m benchmarks.gpu [--seconds 10]

The standard ratio, one update of 32 to 4 agent steps (16 frames), Pong, and replay on the GPU where it fits. Compiled
updates are captured as CUDA graphs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from benchmarks import measure
from benchmarks.contenders import PRECISIONS
from benchmarks.end_to_end import DQN_AS_SB3, RAINBOW, RAINBOW_NAP, Run, ours
from nap_rl.agents import ValueAgent
from nap_rl.envs.atari import FRAME_SKIP

FRAMES = 200_000_000


def main(argv: list[str] | None = None) -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--seconds", type=float, help="of each turn")
    parser.add_argument("--envs", type=int, default=64, help="environments (default: 64)")
    arguments = parser.parse_args(argv)
    measure.prepare(arguments.threads)
    measure.say("## GPU")
    if not torch.cuda.is_available():
        measure.say("No CUDA GPU was found on this machine, so nothing was measured on one.")
        return
    turns = arguments.repetitions or (2 if arguments.quick else 5)
    seconds = arguments.seconds or (1.0 if arguments.quick else 10.0)
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for precision, settings in PRECISIONS.items():
            for name, overrides in {"Rainbow + NaP": RAINBOW_NAP, "Rainbow": RAINBOW, "DQN": DQN_AS_SB3}.items():
                where = Path(folder) / f"{name}-{precision}"
                on_gpu = ("device=cuda", f"env.num_envs={arguments.envs}", "replay.capacity=1000000")
                run, trainer = ours(where, 4_000, *on_gpu, *overrides, *settings)

                def steps(count: int, run: Run = run) -> int:
                    done = run(count)
                    torch.cuda.synchronize()
                    return done

                def updates(count: int, agent: ValueAgent = trainer.agent) -> int:
                    for _ in range(count):
                        agent.update()
                    torch.cuda.synchronize()
                    return count

                rates = measure.rates({"steps": steps, "updates": updates}, seconds, turns)
                frames = measure.median(rates, "steps") * FRAME_SKIP
                alone = measure.median(rates, "updates")
                at = trainer.agent.replay.device.type
                rows.append([name, precision, at, frames, frames / 16, alone, FRAMES / frames / 3_600])
    measure.say(f"{torch.cuda.get_device_name()}, {arguments.envs} environments, medians of {turns} turns.")
    header = ["training", "precision", "replay", "frames/s", "updates/s", "updates/s alone", "hours for 200M frames"]
    print(measure.table(header, rows))


if __name__ == "__main__":
    main()
