"""What was typed: settings, and the few options that begin with a dash."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

HELP = ("-h", "--help")
MULTIRUN = ("-m", "--multirun")
CONFIG_DIR = ("-cd", "--config-dir")
LOGGERS = ("csv", "tensorboard", "wandb", "mlflow")  # the first one is always there
# Hydra answers these and starts no run.
INSPECTION = ("--cfg", "-c", "--info", "-i", "--hydra-help", "--version", "--shell-completion", "-sc")


@dataclass(frozen=True)
class Arguments:
    """A command line.

    Attributes:
        overrides: the settings, key=value.
        config_dirs: folders of further configuration files, from --config-dir.
        multirun: whether the settings stand for several runs.
        inspection: whether Hydra is asked to print something instead of running.
    """

    overrides: tuple[str, ...] = ()
    config_dirs: tuple[str, ...] = ()
    multirun: bool = False
    help: bool = False
    inspection: bool = False


def parse(typed: Sequence[str]) -> Arguments:
    """The command line, sorted.

    Raises:
        ValueError: an option that does not exist, or --config-dir without a folder.
    """
    if any(name.split("=")[0] in INSPECTION for name in typed):
        return Arguments(inspection=True, help=any(name in HELP for name in typed))
    overrides: list[str] = []
    config_dirs: list[str] = []
    multirun = wants_help = False
    rest = list(typed)
    while rest:
        argument = rest.pop(0)
        option, given, value = argument.partition("=")
        if argument in HELP:
            wants_help = True
        elif argument in MULTIRUN:
            multirun = True
        elif option in CONFIG_DIR:
            if not given and not rest:
                raise ValueError(f"{option} needs a folder: {option} FOLDER")
            config_dirs.append(value if given else rest.pop(0))
        elif argument.startswith("-"):
            raise ValueError(_no_such_option(option, value if given else None))
        elif option == "logger":
            overrides += _loggers(argument, value)
        else:
            overrides.append(argument)
    return Arguments(tuple(overrides), tuple(config_dirs), multirun, wants_help)


def _loggers(argument: str, value: str) -> list[str]:
    """`logger=csv,wandb` -> a key for each tracker. Another single name is a file of the group, for Hydra to find."""
    names = [name.strip() for name in value.strip("[]").split(",")]
    if len(names) == 1 and names[0] not in LOGGERS:
        return [argument]
    if unknown := [name for name in names if name not in LOGGERS]:
        raise ValueError(f"{argument}: there is no logger '{unknown[0]}', expected some of {', '.join(LOGGERS)}")
    return [f"logger.{name}={str(name in names).lower()}" for name in LOGGERS[1:]]


def _no_such_option(option: str, value: str | None) -> str:
    known = [*HELP, *MULTIRUN, *CONFIG_DIR]
    if near := difflib.get_close_matches(option, known, n=1, cutoff=0.75):
        return f"there is no option {option}: did you mean {near[0]}?"
    setting = f"{option.lstrip('-').replace('-', '_')}={value or '...'}"
    return f"there is no option {option}: settings are written without dashes, as {setting}"
