"""The update step by step, and a Markov chain that the agent must solve."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nap_rl.agents import Diverged, Update, ValueAgent
from nap_rl.losses import Munchausen
from nap_rl.nap import Projector
from nap_rl.nn import Categorical, ExpectedValue, Head, HeadLoss, ImplicitQuantile, Quantile
from nap_rl.replay import Replay, Transitions

Make = Callable[..., ValueAgent]


def fill(replay: Replay, steps: int, seed: int = 0, actions: int = 2) -> None:
    """One long episode of random frames, actions and rewards in every environment."""
    rng = np.random.default_rng(seed)
    envs = len(replay.counts)
    for k in range(steps):
        frames = rng.integers(0, 256, (envs, replay.frames.shape[1])).astype(np.uint8)
        first = np.full(envs, k == 0)
        replay.add(frames, rng.integers(0, actions, envs), rng.normal(size=envs), np.ones(envs), first)


def fixed_batch(agent: ValueAgent, size: int = 8, weights: Tensor | None = None) -> Transitions:
    """Always the same transitions, with these weights, whenever `update` samples."""
    batch = agent.replay.sample(size)
    batch = batch._replace(weights=torch.ones(size) if weights is None else weights)
    agent.replay.sample = lambda *args, **kwargs: batch  # type: ignore[method-assign]
    return batch


def losses_of(agent: ValueAgent, batch: Transitions) -> HeadLoss:
    """Losses and priorities of a batch, under draws of their own."""
    return agent.losses(batch, agent.draw(len(batch.a_tm1)))


class Recorder:
    """Calls a network and keeps the noise of each call."""

    def __init__(self, network: Any, name: str, calls: list[tuple[str, Any]]) -> None:
        forward = network.forward

        def recorded(stacks: Tensor, noise: Any = None, taus: Any = None) -> Tensor:
            calls.append((name, noise))
            output: Tensor = forward(stacks, noise, taus)
            return output

        network.forward = recorded


def test_one_update_draws_independent_noise_for_online_s_online_s_next_and_target_s_next(make_agent: Make) -> None:
    agent = make_agent(sigma0=0.5)
    fill(agent.replay, 50)
    calls: list[tuple[str, Any]] = []
    Recorder(agent.network, "online", calls)
    Recorder(agent.target, "target", calls)
    agent.update()
    agent.update()
    assert [name for name, _ in calls] == ["online", "online", "target"] * 2
    for layer in range(4):
        draws = torch.stack([torch.cat([noise[layer][0], noise[layer][1]]) for _, noise in calls])
        assert draws.shape[0] == 6 and torch.linalg.matrix_rank(draws) == 6  # no two are the same, in any layer


def test_acting_draws_independent_noise_for_every_environment_and_step(make_agent: Make) -> None:
    agent = make_agent(sigma0=0.5, num_envs=3)
    calls: list[tuple[str, Any]] = []
    Recorder(agent.network, "online", calls)
    stacks = np.zeros((3, 4, 2), dtype=np.uint8)
    agent.act(stacks)
    agent.act(stacks)
    agent.act(stacks, noisy=False)
    assert calls[2][1] is None
    rows = torch.cat([torch.cat(noise[1], dim=1) for _, noise in calls[:2]])  # layer 1: 8 + 2 numbers a row
    assert rows.shape == (6, 10) and torch.linalg.matrix_rank(rows) == 6


def test_noisy_networks_explore_without_epsilon_and_train_or_eval_mode_does_not_matter(make_agent: Make) -> None:
    agent = make_agent(sigma0=5.0, num_envs=64)
    stacks = np.full((64, 4, 2), 100, dtype=np.uint8)
    agent.network.eval()
    actions = agent.act(stacks)
    assert 5 < actions.sum() < 59
    assert len(set(agent.act(stacks, noisy=False).tolist())) == 1


def test_double_dqn_selects_with_the_online_network_and_values_with_the_target(make_agent: Make) -> None:
    for double, expected in ((True, 3.0), (False, 7.0)):
        agent = make_agent(double=double, discount=1.0, dueling=False)
        batch = Transitions(
            s_tm1=torch.zeros(1, 4, 2, dtype=torch.uint8),
            a_tm1=torch.tensor([0]),
            r_t=torch.tensor([0.0]),
            discount_t=torch.tensor([1.0]),
            s_t=torch.zeros(1, 4, 2, dtype=torch.uint8),
            weights=torch.ones(1),
            slots=torch.tensor([0]),
            serials=torch.tensor([0]),
        )
        agent.network.forward = lambda s, noise=None, taus=None: torch.tensor([[[0.0], [1.0]]])  # type: ignore[method-assign]
        agent.target.forward = lambda s, noise=None, taus=None: torch.tensor([[[7.0], [3.0]]])  # type: ignore[method-assign]
        # Online prefers action 1, which the target values 3; the target alone would take action 0, worth 7.
        _, priority = losses_of(agent, batch)
        assert float(priority[0]) == expected


def test_importance_weights_scale_the_gradient_and_never_the_priorities(make_agent: Make) -> None:
    results = []
    for weights in (torch.ones(8), torch.full((8,), 0.25), torch.tensor([1.0] + [0.0] * 7)):
        agent = make_agent(max_grad_norm=None)
        fill(agent.replay, 50)
        batch = fixed_batch(agent, weights=weights)
        losses, priorities = losses_of(agent, batch)
        written: list[Tensor] = []
        agent.replay.update = lambda slots, serials, p, to=written: to.append(p)  # type: ignore[method-assign]
        update = agent.update()
        assert float(update.loss) == pytest.approx(float((weights * losses.detach()).mean()))
        assert torch.equal(written[0], priorities)
        results.append((float(update.grad_norm), written[0]))
    assert results[1][0] == pytest.approx(0.25 * results[0][0], rel=1e-5)
    assert torch.equal(results[0][1], results[1][1]) and torch.equal(results[0][1], results[2][1])


def test_the_loss_is_the_mean_over_the_batch(make_agent: Make) -> None:
    agent = make_agent()
    fill(agent.replay, 50)
    batch = fixed_batch(agent, size=5)
    losses, _ = losses_of(agent, batch)
    assert float(agent.update().loss) == pytest.approx(sum(losses.tolist()) / 5)


def test_new_priorities_are_the_td_errors_of_the_sampled_slots_with_the_exponent_once(make_agent: Make) -> None:
    agent = make_agent(exponent=0.5)
    fill(agent.replay, 50)
    batch = fixed_batch(agent)
    _, priorities = losses_of(agent, batch)
    agent.update()
    leaves = agent.replay.priorities.leaves.view(-1)
    for slot in batch.slots.unique().tolist():
        largest = max(float(p) for s, p in zip(batch.slots, priorities, strict=True) if s == slot)
        assert float(leaves[slot]) == pytest.approx(largest**0.5, rel=1e-5)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(name == other and torch.equal(x, y) for (name, x), (other, y) in pairs)


def test_the_target_is_an_exact_copy_every_target_every_updates_and_stands_still_between(make_agent: Make) -> None:
    agent = make_agent(target_every_updates=3, sigma0=0.5)
    fill(agent.replay, 50)
    assert same(agent.target, agent.network)
    frozen = copy.deepcopy(agent.target)
    for update in range(1, 10):
        agent.update()
        if update % 3 == 0:
            assert same(agent.target, agent.network)
            frozen = copy.deepcopy(agent.target)
        else:
            assert same(agent.target, frozen) and not same(agent.target, agent.network)
    assert agent.updates == 9
    assert not any(p.requires_grad for p in agent.target.parameters())


def test_a_soft_target_moves_by_tau_towards_the_online_network(make_agent: Make) -> None:
    agent = make_agent(target_every_updates=2, tau=0.25)
    fill(agent.replay, 50)
    before = copy.deepcopy(agent.target)
    agent.update()
    assert same(agent.target, before)
    agent.update()
    for old, new, online in zip(
        before.parameters(), agent.target.parameters(), agent.network.parameters(), strict=True
    ):
        assert torch.allclose(new, 0.75 * old + 0.25 * online, atol=1e-7)
    assert not same(agent.target, agent.network)


def test_the_gradient_is_clipped_by_its_global_norm_and_reported_unclipped(make_agent: Make) -> None:
    norms = {}
    for clip in (None, 1e-3, 1e6):
        agent = make_agent(max_grad_norm=clip)
        fill(agent.replay, 50)
        fixed_batch(agent)
        reported = float(agent.update().grad_norm)
        gradients = [p.grad for p in agent.network.parameters() if p.grad is not None]
        norms[clip] = (reported, float(torch.stack([g.square().sum() for g in gradients]).sum().sqrt()))
    assert norms[None][0] == norms[1e-3][0] == norms[1e6][0] > 1e-3
    assert norms[None][1] == pytest.approx(norms[None][0], rel=1e-4)
    assert norms[1e6][1] == pytest.approx(norms[None][0], rel=1e-4)
    assert norms[1e-3][1] == pytest.approx(1e-3, rel=1e-3)


def poisoned(make_agent: Make) -> ValueAgent:
    agent = make_agent()
    fill(agent.replay, 50)
    agent.update()
    with torch.no_grad():
        next(agent.network.parameters()).fill_(torch.nan)
    return agent


def test_on_a_cpu_an_update_whose_loss_is_not_finite_raises_diverged(make_agent: Make) -> None:
    agent = poisoned(make_agent)
    with pytest.raises(Diverged, match="^the loss is nan at update 2$"):
        agent.update()
    assert bool(agent.replay.priorities.leaves.isfinite().all())
    assert len(agent.replay.sample(8).slots) == 8  # NaN priorities would make sampling an IndexError


def test_on_a_gpu_an_update_waits_for_nothing_and_check_finite_raises_diverged(
    make_agent: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = poisoned(make_agent)
    monkeypatch.setattr(agent, "device", torch.device("cuda"))  # as far as the agent asks
    monkeypatch.setattr(Transitions, "to", lambda batch, device: batch)
    for _ in range(3):
        update = agent.update()
    with pytest.raises(Diverged, match="^the loss is nan at update 4$"):
        agent.check_finite(update)
    agent.check_finite(Update(torch.zeros(()), torch.ones(())))
    with pytest.raises(Diverged, match="^the gradient's norm is inf at update 4$"):
        agent.check_finite(Update(torch.zeros(()), torch.tensor(torch.inf)))


@pytest.mark.parametrize("nap", [True, False])
def test_weights_that_a_method_changed_are_projected(make_agent: Make, nap: bool) -> None:
    agent = make_agent(nap=nap, method="noisy_updates", options={"scale": 0.1})
    if nap:
        agent.projector = Projector(agent.network, agent.optimizer)
    fill(agent.replay, 50)
    agent.update()
    before = [p.detach().clone() for p in agent.network.parameters()]
    assert agent.intervene() and not all(map(torch.equal, before, agent.network.parameters()))
    if agent.projector is not None:
        assert float(agent.projector.max_relative_drift()) < 1e-6


def test_gradients_do_not_add_up_from_one_update_to_the_next(make_agent: Make) -> None:
    agent = make_agent(learning_rate=0.0)
    fill(agent.replay, 50)
    fixed_batch(agent)
    first, second = float(agent.update().grad_norm), float(agent.update().grad_norm)
    assert first == pytest.approx(second)


def test_epsilon_greedy_explores_with_probability_epsilon_and_uniformly(make_agent: Make) -> None:
    agent = make_agent(actions=4, num_envs=50)
    stacks = np.full((50, 4, 2), 200, dtype=np.uint8)
    greedy = agent.act(stacks)
    assert len(set(greedy.tolist())) == 1
    actions = np.concatenate([agent.act(stacks, epsilon=0.4) for _ in range(200)])
    shares = np.bincount(actions, minlength=4) / len(actions)
    expected = np.full(4, 0.1)
    expected[greedy[0]] += 0.6
    assert shares.tolist() == pytest.approx(expected.tolist(), abs=0.02)  # 10,000 draws: 4 standard deviations
    everything = np.concatenate([agent.act(stacks, epsilon=1.0) for _ in range(100)])
    assert (np.bincount(everything, minlength=4) / len(everything)).tolist() == pytest.approx([0.25] * 4, abs=0.03)


def test_the_same_seed_learns_the_same_to_the_bit(make_agent: Make) -> None:
    def trained(seed: int) -> ValueAgent:
        agent = make_agent(sigma0=0.5, seed=seed)
        fill(agent.replay, 50)
        for _ in range(20):
            agent.update()
        return agent

    assert same(trained(1).network, trained(1).network)
    assert not same(trained(1).network, trained(2).network)


GAMMA = 0.8
REWARD, NEXT = [[0.1, 0.0], [0.5, 0.2]], [[0, 1], [0, 1]]  # [state][action]


@functools.cache
def chain_values() -> list[list[float]]:
    """Q* of the two-state chain, by iterating Bellman's optimality equation."""
    q = [[0.0, 0.0], [0.0, 0.0]]
    for _ in range(500):
        q = [[REWARD[s][a] + GAMMA * max(q[NEXT[s][a]]) for a in (0, 1)] for s in (0, 1)]
    return q


