"""Every method on a dueling, noisy value network over pixels, without NaP and with it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nap_rl.nap import Projector, normalize
from nap_rl.nn import DataEfficientTorso, ExpectedValue, ImpalaTorso, QNetwork, Streams
from nap_rl.plasticity import METHODS, make_method, method_named, options_of

STACKS = torch.randint(256, (8, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def value_network() -> nn.Module:
    torch.manual_seed(0)
    torso = DataEfficientTorso()
    streams = Streams(torso.features, actions=3, outputs=1, hidden=16, dueling=True, sigma0=0.5)
    return QNetwork(torso, streams, ExpectedValue())


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_drives_a_noisy_value_network_with_nap(name: str) -> None:
    network = normalize(method_named(name).prepare(value_network(), STACKS), STACKS)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    projector = Projector(network, optimizer)
    options = {key: 2 for key in ("every", "at") if key in options_of(name)}
    method = make_method(name, network, optimizer, example_input=STACKS, options=options)
    target = copy.deepcopy(network)  # a method must not hang on to copies, nor they on to it
    for update in range(1, 4):
        noise = network.sample_noise(torch.Generator().manual_seed(update))
        optimizer.zero_grad()
        loss = network(STACKS, noise).square().mean()
        if (penalty := method.penalty()) is not None:
            loss = loss + penalty
        loss.backward()
        optimizer.step()
        if method.after_update(update, lambda: STACKS):
            projector.project()
        with torch.no_grad():
            target(STACKS, noise)
    assert bool(network(STACKS).isfinite().all())
    assert float(projector.max_relative_drift()) < 1e-5
    state = {key: value.clone() for key, value in method.state_dict().items()}
    make_method(name, network, optimizer, example_input=STACKS, options=options).load_state_dict(state)


def test_reset_head_resets_the_outputs_of_both_streams_mean_and_deviation() -> None:
    network = value_network()
    old = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2.0)
    make_method("reset_head", network, optimizer, example_input=STACKS, options={"every": 1}).after_update(
        1, lambda: STACKS
    )
    sigma = {name: p for name, p in old.named_parameters() if name.endswith("output.weight_sigma")}
    assert len(sigma) == 2
    now = dict(network.named_parameters())
    assert all(torch.equal(now[name], p) for name, p in sigma.items())  # back to its constant
    assert torch.equal(now["streams.value.hidden.weight_mu"], 2 * old.get_parameter("streams.value.hidden.weight_mu"))


def test_reset_head_takes_the_end_of_a_residual_branch_for_no_head() -> None:
    torch.manual_seed(0)
    torso = ImpalaTorso()  # a stack's last branch is added and read by the next stack with no activation between
    network = QNetwork(torso, Streams(torso.features, 3, 1, 8, dueling=True, sigma0=None), ExpectedValue())
    network = normalize(network, STACKS[:2])
    method = make_method("reset_head", network, torch.optim.Adam(network.parameters()), example_input=STACKS[:2])
    names = {module: name for name, module in network.named_modules()}
    assert [names[layer] for layer in method.head] == ["streams.advantage.output", "streams.value.output"]


def test_redo_zeroes_the_mean_and_the_noise_of_what_reads_a_dormant_unit() -> None:
    network = value_network()
    with torch.no_grad():
        network.get_parameter("streams.value.hidden.bias_mu")[5] = -100.0
    before = network(STACKS)
    optimizer = torch.optim.Adam(network.parameters())
    method = make_method("redo", network, optimizer, example_input=STACKS, options={"every": 1, "tau": 0.0})
    method.after_update(1, lambda: STACKS)
    for tensor in ("weight_mu", "weight_sigma"):
        assert torch.equal(network.get_parameter(f"streams.value.output.{tensor}")[:, 5], torch.zeros(1))
    assert torch.allclose(network(STACKS), before, atol=1e-5)
