"""One training run: assembled from a checked configuration, played to its end, summed up."""

from __future__ import annotations

import platform
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nap_rl import __version__, checkpoint, cli, machine, threads
from nap_rl.agents import Checkpointer, CheckpointsFailed, Diverged, Trainer
from nap_rl.agents.checkpointer import report_divergence, restore
from nap_rl.agents.stacked import play_together
from nap_rl.conf import build, learning_rates, schema
from nap_rl.conf.advice import advice
from nap_rl.conf.environments import Observations
from nap_rl.conf.outline import outline
from nap_rl.conf.resume import Resume, check_changes
from nap_rl.conf.schema import Config
from nap_rl.envs import EmulatorError
from nap_rl.logging import Progress, RunLog, trackers
from nap_rl.logging.console import say
from nap_rl.process import RunsHere, StopSignals, sole_owner
from nap_rl.sweep.commands import TRAIN

DIVERGED, CANNOT_WRITE, EMULATOR_DIED = 3, 4, 5


class Ending(NamedTuple):
    """How a run ended."""

    code: int
    status: str
    reason: str | None = None


def train(config: Config, folder: Path, resume: Resume, overrides: Sequence[str], runs: RunsHere) -> int:
    """Train as configured, write everything into `folder`, and return the exit code.

    Args:
        resume: the run that goes on in `folder`, or none.
        overrides: what was typed, for the record.
        runs: of this machine, among which the cores are shared.
    """
    if has_ended(config, folder, resume):
        say(f"{folder} is finished: {resume.meta['frames']:,} frames are played. frames= with more goes on.")
        return 0
    with process_of_runs() as (signals, display, stack):
        with cli.refusing_bad_input():
            share_cores(config.threads, runs.count(), display)
            advise(config, resume, display)
            trainer, checkpointer = stack.enter_context(opened(config, folder, resume, display, overrides))
        stop = stop_of(checkpointer, signals)
        ending = ending_of(trainer, checkpointer, signals, lambda: trainer.run(stop))
        summary = summarize(config, trainer, ending)
        write_summary(trainer, summary, display)
    print_end(folder, summary, checkpointer.last, config)
    return ending.code


def train_together(
    configs: Sequence[Config], folder: Path, *, go_on: bool, overrides: Sequence[str], runs: RunsHere
) -> int:
    """Train one run a seed in this process, each in `folder`/seed_<seed> as if alone; returns the highest exit code.

    Args:
        configs: equal but for their seeds.
        go_on: a run that has a checkpoint goes on from it. Else its folder is refused.
    """
    plans = [(config, folder / f"seed_{config.seed}") for config in configs]
    with cli.refusing_bad_input():
        resumes = [resume_of(config, path, go_on) for config, path in plans]
    left = [(*plan, resume) for plan, resume in zip(plans, resumes, strict=True) if not has_ended(*plan, resume)]
    if not left:
        say(f"{folder} is finished: all frames of its {len(plans)} runs are played. frames= with more goes on.")
        return 0
    for _, path, _ in left:
        path.mkdir(parents=True, exist_ok=True)
    reason = build.stack_refusal(configs[0])
    if reason is not None and len(left) > 1:
        say(f"the runs of seeds={[config.seed for config, *_ in left]} are trained one after another: {reason}")
    if reason is not None or len(left) == 1:
        return max(train(config, path, resume, overrides, runs) for config, path, resume in left)
    with process_of_runs() as (signals, display, stack):
        opened_runs: list[tuple[Trainer, Checkpointer]] = []
        with cli.refusing_bad_input():
            share_cores(configs[0].threads, runs.count(), display)
            advise(configs[0], left[0][2], display)
            for config, path, resume in left:
                shown = display if not opened_runs else Progress(beside=f"seed {config.seed}")
                run = stack.enter_context(opened(config, path, resume, shown, overrides, stacked=True))
                opened_runs.append(run)
        return _play_together(left, opened_runs, signals, display)


