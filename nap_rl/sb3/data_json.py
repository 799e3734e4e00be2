"""The member `data` of an SB3 zip: JSON in which objects stand as base64 pickles under ":serialized:".

Pickles are skipped while the member streams by, so their size does not matter: SB3 pickles the last observations, and
with `save(include=["replay_buffer"])` whole replays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

LONGEST_TEXT = 64 << 10  # bytes of one JSON string that is kept; longer ones become ""
MOST_KEPT = 8 << 20  # bytes of JSON without such strings
# Fields that SB3 writes as plain JSON, but for numbers of numpy; in zips of Rainbow, all fields are plain.
PLAIN = {
    *("verbose", "seed", "start_time", "n_envs", "use_sde", "sde_sample_freq", "use_sde_at_warmup", "nap_rl"),
    *("num_timesteps", "_total_timesteps", "_num_timesteps_at_start", "_episode_num", "_n_updates", "_n_calls"),
    *("_current_progress_remaining", "_stats_window_size", "buffer_size", "batch_size", "learning_starts", "tau"),
    *("gamma", "gradient_steps", "optimize_memory_usage", "n_steps", "exploration_initial_eps", "exploration_rate"),
    *("exploration_final_eps", "exploration_fraction", "target_update_interval", "max_grad_norm", "n_quantiles"),
}
_NUMPY = re.compile(r"<class 'numpy\.[a-z]+[0-9]*_?'>")
_ESCAPE_OR_END = re.compile(rb'[\\"]')


class DataError(ValueError):
    """`data` is no JSON that SB3 or Rainbow writes; ends a sentence that begins with the file's name."""


def parse(chunks: Iterable[bytes]) -> tuple[dict[str, Any], dict[str, str]]:
    """The fields of `data` without its pickles, in constant memory.

    Of a pickled object, the texts stay that SB3 wrote beside the pickle. A number of numpy in a plain field is dropped.

    Returns:
        (fields, dropped): dropped maps the names of numpy's numbers to their types, such as "numpy.float32".

    Raises:
        DataError: a pickle where SB3 writes plain JSON, more than `MOST_KEPT` bytes beside the pickles, or no object.
        ValueError, RecursionError: it is no JSON.
    """
    fields = json.loads(without_long_strings(chunks))
    if not isinstance(fields, dict):
        raise DataError("has a member 'data' that is no JSON object")
    dropped: dict[str, str] = {}
    for name, value in list(fields.items()):
        if not (isinstance(value, dict) and ":serialized:" in value):
            continue
        del value[":serialized:"]
        if name in PLAIN or "nap_rl" in fields:
            kind = value.get(":type:")
            if "nap_rl" in fields or not isinstance(kind, str) or not _NUMPY.fullmatch(kind):
                raise DataError(f"has a pickle as {name[:60]}, which is written as plain JSON")
            dropped[name] = kind.split("'")[1]
            del fields[name]
    return fields, dropped


def without_long_strings(chunks: Iterable[bytes]) -> bytes:
    """JSON in which every string longer than `LONGEST_TEXT` bytes is empty; DataError beyond `MOST_KEPT` bytes."""
    kept, text = bytearray(), bytearray()
    in_string = too_long = escaped = False
    for chunk in chunks:
        at = 0
        while at < len(chunk):
            if not in_string:
                quote = chunk.find(b'"', at)
                end = len(chunk) if quote < 0 else quote + 1
                kept += chunk[at:end]
                in_string, too_long = quote >= 0, False
            else:
                end, closed, escaped = _string_end(chunk, at, escaped)
                if not too_long:
                    text += chunk[at:end]
                    too_long = len(text) > LONGEST_TEXT
                if closed:
                    kept += b'"' if too_long else text
                if closed or too_long:
                    text.clear()
                in_string = not closed
            at = end
            if len(kept) > MOST_KEPT:
                raise DataError(f"has more than {MOST_KEPT:,} bytes beside the pickles of its member 'data'")
    return bytes(kept + text)


def _string_end(chunk: bytes, at: int, escaped: bool) -> tuple[int, bool, bool]:
    """Where the string goes on to: (end, whether it closes there, whether the next chunk begins with an escaped byte).

    The end is behind the closing quote, or the chunk's.
    """
    at += escaped
    while found := _ESCAPE_OR_END.search(chunk, at):
        if found[0] == b'"':
            return found.end(), True, False
        at = found.end() + 1
    return len(chunk), False, at > len(chunk)
