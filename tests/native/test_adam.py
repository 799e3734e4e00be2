"""The native Adam against torch's, in double precision where numbers are compared."""

from __future__ import annotations

import copy
import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nap_rl.nap import Projector, normalize
from nap_rl.native import Adam, Factors, Groups, Outer, library
from nap_rl.native.products import has_product

pytestmark = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")
SHAPES = [(300, 70), (300, 70), (9_001,), (4, 3, 5, 5), (1, 1), (3, 5), (3, 5)]
OUTER = {1: 0, 6: 5}  # tensor: whose gradient times an outer product is its own


def weights(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def doubles() -> list[nn.Parameter]:
    return [nn.Parameter(p.detach().double()) for p in weights()]


def give_gradients(native: Adam, mine: list[nn.Parameter], exact: list[nn.Parameter], seed: int) -> None:
    """The same gradients to both, those of OUTER as factors to `mine`."""
    generator = torch.Generator().manual_seed(seed)
    native.outer = {}
    for i, (p, q) in enumerate(zip(mine, exact, strict=True)):
        p.grad = torch.randn(p.shape, generator=generator)
        if i in OUTER:
            of = mine[OUTER[i]]
            rows, columns = (torch.randn(size, generator=generator) for size in p.shape)
            native.outer[p] = Outer(of, rows, columns)
            assert of.grad is not None
            q.grad = of.grad.double() * torch.outer(rows.double(), columns.double())
            p.grad = None
        else:
            q.grad = p.grad.double()


def close(mine: Tensor, exact: Tensor) -> None:
    torch.testing.assert_close(mine.detach().double(), exact.detach(), rtol=1e-5, atol=1e-6)


def assert_equal(results: list[tuple[float, list[nn.Parameter]]]) -> None:
    """Norms and weights, to the bit."""
    for norm, mine in results[1:]:
        assert norm == results[0][0]
        assert all(torch.equal(p, q) for p, q in zip(mine, results[0][1], strict=True))


def test_steps_are_those_of_torch_and_so_are_norms_and_moments() -> None:
    mine, exact = weights(), doubles()
    native, plain = Adam(mine, lr=3e-3, eps=1e-4), torch.optim.Adam(exact, lr=3e-3, eps=1e-4)
    for step in range(6):
        native.param_groups[0]["lr"] = plain.param_groups[0]["lr"] = 3e-3 / (step + 1)
        give_gradients(native, mine, exact, step)
        norm = torch.nn.utils.get_total_norm([q.grad for q in exact if q.grad is not None])
        native.step(), plain.step()
        assert native.gradient_norm == pytest.approx(float(norm), rel=1e-6)
        for p, q in zip(mine, exact, strict=True):
            close(p, q)
            close(native.state[p]["exp_avg"], plain.state[q]["exp_avg"])
            close(native.state[p]["exp_avg_sq"], plain.state[q]["exp_avg_sq"])
            assert float(native.state[p]["step"]) == step + 1


def test_weights_and_moments_that_moved_in_memory_are_found_again() -> None:
    """What stays as it is from step to step is laid out once."""
    mine, exact = weights(), doubles()
    native, plain = Adam(mine, lr=3e-3, eps=1e-4), torch.optim.Adam(exact, lr=3e-3, eps=1e-4)
    kept = []
    for step in range(5):
        give_gradients(native, mine, exact, step)
        if step == 1:
            kept = [p.data for p in mine]  # whose memory nobody else gets
            for p in mine:
                p.data = p.data.clone()
        if step == 2:
            native.load_state_dict(copy.deepcopy(native.state_dict()))
        if step == 3:  # a gradient that was a product is given as any other, and back
            native.complete_gradients()
            assert not native.outer
        native.projected = Groups({mine[2]: 0}, [float(mine[2].norm()) if step < 4 else 3.0])
        native.step(), plain.step()
        with torch.no_grad():
            exact[2] *= float(mine[2].norm()) / exact[2].norm()
        for p, q in zip(mine, exact, strict=True):
            close(p, q)
    assert float(mine[2].norm()) == pytest.approx(3.0) and kept[0].data_ptr() != mine[0].data_ptr()


def test_a_weight_that_is_turned_where_it_lies_is_refused() -> None:
    weight = nn.Parameter(torch.randn(4, 4))
    native = Adam([weight], lr=1e-2, eps=1e-8)
    weight.grad = torch.ones(4, 4)
    native.step()
    weight.data = weight.data.t()
    with pytest.raises(ValueError, match=r"a weight \[4, 4\] is torch.float32, expected contiguous float32"):
        native.step()


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_gradients_are_clipped_in_the_step_and_completed_for_whoever_looks(max_norm: float) -> None:
    mine, exact = weights(), doubles()
    native, plain = Adam(mine, lr=1e-2, eps=1e-2), torch.optim.Adam(exact, lr=1e-2, eps=1e-2)
    give_gradients(native, mine, exact, 0)
    native.max_norm = max_norm
    norm = torch.nn.utils.clip_grad_norm_(exact, max_norm)
    native.step(), plain.step()
    assert native.gradient_norm == pytest.approx(float(norm), rel=1e-6)
    for p, q in zip(mine, exact, strict=True):
        close(p, q)
    native.complete_gradients()
    native.complete_gradients()  # twice changes nothing
    for p, q in zip(mine, exact, strict=True):
        assert p.grad is not None and q.grad is not None
        close(p.grad, q.grad)


def test_groups_are_brought_to_their_norms_after_the_step() -> None:
    mine, exact = weights(), doubles()
    native, plain = Adam(mine, lr=1e-2, eps=1e-2), torch.optim.Adam(exact, lr=1e-2, eps=1e-2)
    give_gradients(native, mine, exact, 0)
    native.projected = Groups({mine[0]: 1, mine[1]: 1, mine[2]: 0}, [3.0, 7.0])
    native.step(), plain.step()
    assert native.projected is None
    with torch.no_grad():
        exact[2] *= 3.0 / exact[2].norm()
        factor = 7.0 / (exact[0].square().sum() + exact[1].square().sum()).sqrt()
        exact[0] *= factor
        exact[1] *= factor
    for p, q in zip(mine, exact, strict=True):
        close(p, q)


def test_a_group_of_which_a_weight_gets_no_gradient_is_left_to_the_projector() -> None:
    mine = weights()
    native = Adam(mine, lr=1e-2, eps=1e-2)
    mine[0].grad = torch.ones_like(mine[0])
    asked = native.projected = Groups({mine[0]: 0, mine[1]: 0}, [3.0])
    native.step()
    assert native.projected is asked and mine[0].norm() > 3.0


def test_any_count_of_threads_gives_the_same_bits() -> None:
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            mine = weights()
            native = Adam(mine, lr=1e-2, eps=1e-8)
            give_gradients(native, mine, doubles(), 1)
            native.projected = Groups({mine[0]: 0, mine[1]: 0, mine[2]: 1}, [3.0, 7.0])
            native.step()
            results.append((native.gradient_norm, mine))
    finally:
        torch.set_num_threads(threads)
    assert_equal(results)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 5_000), seed=st.integers(0, 2**16))
