"""An update as one function is `ValueAgent.update`: the same weights, moments, priorities and draws."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nap_rl import checkpoint
from nap_rl.agents import Diverged, ValueAgent
from nap_rl.agents.whole_update import learn_whole, refusal
from nap_rl.checkpoint import nested
from nap_rl.plasticity import make_method
from tests.agents.small_agents import (
    ENVS,
    INPUTS,
    INSIDE,
    SETTINGS,
    fill,
    largest_difference,
    small_agent,
)

ROUNDING = 2e-6


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph that was traced, operator by operator."""
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs, options: graph)


def both(**settings: Any) -> tuple[ValueAgent, ValueAgent]:
    plain, whole = small_agent(**settings), small_agent(**settings)
    assert learn_whole(whole) is None
    return plain, whole


def assert_equal(plain: ValueAgent, whole: ValueAgent, rounding: float = ROUNDING) -> None:
    assert largest_difference(plain.state_dict(), whole.state_dict()) < rounding
    assert largest_difference(plain.replay.state_dict(), whole.replay.state_dict()) < rounding
    for one, other in zip(plain.network.parameters(), whole.network.parameters(), strict=True):
        if not one.requires_grad:
            assert one.grad is other.grad is None
            continue
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4)
    if plain.projector is not None and whole.projector is not None:
        assert plain.projector.updates == whole.projector.updates


def update(agent: ValueAgent, times: int, begin: int = 0) -> list[tuple[float, float]]:
    """Updates under a rate and an exponent that change, between steps of the environments."""
    found = []
    for k in range(begin, begin + times):
        agent.set_learning_rate(1e-2 / (1 + k))
        found.append(tuple(float(x) for x in agent.update(0.4 + 0.02 * k)))
        fill(agent, k, steps=1)
    return found  # type: ignore[return-value]


OF_ONE = ("dqn, clipped, projected every third update", "dqn, batch norm", "iqn, noisy", "rainbow")
"""Settings that every run of the tests tries on one agent; it tries all of them on several, in test_stacked.py."""


@pytest.mark.parametrize("name", [n if n in OF_ONE else pytest.param(n, marks=pytest.mark.slow) for n in SETTINGS])
def test_it_changes_what_an_update_changes(uncompiled: None, name: str) -> None:
    plain, whole = both(**SETTINGS[name])
    torch.testing.assert_close(update(plain, 9), update(whole, 9), atol=1e-5, rtol=1e-5)
    assert_equal(plain, whole)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("redo", {"tau": 0.8, "every": 2}),
        ("noisy_updates", {"scale": 1e-2}),
        pytest.param("weight_decay", {"coefficient": 5.0}, marks=pytest.mark.slow),
        pytest.param("shrink_perturb", {"every": 2}, marks=pytest.mark.slow),
        pytest.param("reset_head", {"every": 2}, marks=pytest.mark.slow),
        pytest.param("weight_clipping", {"kappa": 0.5}, marks=pytest.mark.slow),
        ("hare_tortoise", {"decay": 0.5, "every": 2}),
    ],
)
def test_a_method_that_acts_after_it_changes_the_same(uncompiled: None, name: str, options: dict[str, float]) -> None:
    plain, whole = both()
    example = torch.zeros(2, 1, INPUTS)
    for agent in (plain, whole):
        agent.method = make_method(name, agent.network, agent.optimizer, options=options, example_input=example)
    assert refusal(whole) is None
    changes = 0
    for k in range(5):
        for agent in (plain, whole):
            update(agent, 1, begin=k)
            changes += agent.intervene()
    assert changes >= 4
    assert_equal(plain, whole, 1e-5)


def test_a_frozen_torso_stays_and_what_comes_after_it_learns_the_same(uncompiled: None) -> None:
    plain, whole = small_agent(**SETTINGS["dqn, gains pulled back"]), small_agent(**SETTINGS["dqn, gains pulled back"])
    before = copy.deepcopy(plain.network.torso.state_dict())
    for agent in (plain, whole):
        agent.network.torso.requires_grad_(False)
    assert learn_whole(whole) is None
    for agent in (plain, whole):
        update(agent, 6)
    assert largest_difference(plain.state_dict(), whole.state_dict()) < ROUNDING
    assert largest_difference(before, whole.network.torso.state_dict()) == 0.0
    assert all(parameter.grad is None for parameter in whole.network.torso.parameters())


@pytest.mark.parametrize(("name", "options"), INSIDE.items())
@pytest.mark.parametrize("settings", ["dqn, gains pulled back", pytest.param("iqn, noisy", marks=pytest.mark.slow)])
def test_a_method_that_acts_inside_does_the_same_also_where_it_goes_on_from_a_state(
    uncompiled: None, name: str, options: dict[str, float], settings: str
) -> None:
    without = small_agent(**SETTINGS[settings])
    plain, whole = both(**SETTINGS[settings], method=name, options=options)
    for k in range(6):
        for agent in (plain, whole, without):
            update(agent, 1, begin=k)
            agent.intervene()
        if k == 2:
            whole.load_state_dict(copy.deepcopy(plain.state_dict()))
    assert_equal(plain, whole, 1e-5)
    one, other = plain.state_dict()["network"], without.state_dict()["network"]
    assert largest_difference({key: one[key] for key in other}, other) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dqn, gains pulled back", "dqn, prioritised", "qr-dqn", "rainbow"])
