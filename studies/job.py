"""One study in one folder: from a composed config to finished files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from nap_rl import cli
from nap_rl.images import pick_images
from nap_rl.studies.config import SUMMARY, TASKS, StudyConfig, root_of, validate

CONFIG_NAME = "study"
CONF = "nap_rl.conf.study"


def register_schema() -> None:
    """Makes conf/study the root of the configs, and the types of StudyConfig known to it."""
    ConfigStore.instance().store(name="study_schema", node=StudyConfig)


def compose(arguments: Sequence[str], config_dirs: Sequence[str] = ()) -> DictConfig:
    """The settings of one study. Raises ValueError with one sentence for what cannot be composed."""
    return cli.compose(CONFIG_NAME, arguments, module=CONF, config_dirs=config_dirs)


def typed(config: DictConfig) -> StudyConfig:
    """The composed config, without Hydra's part, as a StudyConfig. Raises ValueError for settings that cannot
    run."""
    plain = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    study = cast(StudyConfig, OmegaConf.to_object(OmegaConf.merge(StudyConfig, plain)))
    validate(study)
    return study


def check(config: DictConfig) -> StudyConfig:
    """`typed`, after a look at the images too. Raises ValueError or FileNotFoundError, each one sentence."""
    study = typed(config)
    pick_images(study.data.name, root_of(study.data), study.data.images, study.seed)
    return study


def finished(folder: Path, config: StudyConfig) -> bool:
    """Whether `folder` holds the finished study; raises ValueError if it holds the result of another
    config."""
    summary = folder / SUMMARY
    if not summary.is_file() or not (folder / TASKS).is_file():
        return False
    found = json.loads(summary.read_text())["config"]
    wanted = json.loads(json.dumps(asdict(config)))
    different = [key for key in wanted if key != "jobs" and found.get(key) != wanted[key]]
    if different:
        key = different[0]
        raise ValueError(
            f"{folder} holds a study with {key}={found.get(key)}, not {key}={wanted[key]}; choose a new folder."
        )
    return True


def run(config: StudyConfig, folder: Path) -> None:
    """Runs the study to its end, from where `folder` has got to."""
    import torch

    from nap_rl.studies import replay, stream

    torch.set_num_threads(1)  # matrices this small only lose by sharing them out
    # The moments of a weight without gradient sink into denormal numbers, which cost many times a normal one.
    torch.set_flush_denormal(True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if config.study == "schedule_replay":
            replay.run(config, folder)
        else:
            stream.run(config, folder)
    finally:
        torch.set_flush_denormal(False)  # the whole process would go on computing that way
