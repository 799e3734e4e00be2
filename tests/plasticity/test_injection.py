"""Plasticity injection: the output stays, fresh weights learn, old ones do not; without NaP and with it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from nap_rl.nap import LayerMonitor, Projector, normalize
from nap_rl.nap.groups import frozen_paths
from nap_rl.nn import Categorical, DataEfficientTorso, ExpectedValue, Head, InjectedStream, MlpTorso, QNetwork, Streams
from nap_rl.plasticity import make_method
from nap_rl.plasticity.injection import Injection

VECTORS = torch.randn(8, 1, 6, generator=torch.Generator().manual_seed(0))
STACKS = torch.randint(256, (8, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def plain(torso: str, head: Head, dueling: bool, sigma0: float | None) -> QNetwork:
    torch.manual_seed(0)
    body = MlpTorso(6, [12]) if torso == "mlp" else DataEfficientTorso()
    return QNetwork(body, Streams(body.features, 3, head.outputs, 10, dueling, sigma0), head)


def dqn(torso: str = "mlp") -> QNetwork:
    return plain(torso, ExpectedValue(), dueling=False, sigma0=None)


def rainbow(torso: str = "mlp") -> QNetwork:
    return plain(torso, Categorical(5, -1.0, 1.0), dueling=True, sigma0=0.5)


def inputs(torso: str) -> Tensor:
    return VECTORS if torso == "mlp" else STACKS


class Learner:
    """A network that learns to give rising numbers, with injection at update `at` or without it."""

    def __init__(self, network: QNetwork, x: Tensor, *, nap: bool, at: int | None, **projection: str) -> None:
        self.x, self.update = x, 0
        if at is not None:
            Injection.prepare(network, x)
        if nap:
            normalize(network, x)
        self.network, self.optimizer = network, Adam(network.parameters(), lr=1e-2)
        self.projector = Projector(network, self.optimizer, **projection) if nap else None  # type: ignore[arg-type]
        self.method = None if at is None else Injection(network, self.optimizer, at=at)

    def step(self) -> None:
        """An update, without what the method does after it."""
        self.update += 1
        self.optimizer.zero_grad()
        (self.output() - self.update).square().mean().backward()
        self.optimizer.step()

    def intervene(self) -> bool:
        assert self.method is not None
        changed = self.method.after_update(self.update, lambda: self.x)
        if changed and self.projector is not None:
            self.projector.project()
        return changed

    def learn(self, updates: int) -> None:
        for _ in range(updates):
            self.step()
            if self.method is not None:
                self.intervene()

    def output(self) -> Tensor:
        y: Tensor = self.network(self.x, self.network.sample_noise(torch.Generator().manual_seed(self.update)))
        return y

    def tensors(self, part: str) -> dict[str, Tensor]:
        """Copies of the streams' frozen tensors, "old" or "initial", or of those that are trained, "own"."""
        found = {}
        for name, tensor in self.network.state_dict().items():
            copies = {"old", "initial"} & set(name.split("."))
            if name.startswith("streams.") and (copies or {"own"}) == {part}:
                found[name] = tensor.detach().clone()
        return found


def differ(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys() and one
    return [name for name in one if not torch.equal(one[name], other[name])]


CASES = pytest.mark.parametrize(
    ("make", "torso", "nap"),
    [
        (make, torso, nap)
        for make in (dqn, rainbow)
        for torso, nap in (("mlp", False), ("mlp", True), ("conv", False), ("conv", True))
    ],
)


@CASES
def test_until_then_a_network_learns_to_the_bit_as_without(
    make: Callable[..., QNetwork], torso: str, nap: bool
) -> None:
    with_it, without = (Learner(make(torso), inputs(torso), nap=nap, at=at) for at in (100, None))
    assert torch.equal(with_it.output(), without.output())
    for learner in (with_it, without):
        learner.learn(4)
    ours = with_it.network.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in without.network.state_dict().items())


