"""Heads against plain Python: expected values, losses and priorities."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nap_rl.nn import Categorical, ExpectedValue, Head, ImplicitQuantile, Quantile, Target
from nap_rl.nn.heads import select

HEADS = [ExpectedValue(), Categorical(11, -2.0, 2.0), Quantile(5)]
BATCH, ACTIONS = 6, 3


def batch(head: Head, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(outputs_tm1, a_tm1, r_t, discount_t, outputs_t, a_t): the last four are a `Target`."""
    g = torch.Generator().manual_seed(seed)
    outputs_tm1, outputs_t = torch.randn(2, BATCH, ACTIONS, head.outputs, generator=g)
    a_tm1, a_t = torch.randint(0, ACTIONS, (2, BATCH), generator=g)
    r_t = torch.randn(BATCH, generator=g)
    discount_t = torch.tensor([0.99**3, 0.0, 0.99**3, 0.99, 0.0, 1.0])
    return outputs_tm1, a_tm1, r_t, discount_t, outputs_t, a_t


def softmax(logits: list[float]) -> list[float]:
    exponentials = [math.exp(x) for x in logits]
    return [x / sum(exponentials) for x in exponentials]


def test_select_takes_the_outputs_of_each_rows_own_action() -> None:
    outputs = torch.arange(24).view(2, 4, 3)
    assert select(outputs, torch.tensor([3, 1])).tolist() == [[9, 10, 11], [15, 16, 17]]


def test_expected_values_of_c51_are_the_means_of_its_softmax_over_its_support() -> None:
    head = Categorical(51, -10.0, 10.0)
    assert head.support.tolist() == pytest.approx([-10 + 0.4 * i for i in range(51)], abs=1e-5)
    outputs = torch.randn(2, 3, 51, generator=torch.Generator().manual_seed(0))
    q = head.q_values(outputs)
    for b in range(2):
        for a in range(3):
            p = softmax(outputs[b, a].tolist())
            expected = sum(p_i * (-10 + 0.4 * i) for i, p_i in enumerate(p))
            assert float(q[b, a]) == pytest.approx(expected, abs=1e-5)


def test_expected_values_of_quantiles_are_their_means_and_of_one_output_itself() -> None:
    outputs = torch.tensor([[[1.0, 2.0, 6.0], [0.0, -3.0, 3.0]]])
    assert Quantile(3).q_values(outputs).tolist() == [[3.0, 0.0]]
    assert ExpectedValue().q_values(torch.tensor([[[1.5], [-2.0]]])).tolist() == [[1.5, -2.0]]


def test_a_distribution_is_the_softmax_over_the_support_or_equal_shares_of_the_quantiles() -> None:
    support = Categorical(3, -1.0, 1.0).distribution(torch.zeros(1, 2, 3))
    assert support is not None
    assert support[0].tolist() == [[[-1.0, 0.0, 1.0]] * 2] and support[1][0, 1].tolist() == pytest.approx([1 / 3] * 3)
    for head in (Quantile(4), ImplicitQuantile()):
        quantiles = torch.tensor([[[1.0, 2.0, 6.0, 7.0]]])
        returns, probabilities = head.distribution(quantiles)
        assert torch.equal(returns, quantiles) and probabilities.tolist() == [[[0.25] * 4]]
    assert ExpectedValue().distribution(torch.zeros(1, 2, 1)) is None


def test_quantile_levels_are_the_middles_of_equal_shares() -> None:
    assert Quantile(4).taus.tolist() == [0.125, 0.375, 0.625, 0.875]


def test_expected_value_loss_is_huber_of_the_td_error_and_the_priority_its_size() -> None:
    head = ExpectedValue()
    outputs_tm1, a_tm1, r_t, discount_t, outputs_t, a_t = batch(head)
    loss, priority = head.loss(outputs_tm1, a_tm1, Target(r_t * 3, discount_t, outputs_t, a_t))
    for b in range(BATCH):
        target = 3 * float(r_t[b]) + float(discount_t[b]) * float(outputs_t[b, a_t[b], 0])
        error = abs(target - float(outputs_tm1[b, a_tm1[b], 0]))
        assert float(priority[b]) == pytest.approx(error, abs=1e-6)
        assert float(loss[b]) == pytest.approx(0.5 * error**2 if error <= 1 else error - 0.5, abs=1e-6)


def test_categorical_loss_and_priority_are_the_cross_entropy_from_the_projected_target() -> None:
    head = Categorical(11, -2.0, 2.0)
    outputs_tm1, a_tm1, r_t, discount_t, outputs_t, a_t = batch(head)
    loss, priority = head.loss(outputs_tm1, a_tm1, Target(r_t, discount_t, outputs_t, a_t))
    for b in range(BATCH):
        target = [0.0] * 11
        for j, p in enumerate(softmax(outputs_t[b, a_t[b]].tolist())):
            z = min(max(float(r_t[b]) + float(discount_t[b]) * (-2 + 0.4 * j), -2.0), 2.0)
            position = (z + 2) / 0.4
            lower = min(math.floor(position), 10)
            target[lower] += p * (1 - (position - lower))
            target[min(lower + 1, 10)] += p * (position - lower)
        q = softmax(outputs_tm1[b, a_tm1[b]].tolist())
        expected = -sum(t * math.log(x) for t, x in zip(target, q, strict=True))
        assert float(loss[b]) == pytest.approx(expected, abs=1e-5)
    assert torch.equal(priority, loss.detach())


