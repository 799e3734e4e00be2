"""What Normalize-and-Project costs: the projection's share of a Rainbow update, against a loop over tensors.

    python -m benchmarks.nap_overhead [--pairs 30] [--threads 2]

Nature torso, dueling noisy streams of 512, batch 32, 18 actions, 51 atoms, on the CPU, in fp32 and under bf16 autocast.
Every line is a median over interleaved repetitions (one of each variant in turn, so that a drift of the machine's
speed meets all alike); the ratios are medians of ratios within a repetition.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nap_rl.nap import Projector, normalize, weight_groups
from nap_rl.nap.layers import is_norm
from nap_rl.nn import Categorical, NatureTorso, QNetwork, Streams
from nap_rl.runtime import keep_freed_memory

BATCH, ACTIONS = 32, 18


def rainbow() -> QNetwork:
    """The paper's network with its normalisations, 6.9M weights."""
    head = Categorical()
    network = QNetwork(NatureTorso(), Streams(NatureTorso.features, ACTIONS, head.outputs, 512, True, 0.1), head)
    normalize(network, torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8))
    return network


def gradient_pass(network: QNetwork, bf16: bool) -> Callable[[], None]:
    """The passes of one update: online(s) with gradient, online(s') and target(s') without."""
    stacks = torch.randint(0, 256, (BATCH, 4, 84, 84), dtype=torch.uint8)
    actions = torch.randint(0, ACTIONS, (BATCH,))
    ones = torch.ones(BATCH)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs_tm1 = network(stacks, network.sample_noise())
            with torch.no_grad():
                selector = network(stacks, network.sample_noise())
                outputs_t = network(stacks, network.sample_noise())
        a_t = network.head.q_values(selector.float()).argmax(dim=1)
        loss, _ = network.head.loss(outputs_tm1.float(), actions, ones, 0.97 * ones, outputs_t.float(), a_t)
        network.zero_grad()
        loss.mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)

    return run


def loop_projection(network: nn.Module) -> Callable[[], None]:
    """What a first attempt looks like: one norm and one multiplication for each weight, gain and offset."""
    groups = list(weight_groups(network).values())
    groups += [(each.weight, each.bias) for each in network.modules() if is_norm(each)]
    targets = [_norm(group) for group in groups]

    @torch.no_grad()
    def project() -> None:
        for group, target in zip(groups, targets, strict=True):
            factor = target / _norm(group)
            for tensor in group:
                tensor.mul_(factor)

    return project


def _norm(group: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([tensor.detach().norm() for tensor in group]).norm()


def deep(layers: int, weights: int = 6_400_000) -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], None]]:
    """An MLP of about `weights` weights in so many layers, its Adam, and the passes of one of its updates."""
    width = int((weights / layers) ** 0.5)
    modules: list[nn.Module] = []
    for _ in range(layers):
        modules += [nn.Linear(width, width), nn.ReLU()]
    network = nn.Sequential(*modules, nn.Linear(width, 2))
    x = torch.randn(BATCH, width)
    normalize(network, x)

    def passes() -> None:
        network.zero_grad()
        network(x).square().mean().backward()

    return network, torch.optim.Adam(network.parameters(), fused=True), passes


def interleaved(variants: dict[str, Callable[[], None]], repetitions: int) -> dict[str, list[float]]:
    """Milliseconds of each variant, one run of each in turn."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for repetition in range(repetitions + 3):  # the first three warm caches and allocators
        for name, run in variants.items():
            begin = time.perf_counter()
            run()
            if repetition >= 3:
                times[name].append((time.perf_counter() - begin) * 1e3)
    return times


def ratio(times: dict[str, list[float]], numerator: str, *denominators: str) -> float:
    """Median of numerator / sum of denominators within each repetition."""
    sums = [sum(row) for row in zip(*(times[name] for name in denominators), strict=True)]
    return statistics.median(a / b for a, b in zip(times[numerator], sums, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=30, help="repetitions of each variant")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    keep_freed_memory()
    print(
        f"torch {torch.__version__}, {platform.machine()}, {arguments.threads} threads, {arguments.pairs} repetitions"
    )

    network = rainbow()
    optimizer = torch.optim.Adam(network.parameters(), lr=6.25e-5, eps=1.5e-4, fused=True)
    projector = Projector(network, optimizer)
    projector.remove()  # timed by hand
    weights = sum(tensor.numel() for group in weight_groups(network).values() for tensor in group)
    times = interleaved(
        {
            "update fp32": gradient_pass(network, bf16=False),
            "update bf16": gradient_pass(network, bf16=True),
            "adam": optimizer.step,
            "projection": projector.project,
            "loop": loop_projection(network),
        },
        arguments.pairs,
    )
    print(f"\nRainbow, {weights / 1e6:.1f}M weights, batch {BATCH}, milliseconds (median)")
    for name, row in times.items():
        print(f"  {name:<12} {statistics.median(row):8.2f}")
    for precision in ("fp32", "bf16"):
        update = (f"update {precision}", "adam")
        print(f"  projection / {precision} update  {ratio(times, 'projection', *update):8.1%}", end="")
        print(f"      loop / {precision} update  {ratio(times, 'loop', *update):8.1%}")
    print(f"  projection / loop         {ratio(times, 'projection', 'loop'):8.2f}")

    print("\nAn MLP of 6.4M weights in more and more layers, milliseconds (median) and share of its update")
    print(f"  {'layers':>6} {'update':>9} {'projection':>11} {'share':>7} {'loop':>7} {'share':>7}")
    for layers in (2, 8, 32, 128):
        net, adam, passes = deep(layers)
        one = Projector(net, adam)
        one.remove()
        loop = loop_projection(net)
        runs = {"passes": passes, "adam": adam.step, "projection": one.project, "loop": loop}
        times = interleaved(runs, arguments.pairs)
        update_ms = sum(statistics.median(times[name]) for name in ("passes", "adam"))
        row = f"  {layers:>6} {update_ms:>9.2f}"
        for name, width in (("projection", 11), ("loop", 7)):
            row += f" {statistics.median(times[name]):>{width}.2f} {ratio(times, name, 'passes', 'adam'):>7.1%}"
        print(row)


if __name__ == "__main__":
    main()