@CASES
def test_the_output_stays_and_fresh_weights_learn_while_frozen_ones_keep_their_bytes(
    make: Callable[..., QNetwork], torso: str, nap: bool
) -> None:
    learner = Learner(make(torso), inputs(torso), nap=nap, at=3)
    learner.learn(2)
    learner.step()
    trained, first, before = learner.tensors("own"), learner.tensors("initial"), learner.output()
    names = list(learner.network.state_dict())
    assert learner.intervene()
    torch.testing.assert_close(learner.output(), before, atol=1e-6, rtol=1e-6)
    assert list(learner.network.state_dict()) == names
    old, own, initial = (learner.tensors(part) for part in ("old", "own", "initial"))
    assert all(torch.equal(old[name], trained[name.replace(".old.", ".")]) for name in old)
    assert all(torch.allclose(initial[name], own[name.replace(".initial.", ".")], rtol=1e-5) for name in initial)
    assert {name.replace(".initial", "") for name in differ(initial, first)} >= {n for n in own if "weight_mu" in n}

    learner.learn(3)
    assert differ(learner.tensors("old"), old) == differ(learner.tensors("initial"), initial) == []
    moved = set(differ(learner.tensors("own"), own))
    assert {name for name in own if name.endswith((".weight", ".weight_mu"))} <= moved
    assert not learner.intervene()  # once
    if learner.projector is not None:
        assert float(learner.projector.max_relative_drift()) < 1e-5


def test_the_sum_by_hand() -> None:
    # Old weights 1 and 2, fresh ones 3 and 5. At x = 1: 2 + 15 - 15; with a fresh output weight of 6, 2 + 18 - 15.
    torso = nn.Flatten()
    network = QNetwork(torso, Streams(1, 1, 1, 1, dueling=False, sigma0=None), ExpectedValue())
    Injection.prepare(network, torch.ones(2, 1, 1))
    stream = network.streams.advantage
    assert isinstance(stream, InjectedStream)
    for part, (hidden, output) in {"old.": (1.0, 2.0), "": (3.0, 5.0), "initial.": (3.0, 5.0)}.items():
        for name, value in (
            ("hidden.weight", hidden),
            ("hidden.bias", 0),
            ("output.weight", output),
            ("output.bias", 0),
        ):
            stream.get_parameter(f"{part}{name}").data.fill_(value)
    x = torch.ones(1, 1, 1, requires_grad=True)
    y = network(x)
    y.sum().backward()
    assert float(y.detach()) == 2.0
    assert float(x.grad) == 2.0  # the torso's gradient comes through old, fresh and initial weights: 2 + 15 - 15
    gradients = {name: float(p.grad) for name, p in network.named_parameters() if p.grad is not None}
    assert {name.removeprefix("streams.advantage."): g for name, g in gradients.items()} == {
        "hidden.weight": 5.0, "hidden.bias": 5.0, "output.weight": 3.0, "output.bias": 1.0
    }  # fmt: skip
    stream.output.weight.data.fill_(6.0)
    assert float(network(x).detach()) == 5.0


def test_as_many_weights_are_trained_as_before_and_no_moment_of_the_old_ones_stays() -> None:
    learner = Learner(rainbow(), VECTORS, nap=True, at=3)
    trained = sum(p.numel() for p in learner.network.parameters() if p.requires_grad)
    assert trained == sum(p.numel() for p in normalize(rainbow(), VECTORS).parameters())
    learner.learn(2)
    learner.step()
    states = {name: dict(learner.optimizer.state[p]) for name, p in learner.network.named_parameters()}
    assert learner.intervene()
    assert trained == sum(p.numel() for p in learner.network.parameters() if p.requires_grad)
    for name, parameter in learner.network.named_parameters():
        assert dict(learner.optimizer.state.get(parameter, {})) == ({} if "streams" in name else states[name])


@pytest.mark.parametrize("scope", ["tensor", "unit"])
def test_fresh_weights_have_the_norms_that_nap_projects_to(scope: str) -> None:
    learner = Learner(rainbow(), VECTORS, nap=True, at=3, scope=scope)
    first = learner.network.get_parameter("streams.value.initial.hidden.weight_mu").detach().clone()
    learner.learn(2)
    learner.step()
    learner.method.after_update(3, lambda: VECTORS)
    drawn, before = learner.tensors("own"), learner.output()
    assert float(learner.projector.max_relative_drift()) < 1e-6
    learner.projector.project()
    assert all(torch.allclose(tensor, drawn[name], rtol=1e-5) for name, tensor in learner.tensors("own").items())
    torch.testing.assert_close(learner.output(), before, atol=1e-6, rtol=1e-6)
    fresh = drawn["streams.value.hidden.weight_mu"]
    assert float(torch.cosine_similarity(fresh.flatten(), first.flatten(), dim=0)) < 0.5  # another draw


