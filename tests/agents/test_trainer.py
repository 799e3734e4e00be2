"""The training loop in environments whose frames are counters: updates, learning rates, switches, episodes, records."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from nap_rl.agents import Diverged, OnSwitch, Trainer, TrainerConfig, Update, ValueAgent
from nap_rl.envs import Episode, Step, Visit, sequence
from nap_rl.logging import Progress, RunLog
from nap_rl.schedules import Constant, Linear, Warmup

Make = Callable[..., ValueAgent]


class CountingEnvs:
    """N environments whose episodes last `length` steps, with a reward of 2 a step; observations are random."""

    frame_skip, stack, observation_shape, observation_dtype = 4, 4, (2,), np.uint8

    def __init__(self, plan: list[Visit], num_envs: int, length: int) -> None:
        self.visits, self.num_envs, self.length = plan, num_envs, length
        self.visit, self.frames = plan[0], 0
        self.ages = np.zeros(num_envs, dtype=np.int64)
        self.rng = np.random.default_rng(0)
        self.steps: list[Step] = []

    def picture(self) -> npt.NDArray[np.uint8]:
        return self.rng.integers(0, 256, (self.num_envs, 2)).astype(np.uint8)

    def reset(self) -> npt.NDArray[np.uint8]:
        return self.picture()

    def send(self, actions: npt.NDArray[np.int64]) -> None:
        pass

    def recv(self) -> Step:
        self.frames += 4 * self.num_envs
        self.ages += 1
        over = self.ages == self.length
        episodes = [Episode(int(e), 2.0 * self.length, 4 * self.length) for e in np.flatnonzero(over)]
        ended = over
        if self.frames >= self.visit.end and self.visit is not self.visits[-1]:
            self.visit = self.visits[self.visit.number + 1]
            ended = np.ones_like(over)
        self.ages[ended] = 0
        rewards = np.full(self.num_envs, 2.0, dtype=np.float32)
        discounts = (~over).astype(np.float32)
        self.steps.append(Step(self.picture(), self.picture(), rewards, discounts, over, ended, episodes))
        return self.steps[-1]


CONFIG = TrainerConfig(
    frames=2_000,
    update_every_steps=4,
    min_replay_steps=40,
    schedule_frames=2_000,
    learning_rate=Constant(1e-3),
    epsilon=Constant(0.0),
    epsilon_frames=1,
    importance=Linear(0.4, 1.0),
    log_every_updates=10,
)


class Run:
    """A trainer with its environments; what each update was called with, and at which frame, is kept.

    Where only the clocks matter, `learns=False` leaves the gradient step out of the updates.
    """

    def __init__(
        self,
        folder: Path,
        agent: ValueAgent,
        config: TrainerConfig,
        plan: list[Visit] | None = None,
        length: int = 7,
        learns: bool = True,
    ) -> None:
        num_envs = len(agent.replay.counts)
        plan = sequence.plan(["one"], [config.frames], 1) if plan is None else plan
        self.agent, self.folder = agent, folder
        self.env = CountingEnvs(plan, num_envs, length)
        self.log = RunLog(folder, tensorboard=False)
        self.trainer = Trainer(
            self.env,
            agent,
            config,
            log=self.log,
            display=Progress(stream=io.StringIO()),
        )
        self.updates: list[dict[str, float]] = []
        if not learns:
            agent.gradient_step = lambda importance: (torch.zeros(()), torch.ones(()))  # type: ignore[method-assign]
        update = agent.update

        def recorded(importance: float) -> Update:
            rate = agent.optimizer.param_groups[0]["lr"]
            self.updates.append({"frames": self.trainer.frames, "rate": rate, "importance": importance})
            return update(importance)

        agent.update = recorded  # type: ignore[method-assign]

    def rows(self, name: str) -> list[dict[str, str]]:
        return list(csv.DictReader((self.folder / name).open()))


@pytest.mark.parametrize("num_envs", [1, 3, 8])
@pytest.mark.parametrize("every", [4, 1, 2.5, 0.5])
def test_updates_count_transitions_and_not_vector_steps(
    make_agent: Make, tmp_path: Path, num_envs: int, every: float
) -> None:
    config = replace(CONFIG, update_every_steps=every, frames=960)
    run = Run(tmp_path, make_agent(num_envs=num_envs), config, learns=False)
    run.trainer.run()
    assert run.trainer.agent_steps == 240 and run.trainer.frames == run.env.frames == 960
    assert len(run.env.steps) == 240 / num_envs
    assert run.agent.updates == math.floor((240 - 40) / every)
    for update in run.updates:  # never ahead, and behind by less than one vector step
        assert update["frames"] / 4 >= 40 + every
    before = [sum(update["frames"] <= frames for update in run.updates) for frames in range(0, 961, 4 * num_envs)]
    steps = range(0, 241, num_envs)
    assert before == [max(math.floor((step - 40) / every), 0) for step in steps]


def test_updates_that_overlap_the_emulators_are_as_many_at_the_same_frames_and_do_not_see_the_step_in_flight(
    make_agent: Make, tmp_path: Path
) -> None:
    after, during = (Run(tmp_path / name, make_agent(num_envs=3), CONFIG) for name in ("after", "during"))
    during.trainer.overlap = True  # as on a GPU
    transitions: dict[str, list[int]] = {"after": [], "during": []}
    for name, run in (("after", after), ("during", during)):
        update, written, steps = run.agent.update, transitions[name], run.env.steps

        def counted(importance: float, run: Run = run, update: Any = update, written: list[int] = written) -> Update:
            written.append(int(run.agent.replay.counts[0]))
            assert len(run.env.steps) * 12 == run.trainer.frames - (12 if run.trainer.overlap else 0)
            return update(importance)  # type: ignore[no-any-return]

        run.agent.update = counted  # type: ignore[method-assign]
        run.trainer.run()
        assert len(steps) * 12 == run.trainer.frames == 2_004
    assert during.updates == after.updates and len(after.updates) > 100
    # A column of the ring is a step behind, or a step and the last frame of an episode that the step ended.
    assert {a - d for a, d in zip(transitions["after"], transitions["during"], strict=True)} == {1, 2}


def test_a_run_ends_at_the_first_step_that_reaches_its_frames(make_agent: Make, tmp_path: Path) -> None:
    run = Run(tmp_path, make_agent(num_envs=3), replace(CONFIG, frames=1_000))
    run.trainer.run()
    assert run.trainer.frames == 1_008  # 84 vector steps of 12 frames


def test_every_transition_is_stored_with_its_raw_reward_and_its_discount(make_agent: Make, tmp_path: Path) -> None:
    agent = make_agent(num_envs=2)
    Run(tmp_path, agent, replace(CONFIG, frames=392)).trainer.run()
    assert len(agent.replay) == 98  # 49 steps of 2 environments, the last ones too: an episode ends at step 49
    valid = torch.from_numpy(agent.replay.valid)
    assert set(agent.replay.rewards[valid].tolist()) == {2.0}
    assert int((agent.replay.discounts[valid] == 0).sum()) == 14  # 7 whole episodes an environment


TWO_GAMES = sequence.plan(["one", "two"], [1_000] * 2, 2)


def test_the_schedule_goes_on_over_a_switch(make_agent: Make, tmp_path: Path) -> None:
    config = replace(CONFIG, frames=4_000, schedule_frames=4_000, learning_rate=Linear(1.0, 0.0))
    run = Run(tmp_path, make_agent(learning_rate=0.5), config, TWO_GAMES, learns=False)
    run.trainer.run()
    assert len(run.updates) == 240
    for update in run.updates:
        # 160 frames, 40 agent steps, fill the replay: the schedule begins where learning does.
        assert update["rate"] == pytest.approx(1.0 - (update["frames"] - 160) / 3_840)


def test_the_schedule_restarts_at_every_switch_and_runs_over_each_visit(make_agent: Make, tmp_path: Path) -> None:
    config = replace(CONFIG, frames=4_000, learning_rate=Linear(1.0, 0.0), on_switch=OnSwitch(restart_schedule=True))
    run = Run(tmp_path, make_agent(), config, TWO_GAMES, learns=False)
    run.trainer.run()
    for update in run.updates:  # the update of the switching step itself still belongs to the visit before
        frames = (update["frames"] - 1) % 1_000 + 1
        first = update["frames"] <= 1_000  # where 160 frames fill the replay
        expected = 1.0 - (frames - 160) / 840 if first else 1.0 - frames / 1_000
        assert update["rate"] == pytest.approx(expected, abs=1e-9)


def test_a_schedule_that_restarts_with_a_cleared_replay_waits_for_the_first_update_too(
    make_agent: Make, tmp_path: Path
) -> None:
    on_switch = OnSwitch(restart_schedule=True, reset_replay=True)
    rate = Warmup(Constant(1.0), 0.0, share=0.5)
    config = replace(CONFIG, frames=4_000, learning_rate=rate, on_switch=on_switch)
    run = Run(tmp_path, make_agent(), config, TWO_GAMES, learns=False)
    run.trainer.run()
    for update in run.updates:
        frames = (update["frames"] - 1) % 1_000 + 1
        assert update["rate"] == pytest.approx(min((frames - 160) / 420, 1.0), abs=1e-9)
    assert min(update["rate"] for update in run.updates) == pytest.approx(16 / 420)  # not over before it began


def test_the_importance_exponent_anneals_over_the_whole_run_and_not_over_each_visit(
    make_agent: Make, tmp_path: Path
) -> None:
    run = Run(tmp_path, make_agent(), CONFIG, sequence.plan(["one", "two"], [1_000] * 2, 1), learns=False)
    run.trainer.run()
    for update in run.updates:
        assert update["importance"] == pytest.approx(0.4 + 0.6 * update["frames"] / 2_000)
    assert run.updates[-1]["importance"] == pytest.approx(1.0, abs=0.01)


def test_epsilon_falls_over_its_own_frames(make_agent: Make, tmp_path: Path) -> None:
    agent = make_agent()
    config = replace(CONFIG, epsilon=Linear(1.0, 0.1), epsilon_frames=1_000)
    run, seen, act = Run(tmp_path, agent, config, learns=False), [], agent.act
    agent.act = lambda stacks, epsilon: seen.append(epsilon) or act(stacks, epsilon)  # type: ignore[assignment, func-returns-value]
    run.trainer.run()
    expected = [1.0 - 0.9 * min(4 * step / 1_000, 1.0) for step in range(500)]
    assert seen == pytest.approx(expected)


def test_epsilon_is_0_from_its_last_frame_on(make_agent: Make, tmp_path: Path) -> None:
    agent = make_agent()
    config = replace(CONFIG, epsilon=Linear(1.0, 0.1), epsilon_frames=1_000, epsilon_until_frames=1_200)
    run, seen, act = Run(tmp_path, agent, config, learns=False), [], agent.act
    agent.act = lambda stacks, epsilon: seen.append(epsilon) or act(stacks, epsilon)  # type: ignore[assignment, func-returns-value]
    run.trainer.run()
    assert seen[299] == pytest.approx(0.1) and seen[300:] == [0.0] * 200


def switched(make_agent: Make, folder: Path, on_switch: OnSwitch) -> tuple[Run, dict[str, Any]]:
    """A run over one switch, and the agent as it was right after it."""
    agent = make_agent(target_every_updates=10_000)
    run = Run(
        folder, agent, replace(CONFIG, frames=2_000, on_switch=on_switch), sequence.plan(["one", "two"], [1_000] * 2, 1)
    )
    after: dict[str, Any] = {}
    switch = run.trainer._switch

    def spied() -> None:
        switch()
        online, target = agent.network.state_dict(), agent.target.state_dict()
        after.update(
            size=len(agent.replay),
            moments=len(agent.optimizer.state),
            target=all(torch.equal(online[name], target[name]) for name in online),
            updates=agent.updates,
            frames=run.trainer.frames,
        )

    run.trainer._switch = spied  # type: ignore[method-assign]
    run.trainer.run()
    return run, after


def test_at_a_switch_everything_is_kept_by_default(make_agent: Make, tmp_path: Path) -> None:
    run, after = switched(make_agent, tmp_path, OnSwitch())
    assert after == {"size": 250, "moments": 8, "target": False, "updates": 52, "frames": 1_000}
    assert run.agent.updates == (500 - 40) // 4


def test_reset_replay_forgets_every_transition_and_waits_for_the_minimum_again(
    make_agent: Make, tmp_path: Path
) -> None:
    run, after = switched(make_agent, tmp_path, OnSwitch(reset_replay=True))
    assert after == {"size": 0, "moments": 8, "target": False, "updates": 52, "frames": 1_000}
    later = [update["frames"] for update in run.updates[52:]]
    assert later[0] == 1_000 + 4 * (40 + 4)
    assert run.agent.updates == 52 + (250 - 40) // 4
    assert len(run.agent.replay) == 249  # the second game's only; the newest step has no next frame yet


def test_reset_optimizer_forgets_adams_moments_only(make_agent: Make, tmp_path: Path) -> None:
    run, after = switched(make_agent, tmp_path, OnSwitch(reset_optimizer=True))
    assert after == {"size": 250, "moments": 0, "target": False, "updates": 52, "frames": 1_000}
    steps = {float(state["step"]) for state in run.agent.optimizer.state.values()}
    assert steps == {run.agent.updates - 52}


def test_reset_target_copies_the_online_network_only(make_agent: Make, tmp_path: Path) -> None:
    _, after = switched(make_agent, tmp_path, OnSwitch(reset_target=True))
    assert after == {"size": 250, "moments": 8, "target": True, "updates": 52, "frames": 1_000}


def test_no_transition_crosses_a_switch(make_agent: Make, tmp_path: Path) -> None:
    agent = make_agent(n_steps=3)
    run = Run(tmp_path, agent, replace(CONFIG, frames=800), sequence.plan(["one", "two"], [400] * 2, 1), length=10_000)
    run.trainer.run()
    # 100 steps of each game: the last three starts of the first have windows of 3, 2 and 1 steps up to its last frame.
    discounts = agent.replay.gather(torch.tensor([96, 97, 98, 99]))[3]
    assert discounts.tolist() == pytest.approx([0.9**3, 0.9**3, 0.9**2, 0.9])
    assert np.array_equal(agent.replay.frames[100].numpy(), run.env.steps[99].last_observations[0])  # of the old game
    assert np.array_equal(agent.replay.frames[101].numpy(), run.env.steps[99].observations[0])  # of the new one
    assert not agent.replay.valid[100] and agent.replay.valid[101]  # the last frame starts nothing
    assert agent.replay.gather(torch.tensor([101]))[0][0, :3].sum() == 0  # no stack reaches back


def test_episodes_cut_by_a_switch_are_not_counted(make_agent: Make, tmp_path: Path) -> None:
    # 1,000 frames are 250 steps: 35 episodes of 7 and one cut after 5; the visit after it begins a new one.
    run = Run(tmp_path, make_agent(), replace(CONFIG, frames=4_000), TWO_GAMES, learns=False)
    run.trainer.run()
    records = [(r.task, r.cycle, r.frames, len(r.returns)) for r in run.trainer.records.visits]
    assert records == [("one", 0, 1_000, 35), ("two", 0, 1_000, 35), ("one", 1, 1_000, 35), ("two", 1, 1_000, 35)]
    assert {score for r in run.trainer.records.visits for score in r.returns} == {14.0}
    assert {length for r in run.trainer.records.visits for length in r.lengths} == {28}
    rows = run.rows("episodes.csv")
    assert len(rows) == 140
    assert [row["game"] for row in rows] == ["one"] * 35 + ["two"] * 35 + ["one"] * 35 + ["two"] * 35
    assert [int(row["frames"]) for row in rows[33:37]] == [34 * 28, 35 * 28, 1_028, 1_056]


def test_an_episode_that_ends_of_itself_at_the_switching_step_belongs_to_the_game_it_was_played_in(
    make_agent: Make, tmp_path: Path
) -> None:
    plan = sequence.plan(["one", "two"], [1_000] * 2, 1)
    run = Run(tmp_path, make_agent(), replace(CONFIG, frames=2_000), plan, length=10, learns=False)
    run.trainer.run()
    assert [(r.task, len(r.returns)) for r in run.trainer.records.visits] == [("one", 25), ("two", 25)]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_raises_diverged_with_update_and_frame(
    make_agent: Make, tmp_path: Path, loss: float
) -> None:
    agent = make_agent()
    run, step = Run(tmp_path, agent, CONFIG), agent.gradient_step

    def poisoned(importance: float) -> tuple[torch.Tensor, torch.Tensor]:
        _, grad_norm = result = step(importance)
        return (torch.tensor(loss), grad_norm) if agent.updates == 16 else result

    agent.gradient_step = poisoned  # type: ignore[method-assign, assignment]
    # Update 17 is due after 40 + 17 * 4 agent steps.
    with pytest.raises(Diverged, match=f"the loss is {loss} at update 17, frame {4 * (40 + 17 * 4)}$"):
        run.trainer.run()


def test_the_display_says_when_it_compiles_and_while_the_replay_fills(make_agent: Make, tmp_path: Path) -> None:
    run, stream = Run(tmp_path, make_agent(), replace(CONFIG, frames=400)), io.StringIO()
    agent = run.agent
    agent.compiled = True
    display = Progress(stream=stream, plain_every_seconds=0.0)
    Trainer(run.env, agent, run.trainer.config, log=run.log, display=display).run()  # type: ignore[arg-type]
    lines = stream.getvalue().splitlines()
    compiling = [
        i for i, line in enumerate(lines) if line.startswith("compiling, once on this machine: about a minute")
    ]
    filling = [i for i, line in enumerate(lines) if line.endswith("filling the replay: learning begins at 160 frames")]
    assert compiling == [0, filling[-1] + 1] and filling == [*range(1, compiling[1])]
    assert len(filling) == 43  # agent steps; the first update is due at step 44


def test_metrics_have_a_row_for_the_first_update_and_every_log_every_updates(make_agent: Make, tmp_path: Path) -> None:
    run = Run(tmp_path, make_agent(), CONFIG)
    run.trainer.run()
    rows = run.rows("metrics.csv")
    assert [int(row["updates"]) for row in rows] == [1, *range(10, 116, 10)]
    for row in rows:
        assert int(row["agent_steps"]) == 40 + 4 * int(row["updates"])
        assert int(row["frames"]) == 4 * int(row["agent_steps"])
        assert float(row["train/learning_rate"]) == 1e-3
    assert float(rows[-1]["rollout/ep_rew_mean"]) == 14.0
    assert float(rows[-1]["rollout/ep_len_mean"]) == 7.0  # agent steps
    assert float(rows[-1]["task/one/return"]) == 14.0
    assert float(rows[-1]["nap/norm_drift"]) > 0.0
    assert run.trainer.records.max_norm_drift == max(float(row["nap/norm_drift"]) for row in rows)


@pytest.mark.parametrize(
    ("log", "every", "measured"),
    [
        (10, 25, [1, 30, 50, 80, 100]),
        pytest.param(10, 40, [1, 40, 80], marks=pytest.mark.slow),
        pytest.param(30, 7, [1, 30, 60, 90], marks=pytest.mark.slow),
    ],
)
def test_rows_with_diagnostics_are_the_first_and_those_at_or_past_a_multiple(
    log: int, every: int, measured: list[int], make_agent: Make, tmp_path: Path
) -> None:
    run = Run(tmp_path, make_agent(), replace(CONFIG, log_every_updates=log, diagnostics_every_updates=every))
    run.trainer.run()
    rows = run.rows("metrics.csv")
    assert [int(row["updates"]) for row in rows if row["plasticity/churn"]] == measured
    assert len(rows) == 1 + 115 // log


def test_the_logged_loss_is_the_mean_of_the_updates_since_the_row_before(make_agent: Make, tmp_path: Path) -> None:
    agent = make_agent()
    run, update, losses = Run(tmp_path, agent, CONFIG), agent.update, []

    def recorded(importance: float) -> Update:
        result = update(importance)
        losses.append(float(result.loss))
        return result

    agent.update = recorded  # type: ignore[method-assign]
    run.trainer.run()
    rows = run.rows("metrics.csv")
    assert float(rows[0]["train/loss"]) == pytest.approx(losses[0])
    assert float(rows[1]["train/loss"]) == pytest.approx(sum(losses[1:10]) / 9)
    assert float(rows[2]["train/loss"]) == pytest.approx(sum(losses[10:20]) / 10)
