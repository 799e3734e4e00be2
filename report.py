"""Tables and figures from runs' folders.

python report.py table runs
python report.py norms RUN_A RUN_B --label LayerNorm --label NaP --out docs/norms.png
python report.py returns RUN ... --window 100 --out docs/returns.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nap_rl.report import figures
from nap_rl.report.table import runs_table


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 2, after one sentence on standard error, for bad input."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "table":
            print(runs_table(arguments.folder))
        elif arguments.command == "norms":
            print(figures.norms(arguments.runs, _labels(arguments), arguments.out))
        else:
            print(figures.returns(arguments.runs, _labels(arguments), arguments.out, window=arguments.window))
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
    returns.add_argument("--window", type=int, default=100, help="episodes in the moving mean")
    return parser


def _labels(arguments: argparse.Namespace) -> list[str]:
    """The labels given, else the last two parts of each folder's path: what was run, and which time."""
    if arguments.label is None:
        return ["/".join(run.resolve().parts[-2:]) for run in arguments.runs]
    if len(arguments.label) != len(arguments.runs):
        raise ValueError(f"Give one --label for each of the {len(arguments.runs)} runs, not {len(arguments.label)}.")
    return list(arguments.label)


if __name__ == "__main__":
    sys.exit(main())
