"""Score trained agents: python evaluate.py RUN [RUN ...] [key=value ...]

RUN is a run's folder (its newest checkpoint), a checkpoint's folder, or a zip of Stable-Baselines3, which does not say
its game. Each is played in the game or games that it was trained on, under its own protocol, unless env.game=... or
env.protocol... says otherwise. Several runs are put together into one aggregate over games.

    python evaluate.py runs/default/pong-rainbow/0-20260101-120000-ab12 episodes=10 video=true
    python evaluate.py model.zip env.game=pong episodes=10
    python evaluate.py runs/mine/*/* episodes=30 env/protocol=machado2018 epsilon=0 noisy=false

Exit codes: 0 finished, 2 bad input (nothing was started), 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import csv
import json
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nap_rl import checkpoint, cli
from nap_rl.agents.evaluation import EpsilonGreedy, NetworkPolicy, Played, Policy, play_episodes
from nap_rl.conf import evaluation, schema
from nap_rl.conf.evaluation import EvaluationConfig
from nap_rl.conf.load import load_network
from nap_rl.envs import AtariEnvs, Protocol
from nap_rl.envs.human import human_normalized
from nap_rl.envs.video import check_video, write_video
from nap_rl.files import write_atomic
from nap_rl.machine import pick_device
from nap_rl.report.statistics import Aggregate, Estimate, aggregate, estimate, iqm

EPISODE_COLUMNS = ("run", "game", "episode", "seed", "return", "length_frames")


class Subject(NamedTuple):
    """What is evaluated, whoever trained it."""

    path: Path  # of the checkpoint
    folder: Path  # of the run: where results go
    policy: Policy
    num_actions: int
    games: list[str]
    protocol: Protocol


class Result(NamedTuple):
    """One subject in one game."""

    subject: Subject
    game: str
    played: list[Played]
    video: Path | None

    @property
    def returns(self) -> list[float]:
        return [episode.score for episode in self.played]


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
        sys.exit(run(sys.argv[1:]))
    except (ValueError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(cli.USAGE_ERROR)
    except KeyboardInterrupt:
        sys.exit(cli.INTERRUPTED)


def run(arguments: list[str]) -> int:
    """Evaluate as the arguments say; everything that can be wrong is found before the first step."""
    paths = [Path(argument) for argument in arguments if "=" not in argument or Path(argument).exists()]
    settings = evaluation.read_settings([a for a in arguments if Path(a) not in paths])
    if not paths:
        raise ValueError("name what to evaluate: the folder of a run, or of a checkpoint")
    if settings.video:
        check_video()
    subjects = [load_subject(path, settings) for path in paths]
    for subject in subjects:
        check_actions(subject)
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
    beside = subjects[0].folder if len(subjects) == 1 else Path("runs")
    out = Path(settings.out) if settings.out is not None else beside / "evaluations" / stamp
    if (out / "evaluation.json").exists():
        raise ValueError(f"{out} holds an evaluation already: name another folder with out=")
    out.mkdir(parents=True, exist_ok=True)
    results = [play(subject, game, settings, out) for subject in subjects for game in subject.games]
    summary = summarize(results, settings)
    write_atomic(out / "evaluation.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    print(tables(summary))
    print(f"\nwritten to {out}")
    return 0


def load_subject(path: Path, settings: EvaluationConfig) -> Subject:
    """What stands at `path`, ready to act.

    Raises:
        OSError, ValueError: there is nothing, it is damaged, or of a kind that cannot be evaluated.
    """
    if path.is_file():
        return load_zip(path, settings)
    folder = checkpoint.newest_of_run(path)
    network, config = load_network(folder)
    network.to(pick_device(settings.device.name))
    env = config.env
    games = list(dict.fromkeys(env.games)) if isinstance(env, schema.SequentialConfig) else [env.game]  # type: ignore[attr-defined]
    return Subject(
        path=folder,
        folder=folder.parent.parent if folder.parent.name == "checkpoints" else folder.parent,
        policy=NetworkPolicy(network, noisy=settings.noisy, seed=settings.seed),
        num_actions=network.streams.actions,
        games=games if settings.env.game is None else [settings.env.game],
        protocol=evaluation.protocol_of(config, settings.env.protocol),
    )


def load_zip(path: Path, settings: EvaluationConfig) -> Subject:
    """An SB3 zip, which says nothing of its game; the protocol is Hessel et al.'s unless it is overridden.

    Raises:
        OSError, ValueError: it is no zip of an agent that plays Atari, or no game is named.
    """
    from nap_rl.sb3.load import read_model  # SB3 is imported only for its zips

    model = read_model(path)
    if settings.env.game is None:
        raise ValueError(f"{path} does not say its game: add env.game=, for example env.game=pong")
    if (model.stack, model.frame_shape) != (4, (84, 84)):
        shape = [model.stack, *model.frame_shape]
        raise ValueError(f"{path} acts on observations of shape {shape}, but Atari's here are [4, 84, 84]")
    network = model.build().eval().to(pick_device(settings.device.name))
    return Subject(
        path=path,
        folder=path.with_suffix(""),
        policy=NetworkPolicy(network, noisy=settings.noisy, seed=settings.seed),
        num_actions=model.actions,
        games=[settings.env.game],
        protocol=evaluation.protocol_of(None, settings.env.protocol),
    )


def check_actions(subject: Subject) -> None:
    """ValueError unless each game has as many actions as the agent."""
    for game in subject.games:
        envs = AtariEnvs(game, 1, subject.protocol)
        envs.close()
        if envs.num_actions != subject.num_actions:
            hint = "env.protocol.full_action_set=true" if subject.num_actions == 18 else "the game it was trained on"
            raise ValueError(
                f"{subject.path} acts with {subject.num_actions} actions, but env.game={game} has {envs.num_actions} "
                f"under this protocol: use {hint}"
            )


def play(subject: Subject, game: str, settings: EvaluationConfig, out: Path) -> Result:
    """Play the episodes of one game, add them to episodes.csv, and film the first."""
    env_seed, exploration_seed = (int(word) for word in np.random.SeedSequence(settings.seed).generate_state(2))
    envs = AtariEnvs(game, min(settings.num_envs, settings.episodes), subject.protocol, seed=env_seed)
    policy = EpsilonGreedy(subject.policy, settings.epsilon, subject.num_actions, seed=exploration_seed)
    try:
        played = play_episodes(policy, envs, settings.episodes)
    finally:
        envs.close()
    table = out / "episodes.csv"
    new = not table.exists()
    with table.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([EPISODE_COLUMNS] if new else [])
        for number, episode in enumerate(played):
            writer.writerow((subject.path, game, number, episode.seed, repr(episode.score), episode.frames))
    video = None
    if settings.video:
        video = out / "videos" / f"{game}-{subject.folder.name}.mp4"
        write_video(video, game, subject.protocol, played[0].seed, played[0].actions)
    return Result(subject, game, played, video)


def summarize(results: list[Result], settings: EvaluationConfig) -> dict[str, Any]:
    """What evaluation.json holds."""
    scores: dict[str, list[float]] = {}
    for result in results:
        score = human_normalized(result.game, float(np.mean(result.returns)))
        if score is not None:
            scores.setdefault(result.game, []).append(score)
    return {
        "settings": {name: getattr(settings, name) for name in ("episodes", "num_envs", "seed", "epsilon", "noisy")},
        "results": [describe(result) for result in results],
        "aggregate": over_games(scores) if len(results) > 1 and scores else None,
    }


def describe(result: Result) -> dict[str, Any]:
    """One result as JSON; scores are raw unless named otherwise."""
    statistics: dict[str, Callable[..., Any]] = {"mean": np.mean, "median": np.median, "iqm": iqm}
    return {
        "run": str(result.subject.folder),
        "checkpoint": str(result.subject.path),
        "game": result.game,
        "protocol": asdict(result.subject.protocol),
        "episodes": len(result.played),
        **{name: estimate(result.returns, statistic)._asdict() for name, statistic in statistics.items()},
        "human_normalized_mean": human_normalized(result.game, float(np.mean(result.returns))),
        "mean_length_frames": float(np.mean([episode.frames for episode in result.played])),
        "returns": result.returns,
        "video": None if result.video is None else str(result.video),
    }


def over_games(scores: dict[str, list[float]]) -> dict[str, Any]:
    """Human-normalised scores over games, each run of a game counted once."""
    total: Aggregate = aggregate(list(scores.values()))
    estimates = {name: value._asdict() for name, value in total._asdict().items()}
    return {"games": len(scores), "runs": sum(map(len, scores.values())), "human_normalized": estimates}


def tables(summary: dict[str, Any]) -> str:
    """A line a result, and the aggregate."""
    rows = [("run", "game", "episodes", "mean", "median", "IQM [95 %]", "human-normalised")]
    for result in summary["results"]:
        normalised = result["human_normalized_mean"]
        rows.append(
            (
                "/".join(Path(result["run"]).parts[-2:]),
                result["game"],
                str(result["episodes"]),
                f"{result['mean']['value']:.2f}",
                f"{result['median']['value']:.2f}",
                interval(result["iqm"], ".2f"),
                "-" if normalised is None else f"{normalised:.3f}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join([*map(str.ljust, row[:2], widths[:2]), *map(str.rjust, row[2:], widths[2:])]) for row in rows]
    total = summary["aggregate"]
    if total is not None:
        lines.append(f"\nhuman-normalised, {total['runs']} runs of {total['games']} games:")
        lines += [f"  {name:<7}{interval(value, '.3f')}" for name, value in total["human_normalized"].items()]
    return "\n".join(line.rstrip() for line in lines)


def interval(value: dict[str, float | None], spec: str) -> str:
    """ "1.20 [1.00, 1.40]", or the number alone where there is no interval."""
    estimated = Estimate(**value)  # type: ignore[arg-type]
    text = format(estimated.value, spec)
    if estimated.low is None or estimated.high is None:
        return text
    return f"{text} [{estimated.low:{spec}}, {estimated.high:{spec}}]"


if __name__ == "__main__":
    main()
