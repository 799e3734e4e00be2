"""The commands of docs/guides/every-environment.md, each: train, kill -9, resume, evaluate, export, report."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))
from commands import ROOT, blocks  # noqa: E402

PAGE = ROOT / "docs" / "guides" / "every-environment.md"
TRAIN = dict(re.findall(r"^\| ([^|`]+) \| `python (train\.py [^`]+)`", PAGE.read_text(), re.M))
TRAIN["MiniGrid"] = next(line for line in PAGE.read_text().splitlines() if "MiniGrid-" in line).split("python ", 1)[1]
NEEDS = {"LunarLander": "Box2D", "MinAtar": "minatar", "MiniGrid": "minigrid", "Atari": "cv2"}
FRAMES = 3_000
SHORT = [
    "agent.min_replay_steps=200",
    "env.num_envs=2",
    "compile=off",
    "device=cpu",
    "logger.tensorboard=false",
    "checkpoint.every=400",
    "env.max_episode_steps=500",
]


def short(name: str, folder: Path) -> list[str]:
    """The page's command, shortened, for another folder."""
    length = [f"env.frames_per_task={FRAMES // 2}"] if name.startswith("Atari") else [f"frames={FRAMES}"]
    changed = [*length, *SHORT, f"hydra.run.dir={folder}"]
    keys = {setting.split("=")[0] for setting in changed}
    typed = [word for word in shlex.split(TRAIN[name]) if word.split("=")[0] not in keys]
    return [*typed, *changed]


def start(folder: Path, words: list[str], **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    script = [str(ROOT / words[0])] if words[0].endswith(".py") else [words[0]]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *script, *words[1:]], cwd=folder, env=environment, **streams, **options)


def run(folder: Path, words: list[str]) -> str:
    done = start(folder, words)
    out, _ = done.communicate(timeout=600)
    assert done.returncode == 0, f"{words}\n{out}"
    return out


def weights(folder: Path) -> str:
    return str(json.loads((folder / "summary.json").read_text())["weights_sha256"])


def test_the_page_names_every_environment() -> None:
    assert len(TRAIN) == 10
    assert {name.split(" ")[-1] for name in TRAIN if name.startswith("MinAtar")} == {
        "asterix",
        "breakout",
        "freeway",
        "seaquest",
        "invaders",
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAIN)
def test_an_environment_trains_resumes_to_the_bit_evaluates_exports_and_reports(name: str, tmp_path: Path) -> None:
    for start_of, module in NEEDS.items():
        if name.startswith(start_of) and find_spec(module) is None:
            pytest.skip(f"needs {module}")
    (tmp_path / "my_wrapper.py").write_text(blocks(PAGE, "python")[0])
    run(tmp_path, short(name, Path("whole")))
    killed = start(tmp_path, short(name, Path("killed")), start_new_session=True)
    checkpoints = tmp_path / "killed" / "checkpoints"
    while len(list(checkpoints.glob("frames-*/manifest.json"))) < 2:  # that of frame 0, and one more
        assert killed.poll() is None, killed.stdout and killed.stdout.read()
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed" / "summary.json").exists()
    then = [
        shlex.split(line, comments=True) for line in blocks(PAGE, "")[1].replace("runs/here", "killed").splitlines()
    ]
    then = [words[words.index("python") + 1 :] for words in then if "python" in words]
    resume, evaluate, export, *reports = then
    run(tmp_path, resume)
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert "mean" in run(tmp_path, [*evaluate[:2], "episodes=1", "num_envs=1"])
    assert run(tmp_path, export).strip() in ("DQN", "Rainbow") and (tmp_path / "agent.zip").stat().st_size > 1_000
    for report in reports:
        run(tmp_path, report)
    assert (tmp_path / "returns.png").is_file() and (tmp_path / "killed" / "visits.png").is_file()


@pytest.mark.slow
def test_your_own_environment_trains_goes_on_and_is_scored_as_the_guide_says(tmp_path: Path) -> None:
    guide = ROOT / "docs" / "guides" / "environments.md"
    (tmp_path / "my_envs.py").write_text(blocks(guide, "python")[0])
    (typed,) = (line for line in guide.read_text().splitlines() if line.startswith("PYTHONPATH=. python"))
    words = shlex.split(typed)[2:]
    changed = ["frames=1000", "agent.min_replay_steps=200", "compile=off", "hydra.run.dir=RUN"]
    run(tmp_path, [word for word in words if not word.startswith("frames=")] + changed)
    run(tmp_path, ["train.py", "resume=RUN", "frames=2000"])
    assert json.loads((tmp_path / "RUN" / "summary.json").read_text())["frames"] == 2_000
    assert "IQM" in run(tmp_path, ["evaluate.py", "RUN", "episodes=2"])
