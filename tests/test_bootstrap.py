"""bootstrap.py's decisions; a stand-in replaces every process that it would start."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "bootstrap.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bootstrap = load()


class Machine:
    """Answers every command with `answer(command)`: an exit code, or what a successful command prints."""

    def __init__(self, answer: Callable[[list[str]], int | str]) -> None:
        self.answer = answer
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        answer = self.answer(command)
        if isinstance(answer, str):
            return subprocess.CompletedProcess(command, 0, answer, "")
        return subprocess.CompletedProcess(command, answer, "", "it said why")


def clone(folder: Path) -> Path:
    """The files and folders that bootstrap looks at, in place of a whole clone."""
    for name in ("setup.cfg", "constraints.txt", "pyproject.toml"):
        (folder / name).write_text(f"{name}\n")
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (folder / ".venv" / "lib" / "python3.11" / "site-packages" / "torch").mkdir(parents=True)
    return folder


def stamp(root: Path, **changes: object) -> None:
    torch = str(bootstrap.site_packages(root / ".venv") / "torch")
    content = {
        "fingerprint": bootstrap.fingerprint(root),
        "serves": ["train", "test"],
        "torch": torch,
        **changes,
    }
    (root / ".venv" / "stamp.json").write_text(json.dumps(content))


# -- command lines -------------------------------------------------------------------------------------------


def test_train_puts_the_users_overrides_last_so_that_they_win() -> None:
    line = bootstrap.command_line(Path("/v/python"), "train", ["agent.nap=false", "seed=3"])
    assert line == [
        "/v/python",
        "train.py",
        "env=sequential_atari",
        "agent.nap=true",
        "experiment=quick",
        "agent.nap=false",
        "seed=3",
    ]


def test_test_passes_pytest_its_arguments_untouched() -> None:
    line = bootstrap.command_line(Path("/v/python"), "test", ["-m", "slow or gpu", "-x"])
    assert line == ["/v/python", "-m", "pytest", "-m", "slow or gpu", "-x"]


@pytest.mark.parametrize("arguments", [[], ["trian"], ["--version"], ["seed=3"]])
def test_an_unknown_command_is_answered_with_usage_and_installs_nothing(arguments: list[str]) -> None:
    answer = subprocess.run([sys.executable, ROOT / "bootstrap.py", *arguments], capture_output=True, text=True)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr.startswith("usage: python3 bootstrap.py train")


def test_help_explains_both_commands() -> None:
    answer = subprocess.run([sys.executable, ROOT / "bootstrap.py", "--help"], capture_output=True, text=True)
    assert answer.returncode == 0
    assert "bootstrap.py train" in answer.stdout and "bootstrap.py test" in answer.stdout


def test_bootstrap_needs_nothing_but_the_standard_library() -> None:
    # -I -S: no site-packages, no user packages, no folder of ours on the path
    command = [sys.executable, "-I", "-S", ROOT / "bootstrap.py", "--help"]
    assert subprocess.run(command, capture_output=True).returncode == 0


# -- the stamp -----------------------------------------------------------------------------------------------


def test_a_completed_environment_is_ready_for_both_commands(tmp_path: Path) -> None:
    root = clone(tmp_path)
    assert not bootstrap.is_ready(root, "train")
    stamp(root)
    assert bootstrap.is_ready(root, "train") and bootstrap.is_ready(root, "test")


def test_what_was_installed_for_train_lacks_the_packages_of_test(tmp_path: Path) -> None:
    root = clone(tmp_path)
    stamp(root, serves=["train"])
    assert bootstrap.is_ready(root, "train") and not bootstrap.is_ready(root, "test")


@pytest.mark.parametrize("name", ["setup.cfg", "constraints.txt", "pyproject.toml"])
def test_a_changed_file_is_installed_again(tmp_path: Path, name: str) -> None:
    root = clone(tmp_path)
    stamp(root)
    (root / name).write_text("changed\n")
    assert not bootstrap.is_ready(root, "train")


def test_text_moved_from_one_file_to_the_next_changes_the_fingerprint(tmp_path: Path) -> None:
    root = clone(tmp_path)
    (root / "setup.cfg").write_text("ab")
    (root / "constraints.txt").write_text("c")
    before = bootstrap.fingerprint(root)
    (root / "setup.cfg").write_text("a")
    (root / "constraints.txt").write_text("bc")
    assert bootstrap.fingerprint(root) != before


def test_a_moved_clone_is_installed_again(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    root = clone(tmp_path / "old")
    stamp(root)
    moved = root.rename(tmp_path / "new")
    assert not bootstrap.is_ready(moved, "train")


def test_a_torch_that_was_kept_elsewhere_and_is_gone_is_noticed(tmp_path: Path) -> None:
    root = clone(tmp_path)
    stamp(root, torch=str(tmp_path / "gone" / "torch"))
    assert not bootstrap.is_ready(root, "train")


def test_a_python_that_was_removed_from_under_the_environment_is_noticed(tmp_path: Path) -> None:
    root = clone(tmp_path)
    stamp(root)
    python = root / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to(tmp_path / "gone" / "python3")
    assert not bootstrap.is_ready(root, "train")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"fingerprint": 1}', "null"])
def test_a_damaged_stamp_means_not_ready(tmp_path: Path, text: str) -> None:
    root = clone(tmp_path)
    (root / ".venv" / "stamp.json").write_text(text)
    assert not bootstrap.is_ready(root, "train")


# -- the virtual environment and its pip ---------------------------------------------------------------------


def test_a_working_environment_is_not_made_again(tmp_path: Path) -> None:
    machine = Machine(lambda command: 0)
    bootstrap.make_venv(tmp_path / ".venv", machine)
    assert len(machine.commands) == 1


def test_without_ensurepip_the_environment_is_made_without_pip(tmp_path: Path) -> None:
    venv = tmp_path / ".venv"
    machine = Machine(lambda command: 0 if "--without-pip" in command else 1)
    bootstrap.make_venv(venv, machine)
    assert machine.commands[-1] == [sys.executable, "-m", "venv", "--clear", "--without-pip", str(venv)]


def test_an_environment_that_cannot_be_made_ends_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="it said why"):
        bootstrap.make_venv(tmp_path / ".venv", Machine(lambda command: 1))


def test_pip_of_the_environment_comes_first(tmp_path: Path) -> None:
    python = tmp_path / "python"
    assert bootstrap.pip_command(python, Machine(lambda command: 0)) == [str(python), "-m", "pip"]


def test_a_venv_cut_off_before_its_pip_gets_it_by_ensurepip(tmp_path: Path) -> None:
    python = tmp_path / "python"
    machine = Machine(lambda command: 0 if "ensurepip" in command else 1)
    assert bootstrap.pip_command(python, machine) == [str(python), "-m", "pip"]


def test_without_pip_in_the_environment_the_systems_pip_installs_into_it(tmp_path: Path) -> None:
    python = tmp_path / "python"
    machine = Machine(lambda command: 0 if command[0] == "pip3" else 1)
    assert bootstrap.pip_command(python, machine) == ["pip3", "--python", str(python)]


def test_a_pip_too_old_for_python_option_only_gives_the_environment_a_pip(tmp_path: Path) -> None:
    # Neither imported nor looked up by its name: setuptools would take its own distutils away from torch's compiler.
    if importlib.machinery.PathFinder.find_spec("pip") is None:
        pytest.skip("there is no pip")
    python = tmp_path / "python"
    machine = Machine(lambda command: 0 if "install" in command else 1)
    assert bootstrap.pip_command(python, machine) == [str(python), "-m", "pip"]
    assert machine.commands[-1][-3:] == ["install", "--ignore-installed", "pip"]


def test_no_pip_at_all_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there is no pip: .*python3-venv"):
        bootstrap.pip_command(tmp_path / "python", Machine(lambda command: 1))


# -- what a killed pip leaves --------------------------------------------------------------------------------


def installed(site: Path, name: str, *, metadata: bool = True) -> Path:
    """A package of one module of 5 bytes, as pip leaves it."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (site / f"{name}.py").write_text("x = 1")
    (info / "RECORD").write_text(f"{name}.py,sha256=abc,5\n__pycache__/{name}.pyc,,\n{info.name}/RECORD,,\n")
    if metadata:
        (info / "METADATA").write_text("")
    return info


