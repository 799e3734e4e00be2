"""Sequences of any environments: plans, switches, and a replay that holds exactly what happened."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parent))
import random_envs

from nap_rl.agents.collector import Collector
from nap_rl.envs.sequence import TaskSequence, plan
from nap_rl.envs.step import Visit
from nap_rl.envs.task import Task
from nap_rl.envs.vector import GymnasiumEnvs
from nap_rl.replay import Replay

random_envs.register()


def open_visit(num_envs: int, stack: int, **kwargs: Any) -> Any:
    def opener(visit: Visit) -> GymnasiumEnvs:
        task = Task(visit.task, random_envs.ID, kwargs, redrawn=("observations",), seed=sum(map(ord, visit.task)))
        return GymnasiumEnvs(task, num_envs, seed=visit.number, stack=stack)

    return opener


def test_a_plan_has_every_task_once_a_cycle_with_its_own_length() -> None:
    visits = plan(["a", "b"], [10, 5], 2)
    assert [tuple(visit) for visit in visits] == [
        (0, "a", 0, 0, 10),
        (1, "b", 0, 10, 15),
        (2, "a", 1, 15, 25),
        (3, "b", 1, 25, 30),
    ]


def test_a_drawn_order_is_another_in_each_cycle_and_the_same_for_the_same_seed() -> None:
    names, frames = [str(i) for i in range(6)], [10] * 6
    drawn = plan(names, frames, 20, "drawn", seed=3)
    orders = {tuple(visit.task for visit in drawn[6 * c : 6 * c + 6]) for c in range(20)}
    assert len(orders) > 15 and all(sorted(order) == names for order in orders)
    assert drawn == plan(names, frames, 20, "drawn", seed=3) != plan(names, frames, 20, "drawn", seed=4)
    assert [visit.begin for visit in drawn] == [10 * i for i in range(120)]


def test_a_visit_shorter_than_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="a visit of 3 frames is less than one step of 4 environments"):
        TaskSequence(plan(["a"], [3], 1), open_visit(4, 1))


def test_tasks_of_other_shapes_are_refused_when_they_come() -> None:
    def opener(visit: Visit) -> GymnasiumEnvs:
        return open_visit(2, 1, shape=(3 + visit.number,))(visit)  # type: ignore[no-any-return]

    envs = TaskSequence(plan(["a", "b"], [4, 4], 1), opener)
    envs.reset()
    envs.step(np.zeros(2, dtype=np.int64))
    with pytest.raises(ValueError, match=r"task b has observations \[4\].* but the sequence began with .*\[3\]"):
        envs.step(np.zeros(2, dtype=np.int64))


def test_the_state_is_taken_up_anywhere_in_a_sequence() -> None:
    visits, rng = plan(["a", "b"], [30, 18], 2), np.random.default_rng(0)
    envs = TaskSequence(visits, open_visit(3, 1))
    observations = envs.reset()
    for _ in range(40):
        again = TaskSequence(visits, open_visit(3, 1))
        assert np.array_equal(again.load_state_dict(envs.state_dict()), observations)
        assert again.visit == envs.visit and again.frames == envs.frames
        actions = rng.integers(0, 3, 3)
        one, other = envs.step(actions), again.step(actions)
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
        observations = one.observations


class Scripted:
    """Stands in for an agent: random actions, and a real replay."""

    def __init__(self, replay: Replay, actions: int) -> None:
        self.replay, self.actions, self.rng, self.stacks = replay, actions, np.random.default_rng(0), []  # type: ignore[var-annotated]

    def act(self, stacks: Any, epsilon: float) -> Any:
        self.stacks.append(stacks.copy())
        return self.rng.integers(0, self.actions, len(stacks))


@settings(max_examples=25, deadline=None)
@given(
    num_envs=st.integers(1, 3),
    lengths=st.lists(st.integers(3, 25), min_size=1, max_size=3),
    cycles=st.integers(1, 2),
    stack=st.integers(1, 3),
    n_steps=st.integers(1, 3),
    dtype=st.sampled_from(["float32", "uint8", "int8"]),
    longest=st.integers(1, 9),
)
def test_the_replay_of_a_sequence_holds_what_happened_and_nothing_else(
    num_envs: int, lengths: list[int], cycles: int, stack: int, n_steps: int, dtype: str, longest: int
) -> None:
    visits = plan([f"task {i}" for i in range(len(lengths))], [num_envs * n for n in lengths], cycles)
    opener = open_visit(num_envs, stack, dtype=dtype, longest=longest)
    envs = TaskSequence(visits, opener)
    replay = Replay(
        1_000 * num_envs,
        num_envs,
        frame_shape=(3,),
        frame_dtype=getattr(torch, dtype),
        stack=stack,
        n_steps=n_steps,
        discount=0.9,
        reward_clip=None,
    )
    agent = Scripted(replay, 3)
    collector = Collector(envs, agent)  # type: ignore[arg-type]
    collector.begin()
    steps = cycles * sum(lengths)

    # The oracle: the same environments, played alone with the actions that were taken.
    boundaries = np.cumsum(lengths * cycles)[:-1].tolist()
    alone, shown = opener(visits[0]), None
    episodes: list[list[dict[str, Any]]] = [[{"obs": [o], "r": [], "a": [], "d": 1.0}] for o in alone.reset()]
    visit = 0
    for t in range(1, steps + 1):
        collector.send(agent.act(collector.stacks(), 0.0))
        actions = collector._actions.copy()
        step = collector.recv()
        played = alone.step(actions)
        switches = t in boundaries
        if switches:
            visit += 1
            alone = opener(visits[visit])
            shown = alone.reset()
        for env in range(num_envs):
            episode = episodes[env][-1]
            episode["obs"].append(played.last_observations[env])
            episode["a"].append(actions[env])
            episode["r"].append(played.rewards[env])
            if played.ended[env] or switches:
                episode["d"], episode["over"] = played.discounts[env], True
                following = shown[env] if switches else played.observations[env]  # type: ignore[index]
                episodes[env].append({"obs": [following], "r": [], "a": [], "d": 1.0})
        assert envs.visit.number == visit and bool(step.ended.all()) >= switches

    expected = sorted(
        transition
        for of_env in episodes
        for episode in of_env
        for transition in n_step_transitions(episode, stack, n_steps)
    )
    slots = torch.from_numpy(np.flatnonzero(replay.valid))
    s_tm1, a_tm1, r_t, discount_t, s_t = replay.gather(slots)
    stored = sorted(
        (
            s_tm1[i].numpy().tobytes(),
            int(a_tm1[i]),
            s_t[i].numpy().tobytes(),
            float(r_t[i]),
            float(discount_t[i]),
        )
        for i in range(len(slots))
    )
    assert [each[:3] for each in stored] == [each[:3] for each in expected]
    numbers, exact = (np.array([each[3:] for each in both]) for both in (stored, expected))
    np.testing.assert_allclose(numbers, exact, atol=1e-5)


def n_step_transitions(episode: dict[str, Any], stack: int, n_steps: int) -> list[tuple[Any, ...]]:
    """All (s, a, r, discount, s') that an episode gives. A running one gives none that reach past its newest step."""
    zero = np.zeros_like(episode["obs"][0])

    def state(t: int) -> bytes:
        return np.stack([episode["obs"][i] if i >= 0 else zero for i in range(t - stack + 1, t + 1)]).tobytes()

    length, over = len(episode["a"]), episode.get("over", False)
    found = []
    for t in range(length):
        m = min(n_steps, length - t)
        if m < n_steps and not over or (not over and t + m > length - 1):  # its bootstrap state is not stored yet
            continue
        r = sum(0.9**i * float(episode["r"][t + i]) for i in range(m))
        discount = 0.9**m * (float(episode["d"]) if t + m == length else 1.0)
        found.append((state(t), int(episode["a"][t]), state(t + m), r, discount))
    return found
