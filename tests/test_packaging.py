"""Declared dependencies, pins and the wheel's contents, against the source tree."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("agents", "benchmarks", "conf", "envs", "examples", "nap_rl", "studies", "tests")
LINKS = {  # nap_rl/<name> -> ../<target>
    "agents": "agents",
    "conf": "conf",
    "envs": "envs",
    "studies": "studies",
    "evaluate.py": "evaluate.py",
    "report_command.py": "report.py",
    "study.py": "study.py",
    "sweep_command.py": "sweep.py",
    "train.py": "train.py",
}
COMMANDS = {
    "nap-rl-train": "nap_rl.train:main",
    "nap-rl-evaluate": "nap_rl.evaluate:main",
    "nap-rl-study": "nap_rl.study:main",
    "nap-rl-sweep": "nap_rl.sweep_command:main",
    "nap-rl-report": "nap_rl.report_command:main",
}
# Where a package is imported under another name than the one it is installed by.
INSTALLED_AS = {
    "PIL": "pillow",
    "cv2": "opencv-python",
    "hydra": "hydra-core",
    "mlflow": "mlflow-skinny",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
# Packages that come with a declared one and are part of its own interface.
COMES_WITH = {"scikit-learn": "mlxtend", "pandas": "mlxtend", "scipy": "mlxtend", "pip": "setuptools"}


def config() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    return parser


def declared() -> set[str]:
    """Names in install_requires and in every extra."""
    parser = config()
    texts = [parser["options"]["install_requires"], *parser["options.extras_require"].values()]
    return {canonicalize_name(Requirement(line).name) for text in texts for line in text.split("\n") if line.strip()}


def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def sources() -> list[Path]:
    """Every Python file of the tree once: os.walk, and so rglob, does not enter the links."""
    inside = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    links = {ROOT / "nap_rl" / name for name in LINKS}
    return [p for p in [*ROOT.glob("*.py"), *inside] if not links.intersection([p, *p.parents])]


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports anywhere in it, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def test_every_import_in_the_tree_is_declared() -> None:
    own = {"nap_rl", "conftest", *FOLDERS, *(path.stem for path in ROOT.glob("*.py"))}
    known = declared()
    missing: dict[str, list[str]] = {}
    files = sources()
    assert len(files) > 20  # the search itself works
    for path in files:
        beside = {other.stem for other in path.parent.glob("*.py")} if "tests" in path.parts else set()
        for name in imported(path) - own - beside - set(sys.stdlib_module_names):
            package = canonicalize_name(INSTALLED_AS.get(name, name))
            if package not in known and COMES_WITH.get(package) not in known:
                missing.setdefault(package, []).append(str(path.relative_to(ROOT)))
    assert not missing, f"declare these in setup.cfg and pin them in constraints.txt: {missing}"


def test_every_declared_package_is_pinned() -> None:
    assert {"torch", "gymnasium", "ale-py", "stable-baselines3", "sb3-contrib", "hydra-core"} <= declared()
    assert declared() - {"nap-rl"} <= {canonicalize_name(pin.name) for pin in pins()}


def test_what_the_declared_packages_require_in_turn_is_pinned_too() -> None:
    """Follows the requirements of what is installed here. torch fixes its CUDA packages itself."""
    pinned = {canonicalize_name(pin.name) for pin in pins()}
    seen: set[str] = set()
    queue = [requirement for requirement in declared() if requirement != "nap-rl"]
    while queue:
        name = queue.pop()
        if name in seen or name.startswith(("nvidia-", "cuda-", "triton")):
            continue
        seen.add(name)
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of an extra that is not installed here
        for requirement in map(Requirement, lines):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                queue.append(canonicalize_name(requirement.name))
    assert len(seen) > 30
    assert seen <= pinned, f"pin these in constraints.txt: {sorted(seen - pinned)}"


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_a_package_has_one_exact_pin_on_each_python(python: str) -> None:
    here = {"python_version": python, "python_full_version": f"{python}.1"}
    chosen: dict[str, str] = {}
    for pin in pins():
        if pin.marker is None or pin.marker.evaluate({**here, "extra": ""}):
            name = canonicalize_name(pin.name)
            assert name not in chosen, f"{name} is pinned twice on Python {python}"
            assert re.fullmatch(r"==[0-9][0-9a-z.]*", str(pin.specifier)), str(pin)
            chosen[name] = str(pin.specifier)[2:]
    texts = [config()["options"]["install_requires"], *config()["options.extras_require"].values()]
    for line in (line for text in texts for line in text.split("\n") if line.strip()):
        requirement = Requirement(line)
        if requirement.name != "nap-rl":
            pin_ = chosen[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(pin_), f"{requirement} and its pin {pin_} on Python {python}"


@pytest.mark.parametrize("name", ["constraints.txt", "setup.cfg", "pyproject.toml", "bootstrap.py", ".ci/run"])
def test_no_file_that_installs_names_an_address_or_an_index(name: str) -> None:
    path = ROOT / name
    if not path.exists():
        pytest.skip("a source distribution has no .ci")
    assert not re.search(r"://|index-url|find-links|--hash| @ ", path.read_text())


@pytest.mark.parametrize("name", LINKS)
def test_the_links_that_make_nap_rl_one_package_resolve(name: str) -> None:
    link = ROOT / "nap_rl" / name
    assert link.is_symlink() and str(link.readlink()) == f"../{LINKS[name]}"
    assert link.exists(), f"nap_rl/{name} points to nothing"


def test_the_few_facts_that_stand_twice_agree() -> None:
    """uv reads name and Pythons in pyproject.toml; citations name the version."""
    metadata, project = config()["metadata"], (ROOT / "pyproject.toml").read_text().split("[project]")[1]
    assert f'name = "{metadata["name"]}"' in project
    assert f'requires-python = "{config()["options"]["python_requires"]}"' in project
    assert f"\nversion: {metadata['version']}\n" in (ROOT / "CITATION.cff").read_text()


def test_what_setup_cfg_says_of_the_package_pyproject_leaves_to_it() -> None:
    """A field that is neither in [project] nor dynamic would be dropped from the wheel."""
    project = (ROOT / "pyproject.toml").read_text().split("dynamic = [")[1].split("]")[0]
    dynamic = set(re.findall(r'"([\w-]+)"', project))
    named = {"author": "authors", "long_description": "readme"}
    kept = {"name", "license_files", "long_description_content_type"}
    assert {named.get(key, key) for key in config()["metadata"]} - kept <= dynamic
    assert {"dependencies", "optional-dependencies", "scripts"} <= dynamic


def test_a_wheel_holds_everything_and_installs_no_other_top_level_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        real = {info.filename for info in archive.infolist() if info.file_size and (info.external_attr >> 28) != 0xA}
    assert {name.split("/")[0] for name in names} == {"nap_rl", f"{wheel.name.split('-py3')[0]}.dist-info"}
    assert "nap_rl/py.typed" in names and "nap_rl/train.py" in real
    assert {f"nap_rl/report/page/page.{suffix}" for suffix in ("html", "css", "js")} <= real
    for folder in ("agents", "conf", "envs", "studies"):
        held = {name.removeprefix(f"nap_rl/{folder}/") for name in names if name.startswith(f"nap_rl/{folder}/")}
        suffixes = {".py", ".yaml"}
        tree = {str(p.relative_to(ROOT / folder)) for p in (ROOT / folder).rglob("*") if p.suffix in suffixes}
        assert tree and tree <= held, f"the wheel lacks {sorted(tree - held)} of {folder}"
    assert any(name.startswith("nap_rl/conf/") and name.endswith(".yaml") for name in real)


def test_an_unpacked_wheel_runs_without_the_clone(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
        (points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        lines = archive.read(points).decode().splitlines()
    assert dict(line.split(" = ") for line in lines if " = " in line) == COMMANDS
    script = (
        "import nap_rl, nap_rl.agents, nap_rl.envs, nap_rl.conf, nap_rl.train\n"
        "from importlib.resources import files\n"
        "assert any(entry.name.endswith('.yaml') for entry in files('nap_rl.conf').iterdir())\n"
        "import importlib\n"
        f"for entry in {list(COMMANDS.values())}:\n"
        "    module, function = entry.split(':')\n"
        "    assert callable(getattr(importlib.import_module(module), function))\n"
        "print(nap_rl.__file__)\n"
    )
    # -c puts the current folder first on the path: the unpacked wheel, not the clone
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip().splitlines()[-1]).is_relative_to(tmp_path)
