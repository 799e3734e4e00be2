"""A run at Weights & Biases: offline unless WANDB_MODE says otherwise."""

from __future__ import annotations

import os
import shlex
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from nap_rl.logging.identity import identity

PROJECT = "nap_rl"
FINISH_SECONDS = 15.0


@final
class WandbRun:
    """Writes below `folder`/wandb. `wandb sync` sends it; WANDB_MODE=online sends it at once.

    WANDB_PROJECT (else nap_rl), WANDB_ENTITY and the library's other variables are read. A resumed run keeps its id:
    what is logged a second time is dropped by step when both parts are sent.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # no reports of errors to outside
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        self._folder = folder
        identifier, known = identity(folder, "wandb", lambda: uuid.uuid4().hex[:8])
        mode = os.environ.get("WANDB_MODE", "offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=str(config.get("name", "")) or None,
            name="/".join(folder.resolve().parts[-2:]),
            id=identifier,
            resume="allow" if known and mode == "online" else None,
            dir=str(folder),
            config=dict(config),
            mode=mode,
            reinit="create_new",  # several seeds may train in one process
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                stop_fn=lambda: None,  # a button of its page ends no run
                finish_timeout=FINISH_SECONDS,  # also of its hook at the end of the process
                x_disable_stats=True,
            ),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def artifact(self, path: Path) -> None:
        self._run.save(str(path.resolve()), base_path=str(self._folder.resolve()), policy="now")

    def finish(self) -> None:
        self._run.finish()


def place(folder: Path) -> str:
    """The command that sends an offline run, or a word on where it is."""
    if os.environ.get("WANDB_MODE", "offline") == "offline":
        return f"wandb sync {shlex.quote(str(folder / 'wandb'))}/offline-run-*"
    return f"project {os.environ.get('WANDB_PROJECT', PROJECT)}"