def test_every_element_of_every_shape_is_reached_once(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    p = nn.Parameter(torch.randn(rows, columns, generator=generator))
    before, p.grad = p.detach().clone(), torch.randn(rows, columns, generator=generator)
    native = Adam([p], lr=0.5, eps=0.0)
    native.step()  # the first step of Adam is lr * sign(g)
    torch.testing.assert_close(p.detach(), before - 0.5 * p.grad.sign(), rtol=1e-4, atol=1e-4)
    assert native.gradient_norm == pytest.approx(math.sqrt(float(p.grad.double().square().sum())), rel=1e-9)


def test_state_goes_over_to_torch_and_back_and_a_cleared_one_begins_anew() -> None:
    mine, exact, theirs = weights(), doubles(), weights()
    native, plain = Adam(mine, lr=1e-3, eps=1e-5), torch.optim.Adam(theirs, lr=1e-3, eps=1e-5)
    give_gradients(native, mine, exact, 3)
    for p, q in zip(theirs, exact, strict=True):
        assert q.grad is not None
        p.grad = q.grad.float()
    native.step(), plain.step()
    swapped = native.state_dict()["state"], plain.state_dict()["state"]
    native.load_state_dict({**native.state_dict(), "state": swapped[1]})
    plain.load_state_dict({**plain.state_dict(), "state": swapped[0]})
    native.step(), plain.step()
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    native.state.clear()
    native.step()
    assert {float(native.state[p]["step"]) for p in mine} == {1.0}


def test_parameters_without_a_gradient_stay_and_have_no_moments() -> None:
    mine = weights()
    native = Adam(mine, lr=1e-2, eps=1e-8)
    mine[0].grad = torch.ones_like(mine[0])
    native.outer = {mine[6]: Outer(mine[5], torch.ones(3), torch.ones(5))}  # of one that has none
    native.step()
    assert set(native.state) == {mine[0]}
    for p, q in zip(mine[1:], weights()[1:], strict=True):
        assert torch.equal(p, q)


def test_not_a_number_stays_one() -> None:
    p = nn.Parameter(torch.ones(3))
    native, p.grad = Adam([p], lr=1e-2, eps=1e-8), torch.tensor([0.0, torch.nan, 1.0])
    native.step()
    assert math.isnan(native.gradient_norm)
    assert p.isnan().tolist() == [False, True, False]


def test_weights_of_another_kind_are_refused() -> None:
    p = nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=r"a weight \[2, 3\] is torch.float64, expected contiguous float32 on the CPU"):
        Adam([p], lr=1e-2, eps=1e-8).step()


