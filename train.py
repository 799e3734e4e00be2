"""Train a value-based agent on Atari, with or without Normalize-and-Project: python train.py key=value ...

One run of one agent on one game or on a sequence of games. Without settings: Rainbow on Pong for 200M frames.

    python train.py experiment=pong_cpu                               about an hour on two CPU cores
    python train.py experiment=pong_cpu agent.nap=true frames=1e6     the same with NaP, one million frames
    python train.py env=sequential_atari experiment=nap_sequential    ten games in turn, twice over
    python train.py resume=runs/pong_cpu/pong-rainbow/0-20260101-120000-ab12    go on after a stop, or with more frames=
    python train.py experiment=permuted_catch 'seeds=[0,1,2,3]'       four seeds at once, in one process
    python train.py -m seed=0,1,2 agent.nap=true,false                six runs, one after the other

Commands beside this one:
    train.py      train, resume, sweep
    evaluate.py   score runs, checkpoints and Stable-Baselines3 zips over whole episodes
    report.py     figures and tables from the CSV files of runs
    sweep.py      many runs, several at a time
    study.py      the supervised studies of the paper
    bootstrap.py  from a bare Python: install everything, then train or test

resume=FOLDER goes on with the run in FOLDER, from its newest checkpoint and with its own settings; settings typed
beside it change it where they may. resume=auto goes on with the newest unfinished run of the settings typed, and
begins one if there is none.

Results: runs/<name>/<env>-<agent>/<seed>-<time>-<id>/ holds summary.json, metrics.csv, episodes.csv, checkpoints/ and
TensorBoard's files. Another place: hydra.run.dir=FOLDER.

Exit codes:
    0                finished
    2                bad input: one sentence, nothing was started
    3                diverged: the last good checkpoint stays, diverged/ says what happened
    4                checkpoints cannot be written: checkpoint.max_failures in a row, or the last one
    5                an emulator died
    128 + signal     stopped by SIGINT (130), SIGTERM (143) or SIGUSR1 (138 on Linux), with a checkpoint
Of a sweep: 0, the highest code of its runs, or 128 + signal.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from nap_rl import cli, process

if TYPE_CHECKING:
    from nap_rl.conf.schema import Config

CONFIG_NAME = "config"


def main() -> None:
    """The console entry point. torch is imported only for a command that is not refused."""
    cli.main(command)


def command(typed: list[str]) -> int:
    """Do what was typed; returns the exit code."""
    from nap_rl.conf import help, schema

    schema.register()
    cli.register_resolvers()
    with cli.refusing_bad_input():
        arguments = cli.parse(typed)
        if arguments.help:
            print(__doc__)
            print(help.groups_and_settings())
            return 0
        if arguments.inspection:
            cli.inspect(CONFIG_NAME)
        if arguments.multirun:
            return sweep(arguments)
        return single_run(arguments)


def single_run(arguments: cli.Arguments) -> int:
    """Train, or go on training."""
    from nap_rl.conf.resume import check_run, plan

    resume, node = plan(arguments)
    config = check_run(node, resume)
    if config.seeds is not None:
        return runs_of_seeds(config, node, go_on="resume=auto" in arguments.overrides)

    def job(node: DictConfig, folder: Path) -> int:
        with process.RunsHere() as runs:  # before torch is imported: runs that start together see each other
            from nap_rl import training

            return training.train(config, folder, resume, list(node.hydra.overrides.task), runs)

    return cli.start(job, node)


def runs_of_seeds(config: Config, node: DictConfig, go_on: bool) -> int:
    """Train the runs of all seeds together."""
    assert config.seeds is not None
    configs = [replace(config, seed=seed, seeds=None) for seed in config.seeds]
    typed = [override for override in node.hydra.overrides.task if not override.startswith("seeds=")]

    def job(node: DictConfig, folder: Path) -> int:
        with process.RunsHere() as runs:
            from nap_rl import training

            return training.train_together(configs, folder, go_on=go_on, overrides=typed, runs=runs)

    return cli.start(job, node)


def sweep(arguments: cli.Arguments) -> int:
    """Check all runs of a sweep, then train them one after the other."""
    from nap_rl.conf.resume import Resume, check_run
    from nap_rl.sweep import serial, trials
    from nap_rl.sweep.commands import TRAIN

    return serial.run(trials.plan(arguments, CONFIG_NAME, check=lambda node: check_run(node, Resume())), TRAIN)


if __name__ == "__main__":
    main()
