"""What a command imports before it refuses bad input: none of the libraries that take seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SLOW = ("torch", "sympy", "matplotlib", "pandas", "scipy", "cv2", "stable_baselines3", "tensorboard", "rich")
SCRIPT = """
import sys
from importlib import import_module
command, *typed = sys.argv[1:]
main = import_module(command if command in ("report", "sweep") else f"nap_rl.{command}").main
for argument in typed:
    sys.argv = [f"{command}.py", *argument.split()]
    try:
        code = main()
    except SystemExit as end:
        code = end.code
    print(argument, code, *(name for name in SLOW if name in sys.modules))
""".replace("SLOW", repr(SLOW))
REFUSED = {
    "train": (
        "agent.nap=ture",
        "env.game=pnog",
        "agent.discount=2",
        "frames=soon",
        "resume=nowhere",
        "resume=tests",
        "-x",
        "agent.torso=vgg",
        "agent.init_from=nowhere.zip",
        "plasticity=redo plasticity.every=-1",
        "plasticity.name=reddo",
        "env=catch env.num_envs=0",
        "env=minatar env.game=pong",
        "-m seed=0,1 agent.nap=ture",
    ),
    "evaluate": ("nowhere", "README.md", "tests", "episodes=x", "tests episodes=0", "nowhere.zip env.game=pnog"),
    "study": (
        "nap=ture",
        "nap=true norm=none",
        "method=reddo",
        "data.images=-1",
        "width=0",
        "-m seed=0,1",
        "-m seed=0,x hydra.sweep.dir=nowhere",
    ),
    "sweep": ("trian seed=0,1", "train seed=0,1 agent.nap=ture", "resume=nowhere"),
    "report": ("table nowhere", "returns nowhere --out x.png", "norms tests --out x.png"),
}


@pytest.mark.parametrize("command", REFUSED)
def test_a_refused_command_imports_nothing_slow(command: str) -> None:
    line = [sys.executable, "-c", SCRIPT, command, *REFUSED[command]]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"{argument} 2" for argument in REFUSED[command]], done.stderr
    assert done.stderr.count("\n") == len(REFUSED[command])


def test_settings_are_checked_by_the_names_that_the_library_has() -> None:
    from nap_rl.conf.check import MOST_LAYERS, TORSOS
    from nap_rl.nn import spec

    assert spec.CHOICES["torso"] == TORSOS and spec.MOST_LAYERS == MOST_LAYERS
