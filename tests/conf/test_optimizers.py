"""`optimizer=`: each steps as torch's own, is logged by its own power, and goes on where it stopped."""

from __future__ import annotations

import copy
import json
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nap_rl.agents import ValueAgent
from nap_rl.agents.whole_update import refusal
from nap_rl.checkpoint import nested
from nap_rl.conf import build, optimizers, schema
from nap_rl.conf.environments import Observations
from nap_rl.nap import LayerMonitor
from nap_rl.nap.groups import split_groups
from nap_rl.optimizers import MuonAndAdamW
from tests.conf.checked import checked

SMALL = ["env=catch", "agent=dqn_small", "replay.capacity=200", "agent.min_replay_steps=40", "compile=off"]
SMALL += ["native=off", "device=cpu", "agent.net_arch=[16]", "agent.hidden=8", "agent.batch_size=8"]
OBSERVATIONS = Observations((4,), "float32", 1)
ACTIONS = 3
NADAM = ["optimizer=custom", "optimizer.name=torch.optim.NAdam"]
OWN = [["optimizer=custom", f"optimizer.name={__name__}.{kind}"] for kind in ("Counting", "CountingOnce", "Nesting")]
CHOICES = [["optimizer=adam"], ["optimizer=adamw"], ["optimizer=muon"], ["optimizer=rmsprop"], ["optimizer=sgd"], NADAM]


def agent_of(*overrides: str, **options: Any) -> ValueAgent:
    """An agent whose replay holds 80 random steps."""
    config = checked(*SMALL, *overrides)
    agent, _ = build.build_agent(config, ACTIONS, torch.device("cpu"), OBSERVATIONS, **options)
    rng, envs = np.random.default_rng(0), config.env.num_envs
    for step in range(80 // envs + 2):
        seen = rng.normal(size=(envs, 4)).astype(np.float32)
        rewards = rng.normal(size=envs).astype(np.float32)
        agent.replay.add(seen, rng.integers(0, 3, envs), rewards, np.ones(envs), np.full(envs, step == 0))
    return agent


def weights(agent: ValueAgent) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in agent.network.parameters()]


def test_without_a_word_it_is_adam_with_torchs_betas_and_the_agents_epsilon() -> None:
    config = checked(*SMALL)
    agent = agent_of()
    plain = torch.optim.Adam(
        agent.network.parameters(), lr=config.agent.learning_rate, eps=config.agent.adam_eps, fused=True
    )
    assert type(agent.optimizer) is torch.optim.Adam
    assert agent.optimizer.state_dict() == plain.state_dict()


@pytest.mark.parametrize(
    ("choice", "make"),
    [
        (["optimizer=sgd", "optimizer.nesterov=true"], lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True)),
        (
            ["optimizer=rmsprop"],
            lambda p: torch.optim.RMSprop(p, 0.1, alpha=0.95, eps=0.003125, centered=True),
        ),
        (["optimizer=adamw", "agent.adam_eps=1e-3"], lambda p: torch.optim.AdamW(p, 0.1, eps=1e-3)),
        ([*NADAM, "optimizer.options={momentum_decay: 0.1}"], lambda p: torch.optim.NAdam(p, 0.1, momentum_decay=0.1)),
    ],
)
def test_steps_are_those_of_torch(choice: list[str], make: Any) -> None:
    agent = agent_of(*choice, "agent.learning_rate=0.1")
    twins = [nn.Parameter(weight) for weight in weights(agent)]
    plain, generator = make(twins), torch.Generator().manual_seed(0)
    for _ in range(3):
        for parameter, twin in zip(agent.network.parameters(), twins, strict=True):
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            twin.grad = parameter.grad.clone()
        agent.optimizer.step()
        plain.step()
    for weight, twin in zip(weights(agent), twins, strict=True):
        torch.testing.assert_close(weight, twin.detach(), rtol=1e-5, atol=1e-6)


