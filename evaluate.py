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

import json
import sys
import time
import uuid
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nap_rl import checkpoint, cli
from nap_rl.agents.evaluation import EpsilonGreedy, NetworkPolicy, Policy, play_episodes
from nap_rl.conf import evaluation, schema
from nap_rl.conf.environments import OpenEnvs, open_atari, open_envs
from nap_rl.conf.evaluation import EvaluationConfig
from nap_rl.conf.load import load_network
from nap_rl.envs import Protocol, check_game
from nap_rl.envs.human import human_normalized
from nap_rl.envs.video import check_video, write_video
from nap_rl.files import write_atomic
from nap_rl.logging.files import GrowingFile, row
from nap_rl.machine import pick_device
from nap_rl.report import scores
from nap_rl.report.scores import Score

EPISODE_COLUMNS = ("run", "game", "episode", "seed", "return", "length_frames")


class Subject(NamedTuple):
    """What is evaluated, whoever trained it."""

    checkpoint: scores.Checkpoint
    policy: Policy
    num_actions: int
    open_envs: OpenEnvs
    protocol: Protocol | None  # None: no Atari


class NoAgentError(ValueError):
    """A path at which no agent stands."""


def main() -> None:
    """The console entry point."""
    if not sys.argv[1:] or {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        print(files("nap_rl.conf").joinpath("evaluate.yaml").read_text(encoding="utf-8"))
        sys.exit(0 if sys.argv[1:] else cli.USAGE_ERROR)
    schema.register()
    evaluation.register()
    cli.register_resolvers()
    try:
        with cli.refusing_bad_input():
            sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(cli.INTERRUPTED)


def run(arguments: list[str]) -> int:
    """Evaluates as the arguments say; everything that can be wrong is found before the first step."""
    paths = [Path(argument) for argument in arguments if "=" not in argument or Path(argument).exists()]
    settings = evaluation.read_settings([a for a in arguments if Path(a) not in paths])
    if settings.video:
        check_video()
    subjects = load_subjects(paths, settings)
    for subject in subjects:
        check_actions(subject)
    for sentence in scores.cautions([subject.checkpoint for subject in subjects]):
        note(f"warning: {sentence}")
    out = make_folder(subjects, settings)
    table, played = GrowingFile(out / "episodes.csv"), []
    table.append(row(EPISODE_COLUMNS))
    for number, subject in enumerate(subjects):
        for game in subject.checkpoint.games:
            film = out / "videos" / f"{game}-{number}-{subject.checkpoint.run.stem}.mp4"
            played.append(play(subject, game, settings, table=table, video=film if settings.video else None))
    summary = {
        "settings": {name: getattr(settings, name) for name in ("episodes", "num_envs", "seed", "epsilon", "noisy")},
        **scores.summarize(played, mix=settings.mix),
    }
    write_atomic(out / "evaluation.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    print(scores.tables(summary))
    print(f"\nwritten to {out}")
    return 0


def note(sentence: str) -> None:
    """A word on standard error."""
    print(f"{Path(sys.argv[0]).name}: {sentence}", file=sys.stderr, flush=True)


def load_subjects(paths: Sequence[Path], settings: EvaluationConfig) -> list[Subject]:
    """The agents at `paths`, each once; with a word, paths without one are skipped if others have one.

    Raises:
        OSError, ValueError: no agent is there, or one is damaged or of a kind that cannot be evaluated.
    """
    if not paths:
        raise ValueError("name what to evaluate: the folder of a run, or of a checkpoint")
    subjects: list[Subject] = []
    skipped: list[NoAgentError] = []
    for path in paths:
        try:
            subject = load_zip(path, settings) if path.is_file() else load_run(path, settings)
        except NoAgentError as error:
            skipped.append(error)
            continue
        if any(subject.checkpoint.path.samefile(other.checkpoint.path) for other in subjects):
            note(f"skipped: {path} is named twice")
        else:
            subjects.append(subject)
    if not subjects:
        raise skipped[0]
    for reason in skipped:
        note(f"skipped: {reason}")
    return subjects


def load_run(path: Path, settings: EvaluationConfig) -> Subject:
    """The agent of a run's newest checkpoint, or of the checkpoint at `path`.

    Raises:
        FileNotFoundError: there is no such folder.
        NoAgentError: the folder holds no checkpoint of an agent.
        checkpoint.CheckpointError: it is damaged.
    """
    try:
        folder = checkpoint.newest_of_run(path)
    except FileNotFoundError as error:
        raise (NoAgentError(str(error)) if path.is_dir() else error) from None
    meta = checkpoint.read_meta(folder)
    if "num_actions" not in meta:
        raise NoAgentError(f"{path} holds checkpoints of a study, not of an agent")
    network, config = load_network(folder)
    protocol = evaluation.protocol_of(config, settings.env.protocol)
    if protocol is None and settings.video:
        raise ValueError(f"video=true films Atari games, but {path} plays {config.env.name}")
    names = evaluation.tasks_of(config, settings.env.game, settings.tasks, meta.get("frames", 0))
    source = scores.Checkpoint(
        run=folder.parent.parent if folder.parent.name == "checkpoints" else folder.parent,
        path=folder,
        games=names,
        settings=evaluation.experiment(config),
        seed=config.seed,
        frames=meta.get("frames"),
        of_frames=config.frames,
        updates=meta.get("updates"),
    )
    policy = NetworkPolicy(network.to(pick_device(settings.device.name)), noisy=settings.noisy, seed=settings.seed)
    opener = open_envs(config) if protocol is None else open_atari(protocol)
    return Subject(source, policy, network.streams.actions, opener, protocol)


def load_zip(path: Path, settings: EvaluationConfig) -> Subject:
    """The agent of an SB3 zip, which says nothing of its game; the protocol is Hessel et al.'s unless overridden.

    Raises:
        NoAgentError: it is no zip.
        OSError, ValueError: it is no zip of an agent that plays Atari, or no game is named.
    """
    from nap_rl.sb3.load import read_model  # SB3 is imported only for its zips

    if path.suffix != ".zip" and not zipfile.is_zipfile(path):
        raise NoAgentError(f"{path} is neither a run's folder nor a zip")
    model = read_model(path)
    if settings.env.game is None:
        raise ValueError(f"{path} does not say its game: add env.game=, for example env.game=pong")
    check_game(settings.env.game)
    if (model.stack, model.frame_shape) != (4, (84, 84)):
        shape = [model.stack, *model.frame_shape]
        raise ValueError(f"{path} acts on observations of shape {shape}, but Atari's here are [4, 84, 84]")
    network = model.build().eval().to(pick_device(settings.device.name))
    protocol = evaluation.atari_protocol(None, settings.env.protocol)
    return Subject(
        scores.Checkpoint(run=path, path=path, games=[settings.env.game], settings={"zip": str(path)}),
        NetworkPolicy(network, noisy=settings.noisy, seed=settings.seed),
        model.actions,
        open_atari(protocol),
        protocol,
    )


def check_actions(subject: Subject) -> None:
    """Opens each game; ValueError unless it has as many actions as the agent."""
    for game in subject.checkpoint.games:
        envs = subject.open_envs(game, 1, 0)
        envs.close()
        if envs.num_actions != subject.num_actions:
            hint = "env.protocol.full_action_set=true" if subject.num_actions == 18 else "the game it was trained on"
            raise ValueError(
                f"{subject.checkpoint.path} acts with {subject.num_actions} actions, but env.game={game} has "
                f"{envs.num_actions} under this protocol: use {hint}"
            )


def make_folder(subjects: Sequence[Subject], settings: EvaluationConfig) -> Path:
    """Makes the folder of the results: in the run's own if there is one run, else below runs/.

    Raises:
        ValueError: it holds an evaluation already.
        OSError: it cannot be made.
    """
    one_run = len(subjects) == 1 and subjects[0].checkpoint.run.is_dir()
    parent = subjects[0].checkpoint.run if one_run else Path("runs")
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
    out = Path(settings.out) if settings.out is not None else parent / "evaluations" / stamp
    if (out / "evaluation.json").exists():
        raise ValueError(f"{out} holds an evaluation already: name another folder with out=")
    out.mkdir(parents=True, exist_ok=True)
    return out


def play(subject: Subject, game: str, settings: EvaluationConfig, *, table: GrowingFile, video: Path | None) -> Score:
    """Plays the episodes of one game, adds them to `table`, and films the first as `video`."""
    env_seed, exploration_seed = (int(word) for word in np.random.SeedSequence(settings.seed).generate_state(2))
    envs = subject.open_envs(game, min(settings.num_envs, settings.episodes), env_seed)
    policy = EpsilonGreedy(subject.policy, settings.epsilon, subject.num_actions, seed=exploration_seed)
    try:
        played = play_episodes(policy, envs, settings.episodes)
    finally:
        envs.close()
    for i, episode in enumerate(played):
        table.append(row((subject.checkpoint.path, game, i, episode.seed, repr(episode.score), episode.frames)))
    if video is not None and subject.protocol is not None:
        write_video(video, game, subject.protocol, played[0].seed, played[0].actions)
    returns = [episode.score for episode in played]
    return Score(
        checkpoint=subject.checkpoint,
        game=game,
        protocol={} if subject.protocol is None else asdict(subject.protocol),
        returns=returns,
        lengths=[episode.frames for episode in played],
        human_normalized=None if subject.protocol is None else human_normalized(game, float(np.mean(returns))),
        video=video,
    )


if __name__ == "__main__":
    main()
