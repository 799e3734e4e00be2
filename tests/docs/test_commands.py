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
from commands import ALL_PAGES, EXAMPLE_RUN, PAGES, ROOT, blocks, commands  # noqa: E402

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


STUDIES = {
    " ".join(command): [word for word in command if "=" in word and not word.startswith(("hydra.", "sweep.", "jobs="))]
    for page in PAGES
    for command in commands(page)
    if command[0] == "study.py" or command[:2] == ["sweep.py", "study"]
}


@pytest.mark.parametrize("arguments", STUDIES.values(), ids=STUDIES)
def test_every_command_of_a_study_has_settings_that_can_run(arguments: list[str]) -> None:
    from nap_rl import cli
    from nap_rl.studies import job
    from nap_rl.sweep import grammar

    job.register_schema()
    cli.register_resolvers()
    for combination in grammar.expand(arguments):
        job.typed(job.compose(combination.overrides))


def test_what_is_named_on_a_page_is_there() -> None:
    """Modules behind `python -m`, files of tests and examples, commands of the wheel, subcommands of report.py."""
    text = "\n".join(page.read_text() for page in ALL_PAGES)
    modules = set(re.findall(r"python -m ([\w.]+)", text)) - {"mkdocs"}
    assert {"pytest", "ruff", "mypy", "nap_rl.envs", "benchmarks.sweep_kills"} <= modules
    assert [name for name in modules if find_spec(name) is None] == []
    paths = set(re.findall(r"(?:pytest|test|python)[^`\n]* ((?:tests|examples)/[\w./]+)", text))
    assert len(paths) > 3 and [path for path in paths if not (ROOT / path).exists()] == []
    setup = (ROOT / "setup.cfg").read_text()
    assert [name for name in re.findall(r"`(nap-rl-\w+)", text) if f"{name} = " not in setup] == []
    report = (ROOT / "report.py").read_text()
    kinds = set(re.findall(r"report\.py (\w+)", text))
    assert len(kinds) > 5 and [kind for kind in kinds if not re.search(rf"report\.py {kind}\b", report)] == []


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.name)
def test_brackets_are_quoted_because_some_shells_look_for_files_of_that_name(page: Path) -> None:
    typed = re.findall(r"(?:^|`)((?:PYTHONPATH=\S+ )?(?:python3?|pip|torchrun -\S+) [^`\n#]*)", page.read_text(), re.M)
    unquoted = [line for line in typed if "[" in re.sub(r"'[^']*'|\"[^\"]*\"", "", line)]
    assert unquoted == []


CHECKS = [
    line.split("#")[0].split()[1:]
    for line in "".join(blocks(ROOT / "CONTRIBUTING.md", "")).splitlines()
    if re.match(r"python -m (ruff|mypy)", line)
]


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=" ".join)
def test_the_checks_that_contributors_run_pass(check: list[str]) -> None:
    done = subprocess.run([sys.executable, *check], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_runs_folder_holds_what_the_page_on_it_lists(
    tmp_path: Path, tiny_catch: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = blocks(ROOT / "runs" / "README.md", "")[0].splitlines()
    listed = {line.split()[0].rstrip("/") for line in tree[1:]} - {"diverged"}
    more = [word for word in tiny_catch if word != "logger.tensorboard=false"]
    run(tmp_path, ["train.py", *more, "eval.every=160", "eval.episodes=1"])
    (summary,) = tmp_path.glob("runs/*/*/*/summary.json")
    written = {path.name for path in summary.parent.iterdir()}
    assert len(listed) == 8
    assert {name for name in written if not any(Path(name).match(pattern) for pattern in listed)} == set()
    assert {pattern for pattern in listed if not any(Path(name).match(pattern) for name in written)} == set()
    experiment, played, own = summary.relative_to(tmp_path / "runs").parts[:3]
    assert (experiment, played) == ("permuted_catch", "permuted_catch-dqn_small-nap")
    assert re.fullmatch(r"0-\d{8}-\d{6}-[0-9a-f]{4}", own)


def run(folder: Path, arguments: list[str]) -> str:
    """Runs `python arguments` in `folder`; returns its output. Fails the test where it exits with anything but 0."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_catch: tuple[str, ...]) -> Path:
    """A folder with a run of Pong by DQN, RUN, a sequence with evaluations, TASKS, and a policy of SB3, model.zip."""
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
    run(folder, ["train.py", *tiny_catch, "eval.every=160", "eval.tasks=all", "eval.episodes=2", "hydra.run.dir=TASKS"])
    return folder


def run_all(page: Path, folder: Path, run: Callable[[Path, list[str]], str]) -> None:
    """Every command of a page, shortened, in its order."""
    for command in commands(page):
        words = [EXAMPLE_RUN.sub("RUN", word) if word != "RUNS" else "RUN" for word in command]
        paths = [str(path.relative_to(folder)) for word in words if "*" in word for path in sorted(folder.glob(word))]
        words = [word for word in words if "*" not in word]
        if re.search(r"study=(images|language)|/data", " ".join(words)):
            continue  # takes minutes, or needs data: run by tests/studies
        if "continual" in words or "returns" in words:  # which need evaluations, or episodes that have ended
            words = ["TASKS" if word == "RUN" else word for word in words]
        if any(name in " ".join(words) and find_spec(name) is None for name in ("minatar", "wandb", "mlflow")):
            continue
        words[1:1] = paths  # what a shell makes of the pattern
        if "visits" in words:  # the runs here are one arm, which has one label
            words = re.sub(r"( --label \w+)+", r"\1", " ".join(words)).split()
        extra = [] if "--help" in words or "report" in words else SHORT[words[0]]
        if "experiment=btr" in words:  # an update of the preset takes a core a minute
            extra = [*extra, "agent.width=1", "agent.batch_size=8"]
        keys = {argument.split("=")[0] for argument in extra}
        if words[0] == "train.py" and any(word.startswith(("resume=RUN", "resume=runs/")) for word in words):
            extra = ["frames=1600"]
        if words[:2] == ["evaluate.py", "runs/start"]:  # CartPole, which has no protocol
            extra = [word for word in extra if not word.startswith("env.protocol")]
        run(folder, [word for word in words if word.split("=")[0] not in keys] + extra)


IN_ORDER = [page for page in PAGES if page.stem != "every-environment"]  # which test_every_environment.py runs


@pytest.mark.slow
@pytest.mark.parametrize("page", IN_ORDER, ids=lambda page: page.stem)
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