def test_quantile_loss_and_priority_compare_every_quantile_with_every_target() -> None:
    head = Quantile(5, kappa=0.7)
    outputs_tm1, a_tm1, r_t, discount_t, outputs_t, a_t = batch(head)
    loss, priority = head.loss(outputs_tm1, a_tm1, Target(r_t, discount_t, outputs_t, a_t))
    for b in range(BATCH):
        total = 0.0
        for i in range(5):
            for j in range(5):
                target = float(r_t[b]) + float(discount_t[b]) * float(outputs_t[b, a_t[b], j])
                u = target - float(outputs_tm1[b, a_tm1[b], i])
                h = 0.5 * u * u if abs(u) <= 0.7 else 0.7 * (abs(u) - 0.35)
                total += abs((i + 0.5) / 5 - (u < 0)) * h / 0.7
        assert float(loss[b]) == pytest.approx(total / 5, abs=1e-5)
    assert torch.equal(priority, loss.detach())


def test_implicit_quantile_loss_compares_every_drawn_level_with_every_target_sample() -> None:
    head, n, n_target = ImplicitQuantile(kappa=0.7), 3, 4
    assert head.outputs == 1 and head.tau_counts == {"s_tm1": 64, "s_t": 64, "policy": 32}
    g = torch.Generator().manual_seed(1)
    outputs_tm1, outputs_t = (
        torch.randn(BATCH, ACTIONS, n, generator=g),
        torch.randn(BATCH, ACTIONS, n_target, generator=g),
    )
    taus = torch.rand(BATCH, n, generator=g)
    _, a_tm1, r_t, discount_t, _, a_t = batch(ExpectedValue())
    loss, priority = head.loss(outputs_tm1, a_tm1, Target(r_t, discount_t, outputs_t, a_t), taus)
    for b in range(BATCH):
        total = 0.0
        for i in range(n):
            for j in range(n_target):
                target = float(r_t[b]) + float(discount_t[b]) * float(outputs_t[b, a_t[b], j])
                u = target - float(outputs_tm1[b, a_tm1[b], i])
                h = 0.5 * u * u if abs(u) <= 0.7 else 0.7 * (abs(u) - 0.35)
                total += abs(float(taus[b, i]) - (u < 0)) * h / 0.7
        assert float(loss[b]) == pytest.approx(total / n_target, abs=1e-5)
    assert torch.equal(priority, loss.detach())
    assert torch.allclose(head.q_values(outputs_t), sum(outputs_t.unbind(dim=2)) / n_target)
    with pytest.raises(ValueError, match="needs the levels"):
        head.loss(outputs_tm1, a_tm1, Target(r_t, discount_t, outputs_t, a_t))


@pytest.mark.parametrize("head", HEADS, ids=lambda h: type(h).__name__)
def test_the_target_gets_no_gradient_and_the_priority_carries_none(head: Head) -> None:
    outputs_tm1, a_tm1, r_t, discount_t, outputs_t, a_t = batch(head)
    outputs_tm1.requires_grad_()
    outputs_t.requires_grad_()
    loss, priority = head.loss(outputs_tm1, a_tm1, Target(r_t, discount_t, outputs_t, a_t))
    assert loss.shape == priority.shape == (BATCH,)
    assert not priority.requires_grad and bool((priority >= 0).all())
    loss.sum().backward()
    assert outputs_t.grad is None and outputs_tm1.grad is not None
    of_others = outputs_tm1.grad.clone()
    of_others[torch.arange(BATCH), a_tm1] = 0.0
    assert not of_others.any()
    assert outputs_tm1.grad[torch.arange(BATCH), a_tm1].any()


@pytest.mark.parametrize("head", HEADS, ids=lambda h: type(h).__name__)
def test_a_zero_discount_bootstraps_from_nothing(head: Head) -> None:
    outputs_tm1, a_tm1, r_t, _, outputs_t, a_t = batch(head)
    zero = torch.zeros(BATCH)
    ended = head.loss(outputs_tm1, a_tm1, Target(r_t, zero, outputs_t, a_t))[0]
    other = head.loss(outputs_tm1, a_tm1, Target(r_t, zero, outputs_t.flip(0) * 3, a_t.flip(0)))[0]
    assert torch.allclose(ended, other, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "wrong", "sentence"),
    [
        (
            "r_t",
            torch.zeros(BATCH, 1),
            r"r_t is torch.float32 of shape \[6, 1\], expected torch.float32 of shape \[6\]",
        ),
        ("discount_t", torch.ones(BATCH, dtype=torch.float64), "discount_t is torch.float64 of shape"),
        (
            "outputs_t",
            torch.zeros(BATCH, ACTIONS),
            r"outputs_t is .* expected torch.float32 of shape \[6, 'any', 'any'\]",
        ),
        ("outputs_t", torch.zeros(BATCH - 1, ACTIONS, 1), "outputs_t is torch.float32 of shape"),
        ("a_t", torch.zeros(BATCH), r"a_t is torch.float32 of shape \[6\], expected torch.int64 of shape \[6\]"),
    ],
)
def test_a_target_of_another_shape_or_dtype_is_refused_by_name(name: str, wrong: Tensor, sentence: str) -> None:
    outputs_tm1, a_tm1, *rest = batch(ExpectedValue())
    with pytest.raises(ValueError, match=sentence):
        ExpectedValue().loss(outputs_tm1, a_tm1, Target(*rest)._replace(**{name: wrong}))


@pytest.mark.parametrize("setting", [(1, -1.0, 1.0), (51, 1.0, 1.0), (51, 2.0, -2.0)])
def test_a_support_that_is_none_is_refused(setting: tuple[int, float, float]) -> None:
    with pytest.raises(ValueError, match="needs 2 atoms or more and v_min < v_max"):
        Categorical(*setting)