def play_chain(replay: Replay, episodes: int) -> None:
    """Any first state and action, then the optimal ones, until the episode is truncated (never a terminal state).

    So the n-step return of every start is that of its action followed by the optimal policy, for every n.
    """
    rng = np.random.default_rng(0)
    for _ in range(episodes):
        state = int(rng.integers(2))
        for k in range(int(rng.integers(1, 6))):
            action = int(rng.integers(2)) if k == 0 else int(np.argmax(chain_values()[state]))
            frame = np.eye(2, dtype=np.uint8)[[state]] * 255
            one = np.ones(1)
            replay.add(frame, np.array([action]), one * REWARD[state][action], one, np.array([k == 0]))
            state = NEXT[state][action]
        replay.end_episode(np.eye(2, dtype=np.uint8)[[state]] * 255, np.array([0]))


@pytest.mark.parametrize(
    ("head", "n_steps"),
    [
        pytest.param(ExpectedValue(), 1, marks=pytest.mark.slow),
        (ExpectedValue(), 3),
        (Categorical(21, 0.0, 2.0), 3),
        pytest.param(Quantile(8), 3, marks=pytest.mark.slow),
        pytest.param(ImplicitQuantile(8, 8, 32), 3, marks=pytest.mark.slow),
    ],
    ids=["expected-1", "expected-3", "categorical-3", "quantile-3", "implicit_quantile-3"],
)
def test_a_two_state_chain_is_solved_to_its_closed_form(make_agent: Make, head: Head, n_steps: int) -> None:
    agent = make_agent(head=head, n_steps=n_steps, discount=GAMMA, hidden=16, target_every_updates=20)
    play_chain(agent.replay, 150)
    for update in range(800):
        for group in agent.optimizer.param_groups:
            group["lr"] = 1e-2 if update < 500 else 1e-3
        agent.update()
    stacks = torch.zeros(2, 4, 2, dtype=torch.uint8)
    stacks[:, -1] = torch.eye(2, dtype=torch.uint8) * 255
    q = agent.network.q_values(stacks)
    for state in (0, 1):
        assert q[state].tolist() == pytest.approx(chain_values()[state], abs=0.03)


