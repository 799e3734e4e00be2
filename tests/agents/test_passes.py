"""An update's passes, compiled and in bf16, against the plain ones; clipping against torch's."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable

import pytest
import torch

from nap_rl.agents import ValueAgent
from nap_rl.native import Adam, library
from nap_rl.nn import QNetwork
from nap_rl.nn.linear import leaves_factors

Make = Callable[..., ValueAgent]


def native_adam(network: QNetwork) -> Adam:
    return Adam(network.parameters(), lr=1e-4, eps=1.5e-4)


def flat_gradient(agent: ValueAgent) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in agent.network.parameters() if p.grad is not None])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_compiled_updates_are_the_plain_ones(precision: torch.dtype, rainbow: Make) -> None:
    plain, compiled = rainbow(precision=precision), rainbow(precision=precision, compiled=True)
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
    first, second = rainbow(compiled=True), rainbow(compiled=True)
    for _ in range(3):
        first.update(0.5), second.update(0.5)
    for a, b in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_acting_values_actions_as_the_plain_one(rainbow: Make) -> None:
    plain, compiled = rainbow(), rainbow(compiled=True)
    stacks = plain.replay.sample(9).s_tm1
    with torch.inference_mode():
        for noisy in (True, True, False):
            (exact,), (found,) = plain._choose(stacks, noisy), compiled._choose(stacks, noisy)
            torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)
    assert (plain.act(stacks.numpy()) == compiled.act(stacks.numpy())).all()


needs_native = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")


@needs_native
@pytest.mark.parametrize("max_grad_norm", [1e-2, 10.0, None])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_updates_of_the_native_optimiser_are_the_plain_ones(
    compiled: bool, max_grad_norm: float | None, rainbow: Make
) -> None:
    """Though it works out the gradients of sigma, clips in its step, and tells the projector the norms."""
    plain, native = rainbow(), rainbow(native_adam, compiled=compiled)
    plain.max_grad_norm = native.max_grad_norm = max_grad_norm
    for _ in range(4):
        a, b = plain.update(0.5), native.update(0.5)
        torch.testing.assert_close(b.loss, a.loss, rtol=1e-4, atol=0.0)
        torch.testing.assert_close(b.grad_norm, a.grad_norm, rtol=1e-4, atol=0.0, check_dtype=False)
    sigmas = [layer.weight_sigma for layer in native.network.streams.noisy_layers()]
    assert len(sigmas) == 4 and all(sigma.grad is None for sigma in sigmas)
    native.complete_gradients()
    for (name, p), (_, q) in zip(plain.network.named_parameters(), native.network.named_parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-3, atol=1e-4 * float(p.grad.abs().max()), msg=name)
        torch.testing.assert_close(q, p, rtol=1e-4, atol=1e-6, msg=name)


@needs_native
@pytest.mark.slow
@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_gradients_of_large_noisy_layers_are_left_as_factors_and_updates_are_the_plain_ones(
    precision: torch.dtype, failing: bool, rainbow: Make
) -> None:
    """Also where torch.compile fails, which is a warning: the passes run uncompiled then."""
    plain = rainbow(hidden=512, precision=precision)
    native = rainbow(native_adam, hidden=512, precision=precision, compiled=True)
    for layer in native.network.streams.noisy_layers():
        layer.native_code = True
    mus = [stream.hidden.weight_mu for stream in native.network.streams.children()]
    if not all(leaves_factors(mu, 8, precision) for mu in mus):
        pytest.skip("this CPU has no native products of this type")
    if failing:
        native._passes = native._run_passes
    tolerance = 1e-4 if precision is torch.float32 else 3e-2
    for _ in range(3):
        a, b = plain.update(0.5), native.update(0.5)
        torch.testing.assert_close(b.loss, a.loss, rtol=tolerance, atol=0.0)
        torch.testing.assert_close(b.grad_norm, a.grad_norm, rtol=tolerance, atol=0.0, check_dtype=False)
    assert isinstance(native.optimizer, Adam)
    assert set(native.optimizer.factors) == set(mus) and all(mu.grad is None for mu in mus)
    native.complete_gradients()
    cosine = torch.nn.functional.cosine_similarity(flat_gradient(plain), flat_gradient(native), dim=0)
    assert cosine > 1 - tolerance
    for (name, p), (_, q) in zip(plain.network.named_parameters(), native.network.named_parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        torch.testing.assert_close(q, p, rtol=1e-3, atol=1e-6 if precision is torch.float32 else 1e-3, msg=name)


@needs_native
def test_the_native_optimiser_leaves_frozen_sigma_alone_and_takes_a_penalty_on_sigma_from_its_gradient(
    rainbow: Make,
) -> None:
    agent = rainbow(native_adam)
    frozen, penalised = agent.network.streams.noisy_layers()[:2]
    frozen.weight_sigma.requires_grad_(False)
    before = frozen.weight_sigma.clone()
    agent.update(0.5)
    assert torch.equal(frozen.weight_sigma, before) and penalised.weight_sigma.grad is None
    agent.method.penalty = lambda: penalised.weight_sigma.sum()  # type: ignore[method-assign]
    agent.update(0.5)
    assert penalised.weight_sigma.grad is not None and torch.equal(frozen.weight_sigma, before)


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
    outputs = agent._outputs(agent.network, batch.s_tm1, agent._draws(["online"], len(batch.a_tm1))[0])
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
    assert torch.equal(agent._clip_gradients(), norm)
    for p, q in zip(expected.parameters(), agent.network.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None and torch.equal(p.grad, q.grad)


def test_gradients_that_are_not_finite_are_not_taken_for_small_ones(make_agent: Make) -> None:
    agent = make_agent(max_grad_norm=10.0)
    for p in agent.network.parameters():
        p.grad = torch.full_like(p, torch.nan)
    assert agent._clip_gradients().isnan()
