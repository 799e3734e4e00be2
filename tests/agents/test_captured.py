"""A captured update is the update: on a GPU in tests/gpu; here, where none is needed, what a capture forbids.

`Recording` does what a CUDA graph does, with the operators of the CPU. It keeps every operator that touched memory, and
repeats them on the same memory: Python does not run again, so numbers and decisions stay what they were, and a tensor
that was replaced instead of changed is not seen. An operator that would hand a number to the host, or one of the host's
to a GPU, ends it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nap_rl import cli
from nap_rl.agents import ValueAgent
from nap_rl.agents.captured import WARM_UP, Captured
from nap_rl.agents.wrapping import capture_agent
from nap_rl.conf import build, schema
from nap_rl.conf.check import to_config
from nap_rl.nn import QNetwork
from nap_rl.replay import Replay, Transitions

Make = Callable[..., ValueAgent]
aten = torch.ops.aten
HOST = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.lift_fresh, aten.is_nonzero, aten.equal}


class Recording(TorchDispatchMode):
    """Stands for torch.cuda.CUDAGraph and its capture. What was recorded has also run, so the first replay rests."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.has_run = True

    def register_generator_state(self, generator: torch.Generator) -> None: ...

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in HOST:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        results = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, results))
        return results

    @torch.no_grad()
    def replay(self) -> None:
        if self.has_run:
            self.has_run = False
            return
        for func, args, kwargs, results in self.calls:
            returned = func._schema.returns
            may_be_view = any(each.alias_info is not None and not each.alias_info.is_write for each in returned)
            if may_be_view and lies_in(results, args):
                continue  # where it lay
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old is not new:
                    old.copy_(new)


def lies_in(results: Any, args: Any) -> bool:
    """Whether the results are views; `reshape` gives one or a copy."""
    memory = {each.untyped_storage().data_ptr() for each in tree_leaves(args) if isinstance(each, Tensor)}
    return all(each.untyped_storage().data_ptr() in memory for each in tree_leaves(results))


@contextlib.contextmanager
def capturing(graph: Recording, stream: object) -> Iterator[None]:
    """A tensor that does not say where it is to be made would be the host's: here it has no memory, and no use."""
    with graph, torch.device("meta"):
        yield


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda as far as `Captured` uses it."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recording)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(Transitions, "to", lambda batch, device: batch)


def step(replay: Replay, rng: np.random.Generator, first: bool) -> None:
    frames = rng.integers(0, 256, (2, 84, 84)).astype(np.uint8)
    replay.add(frames, rng.integers(0, 4, 2), rng.normal(size=2), np.ones(2), np.full(2, first))


@pytest.fixture
def make(rainbow: Callable[..., ValueAgent]) -> Make:
    """An agent whose gradients are clipped without a look at their norm, as on a GPU."""

    def make(captured: bool, tensor_rate: bool = True) -> ValueAgent:
        def optimize(network: QNetwork) -> torch.optim.Optimizer:
            rate = torch.tensor(1e-4) if tensor_rate else 1e-4
            return torch.optim.Adam(network.parameters(), lr=rate, eps=1.5e-4, fused=True)

        agent = rainbow(optimize, target_every_updates=6, max_grad_norm=0.5)
        if captured:
            capture_agent(agent)
        agent.device = torch.device("cuda")
        return agent

    return make


def train(agent: ValueAgent, updates: int, before: Callable[[int], None] = lambda update: None) -> list[float]:
    """Updates between steps of the environments, with a learning rate and an exponent that change."""
    rng, found = np.random.default_rng(1), []
    for k in range(updates):
        before(k)
        step(agent.replay, rng, k % 10 == 0)
        agent.set_learning_rate(1e-4 * (1 + k))
        found += [float(value) for value in agent.update(0.4 + 0.05 * k)]
    return found


def recordings(function: object) -> list[Recording]:
    assert isinstance(function, Captured)
    return [each.recorded for each in function._graphs.values() if isinstance(each.recorded, Recording)]


def everything(agent: ValueAgent) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in {**agent.network.state_dict(), **agent.replay.state_dict()}.items():
        yield name, tensor
    for name, tensor in agent.target.state_dict().items():
        yield f"target.{name}", tensor
    for index, moments in agent.optimizer.state_dict()["state"].items():
        yield from ((f"{index}.{name}", moment) for name, moment in moments.items())
    yield "noise", agent.generator.get_state()


