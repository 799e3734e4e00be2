"""From a command line to a job in its folder, or to one sentence and exit code 2.

The configuration is composed and checked before the run's folder is made, so that nothing is started or written for a
command that cannot run.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from nap_rl.cli.arguments import parse
from nap_rl.cli.compose import COMPOSE_ERRORS, CONF, compose, register_resolvers
from nap_rl.cli.output import flush_output, tolerate_any_terminal

USAGE_ERROR = 2
INTERRUPTED = 130  # Ctrl-C, as shells count it

Job = Callable[[DictConfig, Path], int]
"""Runs a composed configuration in a folder; returns the exit code."""


def main(command: Callable[[list[str]], int]) -> NoReturn:
    """Do what was typed, and exit with the code that `command` returns, 130 after Ctrl-C."""
    tolerate_any_terminal()
    try:
        code = command(sys.argv[1:])
    except KeyboardInterrupt:
        code = INTERRUPTED
    flush_output()
    sys.exit(code)


def run(
    job: Job,
    config_name: str,
    check: Callable[[DictConfig], object],
    *,
    module: str = CONF,
    help: str = "",
    goes_on: bool = False,
) -> NoReturn:
    """Compose `config_name` of the package `module` with the command line, check it, run `job`, exit with its code.

    `check` raises ValueError with a sentence for settings that cannot run. A folder that holds a run is refused, unless
    the job `goes_on` with it.
    """
    register_resolvers()
    with refusing_bad_input():
        arguments = parse(sys.argv[1:])
        if arguments.help:
            print(help)
            sys.exit(0)
        if arguments.inspection:
            inspect(config_name, module)
        config = compose(config_name, arguments.overrides, module=module, config_dirs=arguments.config_dirs)
        check(config)
        check_folder(Path(config.hydra.run.dir), new=not goes_on)
    sys.exit(start(job, config))


def start(job: Job, config: DictConfig) -> int:
    """Make the folder hydra.run.dir, write the settings into its .hydra/, and run `job` there; returns its code."""
    folder = Path(config.hydra.run.dir)
    with read_write(config), open_dict(config):
        config.hydra.runtime.output_dir = str(folder.absolute())
    HydraConfig.instance().set_config(config)
    plain = config.copy()
    with read_write(plain), open_dict(plain):
        hydra_config = {"hydra": plain.pop("hydra")}
    described = folder / ".hydra"
    described.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(plain, described / "config.yaml")
    OmegaConf.save(hydra_config, described / "hydra.yaml")
    OmegaConf.save(config.hydra.overrides.task, described / "overrides.yaml")
    return job(config, folder)


def inspect(config_name: str, module: str = CONF) -> NoReturn:
    """--cfg, --info and the like: Hydra prints something and starts no run.

    Raises:
        ValueError: settings that do not compose.
    """
    typed = [argument for argument in sys.argv[1:] if "=" in argument and not argument.startswith("-")]
    compose(config_name, typed, module=module)
    try:
        hydra.main(version_base="1.3", config_path=f"pkg://{module}", config_name=config_name)(lambda config: None)()
    except COMPOSE_ERRORS as error:
        raise ValueError(" ".join(str(error).split())) from None
    sys.exit(0)


@contextmanager
def refusing_bad_input() -> Iterator[None]:
    """What is wrong with the input ends the process: one sentence, exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(USAGE_ERROR)


def check_folder(folder: Path, *, new: bool = True) -> None:
    """Whether a run's files can be made in `folder`, which is not made here.

    Raises:
        OSError: with a sentence; also for a new run if `folder` holds one already.
    """
    if new and _holds_a_run(folder):
        raise OSError(f"{folder} holds a run already: name another folder with hydra.run.dir=")
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryDirectory(dir=existing, prefix=".nap_rl-"):
            pass
    except OSError as error:
        raise OSError(f"cannot write the run's folder {folder}: {error.strerror} ({existing})") from None


def _holds_a_run(folder: Path) -> bool:
    """Whether something was played in it: a process killed before its first checkpoint leaves a table without rows."""
    metrics, checkpoints = folder / "metrics.csv", folder / "checkpoints"
    published = checkpoints.is_dir() and any(not path.name.startswith(".tmp.") for path in checkpoints.iterdir())
    return published or (metrics.exists() and metrics.stat().st_size > 0)
