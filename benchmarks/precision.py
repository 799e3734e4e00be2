"""Q-values of trained networks in bfloat16 against float32, on the states that they meet.

    python -m benchmarks.precision RUN [RUN ...] [--steps 2000]

Each run's final network plays its game: 8 environments, 1 % random actions, mean weights. Both precisions value the
same states with the same weights. An update with `precision=bf16` does it in two ways, and both are compared: autocast
over float32 weights for the online network, weights kept in bfloat16 for the target network.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import measure
from nap_rl.agents import FrameStack
from nap_rl.agents.evaluation import EpsilonGreedy, NetworkPolicy
from nap_rl.conf.build import build_env
from nap_rl.conf.load import load_network
from nap_rl.conf.schema import Config
from nap_rl.nn import QNetwork

ENVS = 8


def played(network: QNetwork, config: Config, steps: int) -> Tensor:
    """Stacks [steps, 4, 84, 84] uint8, of every fourth step of `ENVS` environments."""
    config = copy.deepcopy(config)
    config.env.num_envs, config.seed = ENVS, config.seed + 1_000  # not the episodes that it was trained on
    env = build_env(config)
    stack, seen = FrameStack.of(env), []
    policy = EpsilonGreedy(NetworkPolicy(network, noisy=False, seed=0), 0.01, env.num_actions, seed=0)
    frames, first = env.reset(), np.ones(ENVS, dtype=bool)
    try:
        for step in range(4 * steps // ENVS):
            stacks = stack.push(frames, first)
            if step % 4 == 0:
                seen.append(torch.from_numpy(stacks.copy()))
            taken = env.step(policy.act(stacks))
            frames, first = taken.observations, taken.ended
    finally:
        env.close()
    return torch.cat(seen)


@torch.no_grad()
def values(network: QNetwork, stacks: Tensor, precision: torch.dtype, kept: bool = False) -> Tensor:
    """Q [B, A] float32. `kept`: the weights are in `precision` too, as a target network's are."""
    if kept:
        network = copy.deepcopy(network)
        network.body_to(precision)
    q_values = []
    for some in stacks.split(256):
        with torch.autocast("cpu", precision, enabled=precision is not torch.float32):
            outputs = network(some)
        q_values.append(network.head.q_values(outputs.float()))
    return torch.cat(q_values)


def compare(exact: Tensor, other: Tensor) -> Mapping[str, float]:
    """Distances between two [B, A], and `gap`, the distance between the two best actions."""
    best = exact.topk(2, dim=1).values
    lost = best[:, 0] - exact.gather(1, other.argmax(dim=1, keepdim=True)).squeeze(1)
    return {
        "difference": float((other - exact).square().mean().sqrt()),
        "bias": float((other - exact).mean()),
        "gap": float((best[:, 0] - best[:, 1]).mean()),
        "same action": float((lost == 0).float().mean()),
        "lost": float(lost.mean()),
    }


def main(argv: list[str] | None = None) -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--steps", type=int, default=2_000, help="states to compare on (default: 2,000)")
    arguments = parser.parse_args(argv)
    measure.prepare(arguments.threads)
    rows: list[list[object]] = []
    for run in arguments.runs:
        network, config = load_network(run)
        stacks = played(network, config, arguments.steps)
        exact = values(network, stacks, torch.float32)
        for name, kept in {"bf16": False, "bf16, weights too": True}.items():
            distances = compare(exact, values(network, stacks, torch.bfloat16, kept))
            rows.append(
                [
                    run.name,
                    name,
                    float(exact.max(dim=1).values.mean()),
                    *(f"{value:.2g}" for value in distances.values()),
                ]
            )
    header = ["run", "passes", "mean of max Q", "RMS difference", "mean difference", "best - second best"]
    print(measure.table([*header, "same action", "Q lost by the action"], rows))


if __name__ == "__main__":
    main()
