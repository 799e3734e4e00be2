"""The native Adam against torch's, in double precision where numbers are compared."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nap_rl.nap import Projector, normalize
from nap_rl.nap.project import Group
from nap_rl.native import library
from nap_rl.native.adam import NativeAdam, NativeProjector

pytestmark = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")
SHAPES = [(300, 70), (300, 70), (9_001,), (4, 3, 5, 5), (1, 1), (3, 5), (3, 5)]


def make_native(parameters: Sequence[Tensor], lr: float, eps: float) -> NativeAdam:
    return NativeAdam.of(torch.optim.Adam(parameters, lr=lr, eps=eps))


class Groups:
    """What a step is to project, as a `NativeProjector` says it; due at every step."""

    due = True

    def __init__(self, *groups: tuple[list[nn.Parameter], float]) -> None:
        self.groups = tuple(Group(tuple(tensors), norm) for tensors, norm in groups)
        self.projected_by_step = False

    def whole_groups(self) -> tuple[Group, ...]:
        return self.groups


def project(native: NativeAdam, *groups: tuple[list[nn.Parameter], float]) -> Groups:
    native.projector = said = Groups(*groups)  # type: ignore[assignment]
    return said


def weights(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def doubles() -> list[nn.Parameter]:
    return [nn.Parameter(p.detach().double()) for p in weights()]


def give_gradients(mine: list[nn.Parameter], exact: list[nn.Parameter], seed: int) -> None:
    """The same gradients to both."""
    generator = torch.Generator().manual_seed(seed)
    for p, q in zip(mine, exact, strict=True):
        p.grad = torch.randn(p.shape, generator=generator)
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
    native, plain = make_native(mine, lr=3e-3, eps=1e-4), torch.optim.Adam(exact, lr=3e-3, eps=1e-4)
    for step in range(6):
        native.param_groups[0]["lr"] = plain.param_groups[0]["lr"] = 3e-3 / (step + 1)
        give_gradients(mine, exact, step)
        norm = torch.nn.utils.get_total_norm([q.grad for q in exact if q.grad is not None])
        native.step(), plain.step()
        assert native.grad_norm == pytest.approx(float(norm), rel=1e-6)
        for p, q in zip(mine, exact, strict=True):
            close(p, q)
            close(native.state[p]["exp_avg"], plain.state[q]["exp_avg"])
            close(native.state[p]["exp_avg_sq"], plain.state[q]["exp_avg_sq"])
            assert float(native.state[p]["step"]) == step + 1


def test_weights_and_moments_that_moved_in_memory_are_found_again() -> None:
    """What stays as it is from step to step is laid out once."""
    mine, exact = weights(), doubles()
    native, plain = make_native(mine, lr=3e-3, eps=1e-4), torch.optim.Adam(exact, lr=3e-3, eps=1e-4)
    kept = []
    for step in range(5):
        give_gradients(mine, exact, step)
        if step == 1:
            kept = [p.data for p in mine]  # whose memory nobody else gets
            for p in mine:
                p.data = p.data.clone()
        if step == 2:
            native.load_state_dict(copy.deepcopy(native.state_dict()))
        project(native, ([mine[2]], float(mine[2].detach().norm()) if step < 4 else 3.0))
        native.step(), plain.step()
        with torch.no_grad():
            exact[2] *= float(mine[2].norm()) / exact[2].norm()
        for p, q in zip(mine, exact, strict=True):
            close(p, q)
    assert float(mine[2].norm()) == pytest.approx(3.0) and kept[0].data_ptr() != mine[0].data_ptr()


def test_a_weight_that_is_turned_where_it_lies_is_refused() -> None:
    weight = nn.Parameter(torch.randn(4, 4))
    native = make_native([weight], lr=1e-2, eps=1e-8)
    weight.grad = torch.ones(4, 4)
    native.step()
    weight.data = weight.data.t()
    with pytest.raises(ValueError, match=r"a weight \[4, 4\] is torch.float32, expected contiguous float32"):
        native.step()


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_gradients_are_clipped_in_the_step_and_clipped_in_grad_afterwards(max_norm: float) -> None:
    mine, exact = weights(), doubles()
    native, plain = make_native(mine, lr=1e-2, eps=1e-2), torch.optim.Adam(exact, lr=1e-2, eps=1e-2)
    give_gradients(mine, exact, 0)
    native.max_norm = max_norm
    norm = torch.nn.utils.clip_grad_norm_(exact, max_norm)
    native.step(), plain.step()
    assert native.grad_norm == pytest.approx(float(norm), rel=1e-6)
    for p, q in zip(mine, exact, strict=True):
        close(p, q)
    for p, q in zip(mine, exact, strict=True):
        assert p.grad is not None and q.grad is not None
        close(p.grad, q.grad)


def test_groups_are_brought_to_their_norms_after_the_step() -> None:
    mine, exact = weights(), doubles()
    native, plain = make_native(mine, lr=1e-2, eps=1e-2), torch.optim.Adam(exact, lr=1e-2, eps=1e-2)
    give_gradients(mine, exact, 0)
    said = project(native, ([mine[2]], 3.0), ([mine[0], mine[1]], 7.0))
    native.step(), plain.step()
    assert said.projected_by_step
    with torch.no_grad():
        exact[2] *= 3.0 / exact[2].norm()
        factor = 7.0 / (exact[0].square().sum() + exact[1].square().sum()).sqrt()
        exact[0] *= factor
        exact[1] *= factor
    for p, q in zip(mine, exact, strict=True):
        close(p, q)


def test_a_group_of_which_a_weight_gets_no_gradient_is_left_to_the_projector() -> None:
    mine = weights()
    native = make_native(mine, lr=1e-2, eps=1e-2)
    mine[0].grad = torch.ones_like(mine[0])
    said = project(native, ([mine[0], mine[1]], 3.0))
    native.step()
    assert not said.projected_by_step and mine[0].norm() > 3.0


def test_any_count_of_threads_gives_the_same_bits() -> None:
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            mine = weights()
            native = make_native(mine, lr=1e-2, eps=1e-8)
            give_gradients(mine, doubles(), 1)
            project(native, ([mine[0], mine[1]], 3.0), ([mine[2]], 7.0))
            native.step()
            results.append((native.grad_norm, mine))
    finally:
        torch.set_num_threads(threads)
    assert_equal(results)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 5_000), seed=st.integers(0, 2**16))
def test_every_element_of_every_shape_is_reached_once(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    p = nn.Parameter(torch.randn(rows, columns, generator=generator))
    before, p.grad = p.detach().clone(), torch.randn(rows, columns, generator=generator)
    native = make_native([p], lr=0.5, eps=0.0)
    native.step()  # the first step of Adam is lr * sign(g)
    torch.testing.assert_close(p.detach(), before - 0.5 * p.grad.sign(), rtol=1e-4, atol=1e-4)
    assert native.grad_norm == pytest.approx(math.sqrt(float(p.grad.double().square().sum())), rel=1e-9)


def test_state_goes_over_to_torch_and_back_and_a_cleared_one_begins_anew() -> None:
    mine, exact, theirs = weights(), doubles(), weights()
    native, plain = make_native(mine, lr=1e-3, eps=1e-5), torch.optim.Adam(theirs, lr=1e-3, eps=1e-5)
    give_gradients(mine, exact, 3)
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
    native = make_native(mine, lr=1e-2, eps=1e-8)
    mine[0].grad = torch.ones_like(mine[0])
    native.step()
    assert set(native.state) == {mine[0]}
    for p, q in zip(mine[1:], weights()[1:], strict=True):
        assert torch.equal(p, q)


def test_not_a_number_stays_one() -> None:
    p = nn.Parameter(torch.ones(3))
    native, p.grad = make_native([p], lr=1e-2, eps=1e-8), torch.tensor([0.0, torch.nan, 1.0])
    native.step()
    assert math.isnan(native.grad_norm)
    assert p.isnan().tolist() == [False, True, False]


def test_weights_of_another_kind_are_refused() -> None:
    p = nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=r"a weight \[2, 3\] is torch.float64, expected contiguous float32 on the CPU"):
        make_native([p], lr=1e-2, eps=1e-8).step()


def test_a_second_group_of_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="the native Adam has one group of parameters"):
        make_native(weights(), lr=1e-2, eps=1e-8).add_param_group({"params": weights()})


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
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, eps=1e-5)
        projector = Projector(net, optimizer, every=every, scope=scope, affine=affine)
        if native:
            projector.__class__ = NativeProjector
            NativeAdam.of(optimizer).projector = projector  # type: ignore[assignment]
        for _ in range(6):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
        return net, projector

    (mine, projector), (plain, _) = trained(native=True), trained(native=False)
    assert projector.max_relative_drift() < 1e-6
    for p, q in zip(mine.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
