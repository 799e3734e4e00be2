"""What this machine has for the runs of a sweep: cores, GPUs, memory; and a place for each run at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nap_rl import machine, threads
from nap_rl.sweep.attempts import Surroundings
from nap_rl.sweep.settings import SweepSettings


def share_out(asked: SweepSettings, bytes_per_run: int, *, on_gpu: bool) -> list[Surroundings]:
    """A place for each run at a time: its threads, and its GPU.

    Raises:
        ValueError: more cores, GPUs or memory are asked for than there are.
    """
    cores, cpus = threads.usable_cores(), asked.cpus_per_run
    if cpus > cores:
        raise ValueError(f"sweep.cpus_per_run={cpus}, but this machine has {cores} cores for us")
    gpus = machine.gpu_ids() if on_gpu or asked.gpus_per_run else []
    gpus_per_run = (1.0 if gpus else 0.0) if asked.gpus_per_run is None else asked.gpus_per_run
    if gpus_per_run > len(gpus):
        raise ValueError(f"sweep.gpus_per_run={gpus_per_run:g}, but this machine has {len(gpus)} GPUs")
    memory = machine.available_memory()
    fit = max(cores // cpus, 1)
    if gpus_per_run:
        fit = min(fit, _runs_on(len(gpus), gpus_per_run))
    if memory is not None:
        fit = min(fit, max(memory // bytes_per_run, 1))
    parallel = fit if asked.parallel is None else asked.parallel
    if memory is not None and parallel * bytes_per_run > memory:
        raise ValueError(
            f"sweep.parallel={parallel} runs take {parallel * bytes_per_run / 1e9:.1f} GB of memory and "
            f"{memory / 1e9:.1f} GB are free: sweep.parallel={max(memory // bytes_per_run, 1)} would fit"
        )
    if gpus_per_run and parallel > _runs_on(len(gpus), gpus_per_run):
        raise ValueError(f"sweep.parallel={parallel} runs with {gpus_per_run:g} GPUs each do not fit {len(gpus)} GPUs")
    return [Surroundings(cpus, _visible(gpus, gpus_per_run, number)) for number in range(parallel)]


def _runs_on(gpus: int, per_run: float) -> int:
    return gpus * math.floor(1 / per_run + 1e-9) if per_run <= 1 else gpus // int(per_run)


def _visible(gpus: Sequence[str], per_run: float, number: int) -> dict[str, str]:
    """The variable that shows a run its GPUs, neighbours on other ones as far as there are."""
    if not per_run:
        return {}
    count = max(int(per_run), 1)
    first = number * count % len(gpus)
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[first : first + count])}
