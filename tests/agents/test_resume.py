"""N + M steps are N, objects put together anew from the checkpoint, and M: equal to the last bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nap_rl import checkpoint
from nap_rl.agents.checkpointer import restore
from tests.fingerprint import fingerprint


def run(tiny: Any, overrides: list[str], folder: Path, stops: list[int]) -> dict[str, str]:
    """A run that is stopped at each of `stops` (frames); what it does after the checkpoint there is lost."""
    config = tiny.configured(*overrides)
    trainer, checkpointer = tiny.assemble(config, folder)
    for frames in stops:
        tiny.play_to(trainer, frames)
        checkpointer.save()
        tiny.play_to(trainer, frames + 80)  # rows, events and slots beyond it, as a killed process leaves them
        trainer.env.close()
        trainer, checkpointer = tiny.resume(config, folder)
        assert trainer.frames == frames
    trainer.run()
    checkpointer.save()
    trainer.env.close()
    return fingerprint(folder)


def assert_exact(tiny: Any, folder: Path, overrides: list[str], stops: list[int]) -> None:
    whole, parts = (run(tiny, overrides, folder / name, at) for name, at in (("whole", []), ("parts", stops)))
    assert [name for name in whole if whole[name] != parts[name]] == []
    assert whole.keys() == parts.keys() and len(whole) >= 14


STICKY = "env/protocol=machado2018"
RESETS = [f"env.on_switch.{name}=reset" for name in ("replay", "optimizer", "target")]
BACKPROP = ["plasticity=continual_backprop", "plasticity.rate=0.02", "plasticity.maturity=2"]
REWARM = ["schedule=rewarm", "schedule.cycle_frames=90", "schedule.patience_frames=30"]
INJECTION = ["plasticity=injection", "plasticity.at=15", "logger.diagnostics_every_updates=9"]
CASES = {
    "fire": ("sequence", ["agent.nap=true", "plasticity=fire"], [192, 208]),
    "before and after an injection": ("atari", ["agent.nap=true", *INJECTION], [600, 720]),
    "much at once, and on a switching step": (
        "sequence",
        [STICKY, "agent.nap=true", "logger.diagnostics_every_updates=9", *BACKPROP],
        [200],
    ),
    "much at once, and on the switching step of a short sequence": (
        "sequence",
        [STICKY, "agent.nap=true", "env.cycles=1", "logger.diagnostics_every_updates=3", *BACKPROP],
        [200],
    ),
    "much at once": ("atari", [STICKY, "agent.nap=true", "logger.diagnostics_every_updates=9", *BACKPROP], [400]),
    "on a switching step": ("sequence", ["agent.nap=true"], [200]),
    "atari": ("atari", [], [400]),
    "in the warm-up, and between two updates": ("atari", [], [80, 408]),
    "sticky actions and NaP": ("atari", [STICKY, "agent.nap=true"], [400]),
    "dqn with epsilon": ("atari", ["agent=dqn", "agent.epsilon.over_frames=700"], [400]),
    "iqn": ("atari", ["agent=iqn"], [400]),
    "before and after a switch": ("sequence", [STICKY, "agent.nap=true"], [192, 208, 640]),
    "on two switching steps": ("sequence", ["agent.nap=true"], [200, 400]),
    "everything reset at a switch": ("sequence", RESETS, [200, 320]),
    "evaluations": ("atari", ["eval.every=200", "eval.episodes=2"], [400]),
    "diagnostics": ("atari", ["agent.nap=true", "logger.diagnostics_every_updates=9"], [400]),
    "schedule=linear": ("sequence", ["schedule=linear"], [320]),
    "schedule=linear over its own frames": ("sequence", ["schedule=linear", "schedule.over_frames=600"], [320]),
    "schedule=linear, restarted": ("sequence", ["schedule=linear", "env.on_switch.schedule=restart"], [320]),
    "schedule=cosine": ("sequence", ["schedule=cosine"], [320]),
    "schedule=cosine, restarted": ("sequence", ["schedule=cosine", "env.on_switch.schedule=restart"], [320]),
    "schedule=restarts": ("sequence", ["schedule=restarts", "schedule.warmup_frames=60"], [320]),
    "schedule=rewarm": ("atari", [*REWARM, "schedule.warmup_frames=20"], [400]),
    "schedule=rewarm, restarted": ("sequence", [*REWARM, "env.on_switch.schedule=restart"], [320]),
}
METHODS = {
    "redo": ["plasticity.every=4"],
    "shrink_perturb": ["plasticity.every=4"],
    "reset_head": ["plasticity.every=5"],
    "continual_backprop": BACKPROP[1:],
    "layer_norm_l2": ["nap=norm_only"],
    "hare_tortoise": ["plasticity.every=4", "plasticity.decay=0.5"],
    **{name: [] for name in ("regenerative", "l2", "weight_decay", "noisy_updates", "leaky_relu", "crelu")},
    **{name: [] for name in ("weight_clipping", "parseval", "c_chain")},
}


def slow_but(*quick: str) -> Callable[[str], object]:
    return lambda name: name if name in quick else pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("case", [*map(slow_but("much at once, and on the switching step of a short sequence"), CASES)])
def test_a_resumed_run_is_the_run_that_was_never_stopped(case: str, tiny: Any, tmp_path: Path) -> None:
    base, overrides, stops = CASES[case]
    assert_exact(tiny, tmp_path, [*getattr(tiny, base), *overrides], stops)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_with_the_rates_of_another_run(scope: str, tiny: Any, tmp_path: Path) -> None:
    norms = [*tiny.atari, "agent.nap=true"]
    run(tiny, [*norms, "nap=norm_only", "agent.learning_rate=3e-3"], tmp_path / "twin", [])
    recorded = ["schedule=recorded", f"schedule.file={tmp_path / 'twin'}", f"schedule.scope={scope}"]
    assert_exact(tiny, tmp_path, [*norms, "agent.learning_rate=3e-3", *recorded], [400])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_with_each_plasticity_method(method: str, tiny: Any, tmp_path: Path) -> None:
    overrides = [*tiny.atari, "agent.nap=true", f"plasticity={method}", *METHODS[method]]
    assert_exact(tiny, tmp_path, overrides, [400])


def test_the_fingerprint_sees_what_differs(tiny: Any, tmp_path: Path) -> None:
    # Thirteen episodes: two alone may well score alike.
    settings = [*tiny.one_env, "env.protocol.max_episode_frames=60"]
    one, two = (run(tiny, [*settings, f"seed={seed}"], tmp_path / str(seed), []) for seed in (0, 1))
    assert {name for name in one if one[name] == two[name]} <= {"evaluations.csv"}  # there were none


def test_a_run_that_never_wrote_its_replay_is_not_resumed(tiny: Any, tmp_path: Path) -> None:
    trainer, checkpointer = tiny.assemble(tiny.configured(*tiny.one_env), tmp_path, replay=False)
    tiny.play_to(trainer, 200)
    path = checkpointer.save()
    trainer.env.close()
    assert path is not None and not list(path.glob("*.bin"))
    with pytest.raises(ValueError, match="holds no replay"):
        restore(trainer, checkpoint.load(path))


@pytest.fixture(scope="module")
def begun(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a checkpoint of frame 80."""
    folder = tmp_path_factory.mktemp("begun")
    trainer, checkpointer = tiny.assemble(tiny.configured(*tiny.one_env), folder)
    tiny.play_to(trainer, 80)
    checkpointer.save()
    trainer.env.close()
    return folder


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("agent.hidden=8", "the saved network is not the configured one: .*size mismatch"),
        ("replay.capacity=160", "capacity, environments, stack and n_steps must be the same"),
        ("agent.nap=true", "the saved run was projected and this one is not, or the other way round"),
        ("env.game=pong", "do not show what they showed|the saved network is not"),
    ],
)
def test_a_state_of_other_settings_is_refused_in_a_sentence(
    override: str, sentence: str, tiny: Any, begun: Path, tmp_path: Path
) -> None:
    shutil.copytree(begun, tmp_path / "run")
    with pytest.raises(ValueError, match=sentence) as error:
        tiny.resume(tiny.configured(*tiny.one_env, override), tmp_path / "run")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_finished_sequence_that_gets_more_cycles_switches_where_it_had_ended(tiny: Any, tmp_path: Path) -> None:
    overrides = [*tiny.sequence, "env.on_switch.replay=reset"]
    once = tiny.configured(*overrides, "env.cycles=1")
    trainer, checkpointer = tiny.assemble(once, tmp_path)
    trainer.run()
    checkpointer.save()
    assert trainer.frames == 400 and trainer.env.visit.number == 1
    trainer.env.close()
    trainer, checkpointer = tiny.resume(tiny.configured(*overrides, "env.cycles=2"), tmp_path)
    assert trainer.env.visit.number == 2 and len(trainer.agent.replay) == 0
    trainer.run()
    trainer.env.close()
    assert [(r.task, r.cycle, r.frames) for r in trainer.records.visits] == [
        ("pong", 0, 200), ("asterix", 0, 200), ("pong", 1, 200), ("asterix", 1, 200)
    ]  # fmt: skip