def test_a_whole_package_stays_bytecode_or_not(tmp_path: Path) -> None:
    info = installed(tmp_path, "whole")
    bootstrap.drop_half_installed(tmp_path)
    assert info.is_dir()


@pytest.mark.parametrize("damage", ["missing file", "short file", "no RECORD", "no METADATA"])
def test_a_half_written_package_no_longer_looks_installed(tmp_path: Path, damage: str) -> None:
    whole, info = installed(tmp_path, "whole"), installed(tmp_path, "half", metadata=damage != "no METADATA")
    if damage == "missing file":
        (tmp_path / "half.py").unlink()
    if damage == "short file":
        (tmp_path / "half.py").write_text("x =")
    if damage == "no RECORD":
        (info / "RECORD").unlink()
    bootstrap.drop_half_installed(tmp_path)
    assert whole.is_dir() and not info.exists()


# -- torch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "version",
    [
        "2.9.1",
        "2.9.1+cu130",
        "2.10.0",
        "2.10",
        "2.10.1+cpu",
        "2.13.0+cpu",
        "2.100.0",
        "3.0",
        "1.13.1",
        "2.2.10",
    ]
    + ["2.10.0a0+git1", "2.10.0rc1", "2.10.0.dev20260101+cpu", "2.11.0a0+f5.nv26.1", "2.11.0.dev20260301"],
)
def test_versions_are_compared_as_pip_compares_them(version: str) -> None:
    assert bootstrap.is_enough(version) == (Version(version) >= Version("2.10"))