def munchausen_values(alpha: float, temperature: float, clip: float) -> list[list[float]]:
    """The fixed point of Munchausen value iteration on the chain (Vieillard et al. 2020, equation 3)."""
    q = [[0.0, 0.0], [0.0, 0.0]]
    for _ in range(500):
        log_sum = [
            max(row) + temperature * math.log(sum(math.exp((x - max(row)) / temperature) for x in row)) for row in q
        ]
        # temperature log pi(a|s) = q(s, a) - log_sum(s), and sum_a pi (q - temperature log pi) is log_sum itself.
        q = [
            [REWARD[s][a] + alpha * max(q[s][a] - log_sum[s], clip) + GAMMA * log_sum[NEXT[s][a]] for a in (0, 1)]
            for s in (0, 1)
        ]
    return q


@pytest.mark.parametrize(
    "head",
    [ExpectedValue(), pytest.param(ImplicitQuantile(8, 8, 32), marks=pytest.mark.slow)],
    ids=lambda h: type(h).__name__,
)
def test_munchausen_reaches_the_fixed_point_of_its_own_value_iteration(make_agent: Make, head: Head) -> None:
    munchausen = Munchausen(alpha=0.9, temperature=0.1, clip=-0.3)
    agent = make_agent(
        head=head, discount=GAMMA, hidden=16, target_every_updates=20, double=False, munchausen=munchausen
    )
    play_chain(agent.replay, 150)
    for update in range(1_000):
        for group in agent.optimizer.param_groups:
            group["lr"] = 1e-2 if update < 700 else 1e-3
        agent.update()
    stacks = torch.zeros(2, 4, 2, dtype=torch.uint8)
    stacks[:, -1] = torch.eye(2, dtype=torch.uint8) * 255
    q, expected = agent.network.q_values(stacks), munchausen_values(0.9, 0.1, -0.3)
    assert expected[0][0] < chain_values()[0][0]  # it is another fixed point than that of Q-learning
    for state in (0, 1):
        assert q[state].tolist() == pytest.approx(expected[state], abs=0.04)


