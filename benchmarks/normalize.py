"""Time and memory of `normalize`, `Projector` and training steps on a decoder: `python -m benchmarks.normalize`.

The default is transformer_400m with a vocabulary of 50,304: 411 million weights. Give --layers twice or more to see how
the time grows.
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import replace

import torch
import torch.nn.functional as F

from nap_rl.nap import Projector, normalize
from nap_rl.nn.transformer import SIZES, Transformer

MODEL = SIZES["transformer_400m"]


def peak() -> float:
    """Most memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[MODEL.layers], help="one model for each number")
    parser.add_argument("--width", type=int, default=MODEL.width)
    parser.add_argument("--tokens", type=int, default=50_304, help="size of the vocabulary")
    parser.add_argument("--steps", type=int, default=3, help="of AdamW, on a row of 64 tokens")
    arguments = parser.parse_args()
    for layers in arguments.layers:
        torch.manual_seed(0)
        width = arguments.width
        size = replace(MODEL, layers=layers, width=width, heads=width // 64, hidden=11 * width // 4)
        before = peak()
        model = Transformer(size, arguments.tokens)
        weights = sum(parameter.numel() for parameter in model.parameters())
        start = time.perf_counter()
        normalize(model, torch.randint(arguments.tokens, (2, 32)))
        middle = time.perf_counter()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        projector = Projector(model, optimizer)
        end = time.perf_counter()
        own = 4 * weights / 2**30
        print(
            f"{layers} layers, {weights / 1e6:.0f}M weights, {own:.2f} GiB: normalize {middle - start:.1f} s, "
            f"Projector {end - middle:.1f} s, {len(projector.groups)} norms held, "
            f"peak memory {(peak() - before) / own:.2f} times the model's"
        )
        row = torch.randint(arguments.tokens, (1, 65))
        for step in range(arguments.steps):
            start = time.perf_counter()
            optimizer.zero_grad()
            loss = F.cross_entropy(model(row[:, :-1]).flatten(0, 1), row[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            seconds, drift = time.perf_counter() - start, float(projector.max_relative_drift())
            print(f"step {step}: loss {loss.item():.2f}, {seconds:.1f} s, largest drift of a norm {drift:.0e}")
        print(f"peak memory of all: {peak():.1f} GiB")


if __name__ == "__main__":
    main()
