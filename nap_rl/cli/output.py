"""Output that never ends a run: terminals that lack letters, and pipes that nobody reads any more."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def tolerate_any_terminal() -> None:
    """Let stdout and stderr replace letters that the terminal's encoding lacks instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def flush_output() -> None:
    """Write out what is left; a closed pipe or a full disk is ignored, so that the exit code stays the run's."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):  # or Python flushes once more at exit, and ends with 120
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
