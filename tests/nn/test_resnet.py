"""ResNets: the published numbers of weights, shapes, and what NaP makes of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nap_rl.nap import Projector, normalize
from nap_rl.nap.roles import assign_roles
from nap_rl.nn.resnet import ResNet


@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_sizes_are_the_published_ones(depth: int, parameters: int) -> None:
    with torch.device("meta"):
        network = ResNet(depth, 1000)
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize(("stem", "size", "positions"), [("small", 28, 4), ("strided", 28, 2), ("large", 64, 2)])
def test_a_stem_says_how_far_images_shrink(stem: str, size: int, positions: int) -> None:
    network = ResNet(18, 10, channels=1, width=4, stem=stem)
    before_the_mean = nn.Sequential(*list(network)[:-3])
    assert before_the_mean(torch.zeros(2, 1, size, size)).shape == (2, 32, positions, positions)
    assert network(torch.zeros(2, 1, size, size)).shape == (2, 10)


@pytest.mark.parametrize(("argument", "sentence"), [({"depth": 20}, "depth 20"), ({"width": 0}, "width=0")])
def test_other_networks_are_refused(argument: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ResNet(**{"depth": 18, "classes": 10, **argument})


@pytest.mark.parametrize("existing", ["keep", "replace"])
@pytest.mark.parametrize(("depth", "norm"), [(18, "batch"), (18, "none"), (50, "batch")])
def test_nap_projects_all_but_the_output(depth: int, norm: str, existing: str) -> None:
    torch.manual_seed(0)
    network = ResNet(depth, 10, channels=1, width=4, stem="strided", norm=norm)
    x = torch.randn(8, 1, 28, 28)
    normalize(network, x, existing=existing)
    roles = assign_roles(network, x)
    output = [name for name, role in roles.items() if role != "invariant"]
    assert len(output) == 1 and isinstance(network.get_submodule(output[0]), nn.Linear)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules()) or (existing, norm) == ("keep", "batch")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    projector = Projector(network, optimizer)
    assert set(projector.groups) == set(roles) - set(output)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), torch.arange(8)).backward()
        optimizer.step()
    assert projector.max_relative_drift() < 1e-6


def test_a_normalised_network_has_a_norm_in_front_of_every_relu() -> None:
    network = ResNet(18, 10, channels=1, width=4, stem="small", norm="none")
    normalize(network, torch.randn(4, 1, 28, 28))
    relus = [path for path, m in network.named_modules() if isinstance(m, nn.ReLU)]
    assert len(relus) == 17 and all(path.endswith(".activation") for path in relus)
