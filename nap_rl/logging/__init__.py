"""What a run writes: CSV tables, TensorBoard events, a summary, and a progress display.

`import logging` stays the standard library's here: imports are absolute.
"""

from __future__ import annotations

from nap_rl.logging.progress import Progress, RecentRate, Status
from nap_rl.logging.run_log import RunLog

__all__ = ["Progress", "RecentRate", "RunLog", "Status"]