def test_muon_turns_hidden_matrices_by_orthogonal_ones_and_adamw_steps_the_rest() -> None:
    """The first step of AdamW is the sign of the gradient, that of Muon near 0.2 sqrt(max(n, m)) U V^T of its SVD."""
    agent = agent_of("optimizer=muon", "agent.learning_rate=0.1", "agent.adam_eps=1e-12", "optimizer.ns_steps=20")
    before, generator = weights(agent), torch.Generator().manual_seed(0)
    for parameter in agent.network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    gradients = [parameter.grad.clone() for parameter in agent.network.parameters() if parameter.grad is not None]
    agent.optimizer.step()
    names = [name for name, _ in agent.network.named_parameters()]
    found = []
    for name, was, weight, gradient in zip(names, before, weights(agent), gradients, strict=True):
        step = (was - weight) / 0.1
        if name.endswith("weight") and "output" not in name:
            singular = torch.linalg.svdvals(step) / (0.2 * max(step.shape) ** 0.5)
            assert singular.min() > 0.5 and singular.max() < 1.3, name
            assert float((step * gradient).sum()) > 0
            found.append(name)
        else:
            torch.testing.assert_close(step, gradient.sign(), rtol=1e-4, atol=1e-4)
    assert len(found) == 2  # net_arch=[16], hidden=8


