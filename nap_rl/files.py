"""Writes files whole: a reader finds the old content or the new, never half of either."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_atomic(path: str | Path, content: bytes | str) -> Path:
    """Replaces the file at `path` by `content` and returns the path; text is UTF-8. Makes the folder if it is missing.

    Order: temporary file beside it, fsync, rename. A failure leaves the old file and no temporary one.
    A device or a pipe takes the content directly: a rename would put a file in its place.

    Raises OSError if the content cannot be written.
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    if path.exists() and not (path.is_file() or path.is_dir()):
        path.write_bytes(data)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # short: `path` may have the longest name there is
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
