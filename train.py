"""Train a value-based agent on Atari: `python train.py env=sequential_atari agent.nap=true`.

One run, its settings composed by Hydra from conf/. Exit codes: 0 finished, 2 bad input (nothing was started),
3 diverged, 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from nap_rl import __version__, checkpoint, cli
from nap_rl.agents import Diverged, Trainer
from nap_rl.conf import build, schema
from nap_rl.conf.check import to_config
from nap_rl.conf.schema import Config
from nap_rl.logging import Progress, RunLog
from nap_rl.nap import weight_groups
from nap_rl.runtime import keep_freed_memory, pick_device

DIVERGED = 3


def main() -> None:
    """The console entry point."""
    schema.register()
    cli.run(job, "config", check=to_config)


def job(node: DictConfig) -> int:
    """Train as configured, write everything into Hydra's run folder, and return the exit code."""
    config, folder = to_config(node), Path(HydraConfig.get().runtime.output_dir)
    keep_freed_memory()
    env = build.build_env(config)
    agent, projector = build.build_agent(config, env.num_actions, pick_device(config.device.name))
    code, status, reason, started = 0, "finished", None, time.monotonic()
    with (
        RunLog(folder, tensorboard=config.logger.tensorboard) as log,
        Progress(config.frames or 0) as display,
    ):
        log.layout(list(weight_groups(agent.network)))
        games = [visit.game for visit in env.visits]
        settings = build.build_trainer_config(config)
        trainer = Trainer(
            env,
            agent,
            settings,
            games=games,
            projector=projector,
            log=log,
            display=display,
            evaluator=build.build_evaluator(config, env),
        )
        try:
            trainer.run()
        except KeyboardInterrupt:
            code, status = cli.INTERRUPTED, "interrupted"
        except Diverged as error:
            code, status, reason = DIVERGED, "diverged", str(error)
        env.close()
        saved = save_checkpoint(folder, config, trainer)
        summary = summarize(config, trainer, status, reason, time.monotonic() - started)
        summary_path = log.summary(summary)
    print_end(folder, summary, saved, summary_path)
    return code


def save_checkpoint(folder: Path, config: Config, trainer: Trainer) -> Path:
    """The networks and the optimiser as they are now; `nap_rl.conf.load.load_network` reads the network back."""
    agent = trainer.agent
    moments = {
        f"{index}.{name}": value
        for index, state in agent.optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }
    return checkpoint.save(
        folder / "checkpoints",
        f"frames-{trainer.frames:012d}",
        tensors={
            "network": agent.network.state_dict(),
            "target": agent.target.state_dict(),
            "optimizer": moments,
        },
        meta={
            "config": schema.to_dict(config),
            "num_actions": agent.network.streams.actions,
            "frames": trainer.frames,
            "agent_steps": trainer.agent_steps,
            "updates": agent.updates,
        },
    )


def summarize(config: Config, trainer: Trainer, status: str, reason: str | None, seconds: float) -> dict[str, Any]:
    """What summary.json holds; frames are emulator frames, 4 to an agent step."""
    return {
        "status": status,
        "reason": reason,
        "updates": trainer.agent.updates,
        "agent_steps": trainer.agent_steps,
        "frames": trainer.frames,
        "wall_seconds": seconds,
        "fps": trainer.frames / seconds,
        "visits": [
            {
                "game": record.game,
                "cycle": record.cycle,
                "frames": record.frames,
                "episodes": len(record.returns),
                "mean_return": sum(record.returns) / len(record.returns) if record.returns else None,
            }
            for record in trainer.records
        ],
        "nap": {
            "enabled": config.agent.nap,
            "normalize": config.agent.nap and config.nap.normalize,
            "project": config.agent.nap and config.nap.project,
            "max_relative_norm_drift": trainer.max_norm_drift,
        },
        "plasticity": config.plasticity.name,
        "weights_sha256": checkpoint.sha256_of(trainer.agent.network.state_dict()),
        "seed": config.seed,
        "device": str(trainer.agent.device),
        "versions": {"nap_rl": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def print_end(folder: Path, summary: dict[str, Any], saved: Path, summary_path: Path) -> None:
    """How the run ended, and the paths to look at."""
    frames, updates, fps = summary["frames"], summary["updates"], summary["fps"]
    print(f"\n{summary['status']}: {frames:,} frames, {updates:,} updates, {fps:.0f} frames/s")
    if summary["reason"]:
        print(f"reason: {summary['reason']}")
    for visit in summary["visits"]:
        mean = "no episode ended" if visit["mean_return"] is None else f"mean return {visit['mean_return']:.2f}"
        played = f"{visit['frames']:>11,} frames  {visit['episodes']:>5} episodes"
        print(f"  cycle {visit['cycle']}  {visit['game']:<20} {played}  {mean}")
    print(f"largest relative norm drift: {summary['nap']['max_relative_norm_drift']:.2e}")
    paths = {
        "summary": summary_path,
        "metrics": folder / "metrics.csv",
        "episodes": folder / "episodes.csv",
        "checkpoint": saved,
        "TensorBoard": f"tensorboard --logdir {folder}",
    }
    for name, path in paths.items():
        print(f"{name:<12} {path}")


if __name__ == "__main__":
    main()
