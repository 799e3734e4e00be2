"""Every file in examples/ runs, shortened; the notebook as it stands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOK = EXAMPLES / "nap_in_five_minutes.ipynb"
SMALL = ["agent.min_replay_steps=64", "device=cpu", "hydra.run.dir=run"]
SHORT = {
    "custom_environment.py": ["frames=400", *SMALL],
    "custom_torso.py": ["frames=400", *SMALL],
    "ppo_nap.py": ["--steps", "1024"],
    "sb3_nap.py": ["--steps", "1024"],
}


def run(folder: Path, *command: object) -> str:
    """The output of `python command` in `folder`. Fails the test where it exits with anything but 0."""
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    line = [sys.executable, *map(str, command)]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


def cells(kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == {*SHORT, NOTEBOOK.name}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_an_example_runs_in_any_folder(name: str, tmp_path: Path) -> None:
    printed = run(tmp_path, EXAMPLES / name, *SHORT[name])
    found = re.search(r"norm drift:? (\d\.\de[-+]\d\d)", printed)
    if "nap" in name:
        assert found is not None and float(found[1]) < 1e-6, printed
    else:
        assert (tmp_path / "run" / "summary.json").is_file(), printed


@pytest.mark.slow
def test_ppo_with_nap_learns_cartpole_in_which_random_play_scores_22(tmp_path: Path) -> None:
    printed = run(tmp_path, EXAMPLES / "ppo_nap.py", "--steps", "20480")
    assert float(re.findall(r"mean return ([\d.]+)", printed)[-1]) > 50.0, printed


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom_and_nap_keeps_the_norm(tmp_path: Path) -> None:
    script = tmp_path / "notebook.py"
    script.write_text("\n\n".join("".join(cell["source"]) for cell in cells("code")))
    printed = run(tmp_path, script)
    rows = {
        arm: list(map(float, numbers))
        for arm, *numbers in re.findall(
            r"^(\w+) +accuracy ([\d.]+) -> ([\d.]+) +norm +([\d.]+) +effective rate ([\d.]+)", printed, re.M
        )
    }
    assert set(rows) == {"plain", "LayerNorm", "NaP"}
    (_, late, norm, rate), (_, late_without, norm_without, rate_without) = rows["NaP"], rows["LayerNorm"]
    assert late > late_without + 0.1
    assert norm_without > 2 * norm and rate > 2 * rate_without


def test_the_notebook_shows_results_and_no_path_of_a_machine() -> None:
    assert all(cell["outputs"] for cell in cells("code") if "print(" in "".join(cell["source"]))
    for cell in cells("code"):
        for output in cell["outputs"]:
            assert output["output_type"] != "error" and output.get("name") != "stderr"
            text = json.dumps({key: value for key, value in output.get("data", {}).items() if "image" not in key})
            assert not re.search(r"/(home|root|tmp|work|Users)/", text + "".join(output.get("text", "")))
