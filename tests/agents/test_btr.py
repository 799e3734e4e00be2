"""Beyond the Rainbow's parts in the agent: Munchausen-IQN over n steps, priorities, spectral norms between updates."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from nap_rl.agents import ValueAgent
from nap_rl.agents.draws import Draw
from nap_rl.agents.whole_update import learn_whole
from nap_rl.losses import Munchausen
from nap_rl.nn import ImplicitQuantile, NetworkSpec, SpectralConv2d
from nap_rl.plasticity import make_method
from nap_rl.replay import Replay
from tests.agents.small_agents import small_agent

ALPHA, TEMPERATURE, CLIP = 0.9, 0.03, -1.0


def convolutional(**settings: Any) -> ValueAgent:
    """BTR on boards of 9 x 9, small."""
    torch.manual_seed(0)
    spec = NetworkSpec(
        torso="impala", spectral_norm=True, max_pool=2, hidden=8, head="implicit_quantile", samples=3, noisy_sigma0=0.5
    )
    network = spec.build((9, 9), 1, 3)
    replay, rng = Replay(100, 1, frame_shape=(9, 9), stack=1, n_steps=3), np.random.default_rng(0)
    for k in range(60):
        frames = rng.integers(0, 256, (1, 9, 9)).astype(np.uint8)
        replay.add(frames, rng.integers(0, 3, 1), rng.normal(size=1), np.ones(1), np.full(1, k == 0))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    munchausen = Munchausen(ALPHA, TEMPERATURE, CLIP)
    return ValueAgent(network, optimizer, replay, double=False, batch_size=4, munchausen=munchausen, **settings)


def log_policy(q: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    z = (q - q.max(axis=1, keepdims=True)) / TEMPERATURE
    policy: npt.NDArray[np.float64] = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return policy


@pytest.mark.parametrize("priority", ["loss", "td_error"])
def test_the_loss_is_munchausens_over_quantiles_and_n_steps_by_hand(priority: str) -> None:
    agent = small_agent(
        head=ImplicitQuantile(4, 5, 6, 1.0, priority),
        sigma0=0.5,
        dueling=True,
        n_steps=3,
        exponent=0.2,
        munchausen=Munchausen(ALPHA, TEMPERATURE, CLIP),
        double=False,
    )
    batch = agent.replay.sample(7, 0.2)
    draws = agent.draw(7)
    assert draws.selector_t is not None and draws.target_tm1 is not None and draws.online_tm1.taus is not None

    def outputs(network: Any, stacks: torch.Tensor, draw: Draw) -> npt.NDArray[np.float64]:
        with torch.no_grad():
            z: npt.NDArray[np.float64] = network(stacks, network.noise(draw.eps), draw.taus).double().numpy()
        return z

    z_tm1 = outputs(agent.network, batch.s_tm1, draws.online_tm1)  # [7, 3, 4]
    z_t = outputs(agent.target, batch.s_t, draws.target_t)  # [7, 3, 5]
    log_pi_t = log_policy(outputs(agent.target, batch.s_t, draws.selector_t).mean(axis=2))
    log_pi_tm1 = log_policy(outputs(agent.target, batch.s_tm1, draws.target_tm1).mean(axis=2))
    rows, taus = np.arange(7), draws.online_tm1.taus.double().numpy()
    addition = ALPHA * np.clip(
        TEMPERATURE * log_pi_tm1[rows, batch.a_tm1.numpy()], CLIP, 0.0
    )  # of the first step alone
    soft = (np.exp(log_pi_t)[:, :, None] * (z_t - TEMPERATURE * log_pi_t[:, :, None])).sum(axis=1)  # [7, 5]
    targets = (batch.r_t.double().numpy() + addition)[:, None] + batch.discount_t.double().numpy()[:, None] * soft
    estimates = z_tm1[rows, batch.a_tm1.numpy()]  # [7, 4]
    loss, size = np.zeros(7), np.zeros(7)
    for b in range(7):
        for i in range(4):
            for j in range(5):
                error = targets[b, j] - estimates[b, i]
                huber = 0.5 * error**2 if abs(error) <= 1 else abs(error) - 0.5
                loss[b] += abs(taus[b, i] - (error < 0)) * huber / 5
                size[b] += abs(error) / 5
    found = agent.losses(batch, draws)
    assert found.loss.detach().numpy() == pytest.approx(loss, rel=1e-4)
    assert found.priority.numpy() == pytest.approx(loss if priority == "loss" else size, rel=1e-4)
    assert float(batch.discount_t.max()) < 0.99**2  # three steps


def spectral(agent: ValueAgent) -> list[SpectralConv2d]:
    return [layer for layer in agent.network.modules() if isinstance(layer, SpectralConv2d)]


def test_singular_vectors_follow_each_update_once_and_no_pass() -> None:
    agent = convolutional()
    layers = spectral(agent)
    before = [layer.left.clone() for layer in layers]
    agent.act(np.zeros((2, 1, 9, 9), dtype=np.uint8))
    assert all(torch.equal(layer.left, left) for layer, left in zip(layers, before, strict=True))
    rights = [layer.right.clone() for layer in layers]
    agent.update()
    for layer, right in zip(layers, rights, strict=True):
        matrix = layer.weight.detach().flatten(1)
        left = matrix @ right
        assert torch.allclose(layer.left, left / left.norm(), atol=1e-6)
        assert torch.allclose(layer.right, matrix.t() @ layer.left / (matrix.t() @ layer.left).norm(), atol=1e-6)


def test_weights_that_a_method_changed_have_their_own_singular_vectors() -> None:
    agent = convolutional()
    agent.method = make_method(
        "shrink_perturb",
        agent.network,
        agent.optimizer,
        example_input=torch.zeros(2, 1, 9, 9),
        options={"every": 1, "shrink": 0.1},
        seed=0,
    )
    agent.update()
    assert agent.intervene()
    for layer in spectral(agent):
        largest = float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2))
        assert float(layer.sigma().detach()) == pytest.approx(largest, rel=0.05)


def test_a_state_goes_on_to_the_bit_and_the_target_has_the_singular_vectors_of_its_copy() -> None:
    one, other = convolutional(target_every_updates=2), convolutional(target_every_updates=2)
    for _ in range(3):
        one.update()
    assert not torch.equal(spectral(one)[0].left, dict(one.target.named_buffers())["torso.2.branch.1.left"])
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    other.replay.load_state_dict(copy.deepcopy(one.replay.state_dict()))
    for _ in range(3):
        assert one.update() == other.update()
    for name, tensor in one.network.state_dict().items():
        assert torch.equal(tensor, other.network.state_dict()[name]), name
    assert torch.equal(spectral(one)[0].left, dict(one.target.named_buffers())["torso.2.branch.1.left"])


def test_it_is_not_compiled_into_one_function_and_says_why() -> None:
    assert learn_whole(convolutional()) == "the singular vectors of spectral norms follow it"
