"""Trained agents, played over whole episodes and scored: what `evaluate.py` does with what it has found."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nap_rl.agents.evaluation import EpsilonGreedy, NetworkPolicy, play_episodes
from nap_rl.conf import evaluation
from nap_rl.conf.environments import OpenEnvs, open_atari, open_envs
from nap_rl.conf.evaluation import EvaluationConfig
from nap_rl.conf.load import load_network
from nap_rl.envs import Protocol
from nap_rl.envs.film import Expected, Rate
from nap_rl.envs.human import human_normalized
from nap_rl.envs.video import write_video
from nap_rl.files import write_atomic
from nap_rl.logging.files import GrowingFile, row
from nap_rl.logging.waiting import Counting
from nap_rl.machine import pick_device
from nap_rl.report import scores
from nap_rl.report.layers import effective_rate
from nap_rl.report.scores import Score
from nap_rl.report.scores import tables as tables

EPISODE_COLUMNS = ("run", "game", "episode", "seed", "return", "length_frames")


class Subject(NamedTuple):
    """What is evaluated, whoever trained it."""

    checkpoint: scores.Checkpoint
    policy: NetworkPolicy
    num_actions: int
    open_envs: OpenEnvs
    protocol: Protocol | None  # None: no Atari


def load_run(path: Path, folder: Path, meta: Mapping[str, Any], settings: EvaluationConfig) -> Subject:
    """The agent of the checkpoint in `folder`.

    Args:
        path: its run, or the checkpoint, as it was named.
        meta: of the checkpoint.

    Raises:
        checkpoint.CheckpointError: it is damaged.
    """
    network, config = load_network(folder)
    protocol = evaluation.protocol_of(config, settings.env.protocol)
    source = scores.Checkpoint(
        run=folder.parent.parent if folder.parent.name == "checkpoints" else folder.parent,
        path=folder,
        games=evaluation.tasks_of(config, settings.env.game, settings.tasks, meta.get("frames", 0)),
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
    """The agent of an SB3 zip; the protocol is Hessel et al.'s unless overridden.

    Raises:
        OSError, ValueError: it is no zip of an agent that plays Atari.
    """
    from nap_rl.sb3.model import read_model

    assert settings.env.game is not None  # see `find_zip`
    model = read_model(path)
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


def cautions(subjects: Sequence[Subject]) -> list[str]:
    """A sentence for each checkpoint that is not of a finished run, and for runs that count twice.

    Raises:
        ValueError: an agent does not fit a game.
    """
    for subject in subjects:
        check_actions(subject)
    return scores.cautions([subject.checkpoint for subject in subjects])


def play_all(subjects: Sequence[Subject], settings: EvaluationConfig) -> tuple[Path, dict[str, Any]]:
    """Plays every subject in each of its games; returns the folder that was written, and evaluation.json's content."""
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
    return out, summary


def check_actions(subject: Subject) -> None:
    """Opens each game that is not known yet; ValueError unless it has as many actions as the agent."""
    for game in subject.checkpoint.games:
        if subject.protocol is None:
            num_actions = actions_of(subject.open_envs, game)
        else:
            num_actions = actions_of_atari(game, subject.protocol)
        if num_actions != subject.num_actions:
            hint = "env.protocol.full_action_set=true" if subject.num_actions == 18 else "the game it was trained on"
            raise ValueError(
                f"{subject.checkpoint.path} acts with {subject.num_actions} actions, but env.game={game} has "
                f"{num_actions} under this protocol: use {hint}"
            )


def actions_of(open_envs: OpenEnvs, game: str) -> int:
    """The number of actions in a game, which is opened for it."""
    envs = open_envs(game, 1, 0)
    envs.close()
    return envs.num_actions


@cache
def actions_of_atari(game: str, protocol: Protocol) -> int:
    """The same for a game of Atari: each of them takes 0.1 s to open, and many runs play the same."""
    return actions_of(open_atari(protocol), game)


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
    expected: list[Expected] = []
    film = (lambda: None) if video is None else (lambda: expected.append(subject.policy.expected()))
    try:
        watch = Counting(game, f"{settings.episodes:,} episodes")
        played = play_episodes(policy, envs, settings.episodes, watch, film)
    finally:
        envs.close()
    for i, episode in enumerate(played):
        table.append(row((subject.checkpoint.path, game, i, episode.seed, repr(episode.score), episode.frames)))
    if video is not None and subject.protocol is not None:
        first, rate = played[0], trained_rate(subject.checkpoint)
        write_video(video, game, subject.protocol, first.seed, first.actions, expected, rate)
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


def trained_rate(source: scores.Checkpoint) -> Rate | None:
    """The effective learning rate of the run up to its end, with the checkpoint's frame; None where it is unknown."""
    try:
        found = effective_rate(source.run)
    except ValueError:
        return None  # a damaged log is no reason to leave the film out
    return None if found is None else Rate(*found, at=source.frames)
