"""Train a value-based agent on Atari: `python train.py env=sequential_atari agent.nap=true`.

One run, its settings composed by Hydra from conf/. `resume=<run folder>` or `resume=auto` goes on with an earlier one.

Exit codes:
    0                finished
    2                bad input: one sentence, nothing was started
    3                diverged: the last good checkpoint stays, diverged/ says what happened
    4                checkpoints cannot be written: checkpoint.max_failures in a row, or the last one
    5                an emulator died
    128 + signal     stopped by SIGINT (130), SIGTERM (143) or SIGUSR1 (138 on Linux), with a checkpoint
"""

from __future__ import annotations

import platform
import signal
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from nap_rl import __version__, checkpoint, cli
from nap_rl.agents import Checkpointer, CheckpointsFailed, Diverged, Trainer
from nap_rl.agents.checkpointer import report_divergence, restore
from nap_rl.conf import build, schema
from nap_rl.conf.check import check_space, to_config
from nap_rl.conf.networks import Observations
from nap_rl.conf.resume import Resume, check_changes, plan
from nap_rl.conf.schema import Config
from nap_rl.envs import EmulatorError
from nap_rl.logging import Progress, RunLog
from nap_rl.logging.console import say
from nap_rl.machine import flush_denormals, keep_freed_memory, pick_device
from nap_rl.process import StopSignals, sole_owner

DIVERGED, CANNOT_WRITE, EMULATOR_DIED = 3, 4, 5


class Ending(NamedTuple):
    """How a run ended."""

    code: int
    status: str
    reason: str | None = None


def main() -> None:
    """The console entry point."""
    schema.register()
    cli.register_resolvers()
    with cli.refusing_bad_input():
        arguments, resume = plan(sys.argv[1:])
    sys.argv[1:] = arguments
    cli.run(partial(job, resume), "config", check=partial(check, resume), new_folder=resume.folder is None)


def check(resume: Resume, node: DictConfig) -> None:
    """Raises ValueError with a sentence for a command that cannot run."""
    config = to_config(node)
    resume.check(config)
    if "hydra" in node and not resume.is_finished(config):
        check_space(config, Path(node.hydra.run.dir))
    if resume.folder is not None:
        with sole_owner(resume.folder):
            pass


def job(resume: Resume, node: DictConfig) -> int:
    """Train as configured, write everything into Hydra's run folder, and return the exit code."""
    config, folder = to_config(node), Path(HydraConfig.get().runtime.output_dir)
    if resume.is_finished(config):
        say(f"{folder} is finished: {resume.meta['frames']:,} frames are played. frames= with more goes on.")
        return 0
    keep_freed_memory()
    flush_denormals()
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        display = stack.enter_context(Progress())
        with cli.refusing_bad_input():
            stack.enter_context(sole_owner(folder))
            trainer, checkpointer = assemble(config, folder, resume, display)
        stack.callback(trainer.env.close)
        stack.enter_context(trainer.log)
        ending = train(trainer, checkpointer, signals)
        summary = summarize(config, trainer, ending)
        try:
            trainer.log.summary(summary)
        except OSError as error:
            display.note(f"warning: summary.json could not be written: {error}")
    print_end(folder, summary, checkpointer.last)
    return ending.code


def assemble(config: Config, folder: Path, resume: Resume, display: Progress) -> tuple[Trainer, Checkpointer]:
    """The run's objects, new or as they were at the newest sound checkpoint.

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
    agent, _ = build.build_agent(config, env.num_actions, pick_device(config.device.name), observations)
    span_frames = meta.get("span_frames", config.frames)
    trainer = Trainer(
        env,
        agent,
        build.build_trainer_config(config, span_frames),
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
        "overrides": list(HydraConfig.get().overrides.task),
        "num_actions": env.num_actions,
        "observations": observations._asdict(),
        "span_frames": span_frames,
        "numerics": numerics,
    }
    checkpointer = Checkpointer(folder, trainer, trainer.log, display, build.build_rhythm(config), about)
    if found is None:
        trainer.log.describe(schema.to_dict(config))
    else:
        path, saved = found
        restore(trainer, saved)
        checkpointer.resumed_from(path, saved)
        display.note(f"resumed from {path} at {trainer.frames:,} frames")
        for name, value in numerics.items():
            if (was := meta["numerics"][name]) != value:
                display.note(f"warning: {name} was {was} and is {value}: numbers may differ in their last digits")
    return trainer, checkpointer


def train(trainer: Trainer, checkpointer: Checkpointer, signals: StopSignals) -> Ending:
    """Run to the end, to a signal or to what cannot be gone on from."""

    def stop() -> bool:
        checkpointer.save_if_due()
        return signals.received is not None

    try:
        trainer.run(stop)
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
    return {
        "status": ending.status,
        "reason": ending.reason,
        "updates": trainer.agent.updates,
        "agent_steps": trainer.agent_steps,
        "frames": trainer.frames,
        "wall_seconds": trainer.records.elapsed_seconds,
        "checkpoint_seconds": trainer.records.checkpoint_seconds,
        "fps": trainer.records.fps,
        "visits": [
            {
                "task": record.task,
                "game": record.task,
                "cycle": record.cycle,
                "frames": record.frames,
                "episodes": len(record.returns),
                "mean_return": record.mean_return,
                "late_return": record.late_return,
            }
            for record in trainer.records.visits
        ],
        "nap": {
            "enabled": config.agent.nap,
            "normalize": config.agent.nap and config.nap.normalize,
            "project": config.agent.nap and config.nap.project,
            "max_relative_norm_drift": trainer.records.max_norm_drift,
        },
        "plasticity": config.plasticity.name,
        "weights_sha256": checkpoint.sha256_of(trainer.agent.network.state_dict()),
        "seed": config.seed,
        "device": str(trainer.agent.device),
        "versions": {"nap_rl": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def print_end(folder: Path, summary: dict[str, Any], saved: Path | None) -> None:
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
    paths = {
        "summary": folder / "summary.json",
        "metrics": folder / "metrics.csv",
        "episodes": folder / "episodes.csv",
        "checkpoint": saved,
        "TensorBoard": f"tensorboard --logdir {folder}",
    }
    for name, path in paths.items():
        say(f"{name:<12} {path}")


if __name__ == "__main__":
    main()
