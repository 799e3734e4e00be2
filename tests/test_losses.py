"""Losses against loops in plain Python, written from the papers' equations."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nap_rl.losses import Munchausen, categorical_projection, check_shape, cross_entropy, huber, quantile_huber

Lists = list[float]


def project_by_loop(target_support: Lists, target_probs: Lists, support: Lists) -> Lists:
    """Bellemare et al. 2017, algorithm 1, with the case of b on an integer that its text leaves out."""
    atoms, v_min, v_max = len(support), support[0], support[-1]
    delta_z = (v_max - v_min) / (atoms - 1)
    m = [0.0] * atoms
    for z, p in zip(target_support, target_probs, strict=True):
        b = (min(max(z, v_min), v_max) - v_min) / delta_z
        lower = min(int(math.floor(b)), atoms - 1)
        upper = min(lower + 1, atoms - 1)
        m[lower] += p * (1.0 - (b - lower))
        m[upper] += p * (b - lower)
    return m


def project(target_support: Tensor, target_probs: Tensor, support: Tensor) -> Tensor:
    rows = zip(target_support.tolist(), target_probs.tolist(), strict=True)
    return torch.tensor([project_by_loop(z, p, support.tolist()) for z, p in rows], dtype=torch.float64)


@st.composite
def distributions(draw: st.DrawFn) -> tuple[Lists, Lists, Lists]:
    """(target support, its probabilities, support): targets on atoms, between them, at the ends and beyond."""
    atoms = draw(st.integers(2, 60))
    v_min = draw(st.floats(-20, 20))
    width = draw(st.floats(0.5, 40))
    support = torch.linspace(v_min, v_min + width, atoms, dtype=torch.float64).tolist()
    inside = st.floats(v_min, v_min + width)
    target = st.one_of(st.sampled_from(support), inside, st.floats(-100, 100), st.sampled_from([v_min, support[-1]]))
    targets = draw(st.lists(target, min_size=atoms, max_size=atoms))
    mass = draw(st.lists(st.floats(0.0, 1.0), min_size=atoms, max_size=atoms).filter(lambda p: sum(p) > 0.1))
    return targets, [p / sum(mass) for p in mass], support


@settings(max_examples=200, deadline=None)
@given(distributions())
def test_projection_equals_the_loop_wherever_the_targets_fall(case: tuple[Lists, Lists, Lists]) -> None:
    targets, probs, support = (torch.tensor(x, dtype=torch.float64) for x in case)
    projected = categorical_projection(targets[None], probs[None], support)
    assert torch.allclose(projected, project(targets[None], probs[None], support), rtol=0, atol=1e-9)
    assert float(projected.sum()) == pytest.approx(1.0, abs=1e-9)


def test_projection_in_float32_equals_the_float64_loop_on_c51s_own_support() -> None:
    generator = torch.Generator().manual_seed(0)
    support = torch.linspace(-10, 10, 51)
    r = torch.randint(-1, 2, (200, 1), generator=generator).float()
    discount = torch.tensor([0.0, 0.99, 0.99**3, 1.0])[torch.randint(0, 4, (200, 1), generator=generator)]
    targets = r + discount * support
    probs = torch.rand(200, 51, generator=generator).softmax(dim=1)
    projected = categorical_projection(targets, probs, support)
    assert (projected.double() - project(targets, probs, support)).abs().max() < 1e-6
    assert (projected.sum(dim=1) - 1).abs().max() < 2e-6


@pytest.mark.parametrize("shift", [-60, -3, -1, 0, 1, 2, 60])
def test_no_mass_is_lost_where_b_lands_on_an_integer_or_beyond_an_end(shift: int) -> None:
    support = torch.linspace(-10, 10, 51)
    probs = torch.full((1, 51), 1 / 51)
    projected = categorical_projection((support + shift * 0.4)[None], probs, support)
    assert float(projected.sum()) == pytest.approx(1.0, abs=2e-6)  # float32; a lost atom would be 0.02
    shifted = [0.0] * 51
    for j in range(51):
        shifted[min(max(j + shift, 0), 50)] += 1 / 51
    assert projected[0].tolist() == pytest.approx(shifted, abs=1e-5)


def test_projection_keeps_the_mean_of_what_lies_inside() -> None:
    support = torch.linspace(-1, 3, 9)
    targets = torch.tensor([[0.3, -0.9, 2.9, 1.0, 1.25, 0.0, -1.0, 3.0, 2.2]])
    probs = torch.tensor([[0.1, 0.2, 0.05, 0.05, 0.1, 0.2, 0.1, 0.1, 0.1]])
    projected = categorical_projection(targets, probs, support)
    assert float(projected @ support) == pytest.approx(float((targets * probs).sum()), abs=1e-6)


def test_projection_refuses_shapes_that_would_broadcast() -> None:
    support, probs = torch.linspace(0, 1, 5), torch.full((2, 5), 0.2)
    with pytest.raises(ValueError, match=r"target_probs has shape \[1, 5\], expected \[2, 5\]"):
        categorical_projection(probs, probs[:1], support)
    with pytest.raises(ValueError, match=r"target_support has shape \[2, 1\], expected \[2, 5\]"):
        categorical_projection(probs[:, :1], probs, support)
    with pytest.raises(ValueError, match="support has shape"):
        categorical_projection(probs, probs, support[None])


def test_cross_entropy_is_kl_plus_the_entropy_of_the_target_and_has_kls_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.rand(4, 7, generator=generator, dtype=torch.float64).softmax(dim=1)
    loss = cross_entropy(logits, target)
    assert loss.shape == (4,)
    kl = F.kl_div(logits.log_softmax(dim=1), target, reduction="none").sum(dim=1)
    entropy = -(target * target.log()).sum(dim=1)
    assert torch.allclose(loss, kl + entropy)
    (gradient,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    (gradient_of_kl,) = torch.autograd.grad(kl.sum(), logits)
    assert torch.allclose(gradient, gradient_of_kl)
    assert torch.allclose(gradient, logits.softmax(dim=1) - target)


def test_cross_entropy_has_no_clamp_a_hopeless_logit_still_gets_its_whole_gradient() -> None:
    logits = torch.tensor([[0.0, -1000.0]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([[0.0, 1.0]])).sum()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1000.0)
    assert logits.grad is not None and logits.grad.tolist() == [[1.0, -1.0]]


def test_cross_entropy_refuses_shapes_that_would_broadcast() -> None:
    with pytest.raises(ValueError, match=r"target_probs has shape \[3\], expected \[2, 3\]"):
        cross_entropy(torch.zeros(2, 3), torch.zeros(3))


@pytest.mark.parametrize("delta", [0.5, 1.0, 2.0])
def test_huber_is_quadratic_inside_and_linear_outside(delta: float) -> None:
    x = torch.tensor([-5.0, -delta, -0.3, 0.0, 0.2, delta, 1.7, 9.0], requires_grad=True)
    y = huber(x, delta)
    expected = [0.5 * v * v if abs(v) <= delta else delta * (abs(v) - 0.5 * delta) for v in x.tolist()]
    assert y.tolist() == pytest.approx(expected)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx([min(max(v, -delta), delta) for v in x.tolist()])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.sampled_from([0.1, 1.0, 2.5]), st.integers(0, 99))
def test_quantile_huber_equals_the_triple_loop(batch: int, n: int, m: int, kappa: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    quantiles = torch.randn(batch, n, generator=generator, dtype=torch.float64) * 2
    taus = torch.rand(batch, n, generator=generator, dtype=torch.float64)
    targets = torch.randn(batch, m, generator=generator, dtype=torch.float64) * 2
    expected = []
    for b in range(batch):
        total = 0.0
        for i in range(n):
            for j in range(m):
                u = float(targets[b, j] - quantiles[b, i])
                loss = 0.5 * u * u if abs(u) <= kappa else kappa * (abs(u) - 0.5 * kappa)
                total += abs(float(taus[b, i]) - (u < 0)) * loss / kappa
        expected.append(total / m)
    assert quantile_huber(quantiles, taus, targets, kappa).tolist() == pytest.approx(expected, abs=1e-6)


def test_quantile_huber_pulls_a_high_quantile_up_and_a_low_one_down() -> None:
    quantiles = torch.zeros(1, 2, requires_grad=True)
    taus = torch.tensor([[0.1, 0.9]])
    quantile_huber(quantiles, taus, torch.tensor([[-3.0, 3.0]])).sum().backward()
    assert quantiles.grad is not None
    assert quantiles.grad[0].tolist() == pytest.approx([0.4, -0.4])  # (0.9 - 0.1) / 2 of slope 1


def test_quantile_huber_refuses_shapes_that_would_broadcast() -> None:
    quantiles = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"taus has shape \[3\]"):
        quantile_huber(quantiles, torch.zeros(3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"targets has shape \[1, 4\], expected \[2, 4\]"):
        quantile_huber(quantiles, quantiles, torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"targets has shape \[2\]"):
        quantile_huber(quantiles, quantiles, torch.zeros(2))


def test_check_shape_names_the_tensor_and_both_shapes() -> None:
    check_shape("x", torch.zeros(2, 3), 2, 3)
    with pytest.raises(ValueError, match=r"^x has shape \[2, 3\], expected \[3, 2\]$"):
        check_shape("x", torch.zeros(2, 3), 3, 2)


def soft_policy_by_loop(q: Lists, temperature: float) -> tuple[Lists, Lists]:
    """(pi, log pi) of softmax(q / temperature), in logarithms: no policy is rounded to zero."""
    scaled = [x / temperature for x in q]
    top = max(scaled)
    log_sum = top + math.log(sum(math.exp(x - top) for x in scaled))
    return [math.exp(x - log_sum) for x in scaled], [x - log_sum for x in scaled]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(2, 6), st.integers(1, 4), st.sampled_from([0.03, 0.5, 2.0]), st.integers(0, 99))
def test_munchausen_equals_the_loop_over_actions_and_quantiles(
    batch: int, actions: int, n: int, temperature: float, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    q_tm1, q_t = torch.randn(2, batch, actions, generator=g, dtype=torch.float64)
    outputs_t = torch.randn(batch, actions, n, generator=g, dtype=torch.float64)
    a_tm1, r_t = torch.randint(0, actions, (batch,), generator=g), torch.randn(batch, generator=g, dtype=torch.float64)
    munchausen = Munchausen(alpha=0.9, temperature=temperature, clip=-1.0)
    reward, bootstrap = munchausen.reward(r_t, q_tm1, a_tm1), munchausen.bootstrap(outputs_t, q_t)
    assert reward.shape == (batch,) and bootstrap.shape == (batch, n)
    for b in range(batch):
        _, log_policy = soft_policy_by_loop(q_tm1[b].tolist(), temperature)
        bonus = max(temperature * log_policy[int(a_tm1[b])], -1.0)
        assert float(reward[b]) == pytest.approx(float(r_t[b]) + 0.9 * bonus, abs=1e-9)
        policy, log_policy = soft_policy_by_loop(q_t[b].tolist(), temperature)
        for i in range(n):
            expected = sum(
                policy[a] * (float(outputs_t[b, a, i]) - temperature * log_policy[a]) for a in range(actions)
            )
            assert float(bootstrap[b, i]) == pytest.approx(expected, abs=1e-9)


def test_munchausen_stays_finite_where_the_policy_is_zero_in_float32() -> None:
    munchausen = Munchausen()
    q = torch.tensor([[1000.0, 0.0, -1000.0]])
    assert munchausen.reward(torch.zeros(1), q, torch.tensor([2])).tolist() == pytest.approx([-0.9])  # clipped
    assert munchausen.reward(torch.zeros(1), q, torch.tensor([0])).tolist() == [0.0]
    assert munchausen.bootstrap(q[:, :, None], q).tolist() == [[1000.0]]


def test_munchausens_soft_maximum_tends_to_the_maximum_as_it_cools() -> None:
    q = torch.tensor([[0.3, 1.0, -2.0]], dtype=torch.float64)
    values = [float(Munchausen(temperature=t).bootstrap(q[:, :, None], q)) for t in (1.0, 0.1, 0.01)]
    assert values[0] > values[1] > values[2] and values[2] == pytest.approx(1.0, abs=1e-6)


def test_munchausen_refuses_shapes_that_would_broadcast() -> None:
    munchausen, q = Munchausen(), torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"r_t has shape \[2, 1\], expected \[2\]"):
        munchausen.reward(torch.zeros(2, 1), q, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"a_tm1 has shape \[1\], expected \[2\]"):
        munchausen.reward(torch.zeros(2), q, torch.tensor([0]))
    with pytest.raises(ValueError, match=r"q_t has shape \[1, 3\], expected \[2, 3\]"):
        munchausen.bootstrap(torch.zeros(2, 3, 4), q[:1])
