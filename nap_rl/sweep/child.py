"""The process of one run, which does not outlive the process that started it.

python -m nap_rl.sweep.child FD PROGRAM ARGUMENT ...

FD is the reading end of a pipe whose writing end the parent alone holds. The kernel closes it when the parent dies,
however it dies. The run then gets SIGTERM, on which it writes a checkpoint, and SIGKILL if it is still there after
GRACE seconds. The lock of the run's folder is another descriptor that it inherits: it is held until the run is gone.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

GRACE = 30.0  # seconds


def main(arguments: list[str]) -> None:
    """Run PROGRAM, a module or a script, as if it had been typed."""
    descriptor, program, *rest = arguments
    threading.Thread(target=_die_with_the_parent, args=(int(descriptor),), daemon=True).start()
    sys.argv = [program, *rest]
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


def _die_with_the_parent(descriptor: int) -> None:
    while os.read(descriptor, 1):  # blocks; empty once nobody can write any more
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
