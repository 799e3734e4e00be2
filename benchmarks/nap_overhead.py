"""What Normalize-and-Project costs: the projection's share of a Rainbow update, against a loop over tensors.

    python -m benchmarks.nap_overhead [--repetitions 30] [--threads 2]

Nature torso, dueling noisy streams of 512, batch 32, 18 actions, 51 atoms, on the CPU, in fp32 and under bf16 autocast.
Every line is a median over interleaved repetitions (one of each variant in turn, so that a drift of the machine's
speed meets all alike); the ratios are medians of ratios within a repetition.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks import measure
from nap_rl.nap import Projector, normalize, weight_groups
from nap_rl.nap.layers import is_norm
from nap_rl.nn import Categorical, NatureTorso, QNetwork, Streams, Target

BATCH, ACTIONS = 32, 18
PRECISIONS = ("fp32", "bf16")


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
        target = Target(ones, 0.97 * ones, outputs_t.float(), a_t)
        loss, _ = network.head.loss(outputs_tm1.float(), actions, target)
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


def _of_rainbow(repetitions: int) -> None:
    network = rainbow()
    optimizer = torch.optim.Adam(network.parameters(), lr=6.25e-5, eps=1.5e-4, fused=True)
    projector = Projector(network, optimizer)
    projector.remove()  # timed by hand
    weights = sum(tensor.numel() for group in weight_groups(network).values() for tensor in group)
    times = measure.interleaved(
        {
            "passes fp32": gradient_pass(network, bf16=False),
            "passes bf16": gradient_pass(network, bf16=True),
            "Adam": optimizer.step,
            "projection": projector.project,
            "a loop": loop_projection(network),
        },
        repetitions,
    )
    measure.say(
        f"Rainbow, {weights / 1e6:.1f}M weights, batch {BATCH}, uncompiled: milliseconds, and the share of an update "
        "(passes and Adam) within a turn. The loop takes one norm and one multiplication for each tensor.",
    )
    rows = []
    for name in times:
        ours = name in ("projection", "a loop")
        shares = [f"{measure.ratio(times, name, f'passes {each}', 'Adam'):.1%}" if ours else "" for each in PRECISIONS]
        rows.append([name, measure.median(times, name), *shares])
    print(measure.table(["part", "ms", "of an fp32 update", "of a bf16 update"], rows), end="\n\n")


def main(argv: list[str] | None = None) -> None:
    arguments = measure.parser(__doc__).parse_args(argv)
    repetitions = arguments.repetitions or (2 if arguments.quick else 30)
    measure.prepare(arguments.threads)

    measure.say("## Cost of the projection")
    if arguments.details:
        _of_rainbow(repetitions)

    measure.say("An MLP of 6.4M weights in more and more layers, fp32: milliseconds, and shares of its update.")
    rows = []
    for layers in (2, 8) if arguments.quick else (2, 8, 32, 128):
        net, adam, passes = deep(layers)
        one = Projector(net, adam)
        one.remove()
        runs = {"passes": passes, "Adam": adam.step, "projection": one.project, "a loop": loop_projection(net)}
        times = measure.interleaved(runs, repetitions)
        row: list[object] = [layers, sum(measure.median(times, name) for name in ("passes", "Adam"))]
        for name in ("projection", "a loop"):
            row += [measure.median(times, name), f"{measure.ratio(times, name, 'passes', 'Adam'):.1%}"]
        rows.append(row)
    print(measure.table(["layers", "update", "projection", "share", "a loop", "share"], rows))


if __name__ == "__main__":
    main()
