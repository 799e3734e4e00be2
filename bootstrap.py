#!/usr/bin/env python3
"""Set up nap_rl on a machine that has only Python 3.10 or newer, then run it (standard library only).

    python3 bootstrap.py train [overrides]    one quick training run of sequential Atari with NaP
    python3 bootstrap.py test [pytest args]   the whole test suite

Makes .venv beside this file and installs what setup.cfg lists, at the versions of constraints.txt.
A later call with the same files goes straight to the command; an interrupted one picks up where it stopped.
An importable torch >= 2.10, in .venv or in the Python that runs this file, is kept and not downloaded.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.machinery
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # a Python too old for nap_rl reads this file as well, to say so
    from collections.abc import Callable

    Runner = Callable[[list[str]], subprocess.CompletedProcess[str]]

ROOT = Path(__file__).resolve().parent
EXTRAS = {"train": "", "test": "[test]"}
LINK = "nap_rl_torch.pth"
LARGE_MB = 20  # downloads from this size on are named: they take a while
PROBE = """
import json, os, torch
from importlib.metadata import requires, version
print(json.dumps([version("torch"), os.path.dirname(torch.__file__), requires("torch") or []]))
"""


class Torch(NamedTuple):
    """A torch that can be imported: its version, its folder, and the names of the packages it requires."""

    version: str
    folder: str
    requires: list[str]


def quiet(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command unseen; a program that is not there answers like one that failed."""
    try:
        return subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def say(sentence: str) -> None:
    print("bootstrap: " + sentence, flush=True)


def give_up(sentence: str) -> SystemExit:
    return SystemExit("bootstrap: " + sentence)


# -- which command, and is everything there already ----------------------------------------------------------


def command_line(python: Path, command: str, arguments: list[str]) -> list[str]:
    """What runs once everything is installed."""
    if command == "train":
        defaults = ["env=sequential_atari", "agent.nap=true", "experiment=quick"]
        return [str(python), "train.py", *defaults, *arguments]
    return [str(python), "-m", "pytest", *arguments]


def fingerprint(root: Path) -> str:
    """Changes with every file that decides what is installed, and when the clone is moved."""
    digest = hashlib.sha256(str(root).encode())
    for name in ("setup.cfg", "constraints.txt", "pyproject.toml"):
        digest.update(hashlib.sha256((root / name).read_bytes()).digest())
    return digest.hexdigest()