def has_ended(config: Config, folder: Path, resume: Resume) -> bool:
    """Whether all frames are played and the summary says so: the run may have died between the two."""
    return resume.is_finished(config) and TRAIN.is_finished(folder)


@contextmanager
def process_of_runs() -> Iterator[tuple[StopSignals, Progress, ExitStack]]:
    """What a process needs around its runs: signals are noted, the display is drawn, the stack is closed at the end."""
    machine.keep_freed_memory()
    machine.flush_denormals()
    with StopSignals() as signals, Progress() as display, ExitStack() as stack:
        yield signals, display, stack


@contextmanager
def opened(
    config: Config,
    folder: Path,
    resume: Resume,
    display: Progress,
    overrides: Sequence[str],
    *,
    stacked: bool = False,
) -> Iterator[tuple[Trainer, Checkpointer]]:
    """`assemble` in a folder that no other process has. Within it the environments and the log are open.

    Raises:
        ValueError, OSError: as `assemble`, or another process has the folder.
    """
    with sole_owner(folder):
        trainer, checkpointer = assemble(config, folder, resume, display, overrides, stacked=stacked)
        with closing(trainer.env), trainer.log:
            yield trainer, checkpointer


def _play_together(
    left: Sequence[tuple[Config, Path, Resume]],
    opened_runs: Sequence[tuple[Trainer, Checkpointer]],
    signals: StopSignals,
    display: Progress,
) -> int:
    trainers = [trainer for trainer, _ in opened_runs]
    stops = [stop_of(checkpointer, signals) for _, checkpointer in opened_runs]
    stacked = build.stack(left[0][0], [trainer.agent for trainer in trainers])
    codes: list[int] = []
    if trainers[0].agent.compiled:
        display.note("compiling, once on this machine: about a minute (all seeds' acting and updates)")
    for index, error in play_together(trainers, stacked, stops):
        config, path, _ = left[index]
        trainer, checkpointer = opened_runs[index]
        ending = ending_of(trainer, checkpointer, signals, partial(_raise, error))
        summary = summarize(config, trainer, ending)
        write_summary(trainer, summary, display)
        codes.append(ending.code)
        reason = f" ({ending.reason})" if ending.reason else ""
        late = [visit["late_return"] for visit in summary["visits"] if visit["late_return"] is not None]
        score = f", late return {late[-1]:.2f}" if late else ""
        say(f"seed {config.seed}: {ending.status}{reason}: {trainer.frames:,} frames, {path}{score}")
    return max(codes)


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error


def resume_of(config: Config, folder: Path, go_on: bool) -> Resume:
    """What a run of several goes on from, if `go_on`.

    Raises:
        OSError: the folder holds a run, and nothing was said of going on.
        ValueError: settings of the run in the folder are others.
    """
    meta = checkpoint.latest_meta(folder / "checkpoints") if go_on else None
    cli.check_folder(folder, new=meta is None)
    if meta is None:
        return Resume()
    resume = Resume(folder, (), meta)
    resume.check(config)
    return resume


def share_cores(setting: str, runs: int, display: Progress) -> None:
    """Set the number of torch's threads; says so if other runs have a part in it."""
    count, alone = (threads.count(setting, torch.get_num_threads(), n) for n in (runs, 1))
    torch.set_num_threads(count)
    if count != alone:
        display.note(f"threads={count}, not {alone}: {runs} runs share {threads.usable_cores()} cores")


def advise(config: Config, resume: Resume, display: Progress) -> None:
    """Says what was measured of such settings, to a run that begins."""
    if resume.folder is None:
        for sentence in advice(config):
            display.note(sentence)


