"""Presets of published protocols have their sources' values."""

from __future__ import annotations

import operator
from dataclasses import replace

import pytest

from nap_rl.conf import build, memory, schema
from nap_rl.conf.networks import build_network
from tests.conf.checked import SMALL, checked

TABLE = {  # the canonical Rainbows, as the comparison of published values has them
    "hessel2018": {
        "frames": 200_000_000,
        "replay.capacity": 1_000_000,
        "agent.learning_rate": 6.25e-5,
        "agent.adam_eps": 1.5e-4,
        "agent.batch_size": 32,
        "agent.update_every_steps": 4,
        "agent.min_replay_steps": 20_000,
        "agent.target_every_updates": 2_000,
        "agent.priority_exponent": 0.5,
        "agent.importance_exponent.start": 0.4,
        "agent.importance_exponent.end": 1.0,
        "agent.n_steps": 3,
        "agent.discount": 0.99,
        "agent.noisy_sigma0": 0.5,
        "agent.reward_clip": 1.0,
        "agent.max_grad_norm": 10.0,
        "agent.head.atoms": 51,
        "env.protocol.sticky_actions": 0.0,
        "env.protocol.noop_max": 30,
        "env.protocol.full_action_set": False,
        "env.protocol.life_loss_ends_value": True,
        "env.protocol.max_episode_frames": 108_000,
    },
    "machado2018": {
        "agent.noisy_sigma0": 0.1,
        "agent.max_grad_norm": None,
        "agent.importance_exponent.start": 0.5,
        "agent.importance_exponent.end": 0.5,
        "env.protocol.sticky_actions": 0.25,
        "env.protocol.noop_max": 1,
        "env.protocol.full_action_set": True,
        "env.protocol.life_loss_ends_value": False,
        "env.protocol.max_episode_frames": 108_000,
    },
    "btr": {  # arXiv 2411.03820, table D6
        "frames": 200_000_000,
        "replay.capacity": 2**20,
        "env.num_envs": 64,
        "env.protocol.sticky_actions": 0.25,
        "env.protocol.full_action_set": False,
        "env.protocol.life_loss_ends_value": False,
        "env.protocol.noop_max": 30,
        "agent.torso": "impala",
        "agent.width": 2,
        "agent.max_pool": 6,
        "agent.spectral_norm": True,
        "agent.hidden": 512,
        "agent.head.samples": 8,
        "agent.head.target_samples": 8,
        "agent.head.acting_samples": 8,
        "agent.head.cosines": 64,
        "agent.head.kappa": 1.0,
        "agent.double": False,
        "agent.dueling": True,
        "agent.noisy_sigma0": 0.5,
        "agent.n_steps": 3,
        "agent.discount": 0.997,
        "agent.reward_clip": 1.0,
        "agent.batch_size": 256,
        "agent.update_every_steps": 64,
        "agent.target_every_updates": 500,
        "agent.min_replay_steps": 200_000,
        "agent.max_grad_norm": 10.0,
        "agent.learning_rate": 1e-4,
        "agent.adam_eps": 0.005 / 256,
        "agent.epsilon.start": 1.0,
        "agent.epsilon.end": 0.01,
        "agent.epsilon.over_frames": 8_000_000,
        "agent.epsilon.until_frames": 100_000_000,
        "agent.priority_exponent": 0.2,
        "agent.importance_exponent.start": 0.2,
        "agent.importance_exponent.end": 0.2,
        "agent.munchausen.alpha": 0.9,
        "agent.munchausen.temperature": 0.03,
        "agent.munchausen.clip": -1.0,
    },
    "nap_single_task": {
        "frames": 200_000_000,
        "agent.nap": True,
        "agent.adam_eps": 0.005 / 32,
        "agent.noisy_sigma0": 0.1,
        "agent.uniform_probability": 1e-3,
        "nap.affine": schema.Affine.project,
        "schedule.start": 6.25e-5,
    },
    "cartpole": {  # rl-baselines3-zoo, hyperparams/dqn.yml; 128 updates to each rollout of 256 steps
        "frames": 50_000,
        "agent.net_arch": [256],
        "agent.hidden": 256,
        "agent.batch_size": 64,
        "agent.update_every_steps": 2,
        "agent.target_every_updates": 128,
        "agent.min_replay_steps": 1_000,
        "agent.discount": 0.99,
        "agent.learning_rate": 2.3e-3,
        "agent.epsilon.end": 0.04,
        "agent.epsilon.over_frames": 8_000,
        "replay.capacity": 100_000,
    },
    "nap_sequential": {
        "frames": 400_000_000,
        "agent.nap": True,
        "nap.affine": schema.Affine.regularize,
        "env.on_switch.schedule": "restart",
        "schedule.warmup_start": 1e-8,
        "schedule.start": 6.25e-4,
        "schedule.end": 1e-6,
    },
}


@pytest.mark.parametrize("experiment", TABLE)
def test_a_preset_has_the_values_of_its_source(experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    config = checked(f"experiment={experiment}")
    for name, value in TABLE[experiment].items():
        assert operator.attrgetter(name)(config) == value, name


def test_the_sequential_preset_warms_up_over_1000_updates_and_ends_each_visit_at_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    settings = build.build_trainer_config(checked("experiment=nap_sequential"))
    update = 16 / 20_000_000  # of a visit
    rates = [settings.learning_rate(k * update) for k in (0, 500, 1_000, 1_250_000)]
    assert rates == pytest.approx([1e-8, (1e-8 + 6.25e-4) / 2, 6.25e-4, 1e-6])
    assert settings.on_switch.restart_schedule and not settings.on_switch.reset_replay


def test_the_data_efficient_agent_is_that_of_its_experiment() -> None:
    experiment, agent = (
        checked("experiment=atari_100k").agent,
        checked("agent=data_efficient_rainbow", *SMALL[:1]).agent,
    )
    assert replace(agent, name="rainbow") == replace(experiment, name="rainbow")


def test_beyond_the_rainbow_has_the_parameters_of_its_description(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: None)

    def convolution(inputs: int, outputs: int) -> int:
        return 9 * inputs * outputs + outputs

    def noisy(inputs: int, outputs: int) -> int:
        return 2 * (inputs * outputs + outputs)

    torso = sum(convolution(i, o) + 4 * convolution(o, o) for i, o in ((4, 32), (32, 64), (64, 64)))
    features, actions = 64 * 6 * 6, 18
    embedding = 64 * features + features
    streams = 2 * noisy(features, 512) + noisy(512, 1) + noisy(512, actions)
    network = build_network(checked("experiment=btr"), actions)
    assert torso == 389_024 and torso + embedding + streams == 5_278_918
    assert sum(parameter.numel() for parameter in network.parameters()) == 5_278_918


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["frames=1000", "schedule.warmup_frames=1000"],
            "warmup_frames=1000, expected less than the schedule's own length",
        ),
        (["schedule.warmup_frames=-1"], "warmup_frames=-1, expected 0 or more"),
        (["schedule.warmup_start=-1"], "warmup_start=-1.0, expected a number in"),
    ],
)
def test_a_warmup_that_cannot_be_is_refused(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        checked("schedule=cosine", *SMALL, *overrides)