def test_a_version_that_cannot_be_read_is_not_enough() -> None:
    assert not bootstrap.is_enough("unknown")


def probe(version: str, folder: str = "/elsewhere/site-packages/torch") -> str:
    """What the probe prints; an import may print lines of its own before."""
    return "a warning\n" + json.dumps([version, folder, ["filelock", "typing-extensions>=4.10", 'x; extra == "y"']])


def test_the_environments_own_torch_is_kept_and_nothing_is_linked(tmp_path: Path) -> None:
    venv = clone(tmp_path) / ".venv"
    torch = bootstrap.adopt_torch(venv, Machine(lambda command: probe("2.12.0+cpu")))
    assert torch.version == "2.12.0+cpu"
    assert torch.requires == ["filelock", "typing-extensions", "x"]
    assert not (bootstrap.site_packages(venv) / bootstrap.LINK).exists()


def test_the_running_pythons_torch_is_linked_into_the_environment(tmp_path: Path) -> None:
    venv = clone(tmp_path) / ".venv"
    link = bootstrap.site_packages(venv) / bootstrap.LINK

    def answer(command: list[str]) -> int | str:
        return probe("2.11.0") if command[0] == sys.executable or link.exists() else 1

    torch = bootstrap.adopt_torch(venv, Machine(answer))
    assert torch is not None and torch.version == "2.11.0"
    assert link.read_text() == "/elsewhere/site-packages\n"


def test_a_torch_that_the_environments_python_cannot_import_is_not_linked(tmp_path: Path) -> None:
    venv = clone(tmp_path) / ".venv"
    machine = Machine(lambda command: probe("2.11.0") if command[0] == sys.executable else 1)
    assert bootstrap.adopt_torch(venv, machine) is None
    assert not (bootstrap.site_packages(venv) / bootstrap.LINK).exists()


def test_a_link_to_a_torch_that_became_too_old_is_taken_away(tmp_path: Path) -> None:
    venv = clone(tmp_path) / ".venv"
    link = bootstrap.site_packages(venv) / bootstrap.LINK
    link.write_text("/elsewhere/site-packages\n")
    assert bootstrap.adopt_torch(venv, Machine(lambda command: probe("2.9.0"))) is None
    assert not link.exists()