def is_ready(root: Path, command: str) -> bool:
    """Whether `.venv` was completed for this command and from these files. Starts no process."""
    venv = root / ".venv"
    try:
        stamp = json.loads((venv / "stamp.json").read_text())
        return (
            stamp["fingerprint"] == fingerprint(root)
            and command in stamp["serves"]
            and os.access(venv / "bin" / "python", os.X_OK)
            and os.path.isdir(stamp["torch"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


# -- the virtual environment ---------------------------------------------------------------------------------


def make_venv(venv: Path, run: Runner = quiet) -> None:
    """Keep a `.venv` whose Python runs, or make one, without pip where python3-venv is missing."""
    new_enough = "import sys; sys.exit(sys.version_info < (3, 10))"
    if run([str(venv / "bin" / "python"), "-c", new_enough]).returncode == 0:
        return
    say(f"making {venv}" + (", whose Python does not run, anew" if venv.exists() else ""))
    base = [sys.executable, "-m", "venv", "--clear"]
    if run([*base, str(venv)]).returncode == 0:
        return
    made = run([*base, "--without-pip", str(venv)])
    if made.returncode != 0:
        reason = (made.stderr.strip() or "no reason given").splitlines()[-1]
        raise give_up(f"'{sys.executable} -m venv' could not make {venv}: {reason}")


def pip_command(python: Path, run: Runner = quiet) -> list[str]:
    """A pip that installs for `python`: its own, else the running Python's, else one on PATH."""

    def works(*command: str) -> bool:
        return run(list(command)).returncode == 0

    own = [str(python), "-m", "pip"]
    if works(*own, "--version") or works(str(python), "-m", "ensurepip"):
        return own
    for pip in ([sys.executable, "-m", "pip"], ["pip3"], ["pip"]):
        elsewhere = [*pip, "--python", str(python)]
        if works(*elsewhere, "--version"):
            return elsewhere
    spec = importlib.machinery.PathFinder.find_spec("pip")
    if spec is not None and spec.origin is not None:
        # A pip older than 22.3 has no --python. Started by its folder it takes the packages beside it for
        # installed ones, so it does one thing only: give `python` a pip of its own.
        folder = str(Path(spec.origin).parent)
        if works(str(python), folder, "install", "--ignore-installed", "pip"):
            return own
    raise give_up("there is no pip: on Debian and Ubuntu 'sudo apt install python3-venv', then call again.")


def site_packages(venv: Path) -> Path:
    return next((venv / "lib").glob("python*/site-packages"))


def is_complete(dist_info: Path) -> bool:
    """Whether every file that the package's RECORD lists is there with its size (bytecode aside)."""
    try:
        with open(dist_info / "RECORD", newline="", encoding="utf-8") as record:
            for path, _, size in csv.reader(record):
                if not size or path.endswith(".pyc"):
                    continue
                if (dist_info.parent / path).stat().st_size != int(size):
                    return False
    except (OSError, ValueError):
        return False
    return (dist_info / "METADATA").is_file()


def drop_half_installed(site: Path) -> None:
    """A package whose installation was killed looks installed to pip: without its dist-info it does not."""
    for dist_info in site.glob("*.dist-info"):
        if not is_complete(dist_info):
            say(f"{dist_info.name[: -len('.dist-info')]} was left half installed: installing it again")
            shutil.rmtree(dist_info)


# -- torch: kept where there is one --------------------------------------------------------------------------


def is_enough(version: str) -> bool:
    """torch >= 2.10 as pip reads it: a pre-release of 2.10 itself comes before it, one of 2.11 after it."""
    match = re.match(r"(\d+)\.(\d+)(?:\.0)*(a|b|rc|\.dev)?", version)
    if match is None:
        return False
    release = (int(match[1]), int(match[2]))
    return release > (2, 10) or (release == (2, 10) and not match[3])


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def find_torch(python: str, run: Runner = quiet) -> Torch | None:
    """The torch >= 2.10 that this Python imports and pip can see there, if any."""
    answer = run([python, "-c", PROBE])
    if answer.returncode != 0:
        return None
    version, folder, requires = json.loads(answer.stdout.strip().splitlines()[-1])
    names = [normalized(re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]) for line in requires]
    return Torch(version, folder, names) if is_enough(version) else None


def adopt_torch(venv: Path, run: Runner = quiet) -> Torch | None:
    """The torch to keep: `.venv`'s own, else the one of the Python that runs this file, linked into `.venv`.

    The link is a .pth file. `--system-site-packages` would show the base Python's packages where the running
    Python is itself a virtual environment. Both come last on the path: what pip puts in `.venv` wins.
    """
    python = str(venv / "bin" / "python")
    torch = find_torch(python, run)
    if torch is not None:
        return torch
    link = site_packages(venv) / LINK
    link.unlink(missing_ok=True)
    outside = find_torch(sys.executable, run)
    if outside is None:
        return None
    link.write_text(str(Path(outside.folder).parent) + "\n")
    linked = find_torch(python, run)
    if linked is None:  # .venv runs another Python version, say
        link.unlink()
    return linked


def with_torch(constraints: str, torch: Torch) -> str:
    """The constraints with torch held at the version that is there.

    A version other than the pinned one has requirements of its own (setuptools < 82, say): their pins go too.
    """
    pinned = re.search(r"^torch==(\S+)", constraints, re.MULTILINE)
    loose = {"torch"}
    if pinned is None or torch.version.split("+")[0] != pinned[1]:
        loose.update(torch.requires)
    kept = [line for line in constraints.splitlines() if normalized(line.split("==")[0].strip()) not in loose]
    return "\n".join([*kept, f"torch=={torch.version}", ""])


# -- what pip will do, and doing it --------------------------------------------------------------------------


def planned(pip: list[str], arguments: list[str], run: Runner = quiet) -> dict[str, str] | None:
    """Names and versions of the packages that `pip install` would bring; None if this pip cannot say."""
    answer = run([*pip, "install", "--dry-run", "--quiet", "--report", "-", *arguments])
    try:
        items = json.loads(answer.stdout)["install"] if answer.returncode == 0 else None
        return None if items is None else {normalized(i["metadata"]["name"]): i["metadata"]["version"] for i in items}
    except (ValueError, KeyError, TypeError):
        return None


def announcement(packages: dict[str, str] | None) -> str:
    """One sentence: what will be downloaded, and how much that is at most (sizes of torch 2.13.0 and the pins)."""
    if packages is None:
        return "pip does not say what it will download: up to 0.5 GB with a CPU build of torch, 3 GB with a CUDA build"
    if "torch" not in packages:
        return f"{len(packages)} packages will be installed: up to 0.3 GB to download"
    cuda = any(name.startswith("nvidia-") for name in packages)
    build, size = ("a CUDA build", "3 GB") if cuda else ("a CPU build", "0.5 GB")
    return f"{len(packages)} packages will be installed, torch {packages['torch']} as {build}: up to {size} to download"


def pip_install(command: list[str]) -> int:
    """Runs pip; shows its large downloads as they begin, and its last lines if it fails. Returns its exit code."""
    last: deque[str] = deque(maxlen=20)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as pip:
        assert pip.stdout is not None
        for line in map(str.strip, pip.stdout):
            last.append(line)
            size = re.fullmatch(r"Downloading (\S+) \((\d+)(?:\.\d+)? MB\)", line)
            if size is not None and int(size[2]) >= LARGE_MB:
                say(f"downloading {size[1].rsplit('/', 1)[-1]} ({size[2]} MB)")
            elif line.startswith("Installing collected packages"):
                say("unpacking the packages")
    if pip.returncode != 0:
        print("\n".join(last), file=sys.stderr, flush=True)
    return pip.returncode


# -- installing ----------------------------------------------------------------------------------------------


def install(root: Path, command: str) -> None:
    """Bring `.venv` to what setup.cfg and constraints.txt say; the stamp is written last."""
    venv = root / ".venv"
    python, stamp, log = venv / "bin" / "python", venv / "stamp.json", venv / "pip.log"
    constraints = venv / "constraints.txt"
    stamp.unlink(missing_ok=True)
    make_venv(venv)
    drop_half_installed(site_packages(venv))
    pip = pip_command(python)

    pins = (root / "constraints.txt").read_text()
    torch = adopt_torch(venv)
    if torch is not None:
        say(f"keeping torch {torch.version} in {torch.folder}")
        pins = with_torch(pins, torch)
    constraints.write_text(pins)

    log.unlink(missing_ok=True)
    os.environ["PIP_USER"] = "0"  # a pip that is set to `user` would refuse a .venv
    arguments = ["--no-input", "--disable-pip-version-check", "--constraint", str(constraints)]
    arguments += ["--editable", f"{root}{EXTRAS[command]}"]
    say("asking pip what is missing")
    say(f"{announcement(planned(pip, arguments))} (log: {log})")
    if torch is None:
        say("To use another build of torch, press Ctrl-C, install a torch >= 2.10 for this Python or with")
        say(f"'{' '.join(pip)} install', as PyTorch's own page says, and call again: it will be kept.")
    if pip_install([*pip, "install", "--log", str(log), *arguments]) != 0:
        raise give_up(f"pip could not install the packages: its log is {log}.")

    torch = find_torch(str(python))
    if torch is None:
        raise give_up(f"pip is done, but {python} cannot import torch >= 2.10; try it there to see why.")
    serves = ["train", "test"] if command == "test" else ["train"]
    written = {"fingerprint": fingerprint(root), "serves": serves, "torch": torch.folder}
    stamp.write_text(json.dumps(written, indent=1) + "\n")


def main(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__.strip() if __doc__ else "")
        return 0
    if not arguments or arguments[0] not in EXTRAS:
        print("usage: python3 bootstrap.py train [overrides] | test [pytest args] | --help", file=sys.stderr)
        return 2
    if sys.version_info < (3, 10):  # noqa: UP036
        raise give_up(f"nap_rl needs Python 3.10 or newer, and this is {platform.python_version()}.")
    if os.name != "posix":
        raise give_up("nap_rl's folders are symbolic links: run it on Linux, macOS or WSL.")
    command, *rest = arguments
    if not is_ready(ROOT, command):
        install(ROOT, command)
    python = ROOT / ".venv" / "bin" / "python"
    os.chdir(ROOT)
    os.execv(python, command_line(python, command, rest))  # the command's exit code and signals are its own


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("\nbootstrap: interrupted; call again to go on.", file=sys.stderr)
        sys.exit(130)
