"""Stands for train.py: ends as code= asks. python fake_run.py code=CODE hydra.run.dir=FOLDER | resume=FOLDER

0..255: writes summary.json and exits; wait: waits for a signal and exits with 128 + it; killed: kills itself once, and
finishes when it is started again; slow: takes 6 s; doomed: kills itself each time; diverged: exits with 3 and a reason.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

settings = dict(argument.split("=", 1) for argument in sys.argv[1:])
folder = Path(settings.get("resume") or settings["hydra.run.dir"].strip("'"))
checkpoint = folder / "checkpoints" / "1"
began_before = checkpoint.exists()
if began_before:
    settings["code"] = (checkpoint / "code").read_text()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: sys.exit(128 + number))
checkpoint.mkdir(parents=True, exist_ok=True)
(checkpoint / "code").write_text(settings["code"])
(folder / "begun").write_text(os.environ.get("RAY_RAYLET_PID", ""))  # which node of Ray it is on
print("at work", os.environ.get("OMP_NUM_THREADS"), flush=True)
code = settings["code"]
if code == "wait":
    time.sleep(60)
if code == "slow":
    time.sleep(6)
    code = "0"
if code == "doomed" or (code == "killed" and not began_before):
    signal.raise_signal(signal.SIGKILL)
status = {"3": "diverged"}.get(code, "finished" if code in ("0", "killed") else "stopped")
summary = {"status": status, "frames": 8000, "visits": [{"mean_return": 2.5}], "reason": None if code == "0" else "why"}
(folder / "summary.json").write_text(json.dumps(summary))
sys.exit(0 if code == "killed" else int(code))