def test_a_second_group_of_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="the native Adam has one group of parameters"):
        Adam(weights(), lr=1e-2, eps=1e-8).add_param_group({"params": weights()})


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("scope", ["tensor", "unit"])
@pytest.mark.parametrize("affine", ["project", "regularize"])
def test_the_projector_lets_it_project_and_arrives_at_the_same_weights(
    every: int, scope: Literal["tensor", "unit"], affine: Literal["project", "regularize"]
) -> None:
    def trained(native: bool) -> tuple[nn.Module, Projector]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(20, 300), nn.ReLU(), nn.Linear(300, 70), nn.ReLU(), nn.Linear(70, 2))
        x = torch.randn(16, 20)
        normalize(net, x)
        kind = Adam if native else torch.optim.Adam
        optimizer = kind(net.parameters(), lr=1e-2, eps=1e-5)
        projector = Projector(net, optimizer, every=every, scope=scope, affine=affine)
        for _ in range(6):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
        return net, projector

    (mine, projector), (plain, _) = trained(native=True), trained(native=False)
    assert projector.max_relative_drift() < 1e-6
    for p, q in zip(mine.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def left(factor: Tensor) -> Tensor:
    """A tensor that a backward pass left this in."""
    left_in = torch.empty_like(factor, requires_grad=True)
    left_in.grad = factor
    return left_in


@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 40),
    height=st.integers(1, 5),
    length=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    max_norm=st.sampled_from([None, 0.5]),
    together=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_gradients_given_as_factors_are_their_product(
    batch: int, height: int, length: int, dtype: torch.dtype, max_norm: float | None, together: bool, seed: int
) -> None:
    """Those of a weight and of another that is an outer product of it, in one projected group or in two."""
    if not has_product(32 * length, 16 * height, dtype):
        pytest.skip("this CPU has no native products of this type")
    generator = torch.Generator().manual_seed(seed)
    mine = [nn.Parameter(torch.randn(16 * height, 32 * length, generator=generator)) for _ in range(3)]
    exact = [nn.Parameter(p.detach().double()) for p in mine]
    native, plain = Adam(mine, lr=1e-2, eps=1e-2), torch.optim.Adam(exact, lr=1e-2, eps=1e-2)
    native.max_norm = max_norm
    groups = [0, 0, 0] if together else [0, 1, 2]
    for _ in range(3):
        dy, x = (torch.randn(batch, n, generator=generator).to(dtype) for n in mine[0].shape)
        rows, columns = (torch.randn(n, generator=generator) for n in mine[0].shape)
        mine[0].grad = mine[1].grad = None
        mine[2].grad = torch.randn(mine[2].shape, generator=generator)
        native.factors = {mine[0]: Factors(left(dy), left(x))}
        native.outer = {mine[1]: Outer(mine[0], rows, columns)}
        exact[0].grad = dy.double().t() @ x.double()
        exact[1].grad = exact[0].grad * torch.outer(rows.double(), columns.double())
        exact[2].grad = mine[2].grad.double()
        norm = torch.nn.utils.clip_grad_norm_(exact, float("inf") if max_norm is None else max_norm)
        native.projected = Groups(dict(zip(mine, groups, strict=True)), [3.0] * (max(groups) + 1))
        native.step(), plain.step()
        assert native.gradient_norm == pytest.approx(float(norm), rel=1e-5)
        with torch.no_grad():
            for group in set(groups):
                of = [q for q, number in zip(exact, groups, strict=True) if number == group]
                total = torch.nn.utils.get_total_norm(of)
                for q in of:
                    q *= 3.0 / total
        for p, q in zip(mine, exact, strict=True):
            close(p, q)
            close(native.state[p]["exp_avg"], plain.state[q]["exp_avg"])
    native.complete_gradients()
    assert not native.factors
    for p, q in zip(mine, exact, strict=True):
        assert p.grad is not None and q.grad is not None
        torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-4, atol=1e-4)


def test_factors_give_the_same_numbers_for_any_count_of_threads() -> None:
    if not has_product(512, 320, torch.float32):
        pytest.skip("this CPU has no native products")
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            generator = torch.Generator().manual_seed(0)
            mine = [nn.Parameter(torch.randn(320, 512, generator=generator)) for _ in range(2)]
            native = Adam(mine, lr=1e-2, eps=1e-2)
            native.max_norm = 1.0
            dy, x, rows, columns = (torch.randn(n, generator=generator) for n in ((7, 320), (7, 512), (320,), (512,)))
            native.factors = {mine[0]: Factors(left(dy), left(x))}
            native.outer = {mine[1]: Outer(mine[0], rows, columns)}
            native.projected = Groups(dict.fromkeys(mine, 0), [3.0])
            native.step()
            results.append((native.gradient_norm, mine))
    finally:
        torch.set_num_threads(threads)
    assert_equal(results)


def test_factors_that_no_backward_pass_left_are_an_error_and_no_step_without_them() -> None:
    weight = nn.Parameter(torch.randn(16, 32))
    native = Adam([weight], lr=1e-2, eps=1e-8)
    native.factors = {weight: Factors(*(torch.empty(4, n, requires_grad=True) for n in weight.shape))}
    with pytest.raises(AssertionError, match="no backward pass left them"):
        native.step()