@pytest.mark.parametrize(
    ("double", "passes"), [(False, ["online", "target", "target"]), (True, ["online", "online", "target"])]
)
def test_implicit_quantiles_choose_and_value_actions_at_levels_of_their_own(
    make_agent: Make, double: bool, passes: list[str]
) -> None:
    agent = make_agent(head=ImplicitQuantile(5, 7, 3), double=double)
    fill(agent.replay, 50)
    calls: list[tuple[str, Any]] = []
    for network, name in ((agent.network, "online"), (agent.target, "target")):
        forward = network.forward

        def recorded(stacks: Tensor, noise: Any = None, taus: Any = None, forward=forward, name=name) -> Tensor:  # type: ignore[no-untyped-def]
            calls.append((name, taus))
            output: Tensor = forward(stacks, noise, taus)
            return output

        network.forward = recorded  # type: ignore[method-assign]
    agent.update()
    agent.update()
    assert [name for name, _ in calls] == passes * 2
    assert [taus.shape[1] for _, taus in calls] == [5, 3, 7] * 2
    levels = torch.cat([taus.flatten() for _, taus in calls])
    assert len(levels.unique()) > 0.99 * len(levels)
    agent.act(np.zeros((2, 4, 2), dtype=np.uint8))
    assert calls[-1][1].shape == (2, 3)
