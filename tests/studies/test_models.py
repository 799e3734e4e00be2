"""The networks of the studies: all hidden layers are normalised and projected."""

from __future__ import annotations

import pytest
import torch
from torch.optim import Adam

from nap_rl.nap import Projector, normalize, scale_invariance
from nap_rl.studies.models import MODELS, build_model


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_hidden_layer_of_every_model_is_projected(name: str, norm: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 12, 12)
    network = normalize(build_model(name, (3, 12, 12), 10, width=8, depth=2), x, norm=norm)
    assert network(x).shape == (4, 10)
    optimizer = Adam(network.parameters(), lr=1e-2)
    projector = Projector(network, optimizer)
    network(x).square().mean().backward()
    optimizer.step()
    assert float(projector.max_relative_drift()) < 1e-5
    *hidden, output = scale_invariance(network, x).values()
    assert max(hidden) < 1e-2 < output


def test_unknown_model_and_empty_layers_are_sentences() -> None:
    with pytest.raises(ValueError, match="no model 'vgg'"):
        build_model("vgg", (1, 8, 8), 10, 8, 2)
    with pytest.raises(ValueError, match="at least 1; got 0 and 2"):
        build_model("mlp", (1, 8, 8), 10, 0, 2)
