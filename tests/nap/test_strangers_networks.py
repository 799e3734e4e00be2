"""Networks that nobody here would write: refused in a sentence, warned of, or right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nap_rl.nap import Projector, normalize

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))


def mlp(width: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))


def scaled(factor: float) -> nn.Sequential:
    net = mlp()
    with torch.no_grad():
        for parameter in net[0].parameters():
            parameter.mul_(factor)
    return net


def trained(net: nn.Module, x: Tensor = X) -> Projector:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    projector = Projector(net, optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        (net(x) - 1).square().mean().backward()
        optimizer.step()
    return projector


@pytest.mark.parametrize("factor", [1e-5, 1e-10, 1e-25])
def test_weights_below_a_norms_epsilon_are_warned_of(factor: float) -> None:
    with pytest.warns(UserWarning, match=r"reaches the normalisation '1.norm' .* its epsilon takes 1e-04 for nothing"):
        normalize(scaled(factor), X)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("factor", [1e-2, 1.0, 1e10])
def test_weights_of_any_usual_size_are_not(factor: float) -> None:
    assert trained(normalize(scaled(factor), X)).max_relative_drift() < 1e-6


@pytest.mark.parametrize("factor", [1e19, 1e20])
def test_weights_whose_squares_are_no_float_are_refused(factor: float) -> None:
    with pytest.raises(ValueError, match=r"normalisation '1.norm' has a standard deviation of .*too large"):
        normalize(scaled(factor), X)


def test_an_example_without_a_batch_dimension_will_do() -> None:
    one, batch = normalize(mlp(), X[0]), normalize(mlp(), X)
    assert torch.equal(one(X), batch(X))


def test_an_empty_example_and_weights_without_memory_are_one_sentence() -> None:
    with pytest.raises(ValueError, match="the example is empty"):
        normalize(mlp(), X[:0])
    with pytest.raises(ValueError, match=r"parameter '0.weight' is on the meta device"):
        normalize(mlp().to("meta"), X)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_networks_of_other_dtypes_keep_their_norms_to_their_precision(dtype: torch.dtype) -> None:
    net = normalize(mlp(64).to(dtype), X.to(dtype))
    assert {p.dtype for p in net.parameters()} == {dtype}
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    projector = Projector(net, optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        (net(X.to(dtype)).float() - 1).square().mean().backward()
        optimizer.step()
    assert projector.max_relative_drift() < 8 * torch.finfo(dtype).eps


def test_a_frozen_layer_is_left_alone_and_the_others_are_projected() -> None:
    net = normalize(mlp(), X)
    net[0].requires_grad_(False)
    before = net[0].weight.clone()
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    projector = Projector(net, optimizer)
    (net(X) - 1).square().mean().backward()
    optimizer.step()
    assert "0" not in projector.groups and "2" in projector.groups
    assert torch.equal(net[0].weight, before) and projector.max_relative_drift() < 1e-6


def test_channels_last_and_transposed_convolutions_are_projected() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.ConvTranspose2d(8, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 2, 3))
    net = net.to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 16, 16).to(memory_format=torch.channels_last)
    normalize(net, images)
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    projector = trained(net, images)
    assert {"0", "2"} <= set(projector.groups) and projector.max_relative_drift() < 1e-6
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
