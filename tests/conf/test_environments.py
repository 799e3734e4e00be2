"""Environments and sequences from the configuration: what is refused, what they are called, how long they are."""

from __future__ import annotations

import re

import pytest

from nap_rl import cli
from nap_rl.conf import environments, schema
from nap_rl.conf.check import to_config
from nap_rl.conf.networks import seeds
from nap_rl.conf.schema import Config

SMALL = ["agent=dqn_small", "compile=off", "replay.capacity=2000"]
CARTPOLES = "env.tasks=[{id: CartPole-v1, name: one}, {id: CartPole-v1, name: two, frames: 500}]"


def checked(*overrides: str) -> Config:
    schema.register()
    cli.register_resolvers()
    return to_config(cli.compose("config", [*SMALL, *overrides]))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["env=gym", "env.id=CartPoll-v1"],
            "gymnasium knows no environment 'CartPoll-v1': did you mean 'CartPole-v1'?",
        ),
        (["env=gym", "env.id=Pendulum-v1"], "environment 'Pendulum-v1' has actions of"),
        (["env=gym", "env.module=no_such_module"], "the module 'no_such_module' cannot be imported"),
        (["env=gym", "env.kwargs={no_such: 1}"], "environment 'CartPole-v1' cannot be made:"),
        (["env=gym", "env.num_envs=0"], "env.num_envs=0, expected 1 or more"),
        (["env=gym", "agent.torso=nature"], "agent.torso=nature: frames of shape [4] are no images"),
        (["env=catch", "agent.torso=vgg"], "agent.torso=vgg is none of nature"),
        (["env=catch", "agent.torso=no_such.Torso"], "the module 'no_such' cannot be imported"),
        (["env=catch", "env.kwargs={rows: 1, columns: 5}"], "Catch has 1 rows"),
        (["env=sequence", "env.tasks=[]"], "env.tasks is empty"),
        (["env=sequence", "env.tasks=[3]"], "env.tasks has 3, expected an id of gymnasium"),
        (["env=sequence", "env.tasks=[{name: x}]"], "expected an id of gymnasium or {id, name, kwargs, frames}"),
        (["env=sequence", "env.tasks=[CartPole-v1,Acrobot-v1]"], "all tasks need one shape"),
        (["env=sequence", "env.tasks=[CartPole-v1,CartPole-v1]"], "two of env.tasks are called CartPole-v1"),
        (["env=sequence", "env.redraw=[colours]"], "env.redraw names colours, which is none of observations, channels"),
        (["env=sequence", "env.redraw=[channels]"], "observations of shape [4] have no channels to permute"),
        (["env=sequence", "env.visits=2"], "env.visits=2, but env.tasks has 1 and env.redraw is empty"),
        (["env=permuted_catch", "env.visits=0"], "env.visits=0, expected 1 or more"),
        (["env=permuted_catch", "env.frames_per_task=15"], "a task of env.tasks has 15 frames"),
        (["env=permuted_catch", "frames=1200001"], "frames=1200001 is more than the whole sequence, 1200000"),
        (["env=permuted_catch", "env.on_switch.exploration=reset"], "exploration=reset is none of [continue, restart]"),
        (["env=permuted_catch", "env.on_switch.network=fresh"], "env.on_switch.network=fresh is none of"),
    ],
)
def test_bad_input_is_one_sentence(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as refusal:
        checked(*overrides)
    assert "\n" not in str(refusal.value)


def test_a_single_task_is_a_stream_of_one_visit() -> None:
    stream = environments.build_env(checked("env=gym", "frames=5000", "env.num_envs=2"))
    assert [tuple(visit) for visit in stream.visits] == [(0, "CartPole-v1", 0, 0, 5000)]
    assert (stream.num_envs, stream.observation_shape, stream.stack, stream.frame_skip) == (2, (4,), 1, 1)
    stream.close()


def test_tasks_have_their_own_names_and_lengths_and_come_back_in_every_cycle() -> None:
    config = checked("env=sequence", CARTPOLES, "env.frames_per_task=1000", "env.cycles=2")
    assert config.frames == 3000 and environments.task_names(config) == ["one", "two"]
    visits = environments.build_env(config).visits
    assert [(v.task, v.cycle, v.begin, v.end) for v in visits] == [
        ("one", 0, 0, 1000),
        ("two", 0, 1000, 1500),
        ("one", 1, 1500, 2500),
        ("two", 1, 2500, 3000),
    ]


def test_the_runs_seed_draws_the_tasks_and_more_visits_keep_the_first_ones() -> None:
    def drawn(*overrides: str, seed: int = 0) -> list[int]:
        config = checked("env=permuted_catch", f"seed={seed}", *overrides)
        return [task.seed for task in environments.tasks(config.env, seeds(config.seed).env)]

    three, five, other = drawn("env.visits=3"), drawn("env.visits=5"), drawn("env.visits=3", seed=1)
    assert five[:3] == three and len(set(five)) == 5 and not set(three) & set(other)


def test_a_run_without_a_length_has_that_of_its_sequence_or_a_million_frames() -> None:
    assert checked("env=gym").frames == 1_000_000
    assert checked("env=permuted_catch", "env.visits=7").frames == 28_000


def test_an_environment_of_an_evaluation_is_the_task_that_was_trained() -> None:
    config = checked("env=permuted_catch", "env.visits=3", "env.num_envs=2")
    stream = environments.build_env(config)
    opened = environments.open_envs(config)("catch-0", 2, 5)
    assert opened.task == stream._envs.task  # type: ignore[attr-defined]
    stream.close()
    opened.close()
