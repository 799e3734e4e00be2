"""Finding hidden units: which layer computes them, which read them, and where recycling must not reach."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nap_rl.nap import normalize
from nap_rl.nn.noisy import NoisyLinear
from nap_rl.nn.streams import Streams
from nap_rl.nn.torsos import ImpalaTorso, NatureTorso
from nap_rl.plasticity.fresh import fresh_parameters
from nap_rl.plasticity.units import hidden_units, outgoing_columns, recycle


def test_flattened_channel_owns_all_its_columns() -> None:
    x = torch.randn(2, 3, 4, 5)  # 3 channels of 4x5
    layer = nn.Linear(60, 7)
    columns = outgoing_columns(layer.weight.detach(), 3)
    only_channel_1 = torch.zeros_like(x)
    only_channel_1[:, 1] = x[:, 1]
    expected = layer(only_channel_1.flatten(1)) - layer.bias
    assert torch.allclose(x.flatten(2)[:, 1] @ columns[:, 1].T, expected, atol=1e-5)


def test_dueling_streams_both_read_the_torso_and_noisy_layers_are_found() -> None:
    torso = NatureTorso()
    streams = Streams(3136, actions=3, outputs=5, hidden=8, dueling=True, sigma0=0.1)
    network = nn.Sequential(torso, streams)
    found = hidden_units(network, torch.randn(2, 4, 84, 84))
    assert [u.width for u in found] == [32, 64, 64, 8, 8]
    assert all(u.recyclable for u in found)
    assert streams.value is not None
    assert set(found[2].outgoing) == {streams.advantage.hidden, streams.value.hidden}
    assert all(isinstance(m, NoisyLinear) for m in found[3].outgoing)


def test_units_on_a_skip_connection_are_not_recyclable() -> None:
    network = nn.Sequential(ImpalaTorso(), nn.Linear(3872, 2))
    found = hidden_units(network, torch.randn(1, 4, 84, 84))
    recyclable = [u.name for u in found if u.recyclable]
    # Inside a block the second activation alone stands between two convolutions.
    assert recyclable == [f"0.{i}.branch.2" for i in (2, 3, 6, 7, 10, 11)]


def test_normalisation_of_a_unit_is_found_and_made_new_with_it() -> None:
    torch.manual_seed(0)
    network: nn.Module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    example = torch.randn(5, 4)
    network = normalize(network, example)
    (units,) = hidden_units(network, example)
    (norm,) = units.norms
    assert isinstance(norm, nn.LayerNorm)
    with torch.no_grad():
        norm.bias.fill_(-9.0)
        norm.weight.fill_(3.0)
    optimizer = torch.optim.Adam(network.parameters())
    mask = torch.tensor([False, True, False, False, False, True])
    recycle(units, mask, optimizer, torch.Generator().manual_seed(1))
    assert norm.bias.tolist() == [-9.0, 0.0, -9.0, -9.0, -9.0, 0.0]
    assert norm.weight.tolist() == [3.0, 1.0, 3.0, 3.0, 3.0, 1.0]


def test_fresh_draw_leaves_weights_buffers_and_the_global_random_state_alone() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    network(torch.randn(8, 3))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    drawn = fresh_parameters(network, torch.Generator().manual_seed(7))
    again = fresh_parameters(network, torch.Generator().manual_seed(7))
    other = fresh_parameters(network, torch.Generator().manual_seed(8))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(torch.equal(drawn[name], again[name]) for name in drawn)
    assert not torch.equal(drawn["0.weight"], other["0.weight"])
    assert not torch.equal(drawn["0.weight"], before["0.weight"])
    assert torch.equal(drawn["1.weight"], torch.ones(4))


def test_fresh_draw_has_the_initialisers_distribution() -> None:
    layer = nn.Linear(64, 500)
    drawn = fresh_parameters(layer, torch.Generator().manual_seed(0))["weight"]
    bound = 1 / 8  # torch: U(-1/sqrt(in), 1/sqrt(in))
    assert float(drawn.abs().max()) <= bound
    assert abs(float(drawn.std()) - bound / 3**0.5) < 1e-3


def test_activation_used_twice_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.relu = nn.Linear(2, 2), nn.Linear(2, 2), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.relu(self.b(self.relu(self.a(x))))
            return y

    with pytest.raises(ValueError, match="'relu' is used twice"):
        hidden_units(Twice(), torch.randn(1, 2))


def test_fresh_normalisation_has_gain_one_and_offset_zero_and_unknown_layers_are_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.zeros(2, 2))

    example = torch.randn(5, 4)
    network = normalize(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), example, norm="rms")
    drawn = fresh_parameters(network, torch.Generator().manual_seed(0))
    gains = [value for name, value in drawn.items() if "norm" in name and name.endswith("weight")]
    assert [g.tolist() for g in gains] == [[1.0] * 6]
    with pytest.raises(TypeError, match=r"'Odd' \(Odd\) has parameters but no reset_parameters"):
        fresh_parameters(Odd(), torch.Generator())
