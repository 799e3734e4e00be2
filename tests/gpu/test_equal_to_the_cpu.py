"""Replay, update and projector give the same numbers on GPU and CPU, to rounding; so does a captured update."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from nap_rl import cli
from nap_rl.agents import ValueAgent
from nap_rl.agents.captured import Captured
from nap_rl.agents.draws import Draw, Draws
from nap_rl.conf import build, schema
from nap_rl.conf.check import to_config
from nap_rl.nap import Projector
from nap_rl.replay import Priorities, Replay, Transitions

pytestmark = pytest.mark.gpu
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _float32_is_float32() -> Iterator[None]:
    """Convolutions on a GPU round their factors to 10 bits unless they are told not to."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def fill(replay: Replay, steps: int, num_envs: int = 2) -> None:
    random = np.random.default_rng(0)
    first = np.ones(num_envs, dtype=bool)
    for step in range(steps):
        frames = random.integers(0, 256, (num_envs, 84, 84), dtype=np.uint8)
        rewards = random.normal(size=num_envs).astype(np.float32)
        discounts = (random.random(num_envs) < 0.9).astype(np.float32)
        replay.add(frames, random.integers(0, 4, num_envs), rewards, discounts, first)
        first = np.zeros(num_envs, dtype=bool)
        if step % 7 == 6:
            replay.end_episode(frames[:1], np.array([0]))
            first[0] = True


def close(on_gpu: Tensor, on_cpu: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=tolerance, atol=tolerance)


def test_a_replay_on_the_gpu_holds_and_gathers_what_one_on_the_cpu_does() -> None:
    replays = [Replay(60, 2, device=device) for device in (CPU, GPU)]
    for replay in replays:
        fill(replay, 50)
    cpu, gpu = replays
    assert len(cpu) == len(gpu) and np.array_equal(cpu.valid, gpu.valid)
    slots = torch.from_numpy(np.flatnonzero(cpu.valid))
    for a, b in zip(gpu.gather(slots.to(GPU)), cpu.gather(slots), strict=True):
        close(a, b)
    for replay in replays:
        where = slots.to(replay.device)
        replay.update(where, replay.serials[where], torch.linspace(0.0, 3.0, len(slots)))  # from the host, to both
    for name, tensor in cpu.priorities.state_dict().items():
        close(gpu.priorities.state_dict()[name], tensor)
    drawn = gpu.sample(64)
    assert drawn.s_tm1.is_cuda and bool(cpu.priorities.is_valid(drawn.slots.cpu()).all())


def test_priorities_on_the_gpu_draw_with_the_probabilities_of_those_on_the_cpu() -> None:
    found = []
    for device in (CPU, GPU):
        priorities = Priorities(1_000, device=device)
        slots = torch.arange(0, 1_000, 3, device=device)
        every = torch.ones_like(slots, dtype=torch.bool)
        priorities.write(slots, torch.linspace(0.0, 5.0, len(slots), device=device), every)
        draw = priorities.sample(200_000, torch.Generator(device=device).manual_seed(0))
        table = torch.zeros(1_000)
        table[draw.slots.cpu()] = draw.probabilities.cpu()
        counts = torch.bincount(draw.slots.cpu(), minlength=1_000) / 200_000
        seen = table > 1e-4
        assert float((counts - table)[seen].abs().max()) < 2e-3  # 8 standard deviations of the largest count
        found.append(table)
    drawn = (found[0] > 0) & (found[1] > 0)
    close(found[1][drawn], found[0][drawn], 1e-6)


def agents(*overrides: str) -> list[tuple[ValueAgent, Projector | None]]:
    """The same agent on the CPU and on the GPU, with a full replay each."""
    schema.register()
    cli.register_resolvers()
    small = ["replay.capacity=200", "agent.min_replay_steps=100", "env.num_envs=2", "compile=off"]
    built = []
    for device in (CPU, GPU):
        config = to_config(cli.compose("config", [*small, "device=cpu", *overrides]))
        agent, projector = build.build_agent(config, 4, device)
        fill(agent.replay, 120)
        built.append((agent, projector))
    return built


