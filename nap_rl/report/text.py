"""Numbers and tables as text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from nap_rl.report.statistics import Estimate


def aligned(rows: Sequence[Sequence[str]], left: int, *, rule: bool = True) -> list[str]:
    """Lines of a table; the first row is its header, with a rule under it. The first `left` columns are flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    ruled = [rows[0], ["-" * width for width in widths], *rows[1:]] if rule else rows
    return [
        "  ".join([*map(str.ljust, row[:left], widths), *map(str.rjust, row[left:], widths[left:])]).rstrip()
        for row in ruled
    ]


def shown(estimate: Estimate | None, spec: str = ".2f") -> str:
    """ "1.20 [1.00, 1.40]", the number alone if it has no interval, "-" for None."""
    if estimate is None:
        return "-"
    number = format(estimate.value, spec)
    if estimate.low is None or estimate.high is None:
        return number
    return f"{number} [{estimate.low:{spec}}, {estimate.high:{spec}}]"


def to_csv(columns: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A CSV file's text; None and NaN are empty cells."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for line in lines:
        writer.writerow(["" if cell is None or cell != cell else cell for cell in line])
    return out.getvalue()
