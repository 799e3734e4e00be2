"""Tables and figures from runs' folders.

python report.py table runs
python report.py norms RUN_A RUN_B --label LayerNorm --label NaP --out norms.png
python report.py returns RUN ... --window 100 --out docs/returns.png
python report.py visits runs/permuted_catch --out docs/permuted_catch
python report.py continual runs/sequential_minatar
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nap_rl.files import write_atomic
from nap_rl.report import continual_report, figures, visits, visits_figure, visits_table
from nap_rl.report.curves import NoRowsError, read_episodes
from nap_rl.report.table import runs_table
from nap_rl.report.visits import SCORES


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 2, after one sentence on standard error, for bad input."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "table":
            print(runs_table(arguments.folder))
        elif arguments.command == "visits":
            print(_visits(arguments))
        elif arguments.command == "continual":
            print(_continual(arguments))
        elif arguments.command == "norms":
            print(figures.norms(arguments.runs, _labels(arguments), arguments.out))
        else:
            print(figures.returns(*_with_episodes(arguments), arguments.out, window=arguments.window))
    except (OSError, ValueError) as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="report.py", description="Tables and figures from runs' folders.")
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("table", help="one line a run found under a folder")
    table.add_argument("folder", type=Path, nargs="?", default=Path("runs"))
    norms = commands.add_parser("norms", help="parameter norms against frames, one panel a run")
    returns = commands.add_parser("returns", help="episode returns against frames, one line a run")
    for figure in (norms, returns):
        figure.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder")
        figure.add_argument("--label", action="append", help="a run's name in the figure; once for each run")
        figure.add_argument("--out", type=Path, required=True, help="the picture to write, such as docs/x.png")
    of_visits = commands.add_parser("visits", help="scores by visit of sequences of tasks, by arm, with a table")
    continual = commands.add_parser("continual", help="forgetting and forward transfer, of runs with eval.tasks=all")
    for of_arms in (of_visits, continual):
        of_arms.add_argument("runs", type=Path, nargs="+", metavar="RUNS", help="runs' folders, or folders of them")
        of_arms.add_argument("--label", action="append", help="an arm's name; once for each arm, in the table's order")
        of_arms.add_argument("--out", type=Path, help="folder to write into; without it, the first of RUNS")
    of_visits.add_argument("--score", choices=SCORES, default=SCORES[0], help="a visit's score in summary.json")
    of_visits.add_argument(
        "--chance", type=float, default=0.0, help="a random policy's score, subtracted before ratios"
    )
    returns.add_argument("--window", type=int, default=100, help="episodes in the moving mean")
    return parser


def _arms(arguments: argparse.Namespace) -> list[visits.Arm]:
    runs = [visits.read(folder, *_seed_and_settings(folder)) for folder in visits.find(arguments.runs)]
    return visits.arms(runs, arguments.label)


def _continual(arguments: argparse.Namespace) -> str:
    """Writes continual.png and continual.csv; returns the table."""
    measured = continual_report.measure(_arms(arguments))
    out = arguments.out or arguments.runs[0]
    write_atomic(out / "continual.csv", continual_report.long_csv(measured))
    continual_report.draw(measured, out / "continual.png")
    return f"{continual_report.text(measured)}\n\nwritten to {out}: continual.png, continual.csv"


def _visits(arguments: argparse.Namespace) -> str:
    """Writes visits.png, visits.csv, arms.csv and arms.md; returns the table."""
    arms = _arms(arguments)
    rows = visits_table.rows(arms, arguments.score, arguments.chance)
    out = arguments.out or arguments.runs[0]
    written = {
        "visits.csv": visits_table.visits_csv(arms, arguments.score, arguments.chance),
        "arms.csv": visits_table.table_csv(rows),
        "arms.md": visits_table.markdown(rows),
    }
    for name, content in written.items():
        write_atomic(out / name, content)
    visits_figure.draw(arms, out / "visits.png", arguments.score, arguments.chance)
    return f"{visits_table.text(rows)}\n\nwritten to {out}: visits.png, {', '.join(written)}"


def _seed_and_settings(run: Path) -> tuple[int, dict[str, Any]]:
    """What the newest checkpoint of a run says of it."""
    from nap_rl import checkpoint  # both import torch, which takes a second
    from nap_rl.conf import evaluation, schema

    meta = checkpoint.latest_meta(run / "checkpoints")
    if meta is None:
        raise ValueError(f"{run} has no sound checkpoint, where its settings stand.")
    config = schema.from_dict(meta["config"])
    return config.seed, evaluation.experiment(config)


def _with_episodes(arguments: argparse.Namespace) -> tuple[list[Path], list[str]]:
    """Runs with a finished episode, and their labels; the others are named on standard error.

    Raises:
        ValueError: no run has one.
    """
    found: list[tuple[Path, str]] = []
    empty: list[NoRowsError] = []
    for run, label in zip(arguments.runs, _labels(arguments), strict=True):
        try:
            read_episodes(run)
        except NoRowsError as error:
            empty.append(error)
        else:
            found.append((run, label))
    if not found:
        raise empty[0]
    for reason in empty:
        print(f"report.py: left out: {reason}", file=sys.stderr)
    return [run for run, _ in found], [label for _, label in found]


def _labels(arguments: argparse.Namespace) -> list[str]:
    """The labels given, else the last two parts of each folder's path: what was run, and which time."""
    if arguments.label is None:
        return ["/".join(run.resolve().parts[-2:]) for run in arguments.runs]
    if len(arguments.label) != len(arguments.runs):
        raise ValueError(f"Give one --label for each of the {len(arguments.runs)} runs, not {len(arguments.label)}.")
    return list(arguments.label)


if __name__ == "__main__":
    sys.exit(main())
