"""Networks of Rainbow: by the arguments that SB3's algorithms take, and by the plain description in a zip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from nap_rl.nap import normalize
from nap_rl.nn import NetworkSpec, QNetwork

# Without clipped rewards the range of returns is not known beforehand: quantiles need none, atoms do.
MLP_SPEC = NetworkSpec(torso="mlp", net_arch=(128,), hidden=128, head="quantile", outputs=51, noisy_sigma0=0.5)
CNN_SPEC = NetworkSpec()
HEADS = ("expected", "categorical", "quantile")  # that Rainbow offers


def make_spec(policy: str, kwargs: Mapping[str, Any], nap: bool) -> NetworkSpec:
    """The network of a policy's name and `policy_kwargs`.

    Raises:
        ValueError: an unknown name or value; one sentence.
    """
    specs = {"CnnPolicy": CNN_SPEC, "MlpPolicy": MLP_SPEC, "MultiInputPolicy": MLP_SPEC}
    if policy not in specs:
        raise ValueError(f"policy={policy!r} is none of {', '.join(specs)}")
    known = [field.name for field in fields(NetworkSpec)]
    for name in kwargs:
        if name not in known:
            raise ValueError(f"policy_kwargs has '{name}', expected some of {', '.join(known)}")
    plain = {**specs[policy].plain(), **({"norm": "layer"} if nap else {}), **kwargs}
    if nap and plain["norm"] is None:
        raise ValueError("nap=True projects behind normalisations, but policy_kwargs has norm=None")
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in plain.items()}
    if isinstance(plain["net_arch"], (list, tuple)):
        plain["net_arch"] = [int(w) if isinstance(w, np.integer) else w for w in plain["net_arch"]]
    if plain["head"] == "expected":
        plain["outputs"] = 1
    spec = NetworkSpec.from_plain(plain)
    if spec.head not in HEADS:
        raise ValueError(f"head={spec.head!r} is none of {', '.join(HEADS)}")
    return spec


def build_network(spec: NetworkSpec, frame_shape: Sequence[int], stack: int, actions: int) -> QNetwork:
    """A fresh network with the norms that its description asks for; ValueError where the observations do not fit it."""
    network = spec.build(frame_shape, stack, actions)
    if spec.norm is not None:
        normalize(network, spec.example_input(frame_shape, stack), **spec.norms)
    return network