def assemble(
    config: Config,
    folder: Path,
    resume: Resume,
    display: Progress,
    overrides: Sequence[str],
    *,
    stacked: bool = False,
) -> tuple[Trainer, Checkpointer]:
    """The run's objects, new or as they were at the newest sound checkpoint.

    Args:
        stacked: the agent will learn together with others, so that nothing of it is compiled here.

    Raises:
        ValueError: the checkpoint is of other settings, or none is sound.
        OSError: the folder cannot be written.
    """
    found = checkpoint.load_newest(folder / "checkpoints") if resume.folder is not None else None
    if resume.folder is not None and found is None:
        raise ValueError(f"resume={folder}: all of its checkpoints are damaged")
    meta = found[1].meta if found is not None else {}
    if found is not None:
        check_changes(meta, config, resume.allow)  # it may be an earlier one than was looked at first
    torch.manual_seed(config.seed)  # read by nothing of ours, but perhaps by a module that somebody adds
    env = build.build_env(config)
    observations = Observations.of(env)
    device = machine.pick_device(config.device.name)
    agent, _ = build.build_agent(config, env.num_actions, device, observations, begins=found is None, stacked=stacked)
    span_frames = meta.get("span_frames", config.frames)
    if meta.get("config", {}).get("schedule") != schema.to_dict(config)["schedule"]:
        learning_rates.keep(config, folder)
    trainer = Trainer(
        env,
        agent,
        build.build_trainer_config(config, span_frames, folder),
        log=RunLog(
            folder,
            tensorboard=config.logger.tensorboard,
            state=meta.get("log"),
            frames=meta.get("frames", 0),
            warn=display.note,
        ),
        display=display,
        evaluator=build.build_evaluator(config, env),
        renew=build.build_renewal(config, observations),
    )
    numerics = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": str(agent.device),
        "compiled": agent.compiled,
    }
    about = {
        "config": schema.to_dict(config),
        "overrides": list(overrides),
        "num_actions": env.num_actions,
        "observations": observations._asdict(),
        "span_frames": span_frames,
        "numerics": numerics,
    }
    checkpointer = Checkpointer(folder, trainer, trainer.log, display, build.build_rhythm(config), about)
    if found is None:
        trainer.log.describe(schema.to_dict(config))
        display.note(outline(config, observations, folder))
    else:
        path, saved = found
        restore(trainer, saved)
        checkpointer.resumed_from(path, saved)
        display.note(f"resumed from {path} at {trainer.frames:,} frames")
        for name, value in numerics.items():
            if (was := meta["numerics"][name]) != value:
                display.note(f"warning: {name} was {was} and is {value}: numbers may differ in their last digits")
    for tracker in trackers.opened(trackers_of(config), folder, schema.to_dict(config), display.note):
        trainer.log.add_tracker(tracker)
    return trainer, checkpointer


def stop_of(checkpointer: Checkpointer, signals: StopSignals) -> Callable[[], bool]:
    """What a trainer asks between two steps: writes the checkpoints that are due, and is true after a signal."""

    def stop() -> bool:
        checkpointer.save_if_due()
        return signals.received is not None

    return stop


def ending_of(trainer: Trainer, checkpointer: Checkpointer, signals: StopSignals, run: Callable[[], None]) -> Ending:
    """How `run` ended: at the end, by a signal or by what cannot be gone on from. Writes the last checkpoint."""
    try:
        run()
        written = checkpointer.save()
    except KeyboardInterrupt:
        return Ending(128 + signal.SIGINT, "interrupted", "a second Ctrl-C: what came after the checkpoint is lost")
    except Diverged as error:
        return Ending(DIVERGED, "diverged", f"{error}; {_report(checkpointer, trainer, str(error))}")
    except CheckpointsFailed as error:
        return Ending(CANNOT_WRITE, "stopped", str(error))
    except EmulatorError as error:
        return Ending(EMULATOR_DIED, "stopped", str(error))
    stopped = trainer.frames < trainer.config.frames
    status = "interrupted" if stopped else "finished"
    if written is None:
        return Ending(CANNOT_WRITE, status, "the last checkpoint could not be written")
    if stopped and signals.received is not None:
        return Ending(128 + signals.received, status, signal.Signals(signals.received).name)
    return Ending(0, status)


