"""An update's passes, compiled and in bf16, against the plain ones; clipping against torch's."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable

import pytest
import torch

from nap_rl.agents import ValueAgent
from nap_rl.agents.wrapping import compile_agent

Make = Callable[..., ValueAgent]


def flat_gradient(agent: ValueAgent) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in agent.network.parameters() if p.grad is not None])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_compiled_updates_are_the_plain_ones(precision: torch.dtype, rainbow: Make) -> None:
    plain, compiled = rainbow(precision=precision), compile_agent(rainbow(precision=precision))
    tolerance = 1e-4 if precision is torch.float32 else 3e-2
    for _ in range(3):
        a, b = plain.update(0.5), compiled.update(0.5)
        torch.testing.assert_close(b.loss, a.loss, rtol=tolerance, atol=0.0)
        torch.testing.assert_close(b.grad_norm, a.grad_norm, rtol=tolerance, atol=0.0)
    cosine = torch.nn.functional.cosine_similarity(flat_gradient(plain), flat_gradient(compiled), dim=0)
    assert cosine > 1 - tolerance


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_updates_are_the_same_every_time(rainbow: Make) -> None:
    first, second = compile_agent(rainbow()), compile_agent(rainbow())
    for _ in range(3):
        first.update(0.5), second.update(0.5)
    for a, b in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_acting_values_actions_as_the_plain_one(rainbow: Make) -> None:
    plain, compiled = rainbow(), compile_agent(rainbow())
    stacks = plain.replay.sample(9).s_tm1
    numbers = sum(layer.in_features + layer.out_features for layer in plain.network.streams.noisy_layers())
    with torch.inference_mode():
        for eps in (torch.randn(9, numbers), torch.randn(9, numbers), None):
            exact, found = plain.q_values(stacks, eps, None), compiled.q_values(stacks, eps, None)
            torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)
    assert (plain.act(stacks.numpy()) == compiled.act(stacks.numpy())).all()


def test_half_precision_keeps_weights_gradients_and_moments_in_float32_and_its_losses_and_gradients_agree(
    rainbow: Make,
) -> None:
    full, half = rainbow(), rainbow(precision=torch.bfloat16)
    a, b = full.update(0.5), half.update(0.5)  # the same batch, the same noise
    torch.testing.assert_close(b.loss, a.loss, rtol=1e-2, atol=0.0)
    assert torch.nn.functional.cosine_similarity(flat_gradient(full), flat_gradient(half), dim=0) > 0.99
    state = half.optimizer.state_dict()["state"].values()
    tensors = [
        *half.network.parameters(),
        flat_gradient(half),
        *(moment for moments in state for moment in moments.values()),
    ]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    half.copy_to_target()
    for name, copied in half.target.state_dict().items():
        torch.testing.assert_close(copied.float(), half.network.state_dict()[name], rtol=2**-8, atol=0.0)


def test_the_target_network_of_half_precision_is_kept_in_it_but_for_output_layers_and_support(rainbow: Make) -> None:
    agent = rainbow(precision=torch.bfloat16)
    exact = {name for name, p in agent.target.named_parameters() if p.dtype == torch.float32}
    assert exact == {name for name, _ in agent.target.named_parameters() if ".output." in name}
    assert {p.dtype for p in agent.target.parameters()} == {torch.bfloat16, torch.float32}
    assert agent.network.head.support.dtype == agent.target.head.support.dtype == torch.float32


def test_values_in_half_precision_are_not_rounded_to_it(rainbow: Make) -> None:
    """Actions are closer to each other than the 8 bits of a bfloat16 can tell."""
    agent = rainbow(precision=torch.bfloat16)
    batch = agent.replay.sample(8)
    outputs = agent._outputs(agent.network, batch.s_tm1, agent.draw(len(batch.a_tm1)).online_tm1)
    assert not torch.equal(outputs, outputs.bfloat16().float())


@pytest.mark.parametrize("max_grad_norm", [1e-3, 1e6, None])
def test_gradients_are_clipped_as_torch_clips_them(max_grad_norm: float | None, make_agent: Make) -> None:
    agent = make_agent(max_grad_norm=max_grad_norm)
    for p in agent.network.parameters():
        p.grad = torch.randn_like(p)
    expected = copy.deepcopy(agent.network)
    for p, q in zip(expected.parameters(), agent.network.parameters(), strict=True):
        p.grad = q.grad.clone() if q.grad is not None else None
    limit = float("inf") if max_grad_norm is None else max_grad_norm
    norm = torch.nn.utils.clip_grad_norm_(expected.parameters(), limit)
    agent.optimizer = torch.optim.SGD(agent.network.parameters(), lr=0.0)
    assert torch.equal(agent.clip_and_step(), norm)
    for p, q in zip(expected.parameters(), agent.network.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None and torch.equal(p.grad, q.grad)


def test_gradients_that_are_not_finite_are_not_taken_for_small_ones(make_agent: Make) -> None:
    agent = make_agent(max_grad_norm=10.0)
    for p in agent.network.parameters():
        p.grad = torch.full_like(p, torch.nan)
    assert agent.clip_and_step().isnan()
