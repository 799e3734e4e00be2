"""Stands for train.py: ends as code= asks. python fake_run.py code=CODE hydra.run.dir=FOLDER | resume=FOLDER

0..255: writes summary.json and exits; wait: waits for a signal and exits with 128 + it; killed: kills itself once, and
finishes when it is started again; slow: takes 6 s; doomed: kills itself each time; diverged: exits with 3 and a reason.
With seeds=[0,1,2] it is a run of each in FOLDER/seed_0 and so on; mixed: that of seed 1 diverges and the others finish;
half: the first finishes, then it kills itself.
score-NUMBER: writes that number to metrics.csv each 100 frames, and finishes at 1,000, within 3 s.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

settings = dict(argument.split("=", 1) for argument in sys.argv[1:])
if "seeds" in settings:
    assert settings["resume"] == "auto" and "seed" not in settings
    place = Path(settings["hydra.run.dir"].strip("'"))
    runs = {seed: place / f"seed_{seed}" for seed in json.loads(settings["seeds"])}
else:
    runs = {settings.get("seed"): Path(settings.get("resume") or settings["hydra.run.dir"].strip("'"))}
checkpoints = [folder / "checkpoints" / "1" for folder in runs.values()]
began_before = checkpoints[0].exists()
if began_before:
    settings["code"] = (checkpoints[0] / "code").read_text()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: sys.exit(128 + number))
for folder, checkpoint in zip(runs.values(), checkpoints, strict=True):
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "code").write_text(settings["code"])
    (folder / "begun").write_text(os.environ.get("RAY_RAYLET_PID", ""))  # which node of Ray it is on


def write_summary(folder: Path, code: str) -> None:
    status = {"3": "diverged"}.get(code, "finished" if code in ("0", "killed") else "stopped")
    reason = None if code == "0" else "why"
    summary = {"status": status, "frames": 8000, "visits": [{"mean_return": 2.5}], "reason": reason}
    (folder / "summary.json").write_text(json.dumps(summary))


print("at work", os.environ.get("OMP_NUM_THREADS"), "on", *runs, flush=True)
code = settings["code"]
if code == "wait":
    time.sleep(60)
if code == "slow":
    time.sleep(6)
    code = "0"
if code.startswith("score-"):
    with open(folder / "metrics.csv", "w") as file:
        file.write("updates,frames,score\n")
        for frames in range(100, 1001, 100):
            time.sleep(0.3)
            file.write(f"1,{frames},{code.removeprefix('score-')}\n")
            file.flush()
    code = "0"
if code == "half" and len(runs) > 1:
    write_summary(next(iter(runs.values())), "0")
if code == "doomed" or (code in ("killed", "half") and (not began_before or len(runs) > 1)):
    signal.raise_signal(signal.SIGKILL)
codes = {"mixed": dict.fromkeys(runs, "0") | {1: "3"}}.get(code, dict.fromkeys(runs, "0" if code == "half" else code))
for seed, folder in runs.items():
    write_summary(folder, codes[seed])
sys.exit(max(0 if each == "killed" else int(each) for each in codes.values()))