def _report(checkpointer: Checkpointer, trainer: Trainer, reason: str) -> str:
    try:
        return f"see {report_divergence(checkpointer.parent.parent, trainer, reason)}"
    except OSError as error:
        return f"the report could not be written: {error}"


def summarize(config: Config, trainer: Trainer, ending: Ending) -> dict[str, Any]:
    """What summary.json holds; frames are emulator frames, 4 to an agent step."""
    seconds = trainer.records.elapsed_seconds
    return {
        "status": ending.status,
        "reason": ending.reason,
        "updates": trainer.agent.updates,
        "agent_steps": trainer.agent_steps,
        "frames": trainer.frames,
        "wall_seconds": seconds,
        "checkpoint_seconds": trainer.records.checkpoint_seconds,
        "fps": trainer.frames / max(seconds, 1e-9),
        "visits": [
            {
                "task": record.task,
                "game": record.task,
                "cycle": record.cycle,
                "frames": record.frames,
                "episodes": len(record.returns),
                "mean_return": record.mean_return,
                "late_return": record.late_return,
                "auc_return": record.auc_return,
            }
            for record in trainer.records.visits
        ],
        "nap": {
            "enabled": config.agent.nap,
            "normalize": config.agent.nap and config.nap.normalize,
            "project": config.agent.nap and config.nap.project,
            "max_relative_norm_drift": trainer.records.max_norm_drift,
        },
        "optimizer": config.optimizer.name,
        "plasticity": config.plasticity.name,
        "weights_sha256": checkpoint.sha256_of(trainer.agent.network.state_dict()),
        "seed": config.seed,
        "device": str(trainer.agent.device),
        "machine": {**machine.described(), "threads": torch.get_num_threads()},
        "versions": {"nap_rl": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def write_summary(trainer: Trainer, summary: Mapping[str, Any], display: Progress) -> None:
    """Write summary.json, or say why it cannot be."""
    try:
        trainer.log.summary(summary)
    except OSError as error:
        display.note(f"warning: summary.json could not be written: {error}")


def trackers_of(config: Config) -> list[str]:
    """The trackers that a run has beside TensorBoard."""
    return [name for name in ("wandb", "mlflow") if getattr(config.logger, name)]


def print_end(folder: Path, summary: dict[str, Any], saved: Path | None, config: Config) -> None:
    """How the run ended, and the paths to look at."""
    frames, updates, fps = summary["frames"], summary["updates"], summary["fps"]
    say(f"\n{summary['status']}: {frames:,} frames, {updates:,} updates, {fps:.0f} frames/s")
    if summary["reason"]:
        say(f"reason: {summary['reason']}")
    for visit in summary["visits"]:
        mean = "no episode ended" if visit["mean_return"] is None else f"mean return {visit['mean_return']:.2f}"
        played = f"{visit['frames']:>11,} frames  {visit['episodes']:>5} episodes"
        say(f"  cycle {visit['cycle']}  {visit['game']:<20} {played}  {mean}")
    say(f"largest relative norm drift: {summary['nap']['max_relative_norm_drift']:.2e}")
    paths: dict[str, object] = {
        "summary": folder / "summary.json",
        "metrics": folder / "metrics.csv",
        "episodes": folder / "episodes.csv",
        "checkpoint": saved,
    }
    if config.logger.tensorboard:
        paths["TensorBoard"] = f"tensorboard --logdir {shlex.quote(str(folder))}"
    paths |= trackers.places(trackers_of(config), folder)
    if summary["status"] == "interrupted" and saved is not None and config.checkpoint.replay:
        paths["go on with"] = f"resume={shlex.quote(str(folder))}"
    for name, path in paths.items():
        say(f"{name:<12} {path}")
