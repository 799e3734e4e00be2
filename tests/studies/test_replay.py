"""Schedule replay: the identities behind the paper's Figure 3, where they are exact and where not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from nap_rl.images import load_images
from nap_rl.studies import replay
from nap_rl.studies.config import DataConfig, StudyConfig

CONFIG = StudyConfig(
    study="schedule_replay",
    data=DataConfig(name="digits", images=32),
    width=16,
    batch_size=16,
    tasks=3,
    steps_per_task=40,
    learning_rate=1e-2,
)


def angles(config: StudyConfig, folder: Path) -> dict[str, float]:
    folder.mkdir()
    return {name: row["angle"] for name, row in replay.run(config, folder).items()}


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_sgd_with_the_rate_per_layer_follows_the_unprojected_directions(norm: str, tmp_path: Path) -> None:
    config = replace(CONFIG, optimizer="sgd", learning_rate=0.1, norm=norm)
    found = angles(config, tmp_path / "a")
    assert found["layer"] < 1e-3  # degrees; what is left is the epsilon of the norms
    assert found["exact"] == found["layer"]
    assert found["global"] > 100 * found["layer"]
    assert found["constant"] > 100 * found["layer"]


def test_adam_needs_the_gradients_scaled_as_well(tmp_path: Path) -> None:
    found = angles(CONFIG, tmp_path / "a")
    assert found["exact"] < 1e-2
    assert found["layer"] > 100 * found["exact"]
    assert found["constant"] > found["layer"]
    assert found["unprojected"] == 0.0


def test_file_has_a_row_for_each_network_and_task_and_repeats_itself(tmp_path: Path) -> None:
    short = replace(CONFIG, steps_per_task=3)
    angles(short, tmp_path / "a")
    angles(short, tmp_path / "b")
    text = (tmp_path / "a" / "tasks.csv").read_text()
    header, *lines = text.splitlines()
    assert header.startswith("network,task,online_accuracy") and header.endswith(",angle")
    assert len(lines) == 5 * 3
    assert text == (tmp_path / "b" / "tasks.csv").read_text()


class Killed(BaseException):
    """Like a signal: nothing in the code under test may catch it."""


@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
def test_killed_between_checkpoints_goes_on_to_the_same_bytes(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, optimizer=optimizer, tasks=5, steps_per_task=4, save_every=2, affine="free")
    angles(config, tmp_path / "whole")
    task_data = replay.task_data

    def killed_in_task_four(config: StudyConfig, task: int) -> tuple[Tensor, Tensor]:
        if task == 4:
            raise Killed
        return task_data(config, task)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(replay, "task_data", killed_in_task_four)
        angles(config, tmp_path / "cut")
    assert not (tmp_path / "cut" / "tasks.csv").exists()
    replayed = []
    monkeypatch.setattr(replay, "task_data", lambda *args: replayed.append(args[1]) or task_data(*args))
    replay.run(config, tmp_path / "cut")
    assert replayed == [4]
    assert (tmp_path / "cut" / "tasks.csv").read_bytes() == (tmp_path / "whole" / "tasks.csv").read_bytes()


def test_only_the_normalised_layers_rates_follow_the_schedule() -> None:
    images = load_images("digits", None, 32, 0).double()
    follower = replay.Follower("layer", replace(CONFIG, affine="free"), images)
    follower.shrink = [0.5, 0.25]
    follower.follow()
    groups = follower.learner.optimizer.param_groups
    own = [group for group in groups if "layer" in group]
    assert [group["lr"] for group in own] == [0.5e-2, 0.25e-2]
    assert [[tuple(tensor.shape) for tensor in group["params"]] for group in own] == [[(16, 64)], [(16, 16)]]
    rest = [group for group in groups if "layer" not in group]
    assert {group["lr"] for group in rest} == {1e-2}
    assert sum(len(group["params"]) for group in rest) == 2 * 2 + 2  # gains and offsets, output weight and bias
