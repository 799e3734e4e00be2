"""The commands of README and guides are accepted, and run, shortened."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from commands import EXAMPLE_RUN, PAGES, ROOT, commands  # noqa: E402

SHORT = {
    "train.py": ["frames=800", "agent.min_replay_steps=64", "replay.capacity=1000", "device=cpu", "env.num_envs=2"],
    "evaluate.py": ["episodes=1", "num_envs=1", "env.protocol.max_episode_frames=400"],
    "study.py": ["tasks=2", "steps_per_task=2", "jobs=1"],
    "report.py": [],
    "sweep.py": ["sweep.engine=local"],
}
NEEDS_FILES = re.compile(r"\bRUN\w*\b|runs/|resume=|\.zip|^report$")


def first_of_each(argument: str) -> str:
    """`seed=0,1,2` -> `seed=0`: the first run of a sweep."""
    key, _, value = argument.partition("=")
    return argument if value.startswith("[") else f"{key}={value.split(',')[0]}"


TRAININGS = {  # by what is typed, so that a command of several pages is checked once
    " ".join(command[1:]): [first_of_each(argument) for argument in command[1:] if argument != "-m"]
    for page in PAGES
    for command in commands(page)
    if command[0] == "train.py" and "--help" not in command and not any(NEEDS_FILES.search(a) for a in command)
}


@pytest.mark.parametrize("arguments", TRAININGS.values(), ids=TRAININGS)
def test_every_training_command_passes_the_checks(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nap_rl import cli, train
    from nap_rl.conf import check

    if "minatar" in " ".join(arguments):
        pytest.importorskip("minatar")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    monkeypatch.setattr(cli, "start", lambda *_: 0)
    monkeypatch.setattr(check, "check_space", lambda *_: None)  # of this machine's disk and memory
    with pytest.raises(SystemExit) as ended:
        train.main()
    assert ended.value.code == 0


def run(folder: Path, arguments: list[str]) -> str:
    """Runs `python arguments` in `folder`; returns its output. Fails the test where it exits with anything but 0."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of Pong by DQN, RUN, and a policy of SB3, model.zip."""
    import ale_py
    import gymnasium
    from stable_baselines3 import DQN
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    gymnasium.register_envs(ale_py)
    folder = tmp_path_factory.mktemp("prepared")
    env = VecFrameStack(make_atari_env("PongNoFrameskip-v4", n_envs=1, seed=0), 4)
    DQN("CnnPolicy", env, buffer_size=100, device="cpu").save(folder / "model.zip")
    env.close()
    run(folder, ["train.py", "env.game=pong", "agent=dqn", *SHORT["train.py"], "hydra.run.dir=RUN"])
    return folder


def run_all(page: Path, folder: Path, run: Callable[[Path, list[str]], str]) -> None:
    """Every command of a page, shortened, in its order."""
    for command in commands(page):
        words = [EXAMPLE_RUN.sub("RUN", word) if word != "RUNS" else "RUN" for word in command]
        paths = [str(path.relative_to(folder)) for word in words if "*" in word for path in sorted(folder.glob(word))]
        words = [word for word in words if "*" not in word]
        if any(name in " ".join(words) and find_spec(name) is None for name in ("minatar", "wandb", "mlflow")):
            continue
        words[1:1] = paths  # what a shell makes of the pattern
        extra = [] if "--help" in words or "report" in words else SHORT[words[0]]
        keys = {argument.split("=")[0] for argument in extra}
        if any(word.startswith("resume=RUN") for word in words):
            extra = ["frames=1600"]
        run(folder, [word for word in words if word.split("=")[0] not in keys] + extra)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_runs_in_its_order(page: Path, prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clone"
    shutil.copytree(prepared, folder)
    run_all(page, folder, run)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of a virtual environment that has the wheel alone; what the wheel requires it finds in this one."""
    pytest.importorskip("pip")
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    subprocess.run(
        [*pip, "install", "--quiet", "--ignore-installed", "--no-deps", "--no-index", str(wheel)], check=True
    )
    (site / "requirements.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    return folder / "bin"


@pytest.mark.slow
def test_the_commands_of_a_wheel_do_in_another_folder_what_the_readme_says(
    installed: Path, prepared: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "elsewhere"
    shutil.copytree(prepared, folder)
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ran = set()

    def run_installed(folder: Path, arguments: list[str]) -> str:
        command = [str(installed / f"nap-rl-{arguments[0].removesuffix('.py')}"), *arguments[1:]]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        ran.add(Path(command[0]).name)
        return done.stdout

    run_all(ROOT / "README.md", folder, run_installed)
    tiny = ["experiment=permuted_catch", "env.visits=1", "logger.tensorboard=false", "sweep.engine=local"]
    run_installed(folder, ["sweep.py", "train", *tiny, "seed=0,1", "sweep.dir=sweep"])
    assert ran == {path.name for path in installed.glob("nap-rl-*")}
    where = subprocess.run(
        [installed / "python", "-c", "import nap_rl; print(nap_rl.__file__)"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(installed.parent)