def test_without_norms_a_projection_of_hidden_layers_leaves_the_output_too() -> None:
    network = Injection.prepare(dqn(), VECTORS)
    optimizer = Adam(network.parameters(), lr=1e-2)
    projector = Projector(network, optimizer, unnormalized="project", example_input=VECTORS)
    method = Injection(network, optimizer, at=1)
    network(VECTORS).square().mean().backward()
    optimizer.step()
    before = network(VECTORS)
    assert method.after_update(1, lambda: VECTORS)
    projector.project()
    torch.testing.assert_close(network(VECTORS), before, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("at", [2, 6])
def test_from_a_state_before_or_after_it_learning_goes_on_to_the_bit(at: int) -> None:
    whole = Learner(rainbow(), VECTORS, nap=True, at=at)
    whole.learn(4)
    parts = Learner(rainbow(), VECTORS, nap=True, at=at)
    parts.network.load_state_dict(copy.deepcopy(whole.network.state_dict()))
    parts.optimizer.load_state_dict(copy.deepcopy(whole.optimizer.state_dict()))
    parts.method.load_state_dict(copy.deepcopy(whole.method.state_dict()))
    parts.update = whole.update
    for learner in (whole, parts):
        learner.learn(4)
    assert differ(dict(whole.network.state_dict()), dict(parts.network.state_dict())) == []
    streams = [stream for learner in (whole, parts) for stream in learner.network.streams.children()]
    assert len(streams) == 4 and all(stream.is_injected for stream in streams)


def test_a_copied_target_computes_what_the_network_does() -> None:
    learner = Learner(rainbow(), VECTORS, nap=True, at=2)
    target = copy.deepcopy(learner.network)
    learner.learn(4)
    target.load_state_dict(learner.network.state_dict())
    assert torch.equal(target(VECTORS), learner.network(VECTORS))


def test_a_body_in_bfloat16_has_the_copies_in_it_and_their_outputs_in_float32() -> None:
    network = Injection.prepare(dqn(), VECTORS)
    assert isinstance(network, QNetwork)
    network.body_to(torch.bfloat16)
    dtypes = {name: tensor.dtype for name, tensor in network.state_dict().items()}
    for part in ("", "old.", "initial."):
        assert dtypes[f"streams.advantage.{part}hidden.weight"] is torch.bfloat16
        assert dtypes[f"streams.advantage.{part}output.weight"] is torch.float32


def test_what_is_frozen_is_named_and_can_be_left_out_of_a_monitor() -> None:
    learner = Learner(rainbow(), VECTORS, nap=True, at=2)
    copies = {f"streams.{stream}.{part}" for stream in ("advantage", "value") for part in ("old", "initial")}
    frozen = frozen_paths(learner.network)
    assert copies <= {*frozen} and all(any(path.startswith(copy) for copy in copies) for path in frozen)
    monitor = LayerMonitor(learner.network, learner.optimizer, free=frozen)
    streams = [f"streams.{stream}.{layer}" for stream in ("advantage", "value") for layer in ("hidden", "output")]
    assert monitor.names[-4:] == streams and all(name.startswith("torso") for name in monitor.names[:-4])


@pytest.mark.parametrize("optimizer", [lambda p: SGD(p, lr=0.1, weight_decay=0.5), lambda p: torch.optim.AdamW(p)])
def test_decay_leaves_frozen_weights_alone(optimizer: Callable[..., Optimizer]) -> None:
    network = Injection.prepare(dqn(), VECTORS)
    stepped = optimizer(network.parameters())
    Injection(network, stepped, at=1)
    before = copy.deepcopy(network.state_dict())
    for _ in range(2):
        network(VECTORS).square().mean().backward()
        stepped.step()
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert "streams.advantage.hidden.weight" in changed
    assert not any(part in name for name in changed for part in (".old.", ".initial."))


def test_weights_that_were_injected_and_networks_without_streams_are_refused_in_a_sentence() -> None:
    learner = Learner(dqn(), VECTORS, nap=False, at=1)
    learner.learn(1)
    again = Injection(learner.network, learner.optimizer, at=5)
    with pytest.raises(ValueError, match="plasticity injection happens once, and these weights were injected") as error:
        again.after_update(5, lambda: VECTORS)
    assert "\n" not in str(error.value)
    network = nn.Sequential(nn.Linear(4, 2))
    with pytest.raises(ValueError, match="streams of a value network, and Sequential has none"):
        Injection.prepare(network, torch.ones(2, 4))
    with pytest.raises(ValueError, match="at must be a whole number of 1 or more; got 0"):
        make_method("injection", Injection.prepare(dqn(), VECTORS), learner.optimizer, example_input=VECTORS,
                    options={"at": 0})  # fmt: skip