def test_compiled_it_is_the_same(name: str) -> None:
    plain, whole = both(**SETTINGS[name])
    for begin in range(0, 200, 20):
        for agent in (plain, whole):
            update(agent, 20, begin)
            fill(agent, begin, steps=20)
    assert_equal(plain, whole, 1e-5)


def test_actions_are_the_same(uncompiled: None) -> None:
    for settings in (SETTINGS["dqn"], SETTINGS["rainbow"], SETTINGS["iqn, noisy"]):
        plain, whole = both(**settings)
        rng = np.random.default_rng(0)
        for count, noisy in ((ENVS, True), (1, True), (ENVS, False)):
            stacks = rng.normal(size=(count, 1, INPUTS)).astype(np.float32)
            for epsilon in (0.0, 0.5):
                assert np.array_equal(plain.act(stacks, epsilon, noisy), whole.act(stacks, epsilon, noisy))


def reset_moments(agent: ValueAgent) -> None:
    agent.reset_optimizer()


def fresh_weights(agent: ValueAgent) -> None:
    agent.renew(small_agent(5).network)


def target_now(agent: ValueAgent) -> None:
    agent.copy_to_target()


def cleared_replay(agent: ValueAgent) -> None:
    agent.replay.clear()
    fill(agent, 3)


@pytest.mark.parametrize("change", [reset_moments, fresh_weights, target_now, cleared_replay])
def test_what_a_switch_resets_is_reset(uncompiled: None, change: Callable[[ValueAgent], None]) -> None:
    plain, whole = both()
    for agent in (plain, whole):
        update(agent, 5)
        change(agent)
        update(agent, 5, begin=5)
    assert_equal(plain, whole)


def test_a_checkpoint_goes_on_in_either_kind_of_agent(uncompiled: None, tmp_path: Any) -> None:
    plain, whole = both()
    agents = {"plain-000000000005": plain, "whole-000000000005": whole}
    for name, agent in agents.items():
        update(agent, 5)
        tensors, state = nested.flatten({"agent": agent.state_dict(), "replay": agent.replay.state_dict()})
        checkpoint.save(tmp_path, name, tensors=tensors, meta={"state": state}, keep=2)
    for name in ("plain-000000000005", "whole-000000000005"):
        for other in both():
            saved = checkpoint.load(tmp_path / name)
            state = nested.unflatten(saved.tensors, saved.meta["state"])
            other.load_state_dict(state["agent"])
            other.replay.load_state_dict(state["replay"])
            fill_like = plain.replay.tensors()
            for key, tensor in other.replay.tensors().items():
                tensor.copy_(fill_like[key])
            assert other.projector is not None
            other.projector.updates = 5
            update(other, 5, begin=5)
            agents.setdefault(f"after {name}, {len(agents)}", other)
    update(plain, 5, begin=5)
    for other in list(agents.values())[2:]:
        assert largest_difference(plain.state_dict(), other.state_dict()) < ROUNDING


def test_a_diverged_update_is_told_with_its_batch(uncompiled: None) -> None:
    _, whole = both()
    update(whole, 2)
    assert whole.batch is None
    whole.replay.rewards.fill_(float("inf"))
    with pytest.raises(Diverged, match="loss is .* at update 3"):
        whole.update()
    assert whole.batch is not None and bool(torch.isinf(whole.batch.r_t).all())


def test_an_empty_replay_is_refused(uncompiled: None) -> None:
    _, whole = both()
    whole.replay.clear()
    with pytest.raises(ValueError, match="no complete transition"):
        whole.update()


class Counting(nn.Module):
    """Keeps in a buffer what no other layer of ours keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1.0
        return x


class Hostile(nn.Module):
    """Looks at its numbers, as no traced function may."""

    def __init__(self, torso: nn.Module) -> None:
        super().__init__()
        self.torso = torso

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.torso(x if float(x.sum()) > 0 else -x)
        return y


def test_what_cannot_be_one_function_says_why_and_stays_as_it_is() -> None:
    bf16, batch, sgd, hostile = (small_agent() for _ in range(4))
    counting = small_agent(torso_end=Counting())
    frozen = small_agent(decay=0.1)
    next(frozen.network.parameters()).requires_grad_(False)
    bf16.precision = torch.bfloat16
    batch.network.torso.append(nn.BatchNorm1d(12, momentum=None))  # type: ignore[operator]
    sgd.optimizer = torch.optim.SGD(sgd.network.parameters(), lr=0.1)
    hostile.network.torso = Hostile(hostile.network.torso)
    hostile.target.torso = Hostile(hostile.target.torso)
    expected = {
        "frozen, and Adam's weight decay": frozen,
        "bfloat16": bf16,
        "without momentum": batch,
        "a pass changes torso.": counting,
        "SGD": sgd,
        "cannot be traced": hostile,
    }
    for words, agent in expected.items():
        reason = learn_whole(agent)
        assert reason is not None and words in reason, words
        assert not agent.compiled
    assert refusal(hostile) is None
    hostile.update()
