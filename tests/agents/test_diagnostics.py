"""Diagnostics of a run: the numbers are the formulas', and the run does not notice."""

from __future__ import annotations

import copy
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nap_rl.agents import ValueAgent
from nap_rl.agents.diagnostics import STATES, Diagnostics
from nap_rl.diagnostics import dormant_fraction, feature_norm, feature_rank
from nap_rl.nap import LayerMonitor
from nap_rl.nn import Categorical
from tests.fingerprint import fingerprint

Make = Callable[..., ValueAgent]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def played(tiny: Any, folder: Path, *overrides: str) -> Any:
    trainer, checkpointer = tiny.assemble(tiny.configured(*overrides), folder)
    with trainer.log:
        trainer.run()
        checkpointer.save()
    trainer.env.close()
    return trainer


def filled(agent: ValueAgent) -> ValueAgent:
    random = np.random.default_rng(0)
    for k in range(300):
        observations = random.integers(0, 256, (1, 2)).astype(np.uint8)
        agent.replay.add(observations, random.integers(0, 2, 1), random.normal(size=1), np.ones(1), np.full(1, k == 0))
    return agent


@pytest.mark.parametrize("agent", ["rainbow", pytest.param("iqn", marks=pytest.mark.slow)])
def test_a_run_is_the_same_to_the_bit_with_diagnostics_and_without(agent: str, tiny: Any, tmp_path: Path) -> None:
    settings = [*tiny.one_env, f"agent={agent}", "agent.nap=true"]
    for every in ("6", "null"):
        played(tiny, tmp_path / every, *settings, f"logger.diagnostics_every_updates={every}")
    measured = [int(row["updates"]) for row in rows(tmp_path / "6") if row["plasticity/churn"]]
    assert measured == [1, 6, 12, 18] and "plasticity/churn" not in rows(tmp_path / "null")[0]
    one, other = (fingerprint(tmp_path / every) for every in ("6", "null"))
    assert {part for part in one if one[part] != other[part]} == {"metrics.csv", "TensorBoard"}


def test_a_run_that_began_without_diagnostics_goes_on_with_its_columns(tiny: Any, tmp_path: Path) -> None:
    settings = [*tiny.one_env, "logger.diagnostics_every_updates={}"]
    trainer, checkpointer = tiny.assemble(tiny.configured(*settings[:-1], settings[-1].format("null")), tmp_path)
    tiny.play_to(trainer, 400)
    checkpointer.save()
    trainer.env.close()
    trainer, _ = tiny.resume(tiny.configured(*settings[:-1], settings[-1].format(3)), tmp_path)
    trainer.run()
    trainer.env.close()
    table = rows(tmp_path)
    assert len(table) > 5 and not any(tag.startswith("plasticity/") for tag in table[0])


@pytest.mark.parametrize("settings", [{}, {"sigma0": 0.5, "nap": True}, {"head": Categorical(atoms=11)}])
def test_the_numbers_are_those_of_the_formulas_on_states_of_the_replay(
    settings: dict[str, Any], make_agent: Make
) -> None:
    agent = filled(make_agent(hidden=16, **settings))
    names = LayerMonitor(agent.network, agent.optimizer).names
    measures, again = Diagnostics(agent, names), Diagnostics(agent, names)
    measures.before_update()
    again.before_update()
    before = copy.deepcopy(agent.network)
    agent.update()
    found = measures.after_update()
    assert again.after_update() == found
    random = np.random.default_rng(1)
    slots = torch.from_numpy(random.choice(np.flatnonzero(agent.replay.valid), STATES))
    states = agent.replay.gather(slots)[0]
    with torch.no_grad():
        change = (agent.network.q_values(states) - before.q_values(states)).abs().mean()
        stream = agent.network.streams.value
        h = stream.activation(stream.hidden(agent.network.torso(states.float() / 255)))
    assert found["plasticity/churn"] == pytest.approx(float(change), rel=1e-4)
    layer = "streams.value.hidden"
    assert found[f"plasticity/dormant/{layer}"] == pytest.approx(float(dormant_fraction(h)))
    assert found[f"plasticity/rank/{layer}"] == float(feature_rank(h))
    assert found["plasticity/feature_norm"] == pytest.approx(float(feature_norm(h)), rel=1e-4)
    assert np.isfinite(found["plasticity/hessian_max"])


def test_the_curvature_is_that_of_an_updates_loss(make_agent: Make) -> None:
    agent = filled(make_agent(hidden=3, dueling=False))
    measures = Diagnostics(agent, LayerMonitor(agent.network, agent.optimizer).names)
    measures.before_update()
    batch = measures._batch
    assert batch is not None
    agent.updates += 1
    names, shapes = zip(*((name, p.shape) for name, p in agent.network.named_parameters()), strict=True)
    rows = type(batch)._make(tensor[: agent.batch_size] for tensor in batch)
    draws = agent.draw(agent.batch_size)  # a plain network draws nothing

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        twin = copy.copy(agent)
        weights = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        twin.network = Replaced(agent.network, weights)  # type: ignore[assignment]
        return ValueAgent.losses(twin, rows, draws)[0].mean()

    flat = torch.cat([p.detach().flatten() for p in agent.network.parameters()])
    exact = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))[-1]
    assert measures.after_update()["plasticity/hessian_max"] == pytest.approx(float(exact), rel=0.02)


class Replaced:
    """A network under other weights, without a state of its own."""

    def __init__(self, network: Any, weights: dict[str, torch.Tensor]) -> None:
        self.network, self.weights = network, weights

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    def __call__(self, *arguments: Any) -> Any:
        return torch.func.functional_call(self.network, self.weights, arguments)
