"""The plasticity methods in the agent's update and in the trainer's loop, with NaP and without."""

from __future__ import annotations

import copy
import csv
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from nap_rl.agents import Trainer, TrainerConfig, ValueAgent
from nap_rl.agents.wrapping import compile_agent
from nap_rl.envs import Step, sequence
from nap_rl.logging import Progress, RunLog
from nap_rl.nap import Projector
from nap_rl.nn import QNetwork
from nap_rl.plasticity import METHODS, Inputs, Method, method_named
from nap_rl.schedules import Constant, Linear

Make = Callable[..., ValueAgent]


def fill(agent: ValueAgent, steps: int = 60) -> None:
    rng = np.random.default_rng(0)
    for step in range(steps):
        frame = rng.integers(0, 256, (1, 2)).astype(np.uint8)
        agent.replay.add(frame, rng.integers(0, 2, 1), rng.normal(size=1), np.ones(1), np.array([step == 0]))


def vector(network: QNetwork) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def gradient(agent: ValueAgent) -> dict[str, Tensor]:
    agent.update()
    return {name: p.grad.clone() for name, p in agent.network.named_parameters() if p.grad is not None}


def test_a_penalty_adds_its_gradient_and_nothing_to_the_logged_loss(make_agent: Make) -> None:
    plain = make_agent(max_grad_norm=None)
    penalised = make_agent(max_grad_norm=None, method="l2", options={"coefficient": 0.25})
    weights = {name: p.detach().clone() for name, p in plain.network.named_parameters()}
    for agent in (plain, penalised):
        fill(agent)
    with_penalty, without = gradient(penalised), gradient(plain)
    for name, w in weights.items():
        expected = 2 * 0.25 * w if w.ndim >= 2 else torch.zeros_like(w)
        torch.testing.assert_close(with_penalty[name] - without[name], expected, atol=1e-6, rtol=1e-4)
    again = [make_agent(), make_agent(method="l2", options={"coefficient": 0.25})]
    for agent in again:
        fill(agent)
    assert float(again[0].update().loss) == float(again[1].update().loss)


class Spy(Method):
    """Doubles every weight after every third update; keeps what it was told."""

    def __init__(self, agent: ValueAgent) -> None:
        super().__init__(agent.network, agent.optimizer)
        self.seen: list[tuple[int, int]] = []

    def after_update(self, update: int, inputs: Inputs) -> bool:
        steps = {int(state["step"]) for state in self.optimizer.state.values()}
        self.seen.append((update, *steps))
        if update % 3:
            return False
        assert inputs().shape == (64, 4, 2)  # states to look at
        with torch.no_grad():
            for p in self.network.parameters():
                p.mul_(2.0)
        return True


def test_a_method_is_asked_after_each_update_and_leaves_the_target_alone(make_agent: Make) -> None:
    agent = make_agent()
    agent.method = spy = Spy(agent)
    fill(agent)
    changed = []
    for _ in range(6):
        agent.update()
        target = copy.deepcopy(agent.target.state_dict())
        changed.append(agent.intervene())
        assert all(torch.equal(value, target[name]) for name, value in agent.target.state_dict().items())
    assert changed == [False, False, True] * 2
    assert spy.seen == [(n, n) for n in range(1, 7)]  # Adam's own count: after its step


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("continual_backprop", {"rate": 0.05, "maturity": 2}),
        ("redo", {"every": 3, "tau": 0.5}),
        ("injection", {"at": 5}),
    ],
)
def test_methods_act_on_a_compiled_update_as_on_a_plain_one(
    name: str, options: dict[str, float], make_agent: Make
) -> None:
    agents = [make_agent(sigma0=0.5, method=name, options=options) for _ in range(2)]
    compile_agent(agents[0])
    changed = []
    for agent in agents:
        fill(agent)
        changed.append([bool(agent.update()) and agent.intervene() for _ in range(12)])
    assert changed[0] == changed[1] and any(changed[0])
    torch.testing.assert_close(vector(agents[0].network), vector(agents[1].network), atol=1e-5, rtol=0)


class Pictures:
    """Four environments of random pictures of two pixels, and random rewards; no episode ends."""

    num_envs, frame_skip, stack, observation_shape, observation_dtype = 4, 4, 4, (2,), np.uint8

    def __init__(self) -> None:
        self.visits = sequence.plan(["one"], [10**6], 1)
        self.visit = self.visits[0]
        self.rng = np.random.default_rng(0)

    def reset(self) -> npt.NDArray[np.uint8]:
        return self.rng.integers(0, 256, (4, 2)).astype(np.uint8)

    def send(self, actions: npt.NDArray[np.int64]) -> None:
        pass

    def recv(self) -> Step:
        no, frames = np.zeros(4, dtype=bool), self.reset()
        rewards = self.rng.normal(size=4).astype(np.float32)
        return Step(frames, frames, rewards, np.ones(4, dtype=np.float32), no, no, [])