def hand_over(
    agent: ValueAgent, batch: Transitions, priorities_to: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Give the agent this batch instead of one of its own, without noise, and keep the priorities that it returns."""
    none = Draw(eps=None, taus=None)
    monkeypatch.setattr(agent.replay, "sample", lambda *_: batch)
    monkeypatch.setattr(agent.replay, "update", lambda slots, serials, priorities: priorities_to.append(priorities))
    monkeypatch.setattr(agent, "draw", lambda rows: Draws(none, none, none if agent.double else None))


@pytest.mark.parametrize("name", ["rainbow", "dqn", "qr_dqn"])
@pytest.mark.parametrize("nap", ["true", "false"])
def test_updates_are_those_of_the_cpu(name: str, nap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (cpu, _), (gpu, _) = agents(f"agent={name}", f"agent.nap={nap}")
    priorities: dict[str, list[Tensor]] = {"cpu": [], "gpu": []}
    batch = cpu.replay.sample(32)
    hand_over(cpu, batch, priorities["cpu"], monkeypatch)
    hand_over(gpu, batch, priorities["gpu"], monkeypatch)  # through `Transitions.to`: pinned memory
    for _ in range(3):
        expected, found = cpu.update(), gpu.update()
        close(found.loss, expected.loss, 1e-4)
        close(found.grad_norm, expected.grad_norm, 1e-3)
    for a, b in zip(priorities["gpu"], priorities["cpu"], strict=True):
        close(a, b, 1e-3)
    for a, b in zip(gpu.network.parameters(), cpu.network.parameters(), strict=True):
        close(a.detach(), b.detach(), 1e-4)


def test_a_learner_on_the_gpu_over_a_replay_on_the_host_learns_and_returns_its_priorities() -> None:
    (_, _), (agent, projector) = agents("agent.nap=true", "replay.device=cpu")
    assert agent.replay.device == CPU and agent.device.type == "cuda"
    before = agent.replay.priorities.leaves.clone()
    for _ in range(5):
        assert bool(torch.isfinite(agent.update().loss))
    assert not torch.equal(agent.replay.priorities.leaves, before)
    assert projector is not None and projector.max_relative_drift() < 1e-6


def test_projected_norms_are_those_of_the_cpu() -> None:
    (cpu, on_cpu), (gpu, on_gpu) = agents("agent.nap=true")
    assert on_cpu is not None and on_gpu is not None
    for agent, projector in ((cpu, on_cpu), (gpu, on_gpu)):
        with torch.no_grad():
            torch._foreach_mul_(list(agent.network.parameters()), 1.7)
        projector.project()
    for a, b in zip(gpu.network.parameters(), cpu.network.parameters(), strict=True):
        close(a.detach(), b.detach())
    assert on_gpu.max_relative_drift() < 1e-6


def same_draws(captured: ValueAgent, plain: ValueAgent) -> None:
    for a, b in ((captured, plain), (captured.replay, plain.replay)):
        assert torch.equal(a.generator.get_state(), b.generator.get_state())


def continue_from(captured: ValueAgent, plain: ValueAgent) -> None:
    """The plain agent takes over weights, moments and priorities; random streams are to be the same by themselves."""
    same_draws(captured, plain)
    plain.load_state_dict(copy.deepcopy(captured.state_dict()))
    plain.replay.priorities.load_state_dict(captured.replay.priorities.state_dict())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_captured_updates_are_the_uncaptured_ones(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same draws of transitions and noise too: a replayed graph advances the generators.

    Each begins where the captured one before it ended: bfloat16 makes a last bit that differs 1e-3 in some updates.
    """
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # two uncaptured runs would differ otherwise
    overrides = ("agent.nap=true", "compile=on", f"precision={precision}", "agent.target_every_updates=6")
    (_, (captured, _)), (_, (plain, _)) = agents(*overrides), agents(*overrides)
    assert isinstance(captured.gradient_step, Captured) and isinstance(captured.q_values, Captured)
    for name in ("gradient_step", "q_values"):
        monkeypatch.setattr(plain, name, getattr(plain, name).function)
    for k in range(12):
        continue_from(captured, plain)
        for agent in (captured, plain):
            agent.set_learning_rate(1e-4 * (k + 1))
        found, expected = captured.update(0.4 + 0.05 * k), plain.update(0.4 + 0.05 * k)
        close(found.loss, expected.loss.cpu(), 1e-3)
    assert [graph.recorded is not None for graph in captured.gradient_step._graphs.values()] == [True]
    random = np.random.default_rng(0)
    for _ in range(6):
        stacks = random.integers(0, 256, (2, 4, 84, 84), dtype=np.uint8)
        assert np.array_equal(captured.act(stacks), plain.act(stacks))
    assert [graph.recorded is not None for graph in captured.q_values._graphs.values()] == [True]
    same_draws(captured, plain)
    for a, b in zip(captured.network.parameters(), plain.network.parameters(), strict=True):
        close(a.detach(), b.detach().cpu(), 1e-3)
