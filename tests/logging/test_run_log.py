from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from nap_rl.logging import RunLog

ANY_FLOAT = st.floats(allow_nan=True, allow_infinity=True)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def test_columns_are_the_clocks_and_then_the_tags_of_the_first_row_in_their_order(tmp_path: Path) -> None:
    with RunLog(tmp_path, tensorboard=False) as log:
        log.metrics(1, 4, 16, {"train/loss": 0.5, "a": 1.0})
        log.metrics(2, 8, 32, {"a": 2.0, "train/loss": 0.25})
    assert (tmp_path / "metrics.csv").read_text() == (
        "updates,agent_steps,frames,train/loss,a\n1,4,16,0.5,1.0\n2,8,32,0.25,2.0\n"
    )


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(ANY_FLOAT, min_size=1, max_size=5))
def test_every_float_reads_back_exactly(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    folder = tmp_path_factory.mktemp("run")
    RunLog(folder, tensorboard=False).metrics(0, 0, 0, {f"v{i}": value for i, value in enumerate(values)})
    (row,) = rows(folder / "metrics.csv")
    back = [float(row[f"v{i}"]) for i in range(len(values))]
    assert np.array_equal(np.array(back), np.array(values), equal_nan=True)
    assert [math.copysign(1, x) for x in back if x == 0] == [math.copysign(1, x) for x in values if x == 0]


def test_numpy_and_torch_scalars_are_written_as_plain_numbers(tmp_path: Path) -> None:
    values: dict[str, Any] = {"f": np.float32(0.1), "i": np.int64(3), "t": torch.tensor(0.5)}
    RunLog(tmp_path, tensorboard=False).metrics(0, 0, 0, values)
    (row,) = rows(tmp_path / "metrics.csv")
    assert row["f"] == repr(float(np.float32(0.1)))
    assert (row["i"], row["t"]) == ("3.0", "0.5")


def test_a_new_tag_is_refused_by_name_and_leaves_no_trace(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.metrics(1, 4, 16, {"a": 1.0})
        with pytest.raises(ValueError, match="'nap/new'"):
            log.metrics(2, 8, 32, {"a": 2.0, "nap/new": 1.0})
    assert len(rows(tmp_path / "metrics.csv")) == 1
    assert [event.step for event in events(tmp_path).Scalars("a")] == [16]


def test_a_tag_named_like_a_clock_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'frames'"):
        RunLog(tmp_path, tensorboard=False).metrics(0, 0, 0, {"frames": 1.0})


def test_a_missing_tag_leaves_an_empty_cell_and_no_scalar(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.metrics(1, 4, 16, {"a": 1.0, "b": math.nan})
        log.metrics(2, 8, 32, {"b": 3.0})
        log.metrics(3, 12, 48, {"a": None, "b": 4.0})
    first, second, third = rows(tmp_path / "metrics.csv")
    assert (first["b"], second["a"], second["b"], third["a"]) == ("nan", "", "3.0", "")
    assert [event.step for event in events(tmp_path).Scalars("a")] == [16]


def test_tensorboard_and_metrics_csv_hold_the_same_numbers_at_the_same_frames(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    tags = ["train/loss", "nap/param_norm/conv1", "task/index"]
    with RunLog(tmp_path) as log:
        for i in range(20):
            values = {tag: float(generator.normal() * 10.0 ** generator.integers(-8, 8)) for tag in tags}
            if i == 7:
                values["train/loss"] = math.nan
            log.metrics(1000 * i, 4000 * i, 16000 * i, values)
    table = rows(tmp_path / "metrics.csv")
    found = events(tmp_path)
    assert sorted(found.Tags()["scalars"]) == sorted(tags)
    for tag in tags:
        scalars = found.Scalars(tag)
        assert [event.step for event in scalars] == [int(row["frames"]) for row in table]
        written = np.array([float(row[tag]) for row in table], dtype=np.float32)
        assert np.array_equal(np.array([event.value for event in scalars], np.float32), written, equal_nan=True)


def test_a_row_can_be_read_before_the_log_is_closed(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.metrics(1, 4, 16, {"a": 1.0})
    log.episode(frames=16, game="pong", cycle=0, episode_return=-21.0, length=16, env_index=3)
    assert len(rows(tmp_path / "metrics.csv")) == len(rows(tmp_path / "episodes.csv")) == 1
    assert [event.value for event in events(tmp_path).Scalars("a")] == [1.0]
    log.close()


def test_episodes_have_a_header_before_the_first_one_ends_and_name_their_units(tmp_path: Path) -> None:
    log = RunLog(tmp_path, tensorboard=False)
    assert (tmp_path / "episodes.csv").read_text() == "frames,game,cycle,env,return,length_frames\n"
    log.episode(frames=4000, game="odd, name", cycle=1, episode_return=0.1, length=400, env_index=2)
    (row,) = rows(tmp_path / "episodes.csv")
    assert row["game"] == "odd, name"
    assert list(row.values()) == ["4000", "odd, name", "1", "2", "0.1", "400"]


def test_two_runs_never_share_a_folder(tmp_path: Path) -> None:
    with RunLog(tmp_path, tensorboard=False) as log:
        log.metrics(1, 4, 16, {"a": 1.0})
    with pytest.raises(FileExistsError, match="folder of its own"):
        RunLog(tmp_path, tensorboard=False)
    assert len(rows(tmp_path / "metrics.csv")) == 1


def test_without_tensorboard_no_event_file_is_written(tmp_path: Path) -> None:
    with RunLog(tmp_path, tensorboard=False) as log:
        log.describe({"seed": 0})
        log.metrics(1, 4, 16, {"a": 1.0})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["episodes.csv", "metrics.csv"]


def layout(folder: Path) -> layout_pb2.Layout:
    (event,) = events(folder).Tensors("custom_scalars__config__")
    return layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])


def test_a_chart_gathers_the_tags_of_its_kind_from_all_layers_and_no_others(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.describe({})
    charts = {chart.title: chart.multiline.tag[0] for category in layout(tmp_path).category for chart in category.chart}
    assert {"param_norm", "grad_norm", "effective_lr", "rotation", "update_ratio", "dormant", "rank"} <= set(charts)
    tags = [f"nap/{kind}/{layer}" for kind in ("param_norm", "grad_norm") for layer in ("torso.0", "torso.10")]
    tags += ["nap/norm_drift", "plasticity/dormant/torso.0", "plasticity/churn", "task/pong/return", "task/index"]
    found = {title: [tag for tag in tags if re.match(pattern, tag)] for title, pattern in charts.items()}
    assert found["param_norm"] == ["nap/param_norm/torso.0", "nap/param_norm/torso.10"]
    assert found["dormant"] == ["plasticity/dormant/torso.0"] and found["return"] == ["task/pong/return"]


def test_the_layout_is_one_text_for_all_networks_and_tasks(tmp_path: Path) -> None:
    for name, config in (("a", {"agent": {"torso": "nature"}}), ("b", {"agent": {"torso": "impala"}})):
        with RunLog(tmp_path / name) as log:
            log.describe(config)
            log.metrics(1, 4, 16, {f"nap/param_norm/{name}": 1.0, f"task/{name}/return": 1.0})
    assert layout(tmp_path / "a") == layout(tmp_path / "b")  # TensorBoard drops equal charts when it merges


def test_the_configuration_is_a_text_and_hyperparameters(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.describe({"seed": 3, "agent": {"nap": True, "torso": "nature"}, "env": {"games": ["pong"]}, "frames": None})
    found = events(tmp_path)
    (text,) = found.Tensors("config")
    assert "| agent.torso | nature |" in text.tensor_proto.string_val[0].decode()
    content = found.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    hparams = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert hparams["seed"].number_value == 3 and hparams["agent.nap"].bool_value
    assert hparams["agent.torso"].string_value == "nature" and hparams["env.games"].string_value == "['pong']"


def test_the_summary_keeps_the_order_and_has_null_for_what_is_not_finite(tmp_path: Path) -> None:
    values = {
        "z": math.inf,
        "a": np.float32(0.5),
        "n": [math.nan, (1, True)],
        "t": torch.tensor(3),
        "p": tmp_path,
    }
    path = RunLog(tmp_path, tensorboard=False).summary(values)

    def refuse(token: str) -> float:
        raise AssertionError(f"{token} is not JSON")

    read = json.loads(path.read_text(), parse_constant=refuse)
    assert list(read) == ["z", "a", "n", "t", "p"]
    assert read == {"z": None, "a": 0.5, "n": [None, [1, True]], "t": 3, "p": str(tmp_path)}


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_summary_that_cannot_be_written_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    log = RunLog(tmp_path, tensorboard=False)
    path = log.summary({"frames": 1})

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(f"os.{broken}", fail)
    with pytest.raises(OSError, match="no space"):
        log.summary({"frames": 2})
    assert json.loads(path.read_text()) == {"frames": 1}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["episodes.csv", "metrics.csv", "summary.json"]


@pytest.mark.parametrize("values", [{"a": {"b": object()}}, {"a": {"b": torch.zeros(2)}}])
def test_a_summary_value_that_json_cannot_hold_is_named(tmp_path: Path, values: Mapping[str, object]) -> None:
    with pytest.raises(TypeError, match=r"summary\.a\.b"):
        RunLog(tmp_path, tensorboard=False).summary(values)
    assert not (tmp_path / "summary.json").exists()


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.close()
    log.close()


def test_the_package_does_not_shadow_the_standard_logging() -> None:
    code = "import nap_rl.logging, logging; logging.getLogger('x'); assert 'nap_rl' not in logging.__file__"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_evaluations_have_a_file_of_their_own_from_the_first_one_on(tmp_path: Path) -> None:
    with RunLog(tmp_path / "run") as log:
        assert not (tmp_path / "run" / "evaluations.csv").exists()
        for frames, score in ((400, 1.5), (800, -2.0)):
            episodes = [(7, score, 40), (8, score + 1, 80)]
            log.evaluation(
                frames=frames, game="pong", cycle=0, episodes=episodes, frame_skip=4, scalars={"eval/x": 3.0}
            )
    assert (tmp_path / "run" / "evaluations.csv").read_text().splitlines() == [
        "frames,game,cycle,episode,seed,return,length_frames",
        "400,pong,0,0,7,1.5,40",
        "400,pong,0,1,8,2.5,80",
        "800,pong,0,0,7,-2.0,40",
        "800,pong,0,1,8,-1.0,80",
    ]
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"scalars": 0})
    events.Reload()
    assert [(s.step, s.value) for s in events.Scalars("eval/mean_reward")] == [(400, 2.0), (800, -1.5)]
    assert [s.value for s in events.Scalars("eval/mean_ep_length")] == [15.0, 15.0]  # agent steps
    assert [s.value for s in events.Scalars("eval/pong/mean_return")] == [2.0, -1.5]
    assert events.Scalars("eval/x")[0].value == 3.0