@pytest.mark.parametrize("choice", [*CHOICES, *OWN], ids=lambda choice: choice[-1])
def test_an_agent_goes_on_from_a_checkpoint_to_the_bit(choice: list[str]) -> None:
    agents = [agent_of(*choice, "agent.nap=true") for _ in range(2)]
    one, other = agents
    for _ in range(3):
        one.update()
    tensors, rest = nested.flatten({"agent": one.state_dict()})
    saved = {name: {key: tensor.clone() for key, tensor in group.items()} for name, group in tensors.items()}
    other.load_state_dict(nested.unflatten(saved, json.loads(json.dumps(rest)))["agent"])
    other.replay.adopt(one.replay)
    for agent in agents:
        agent.set_learning_rate(1e-3)
        agent.update()
        agent.update()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(weights(one), weights(other), strict=True))
    assert not any(
        torch.equal(now, start) for now, start in zip(weights(one), weights(agent_of(*choice)), strict=False)
    )


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice[-1])
def test_projection_holds_the_norms_under_every_optimizer(choice: list[str]) -> None:
    agent = agent_of(*choice, "agent.nap=true", "agent.learning_rate=1e-2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            agent.update()
    assert agent.projector is not None and float(agent.projector.max_relative_drift()) < 1e-5


@pytest.mark.parametrize(
    ("choice", "power"),
    [
        *[(choice, 1) for choice in CHOICES if "sgd" not in choice[0]],
        (["optimizer=sgd"], 2),
        ([*NADAM, "optimizer.power=2"], 2),
    ],
)
def test_the_effective_rate_falls_by_the_power_of_the_optimizer(choice: list[str], power: int) -> None:
    agent = agent_of(*choice, "agent.nap=true", "nap=norm_only")
    monitor = LayerMonitor(agent.network, agent.optimizer, power=agent.effective_lr_power)
    with torch.no_grad():
        for parameter in agent.network.parameters():
            parameter.mul_(2.0)
    monitor.snapshot()
    agent.set_learning_rate(0.01)
    agent.update()
    layers = monitor.measure()
    assert all(row["effective_lr"] == pytest.approx(0.01 / 2**power) for row in layers.values())


def test_a_copy_of_muon_steps_as_it_does() -> None:
    one = MuonAndAdamW([nn.Parameter(torch.eye(3))], [nn.Parameter(torch.ones(3))], lr=0.1, muon={}, adamw={})
    other = copy.deepcopy(one)
    for muon in (one, other):
        for group in muon.param_groups:
            group["params"][0].grad = torch.arange(group["params"][0].numel()).view_as(group["params"][0]) + 1.0
        muon.step()
        muon.step()
    for mine, theirs in zip(one.param_groups, other.param_groups, strict=True):
        assert torch.equal(mine["params"][0], theirs["params"][0]) and mine["params"][0] is not theirs["params"][0]
    assert not torch.equal(one.param_groups[0]["params"][0], torch.eye(3))


def test_a_rate_for_each_layer_goes_with_muon() -> None:
    muon = MuonAndAdamW([nn.Parameter(torch.eye(3))], [nn.Parameter(torch.ones(3))], lr=0.1, muon={}, adamw={})
    split_groups(muon, {"a": muon.param_groups[0]["params"]})
    muon.param_groups[0]["lr"] = 0.0
    for group in muon.param_groups:
        group["params"][0].grad = torch.ones_like(group["params"][0])
    muon.step()
    assert torch.equal(muon.param_groups[0]["params"][0], torch.eye(3)) and muon.param_groups[0]["layer"] == "a"
    assert not torch.equal(muon.param_groups[1]["params"][0], torch.ones(3))


@pytest.mark.parametrize("choice", ["muon", "rmsprop", "sgd"])
def test_other_steps_than_adams_run_eagerly_and_that_is_said(choice: str) -> None:
    agent = agent_of(f"optimizer={choice}", stacked=True)
    kind = type(agent.optimizer).__name__
    assert refusal(agent) == f"the step of {kind} runs eagerly, since the one function has Adam's alone"
    with pytest.warns(UserWarning, match=f"slower for a small network: the step of {kind} runs eagerly"):
        assert not build.learns_whole(agent)
    assert refusal(agent_of("optimizer=adamw", stacked=True)) is None


class Counting(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        self.param_groups[0]["seen"] = seen = self.param_groups[0].get("seen", 0) + 1
        for parameter in self.param_groups[0]["params"]:
            parameter.grad.mul_(seen)
        return super().step(closure)


class CountingOnce(torch.optim.SGD):
    """Sets at its first step what each later one finds, as heavyball does."""

    def step(self, closure: Any = None) -> Any:
        self.param_groups[0].setdefault("count", len(self.param_groups[0]["params"]))
        return super().step(closure)


class Growing(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        self.param_groups[0]["warmup"] = lambda step: step
        return super().step(closure)


class Sharing(torch.optim.SGD):
    """Keeps what belongs to no parameter, as TRAC does."""

    def step(self, closure: Any = None) -> Any:
        self.state["shared"] = {"count": 1}
        return super().step(closure)


class Keeping(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        self.state[self.param_groups[0]["params"][0]]["history"] = iter([1])
        return super().step(closure)


class Hiding(torch.optim.SGD):
    """Each step is longer than the one before, by a number that is in no state_dict."""

    steps = 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad.mul_(self.steps)
        return super().step(closure)


class Nesting(torch.optim.SGD):
    """Moments in lists in dicts by number, and what it has seen in a set: heavyball's SOAP keeps such."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                own = self.state[parameter].setdefault(0, {"moments": [torch.zeros_like(parameter)], "seen": set()})
                own["seen"].add(len(own["seen"]))
                own["moments"][0].lerp_(parameter.grad, 0.5)
                parameter.grad.copy_(own["moments"][0] * len(own["seen"]))
        return super().step(closure)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("torch.optim.Nadam", "", "the module 'torch.optim' has no 'Nadam'"),
        ("nowhere.Adam", "", "the module 'nowhere' cannot be imported"),
        ("torch.nn.Linear", "", "optimizer.name=torch.nn.Linear: it is no class of torch.optim.Optimizer"),
        ("torch.optim.NAdam", "{decay: 1}", "optimizer.name=torch.optim.NAdam: .*unexpected keyword argument 'decay'"),
        ("torch.optim.Muon", "", "optimizer.name=torch.optim.Muon: Muon only supports 2D parameters"),
        ("torch.optim.LBFGS", "", "optimizer.name=torch.optim.LBFGS makes no step on this network: "),
        ("tests.conf.test_optimizers.Sharing", "", "keeps 'shared' of no parameter, which no checkpoint holds"),
        ("tests.conf.test_optimizers.Growing", "", "keeps a function in its groups, which no checkpoint holds"),
        ("tests.conf.test_optimizers.Keeping", "", "keeps a list_iterator as history, which no checkpoint holds"),
        (
            "tests.conf.test_optimizers.Hiding",
            "",
            "does not go on exactly from its state_dict, as a resumed run has to",
        ),
    ],
)
def test_what_cannot_train_or_go_on_is_refused_before_the_run(name: str, options: str, sentence: str) -> None:
    typed = [f"optimizer.options={options}"] if options else []
    with pytest.raises(ValueError, match=sentence) as error:
        checked(*SMALL, "optimizer=custom", f"optimizer.name={name}", *typed)
    assert "\n" not in str(error.value)


def test_only_the_output_layers_matrices_are_left_to_adamw() -> None:
    network = agent_of("optimizer=muon").network
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    hidden = {names[id(matrix)] for matrix in optimizers.hidden_matrices(network)}
    assert {name for name, parameter in network.named_parameters() if parameter.ndim == 2} - hidden == {
        name for name in names.values() if name.endswith("output.weight")
    }
    assert schema.to_dict(checked(*SMALL, "optimizer=muon"))["optimizer"]["name"] == "muon"
