"""The runs of a sweep, planned and checked: of training, of studies and of evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from nap_rl import cli
from nap_rl.conf.schema import Config
from nap_rl.sweep import trials
from nap_rl.sweep.commands import EVALUATE, STUDY, TRAIN, Command
from nap_rl.sweep.grammar import Combination, expand
from nap_rl.sweep.trials import Trial

TRAINING_BYTES = 600 << 20  # torch, networks and buffers of a small run, measured on Linux


class Planner:
    """Plans the runs of one command in one folder, and adds up what they need.

    Attributes:
        bytes_per_run: of memory, of the run that needs most.
        on_gpu: whether a run may compute on a GPU.
    """

    def __init__(self, command: Command, folder: Path) -> None:
        self.command, self.folder = command, folder
        self.bytes_per_run, self.on_gpu = TRAINING_BYTES, False
        self._frame_bytes: dict[str, int] = {}

    def plan(self, arguments: cli.Arguments, combinations: Sequence[Combination] | None = None) -> list[Trial]:
        """All runs, checked.

        Raises:
            ValueError, OSError: one of them cannot run; says which, and why.
        """
        if self.command is EVALUATE:
            return self._evaluations(arguments.overrides)
        if self.command is STUDY:
            from nap_rl.studies import job

            job.register_schema()
            return trials.plan(
                arguments,
                job.CONFIG_NAME,
                job.check,
                module=job.CONF,
                folder=self.folder,
                combinations=combinations,
            )
        assert self.command is TRAIN
        return trials.plan(arguments, "config", self._check, folder=self.folder, combinations=combinations)

    def _check(self, node: DictConfig) -> Config:
        from nap_rl.conf import check, environments
        from nap_rl.conf.memory import frame_bytes
        from nap_rl.replay import Replay

        config = check.to_config(node)
        check.check_space(config, self.folder)
        kind = repr(config.env)
        if kind not in self._frame_bytes:
            self._frame_bytes[kind] = frame_bytes(environments.shown(config.env, config.seed)[0])
        replay = Replay.nbytes(config.replay.capacity, self._frame_bytes[kind])
        self.bytes_per_run = max(self.bytes_per_run, replay + TRAINING_BYTES)
        self.on_gpu |= config.device.name != "cpu"
        return config

    def _evaluations(self, typed: Sequence[str]) -> list[Trial]:
        from nap_rl.conf import evaluation

        paths = [text for text in typed if "=" not in text or Path(text).exists()]
        if not paths:
            raise ValueError("sweep.py evaluate needs the folders of runs to score: sweep.py evaluate RUN RUN ...")
        if missing := [path for path in paths if not Path(path).exists()]:
            raise ValueError(f"there is no {missing[0]}: expected the folder of a run, or a zip")
        evaluation.register()
        chosen = list(expand([text for text in typed if text not in paths]))
        for combination in chosen:
            settings = evaluation.read_settings(list(combination.overrides))
            self.on_gpu |= settings.device.name != "cpu"
        differing = [(f"run={path}", *each.differing) for path in paths for each in chosen]
        several = [each if len(paths) > 1 else each[1:] for each in differing]
        names = trials.folder_names(several)
        arguments = [(str(Path(path).absolute()), *each.overrides) for path in paths for each in chosen]
        return [
            Trial(typed, which, self.folder / name, arm=" ".join(which))
            for typed, which, name in zip(arguments, several, names, strict=True)
        ]
