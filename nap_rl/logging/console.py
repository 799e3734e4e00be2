"""Output that never ends a program: letters that an encoding lacks, closed pipes, full disks."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

GONE = (OSError, ValueError)
"""What a stream raises that can no longer be written; Python calls a closed file a ValueError."""


def encodable(text: str, encoding: str | None) -> str:
    """`text` with "?" for letters that `encoding` lacks; None is UTF-8."""
    encoding = encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def say(text: str) -> None:
    """Print a line on standard output. Once that cannot be written, everything that is printed there is thrown away."""
    stream = sys.stdout
    try:
        print(encodable(text, stream.encoding), file=stream, flush=True)
    except GONE:
        with suppress(*GONE):  # the interpreter flushes at exit, and must not fail there either
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
