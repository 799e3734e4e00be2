"""Tables and figures from runs' folders.

python report.py table runs
python report.py norms RUN_A RUN_B --label LayerNorm --label NaP --out norms.png
python report.py returns RUN ... --window 100 --out docs/returns.png
python report.py curves runs/schedules --out docs/schedules
python report.py visits runs/permuted_catch --out docs/permuted_catch
python report.py continual runs/sequential_minatar
python report.py page runs/permuted_catch --out report.html
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nap_rl.files import write_atomic
from nap_rl.report import continual_report, figures, training_figure, visits, visits_figure, visits_table
from nap_rl.report.curves import NoRowsError, read_episodes
from nap_rl.report.page import runs
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
        elif arguments.command == "curves":
            print(_curves(arguments))
        elif arguments.command == "continual":
            print(_continual(arguments))
        elif arguments.command == "page":
            print(_page(arguments))
        elif arguments.command == "norms":
            print(figures.norms(arguments.runs, _labels(arguments), arguments.out))
        else:
            print(figures.returns(*_with_episodes(arguments), arguments.out, window=arguments.window))
    except (OSError, ValueError) as error:
        print(f"{_name()}: {error}", file=sys.stderr)
        return 2
    return 0


def _name() -> str:
    """The command as it was typed: in a clone, or that of the wheel."""
    typed = Path(sys.argv[0]).name
    return typed if typed == "nap-rl-report" else "report.py"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=_name(), description="Tables and figures from runs' folders.")
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("table", help="one line a run found under a folder")
    table.add_argument("folder", type=Path, nargs="?", default=Path("runs"))
    norms = commands.add_parser("norms", help="parameter norms against frames, one panel a run")
    returns = commands.add_parser("returns", help="episode returns against frames, one line a run")
    for figure in (norms, returns):
        figure.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder")
        figure.add_argument("--label", action="append", help="a run's name in the figure; once for each run")
        figure.add_argument("--out", type=Path, required=True, help="the picture to write, such as docs/x.png")
    curves = commands.add_parser("curves", help="returns and layers against frames, by arm, with intervals over seeds")
    of_visits = commands.add_parser("visits", help="scores by visit of sequences of tasks, by arm, with a table")
    continual = commands.add_parser("continual", help="forgetting and forward transfer, of runs with eval.tasks=all")
    page = commands.add_parser("page", help="one page to look at, by arm: returns, visits, layers, settings, films")
    for of_arms in (curves, of_visits, continual, page):
        of_arms.add_argument("runs", type=Path, nargs="+", metavar="RUNS", help="runs' folders, or folders of them")
        of_arms.add_argument("--label", action="append", help="an arm's name; once for each arm, in the table's order")
    for of_arms in (curves, of_visits, continual):
        of_arms.add_argument("--out", type=Path, help="folder to write into; without it, the first of RUNS")
    page.add_argument("--out", type=Path, help="the page to write; without it, report.html in the first of RUNS")
    for scored in (of_visits, page):
        scored.add_argument("--score", choices=SCORES, default=SCORES[0], help="a visit's score in summary.json")
        scored.add_argument(
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


def _page(arguments: argparse.Namespace) -> str:
    """Writes the page; returns where it is, below a line for each run that is not on it.

    Raises:
        ValueError: Bokeh is not installed.
    """
    from nap_rl.report import page

    if not page.is_installed():
        raise ValueError(page.MISSING)
    out = arguments.out or arguments.runs[0] / page.NAME
    if _are_studies(arguments.runs):
        from nap_rl.studies import page as study_page

        return str(study_page.write(arguments.runs, out))
    from nap_rl.report.page import training

    arms, left_out = _trainings(arguments)
    title = arguments.runs[0].resolve().name
    training.write_page(out, arms, title, score=arguments.score, chance=arguments.chance, left_out=left_out)
    return "\n".join([*left_out, f"written to {out}"])


def _curves(arguments: argparse.Namespace) -> str:
    """Writes curves.png and curves.csv; returns where, below a line for each run that is not among them."""
    arms, left_out = _trainings(arguments)
    out = arguments.out or arguments.runs[0]
    training_figure.draw(arms, out / "curves.png")
    write_atomic(out / "curves.csv", training_figure.returns_csv(arms))
    return "\n".join([*left_out, f"written to {out}: curves.png, curves.csv"])


def _trainings(arguments: argparse.Namespace) -> tuple[list[runs.TrainingArm], list[str]]:
    """The arms, and a line for each run that is left out.

    Raises:
        ValueError: no run can be read.
    """
    found, left_out = [], []
    for folder in runs.find(arguments.runs):
        try:
            found.append(runs.read(folder, *_seed_and_settings(folder, with_game=True)))
        except (OSError, ValueError) as error:
            left_out.append(f"left out: {str(error).rstrip('.')}")
    if not found:
        raise ValueError(left_out[0])
    arms, older = runs.arms(found, arguments.label)
    left_out += [f"left out: {run.folder}, because another run of its settings and seed came farther" for run in older]
    return arms, left_out


def _are_studies(folders: Sequence[Path]) -> bool:
    """Whether they hold studies, and no training."""
    holds = {name for folder in folders for name in ("summary.json", "metrics.csv") if any(folder.rglob(name))}
    return holds == {"summary.json"}


def _seed_and_settings(run: Path, *, with_game: bool = False) -> tuple[int, dict[str, Any]]:
    """What the newest checkpoint of a run says of it."""
    from nap_rl.conf import evaluation  # takes a second

    return evaluation.seed_and_settings(run, with_game=with_game)


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
        print(f"{_name()}: left out: {reason}", file=sys.stderr)
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