PINS = """\
# a comment
filelock==4.1.0 ; python_version < "3.11"
numpy==2.4.6
setuptools==84.2.1
torch==2.13.0
"""


def test_a_kept_torch_of_another_version_loosens_the_pins_of_its_own_requirements() -> None:
    pins = bootstrap.with_torch(PINS, bootstrap.Torch("2.11.0+cu130", "/t", ["setuptools", "filelock"]))
    assert pins == "# a comment\nnumpy==2.4.6\ntorch==2.11.0+cu130\n"


def test_a_kept_torch_of_the_pinned_version_changes_only_its_own_line() -> None:
    pins = bootstrap.with_torch(PINS, bootstrap.Torch("2.13.0+cpu", "/t", ["setuptools", "filelock"]))
    assert pins == PINS.replace("torch==2.13.0", "torch==2.13.0+cpu")


def report(*packages: tuple[str, str]) -> str:
    """What `pip install --report -` prints."""
    return json.dumps({"install": [{"metadata": {"name": name, "version": version}} for name, version in packages]})


def test_pip_is_asked_what_it_would_install_before_anything_is_downloaded() -> None:
    machine = Machine(lambda _: report(("torch", "2.13.0+cpu"), ("Hydra_Core", "1.3.8")))
    packages = bootstrap.planned(["pip"], ["--editable", "."], machine)
    assert packages == {"torch": "2.13.0+cpu", "hydra-core": "1.3.8"}
    (command,) = machine.commands
    assert {"--dry-run", "--report"} <= set(command) and command[-2:] == ["--editable", "."]


@pytest.mark.parametrize("answer", [1, "", "no JSON", "{}", '{"install": [{}]}'])
def test_a_pip_that_cannot_say_what_it_would_install_gives_a_range(answer: int | str) -> None:
    packages = bootstrap.planned(["pip"], [], Machine(lambda _: answer))
    assert packages is None
    assert "0.5 GB with a CPU build of torch, 3 GB with a CUDA build" in bootstrap.announcement(packages)


@pytest.mark.parametrize(
    ("packages", "said"),
    [
        (
            {"torch": "2.13.0+cpu", "numpy": "2.3"},
            "2 packages will be installed, torch 2.13.0+cpu as a CPU build: up to 0.5 GB",
        ),
        (
            {"torch": "2.13.0", "nvidia-cudnn-cu12": "9"},
            "2 packages will be installed, torch 2.13.0 as a CUDA build: up to 3 GB",
        ),
        ({"numpy": "2.3", "rich": "14"}, "2 packages will be installed: up to 0.3 GB"),
    ],
)
def test_the_size_that_is_announced_is_of_the_build_that_pip_chose(packages: dict[str, str], said: str) -> None:
    assert bootstrap.announcement(packages).startswith(said)


def test_the_sizes_are_of_the_torch_that_is_pinned() -> None:
    assert "torch==2.13.0\n" in (ROOT / "constraints.txt").read_text(), "measure the sizes of announcement() anew"


def pip_that(*lines: str, code: int = 0) -> list[str]:
    return [sys.executable, "-c", f"import sys; print({chr(10).join(lines)!r}); sys.exit({code})"]


def test_pip_is_quiet_but_for_large_downloads(capsys: pytest.CaptureFixture[str]) -> None:
    lines = (
        "Collecting torch",
        "  Downloading https://example.org/torch-2.13.0-cp311.whl (900.1 MB)",
        "Downloading rich-14.whl (243 kB)",
        "Downloading numpy-2.whl (16.2 MB)",
        "Installing collected packages: numpy, torch",
    )
    assert bootstrap.pip_install(pip_that(*lines)) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        "bootstrap: downloading torch-2.13.0-cp311.whl (900 MB)",
        "bootstrap: unpacking the packages",
    ]
    assert shown.err == ""


def test_a_pip_that_fails_shows_its_last_lines(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"line {i}" for i in range(50)]
    assert bootstrap.pip_install(pip_that(*lines, code=3)) == 3
    assert capsys.readouterr().err.splitlines() == lines[-20:]
