"""What a command imports before it refuses bad input: none of the libraries that take seconds."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from stable_baselines3 import DQN, PPO, SAC

import nap_rl.sb3

ROOT = Path(__file__).resolve().parents[1]
SLOW = ("torch", "sympy", "matplotlib", "pandas", "scipy", "cv2", "stable_baselines3", "tensorboard", "rich")
SCRIPT = """
import sys
from importlib import import_module
from tests.quick_hydra import quick_hydra
command, *typed = sys.argv[1:]
main = import_module(command if command in ("report", "sweep") else f"nap_rl.{command}").main
with quick_hydra():
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
        "agent.torso=nowhere.Torso",
        "agent.init_from=nowhere.zip",
        "optimizer=sgd optimizer.momentum=-1",
        "optimizer.name=my.Adam",
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


@pytest.fixture(scope="module")
def zips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of zips: of SB3's algorithms, and damaged ones."""
    folder = tmp_path_factory.mktemp("zips")
    PPO("MlpPolicy", "CartPole-v1", device="cpu").save(folder / "ppo.zip")
    SAC("MlpPolicy", "Pendulum-v1", buffer_size=100, device="cpu").save(folder / "sac.zip")
    model = DQN("MlpPolicy", "CartPole-v1", buffer_size=100, device="cpu")
    model.save(folder / "dqn.zip")
    (folder / "cut.zip").write_bytes((folder / "dqn.zip").read_bytes()[:-100])
    (folder / "pointer.zip").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        archive.writestr("holiday.jpg", b"")
    with torch.no_grad():
        next(model.q_net.parameters()).fill_(torch.nan)
    model.save(folder / "nan.zip")
    return folder


ZIPS = {"train": "agent.init_from={}", "evaluate": "{} env.game=pong"}
TOLD_BY_ITS_MEMBERS = ("ppo", "sac", "cut", "pointer", "photos", "dqn")  # the last does not play Atari
TOLD_BY_ITS_TENSORS = "env=gym agent=dqn_small agent.net_arch=[64] agent.init_from={}"


@pytest.mark.parametrize("command", REFUSED)
def test_a_refused_command_imports_nothing_slow(command: str, zips: Path) -> None:
    quick, last = list(REFUSED[command]), []
    if command in ZIPS:
        quick += [ZIPS[command].format(zips / f"{name}.zip") for name in TOLD_BY_ITS_MEMBERS]
    if command == "train":
        last = [TOLD_BY_ITS_TENSORS.format(zips / "nan.zip")]
    expected = [f"{typed} 2" for typed in quick] + [f"{typed} 2 torch" for typed in last]
    assert refusals(command, [*quick, *last]) == expected


def test_reading_a_zip_does_not_import_sb3(zips: Path) -> None:
    script = f"import sys; from nap_rl.sb3 import load; load({str(zips / 'dqn.zip')!r}, capacity=100)"
    line = [sys.executable, "-c", f"{script}; print('stable_baselines3' in sys.modules)"]
    assert subprocess.run(line, cwd=ROOT, capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("name", nap_rl.sb3.__all__)
def test_every_public_name_of_sb3_is_there(name: str) -> None:
    assert getattr(nap_rl.sb3, name).__name__ == name and name in dir(nap_rl.sb3)


def refusals(command: str, arguments: Sequence[str]) -> list[str]:
    """Of each command: its arguments, its exit code and the slow libraries that are imported by then."""
    line = [sys.executable, "-c", SCRIPT, command, *arguments]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.count("\n") == len(arguments), done.stderr
    return done.stdout.splitlines()


def test_settings_are_checked_by_the_names_that_the_library_has() -> None:
    from nap_rl.conf.check import MOST_LAYERS, TORSOS
    from nap_rl.nn import spec

    assert spec.CHOICES["torso"] == TORSOS and spec.MOST_LAYERS == MOST_LAYERS
