"""The runs of a sweep, planned and checked: of training, of studies and of evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from nap_rl import cli
from nap_rl.conf.schema import Config
from nap_rl.sweep import record, sharing, trials
from nap_rl.sweep.commands import EVALUATE, STUDY, TRAIN, Command
from nap_rl.sweep.grammar import Combination, expand
from nap_rl.sweep.trials import Trial

TRAINING_BYTES = 600 << 20  # torch, networks and buffers of a small run, measured on Linux


class Planner:
    """Plans the runs of one command in one folder, and adds up what they need.

    Args:
        seeds_per_process: runs that differ in their seed alone and share a process; None: as many as keep `at_once`
            processes at work, and no more than `sharing.MOST`, where their networks can be stacked.
        at_once: processes at a time; None: not known, so that None above means 1.

    Attributes:
        bytes_per_run: of memory, of the process that needs most.
        on_gpu: whether a run may compute on a GPU.
    """

    def __init__(
        self, command: Command, folder: Path, seeds_per_process: int | None = 1, at_once: int | None = None
    ) -> None:
        if command is not TRAIN and (seeds_per_process or 1) > 1:
            raise ValueError(f"sweep.seeds_per_process={seeds_per_process} is for trainings, not for {command.name}.py")
        self.command, self.folder = command, folder
        self.seeds_per_process, self.at_once = seeds_per_process, at_once
        self.bytes_per_run, self.on_gpu = TRAINING_BYTES, False
        self._frame_bytes: dict[str, int] = {}
        self._configs: list[Config] = []  # of the runs, in order
        self._replay_bytes: list[int] = []

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
                job.config_name,
                self._check_study,
                module=job.CONF,
                folder=self.folder,
                combinations=combinations,
            )
        assert self.command is TRAIN
        self._configs, self._replay_bytes = [], []
        runs = trials.plan(arguments, "config", self._check, folder=self.folder, combinations=combinations)
        placed = sharing.share(runs, self.folder, self._most(runs), record.known(self.folder))
        replay_bytes = {run.folder: size for run, size in zip(placed, self._replay_bytes, strict=True)}
        for together in sharing.processes(placed):
            needed = TRAINING_BYTES + sum(replay_bytes[run.folder] for run in together)
            self.bytes_per_run = max(self.bytes_per_run, needed)
        return placed

    def _most(self, runs: Sequence[Trial]) -> Callable[[Sequence[Trial]], int]:
        """For `sharing.share`: how many runs that differ in their seed alone share a process.

        Raises:
            ValueError: several shall, and their networks cannot be stacked.
        """
        asked = self.seeds_per_process
        if asked is None:
            asked = 1 if self.at_once is None else min(-(-len(runs) // self.at_once), sharing.MOST)
        config_of = {run.folder: config for run, config in zip(runs, self._configs, strict=True)}

        def most(arm: Sequence[Trial]) -> int:
            from nap_rl.conf import build

            if asked == 1 or (reason := build.stack_refusal(config_of[arm[0].folder])) is None:
                return asked
            if self.seeds_per_process is None:
                return 1
            which = f" ({arm[0].arm})" if arm[0].arm else ""
            raise ValueError(f"sweep.seeds_per_process={asked}: runs{which} cannot share a process, because {reason}")

        return most

    def _check(self, node: DictConfig) -> Config:
        from nap_rl.conf import check, environments
        from nap_rl.conf.memory import frame_bytes
        from nap_rl.replay import Replay

        config = check.to_config(node)
        check.check_space(config, self.folder)
        kind = repr(config.env)
        if kind not in self._frame_bytes:
            self._frame_bytes[kind] = frame_bytes(environments.shown(config.env, config.seed)[0])
        self._configs.append(config)
        self._replay_bytes.append(Replay.nbytes(config.replay.capacity, self._frame_bytes[kind]))
        self.on_gpu |= config.device.name != "cpu"
        return config

    def _check_study(self, node: DictConfig) -> object:
        from nap_rl.studies import job

        study = job.check(node)
        self.on_gpu |= getattr(study, "device", "cpu") != "cpu"
        return study

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
