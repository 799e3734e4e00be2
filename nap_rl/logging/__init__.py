"""What a run writes while it learns: CSV tables, TensorBoard events, a summary, and a progress display.

`import logging` stays the standard library's, here too: imports are absolute, so the name shadows nothing.
"""

from __future__ import annotations

from nap_rl.logging.progress import Progress
from nap_rl.logging.run_log import RunLog

__all__ = ["Progress", "RunLog"]
