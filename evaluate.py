"""Score trained agents: python evaluate.py RUN [RUN ...] [key=value ...]

RUN is a run's folder (its newest checkpoint), a checkpoint's folder, or a zip of Stable-Baselines3, which does not say
its game. Each is played in the game or games that it was trained on, under its own protocol, unless env.game=... or
env.protocol... says otherwise. Runs of equal settings are put together into an aggregate over games and seeds; runs of
different settings are not, unless mix=true. Among several, files and folders that hold no agent are skipped.

    python evaluate.py runs/default/pong-rainbow/0-20260101-120000-ab12 episodes=10 video=true
    python evaluate.py model.zip env.game=pong episodes=10
    python evaluate.py runs/mine/*/* episodes=30 env/protocol=machado2018 epsilon=0 noisy=false

Exit codes: 0 finished, 2 bad input (nothing was started), 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from nap_rl import checkpoint, cli
from nap_rl.conf import evaluation, schema
from nap_rl.conf.evaluation import EvaluationConfig
from nap_rl.envs import check_game
from nap_rl.envs.atari import FRAME_SHAPE, STACK
from nap_rl.envs.video import check_video
from nap_rl.sb3 import layout


class Found(NamedTuple):
    """An agent that is there.

    Attributes:
        path: as it was typed.
        place: the checkpoint's folder, or the zip.
        meta: of the checkpoint; None for a zip.
    """

    path: Path
    place: Path
    meta: dict[str, Any] | None


class NoAgentError(ValueError):
    """A path at which no agent stands."""


def main() -> None:
    """The console entry point."""
    cli.main(command)


def command(typed: list[str]) -> int:
    """Do what was typed; returns the exit code."""
    if not typed or {"-h", "--help"} & set(typed):
        print(__doc__)
        print(files("nap_rl.conf").joinpath("evaluate.yaml").read_text(encoding="utf-8"))
        return 0 if typed else cli.USAGE_ERROR
    schema.register()
    evaluation.register()
    cli.register_resolvers()
    with cli.refusing_bad_input():
        return run(typed)


def run(arguments: list[str]) -> int:
    """Evaluates as the arguments say. What is wrong with them is found before torch is imported."""
    paths = [Path(argument) for argument in arguments if "=" not in argument or Path(argument).exists()]
    settings = evaluation.read_settings([a for a in arguments if Path(a) not in paths])
    if settings.video:
        check_video()
    found = find_all(paths, settings)
    from nap_rl import scoring

    subjects = [
        scoring.load_zip(agent.place, settings)
        if agent.meta is None
        else scoring.load_run(agent.path, agent.place, agent.meta, settings)
        for agent in found
    ]
    for sentence in scoring.cautions(subjects):
        note(f"warning: {sentence}")
    out, summary = scoring.play_all(subjects, settings)
    print(scoring.tables(summary))
    print(f"\nwritten to {out}")
    return 0


def note(sentence: str) -> None:
    """A word on standard error."""
    print(f"{Path(sys.argv[0]).name}: {sentence}", file=sys.stderr, flush=True)


def find_all(paths: Sequence[Path], settings: EvaluationConfig) -> list[Found]:
    """The agents at `paths`, each once; with a word, paths without one are skipped if others have one.

    Raises:
        OSError, ValueError: no agent is there, or one is damaged or of a kind that cannot be evaluated.
    """
    if not paths:
        raise ValueError("name what to evaluate: the folder of a run, or of a checkpoint")
    agents: list[Found] = []
    skipped: list[NoAgentError] = []
    for path in paths:
        try:
            agent = find_zip(path, settings) if path.is_file() else find_run(path, settings)
        except NoAgentError as error:
            skipped.append(error)
            continue
        if any(agent.place.samefile(other.place) for other in agents):
            note(f"skipped: {path} is named twice")
        else:
            agents.append(agent)
    if not agents:
        raise skipped[0]
    for reason in skipped:
        note(f"skipped: {reason}")
    return agents


def find_run(path: Path, settings: EvaluationConfig) -> Found:
    """A run's newest checkpoint, or the checkpoint at `path`.

    Raises:
        FileNotFoundError: there is no such folder.
        NoAgentError: the folder holds no checkpoint of an agent.
        ValueError: it is damaged, or cannot be played as the settings say.
    """
    try:
        folder = checkpoint.newest_of_run(path)
    except FileNotFoundError as error:
        raise (NoAgentError(str(error)) if path.is_dir() else error) from None
    meta = checkpoint.read_meta(folder)
    if "num_actions" not in meta:
        raise NoAgentError(f"{path} holds checkpoints of a study, not of an agent")
    config = schema.from_dict(meta["config"])
    if evaluation.protocol_of(config, settings.env.protocol) is None and settings.video:
        raise ValueError(f"video=true films Atari games, but {path} plays {config.env.name}")
    evaluation.tasks_of(config, settings.env.game, settings.tasks, meta.get("frames", 0))
    return Found(path, folder, meta)


def find_zip(path: Path, settings: EvaluationConfig) -> Found:
    """A zip of Stable-Baselines3, which says nothing of its game.

    Raises:
        NoAgentError: it is no zip.
        ValueError: it is no sound zip of SB3, or no game is named, or none that there is.
    """
    if path.suffix != ".zip" and not zipfile.is_zipfile(path):
        raise NoAgentError(f"{path} is neither a run's folder nor a zip")
    torso = layout.read_torso(path)
    if settings.env.game is None:
        raise ValueError(f"{path} does not say its game: add env.game=, for example env.game=pong")
    check_game(settings.env.game)
    if torso is not None and not torso.fits(STACK, FRAME_SHAPE):
        raise ValueError(f"{path} acts on {torso.acts_on}, but Atari's observations here are {[STACK, *FRAME_SHAPE]}")
    return Found(path, path, None)


if __name__ == "__main__":
    main()
