"""One study in one folder: from a composed config to finished files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from nap_rl import checkpoint, cli
from nap_rl.images import pick_images
from nap_rl.studies.config import SUMMARY, TASKS, StudyConfig, root_of, validate
from nap_rl.studies.images_config import ImagesConfig
from nap_rl.studies.language_config import LanguageConfig
from nap_rl.studies.stationary_config import TrainingConfig

CONF = "nap_rl.conf.study"
LABELS = "study"  # the root config of the studies whose labels change
SCHEMAS: dict[str, type[StudyConfig] | type[TrainingConfig]] = {
    LABELS: StudyConfig,
    "images": ImagesConfig,
    "language": LanguageConfig,
}
"""By root config. A stationary study has a root of its own, of its name."""

AnyConfig = StudyConfig | TrainingConfig


def config_name(overrides: Sequence[str]) -> str:
    """The root config that `study=` asks for."""
    chosen = [override.partition("=")[2] for override in overrides if cli.key_of(override) == "study"]
    return chosen[-1] if chosen and chosen[-1] in SCHEMAS else LABELS


def register_schema() -> None:
    """Makes conf/study the root of the configs, and the types of all studies known to it."""
    for name, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=f"{name}_schema", node=schema)


def compose(arguments: Sequence[str], config_dirs: Sequence[str] = ()) -> DictConfig:
    """The settings of one study. Raises ValueError with one sentence for what cannot be composed."""
    return cli.compose(config_name(arguments), arguments, module=CONF, config_dirs=config_dirs)


def typed(config: DictConfig) -> AnyConfig:
    """The composed config, without Hydra's part, with its types. Raises ValueError for settings that cannot run."""
    plain = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    schema = SCHEMAS.get(config.study, StudyConfig)
    study = OmegaConf.to_object(OmegaConf.merge(schema, plain))
    assert isinstance(study, (StudyConfig, TrainingConfig))
    if isinstance(study, StudyConfig):
        validate(study)
    else:
        study.validate()
    return study


def check(config: DictConfig) -> AnyConfig:
    """`typed`, after a look at the data too. Raises ValueError or OSError, each one sentence."""
    study = typed(config)
    if isinstance(study, StudyConfig):
        pick_images(study.data.name, root_of(study.data), study.data.images, study.seed)
    else:
        study.check_data()
    return study


def finished(folder: Path, config: AnyConfig) -> bool:
    """Whether `folder` holds the finished study; raises ValueError if it holds one of another config."""
    summary = folder / SUMMARY
    ended = summary.is_file() and (isinstance(config, TrainingConfig) or (folder / TASKS).is_file())
    begun = checkpoint.latest_meta(folder / "checkpoints")
    if not ended and begun is None:
        return False
    found = json.loads(summary.read_text())["config"] if ended else (begun or {})["config"]
    wanted = json.loads(json.dumps(asdict(config)))
    passed = config.NOT_COMPARED if isinstance(config, TrainingConfig) else ("jobs",)
    different = [key for key in wanted if key not in passed and found.get(key) != wanted[key]]
    if different:
        key = different[0]
        raise ValueError(
            f"{folder} holds a study with {key}={found.get(key)}, not {key}={wanted[key]}; choose a new folder."
        )
    return ended


def run(config: AnyConfig, folder: Path) -> int:
    """Runs the study to its end, from where `folder` has got to; returns the exit code."""
    import torch

    if isinstance(config, ImagesConfig):
        from nap_rl.studies import images

        return images.run(config, folder)
    if isinstance(config, LanguageConfig):
        from nap_rl.studies import language

        return language.run(config, folder)
    assert isinstance(config, StudyConfig)

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
    return 0