def assert_same(found: ValueAgent, expected: ValueAgent) -> None:
    for (name, a), (_, b) in zip(everything(found), everything(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.usefixtures("recorded")
def test_captured_updates_are_the_uncaptured_ones(make: Make) -> None:
    captured, plain = make(captured=True), make(captured=False)
    np.testing.assert_allclose(train(captured, 14), train(plain, 14), rtol=1e-5)
    (recording,) = recordings(captured.gradient_step)
    assert recording.calls and not recording.has_run  # it was replayed, and not once
    assert_same(captured, plain)


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize(
    "overrides",
    [
        ["agent=dqn"],
        pytest.param(["agent=qr_dqn"], marks=pytest.mark.slow),
        ["agent=iqn"],
        pytest.param(["agent=munchausen"], marks=pytest.mark.slow),
        ["agent=rainbow", "nap.affine=regularize"],
        ["agent=rainbow", "nap.norm=rms", "precision=bf16"],
    ],
)
def test_every_agent_can_be_captured(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    schema.register()
    cli.register_resolvers()
    small = [
        "replay.capacity=200",
        "agent.min_replay_steps=100",
        "env.num_envs=2",
        "agent.torso=data_efficient",
        "agent.hidden=32",
    ]
    common = [*small, "agent.batch_size=8", "agent.nap=true", "device=cpu", "compile=off", *overrides]
    found = []
    for captured in (True, False):
        agent, _ = build.build_agent(to_config(cli.compose("config", common)), 4, torch.device("cpu"))
        agent.optimizer.param_groups[0]["lr"] = torch.tensor(1e-4)
        rng = np.random.default_rng(0)
        for k in range(90):
            step(agent.replay, rng, k % 30 == 0)
        if captured:
            function = Captured(agent.gradient_step, agent.device, [agent.generator, agent.replay.generator])
            monkeypatch.setattr(agent, "gradient_step", function)
        agent.max_grad_norm = None  # clipping reads the norm on a CPU
        found.append(train(agent, 7))
        assert not captured or recordings(agent.gradient_step)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


@pytest.mark.usefixtures("recorded")
def test_what_an_update_returned_is_not_overwritten_by_the_next(make: Make) -> None:
    agent = make(captured=True)
    updates = [agent.update() for _ in range(WARM_UP + 3)]
    losses = [float(update.loss) for update in updates]
    assert len(set(losses)) == len(losses)


@pytest.mark.usefixtures("recorded")
def test_the_largest_priority_of_captured_updates_is_kept(make: Make) -> None:
    replay = make(captured=False).replay
    slots = torch.from_numpy(np.flatnonzero(replay.valid)[:8])

    def function(priority: Tensor) -> tuple[Tensor]:
        replay.update(slots, replay.serials.take(slots), priority.expand(8))
        return (priority,)

    captured = Captured(function, torch.device("cpu"), [])
    for priority in (1.0, 1.0, 1.0, 2.0, 5.0, 3.0):  # the largest neither when captured nor last
        captured(priority)
    assert float(replay.largest_priority) == 5.0


@pytest.mark.usefixtures("recorded")
def test_captured_acting_is_the_uncaptured_one_and_follows_the_updates(
    monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    captured, plain = make(captured=True), make(captured=False)
    for agent in (captured, plain):
        agent.device = torch.device("cpu")  # of the pictures; and so of gradients, whose norm a capture may not read
        monkeypatch.setattr(agent, "max_grad_norm", None)
    rng = np.random.default_rng(0)
    for k in range(16):
        stacks = rng.integers(0, 256, (3 if k < 10 else 2, 4, 84, 84)).astype(np.uint8)  # another number of them
        found, expected = captured.act(stacks, epsilon=0.2), plain.act(stacks, epsilon=0.2)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(captured.update(), plain.update(), rtol=1e-4)
        np.testing.assert_array_equal(captured.act(stacks, noisy=False), plain.act(stacks, noisy=False))
    assert len(recordings(captured.q_values)) == 4  # 3 and 2 environments, with and without noise
    assert_same(captured, plain)


@pytest.mark.usefixtures("recorded")
def test_what_is_of_another_type_is_captured_anew_and_not_rounded_to_the_type_before() -> None:
    captured = Captured(lambda x: (x * 2,), torch.device("cpu"), [])
    for given in [*[torch.tensor([3], dtype=torch.uint8)] * 6, *[torch.tensor([0.5])] * 6]:
        (found,) = captured(given)
        assert torch.equal(found, given * 2)


@pytest.mark.usefixtures("recorded")
def test_moments_that_are_reset_are_captured_anew(make: Make) -> None:
    captured, plain = make(captured=True), make(captured=False)
    for agent in (captured, plain):
        train(agent, 14, lambda k, agent=agent: agent.reset_optimizer() if k == 6 else None)  # type: ignore[misc]
    assert_same(captured, plain)


@pytest.mark.usefixtures("recorded")
def test_a_loaded_state_is_captured_anew(make: Make) -> None:
    captured, plain = make(captured=True), make(captured=False)
    state = copy.deepcopy(plain.state_dict())
    for agent in (captured, plain):
        train(agent, 5)
        agent.load_state_dict(copy.deepcopy(state))
    np.testing.assert_allclose(train(captured, 6), train(plain, 6), rtol=1e-5)


@pytest.mark.usefixtures("recorded")
def test_a_learning_rate_that_is_a_number_would_stay_what_it_was(make: Make) -> None:
    captured, plain = make(captured=True, tensor_rate=False), make(captured=False)
    train(captured, 8)
    train(plain, 8)
    with pytest.raises(AssertionError):
        assert_same(captured, plain)


@pytest.mark.usefixtures("recorded")
def test_a_capture_that_fails_is_a_warning_and_updates_go_on(make: Make) -> None:
    captured = make(captured=True)
    captured.device = torch.device("cpu")  # where clipping reads the norm
    with pytest.warns(UserWarning, match="not captured.*not permitted.*_local_scalar_dense"):
        found = train(captured, 6)
    before = 2 * WARM_UP
    np.testing.assert_allclose(found[:before], train(make(captured=False), 6)[:before], rtol=1e-5)
    assert all(np.isfinite(found)) and captured.updates == 6