CONFIG = TrainerConfig(
    frames=960,  # 240 agent steps: 50 updates
    update_every_steps=4,
    min_replay_steps=40,
    schedule_frames=960,
    learning_rate=Constant(1e-2),
    epsilon=Constant(0.0),
    epsilon_frames=1,
    importance=Linear(0.4, 1.0),
    log_every_updates=10,
)
OPTIONS: dict[str, dict[str, float]] = {  # so that each acts several times in 50 updates
    "redo": {"every": 8, "tau": 0.5},
    "shrink_perturb": {"every": 8},
    "reset_head": {"every": 8},
    "continual_backprop": {"rate": 0.02, "maturity": 5},
    "noisy_updates": {"scale": 0.01},
    "weight_clipping": {"kappa": 0.5},
    "hare_tortoise": {"decay": 0.9, "every": 8},
    "injection": {"at": 8},
}


def trained(folder: Path, agent: ValueAgent, config: TrainerConfig = CONFIG) -> tuple[Trainer, Projector]:
    projector = agent.projector = Projector(agent.network, agent.optimizer)
    display = Progress(stream=io.StringIO())
    with RunLog(folder, tensorboard=False) as log:
        trainer = Trainer(Pictures(), agent, config, log=log, display=display)
        trainer.run()
    return trainer, projector


@pytest.fixture(scope="module")
def plain_weights(make_agent: Make, tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """What the same training without a method ends with."""
    plain = make_agent(nap=True, sigma0=0.5, num_envs=4)
    trained(tmp_path_factory.mktemp("plain"), plain)
    return vector(plain.network)


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"none", "fire"}))
def test_every_method_trains_beside_nap_and_leaves_the_norms_where_they_began(
    name: str, make_agent: Make, plain_weights: Tensor, tmp_path: Path
) -> None:
    agent = make_agent(nap=True, sigma0=0.5, num_envs=4, method=name, options=OPTIONS.get(name))
    trainer, projector = trained(tmp_path, agent)
    assert type(agent.method) is method_named(name) and agent.updates == 50
    assert trainer.records.max_norm_drift < 1e-5 and float(projector.max_relative_drift()) < 1e-5
    weights = vector(agent.network)
    assert bool(weights.isfinite().all())
    assert weights.shape != plain_weights.shape or not torch.equal(weights, plain_weights)


def test_without_the_projection_after_it_a_method_would_move_the_norms(
    make_agent: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent(nap=True, num_envs=4, method="noisy_updates", options=OPTIONS["noisy_updates"])
    states = agent.replay.sample
    monkeypatch.setattr(agent, "intervene", lambda: agent.method.after_update(agent.updates, lambda: states(64).s_tm1))
    assert trained(tmp_path, agent)[0].records.max_norm_drift > 1e-4


def test_logs_of_an_injected_network_speak_of_trained_layers_alone(make_agent: Make, tmp_path: Path) -> None:
    config = replace(CONFIG, diagnostics_every_updates=10)
    rows = {}
    for name in ("none", "injection"):
        agent = make_agent(nap=True, sigma0=0.5, num_envs=4, method=name, options=OPTIONS.get(name))
        trained(tmp_path / name, agent, config)
        with (tmp_path / name / "metrics.csv").open() as file:
            rows[name] = list(csv.DictReader(file))
    assert rows["none"][0].keys() == rows["injection"][0].keys()
    assert any(key.startswith("plasticity/dormant/streams.value.") for key in rows["injection"][0])
    last = rows["injection"][-1]
    turned = {key: float(last[key]) for key in last if key.startswith("nap/rotation/")}
    assert turned and min(turned.values()) > 1e-3  # degrees: no frozen layer is among them


def test_the_target_network_has_the_old_head_until_its_next_copy(make_agent: Make) -> None:
    agent = make_agent(method="injection", options={"at": 3}, target_every_updates=4)
    fill(agent)
    states = torch.randint(256, (6, 4, 2), dtype=torch.uint8)
    for _ in range(3):
        agent.update()
        target = agent.target.q_values(states)
        agent.intervene()
    assert torch.equal(agent.target.q_values(states), target)
    agent.update()
    assert torch.equal(agent.target.q_values(states), agent.network.q_values(states))
