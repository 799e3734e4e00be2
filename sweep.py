"""Many runs from one command, several at a time, that survive kills: python sweep.py COMMAND key=value,value ...

    python sweep.py train experiment=permuted_catch agent.nap=true,false seed=0..4     ten trainings
    python sweep.py study study=random_labels method=none,redo seed=0..2               six studies
    python sweep.py evaluate RUN RUN env.game=pong,breakout                            four evaluations
    python sweep.py sweep=figure6 arm=fresh,NaP-omit seed=0..2                         a sweep of conf/sweep, or a file
    python sweep.py resume=runs/sweeps/20260101-120000-ab12                            go on after a stop or a crash

COMMAND is train, study or evaluate, with its own settings. Several values of a setting, as Hydra writes them, are a
run each: 0,1,2 or 0..4 or range(0,10,2) or choice(a,b). All combinations are checked before the first run begins.

Settings of the sweep:
    sweep.dir=FOLDER        the sweep's folder; without it a new one below runs/sweeps/
    sweep.engine=ray|local  Ray Tune (pip install -e '.[ray]'), or plain processes; without it Ray where it is there
    sweep.parallel=N        runs at a time; without it as many as cores, GPUs and memory take
    sweep.cpus_per_run=1    cores for each run, which computes with as many threads
    sweep.gpus_per_run=0.25 four runs share a GPU; without it a run has one for itself, where there are GPUs
    sweep.seeds_per_process=1|N|auto  seeds that train.py stacks in one process; auto: where their networks are small,
                            as many as keep all cores at work, 5 at most, but 1 with ray.address= or sweep.stop=asha

    sweep.search=random     sweep.samples=20 draws instead of all combinations, each with every seed;
                            tag(log,interval(1e-5,1e-2)) draws numbers
    sweep.search=optuna     the same, but later draws learn from the runs before them
    sweep.stop=asha         end the worse runs early, by sweep.metric=rollout/ep_rew_mean
    ray.address=HOST:PORT   join a Ray cluster; without it Ray runs on this machine alone, and ends with the sweep

Sweeps in conf/sweep: affine, atari57, figure4, figure6, frequency, norms, plasticity, schedules.

Results: FOLDER/sweep.json lists the runs {folder, overrides, seed, status, starts, reason}; each run has a folder
named by what differs. At the end: arms.csv and arms.md, IQM with intervals over seeds by arm, a picture, and
report.html, a page to look at. A run
that dies goes on from its newest checkpoint, at most 5 times without a new one. A run that diverges or is refused is a
line in the table and stops no other.

Exit codes: 0; 2, bad input: one sentence, nothing was started; 128 + signal after SIGINT or SIGTERM, which stop all
runs with their checkpoints; else the highest code of a run.
"""

from __future__ import annotations

import shlex
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nap_rl import cli, machine, threads
from nap_rl.process import sole_owner
from nap_rl.sweep import grammar, local, named, record, resources, settings, table
from nap_rl.sweep.commands import COMMANDS, STUDY, TRAIN, Command
from nap_rl.sweep.grammar import Combination
from nap_rl.sweep.halving import Halving, Judge
from nap_rl.sweep.record import Record
from nap_rl.sweep.sharing import processes
from nap_rl.sweep.trials import Trial

TRIES = 20
"""For draws that were not drawn before; without one the search is at its end."""


def main() -> None:
    """The console entry point."""
    cli.main(command)


def command(typed: list[str]) -> int:
    """Do what was typed; returns the exit code."""
    with cli.refusing_bad_input():
        return sweep(typed)


def sweep(typed: list[str]) -> int:
    """Begin a sweep, or go on with one.

    Raises:
        ValueError, OSError: what was typed cannot run; one sentence.
    """
    from nap_rl.conf import schema

    arguments = cli.parse(typed)
    if arguments.help or not typed:
        print(__doc__)
        return 0 if typed else cli.USAGE_ERROR
    schema.register()
    cli.register_resolvers()
    name, rest = _command_named(arguments.overrides)
    asked = settings.sort(rest)
    if asked.resume is not None:
        return go_on(asked, name)
    if asked.named is not None:
        found = named.read(asked.named, arguments.config_dirs)
        if name not in (None, found.command):
            raise ValueError(f"sweep={asked.named} is of {found.command}.py: leave out {name}")
        asked = settings.sort(rest, found.sweep)
        if asked.settings.search == "optuna":
            raise ValueError(f"sweep.search=optuna compares single runs: leave out sweep={asked.named}")
        chosen = named.combinations(found, asked.overrides, _expand(asked.settings))
        return begin(COMMANDS[found.command], asked, arguments, chosen)
    if name is None:
        raise ValueError(f"name a command first, one of {', '.join(COMMANDS)}: sweep.py train seed=0..4")
    if asked.settings.search == "optuna":
        return begin_search(COMMANDS[name], asked, arguments)
    if name == "evaluate":
        return begin(COMMANDS[name], asked, arguments)
    return begin(COMMANDS[name], asked, arguments, list(_expand(asked.settings)(asked.overrides)))


def _expand(given: settings.SweepSettings) -> Callable[[Sequence[str]], Iterable[Combination]]:
    """What makes runs of settings with several values: all combinations, or draws."""
    if given.search == "grid":
        return grammar.expand
    from nap_rl.sweep import search

    return lambda overrides: search.random(overrides, given.samples, given.search_seed)


def begin(
    command: Command,
    asked: settings.Asked,
    arguments: cli.Arguments,
    combinations: Sequence[Combination] | None = None,
) -> int:
    """Plan and check all runs, then bring them to their ends."""
    from nap_rl.conf.sweeps import Planner

    folder = new_folder(asked)
    planner = Planner(command, folder, *sharing_of(asked))
    trials = planner.plan(cli.Arguments(asked.overrides, arguments.config_dirs), combinations)
    before = record.check_same(folder, command, trials)
    for trial in trials:
        cli.check_folder(trial.folder, new=not (folder / record.NAME).exists())
    needs = {"bytes_per_run": planner.bytes_per_run, "on_gpu": planner.on_gpu}
    sweep = Record(folder, command, trials, {"typed": dict(asked.given), "needs": needs})
    sweep.outcomes.update(before)
    return run(sweep, asked)


def go_on(asked: settings.Asked, name: str | None) -> int:
    """Bring the sweep in a folder to its end."""
    assert asked.resume is not None
    sweep = record.read(asked.resume)
    if name not in (None, sweep.command.name):
        raise ValueError(f"{asked.resume} holds a sweep of {sweep.command.name}.py, not of {name}.py")
    if asked.overrides:
        raise ValueError(f"resume={asked.resume} goes on with the sweep's own runs: leave out {asked.overrides[0]}")
    given = {**sweep.settings["typed"], **asked.given}
    sweep.settings["typed"] = given
    asked = asked._replace(settings=settings.sort([], given).settings)
    if (searched := sweep.settings.get("search")) is not None:
        arguments = cli.Arguments(tuple(searched["overrides"]), tuple(searched["config_dirs"]))
        return run(sweep, asked, searching(sweep, asked, arguments))
    return run(sweep, asked)


def begin_search(command: Command, asked: settings.Asked, arguments: cli.Arguments) -> int:
    """Check the first draw, then draw and run by turns.

    Raises:
        ValueError: Optuna is not installed, or the command has no score.
    """
    from nap_rl.conf.sweeps import Planner
    from nap_rl.sweep import optuna_search

    if command is not TRAIN:
        raise ValueError(f"sweep.search=optuna needs scores of trainings, not of {command.name}.py")
    if not optuna_search.is_installed():
        raise ValueError("sweep.search=optuna needs Optuna, which is not installed: pip install -e '.[ray]'")
    folder = new_folder(asked)
    if (folder / record.NAME).exists():
        raise ValueError(f"{folder} holds a sweep: name another folder, or go on with sweep.py resume={folder}")
    planner = Planner(command, folder, *sharing_of(asked))
    given = cli.Arguments(asked.overrides, arguments.config_dirs)
    first = optuna_search.OptunaSearch(asked.overrides, asked.settings.search_seed).ask(1)
    planner.plan(given, first)
    needs = {"bytes_per_run": planner.bytes_per_run, "on_gpu": planner.on_gpu}
    searched = {"overrides": list(asked.overrides), "config_dirs": list(arguments.config_dirs)}
    sweep = Record(folder, command, [], {"typed": dict(asked.given), "needs": needs, "search": searched})
    return run(sweep, asked, searching(sweep, asked, given))


def searching(sweep: Record, asked: settings.Asked, arguments: cli.Arguments) -> Callable[[int], list[Trial]]:
    """What plans the next draws, as many runs as go at a time, from the scores so far; [] at the end."""
    from nap_rl.conf.sweeps import Planner
    from nap_rl.sweep import summary
    from nap_rl.sweep.optuna_search import OptunaSearch

    def more(at_once: int) -> list[Trial]:
        arms: dict[str, list[Trial]] = {}
        for trial in sweep.trials:
            arms.setdefault(trial.arm, []).append(trial)
        search = OptunaSearch(arguments.overrides, asked.settings.search_seed + len(arms))
        for trials in arms.values():
            if (score := summary.score_of(sweep, trials)) is not None:
                search.tell(trials[0].arguments, score)
        left, known = asked.settings.samples - len(arms), {trial.folder for trial in sweep.trials}
        draws = max(min(at_once // len(search.ask(1)), left), 1)
        found: list[Trial] = []
        for _ in range(TRIES if left > 0 else 0):
            planner = Planner(sweep.command, sweep.folder, *sharing_of(asked))
            planned = planner.plan(arguments, search.ask(draws))
            if found := [trial for trial in planned if trial.folder not in known]:
                break
        sweep.trials.extend(found)
        return found

    return more


def sharing_of(asked: settings.Asked) -> tuple[int | None, int | None]:
    """(seeds in a process, None for auto; processes at a time as far as that is known)."""
    given = asked.settings
    if asked.address is not None or given.stop == "asha":
        return given.seeds_per_process, None
    return given.seeds_per_process, given.parallel or max(threads.usable_cores() // given.cpus_per_run, 1)


def new_folder(asked: settings.Asked) -> Path:
    """The folder of a sweep that begins."""
    return Path(asked.settings.dir or f"runs/sweeps/{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}")


def run(sweep: Record, asked: settings.Asked, more: Callable[[int], list[Trial]] | None = None) -> int:
    """Run what is unfinished, then what `more` plans, and sum up."""
    needs = sweep.settings["needs"]
    with_ray = uses_ray(asked)
    places = (
        [] if asked.address else resources.share_out(asked.settings, needs["bytes_per_run"], on_gpu=needs["on_gpu"])
    )
    sweep.folder.mkdir(parents=True, exist_ok=True)
    with sole_owner(sweep.folder):
        todo = sweep.unfinished()
        done = len(sweep.trials) - len(todo)
        together = processes(todo)
        at_once = min(len(places), max(len(together), 1))
        kind = "at a time" if len(together) == len(todo) else f"processes of up to {max(map(len, together))} at a time"
        where = asked.address or f"{at_once} {kind}"
        print(f"{len(sweep.trials)} runs, {done} done already, {where} -> {sweep.folder}", flush=True)
        if with_ray and asked.address is None:
            print("starting Ray, which takes some seconds", flush=True)
        sweep.write(now=True)
        with local.Signals() as signals, watching(sweep) as watcher:
            while todo or (more is not None and not signals.received and (todo := more(len(places) or 1))):
                judge = judge_of(sweep, asked.settings)
                if with_ray:
                    run_with_ray(sweep, todo, asked, len(places) or asked.settings.parallel, watcher, signals, judge)
                else:
                    local.run(sweep, todo, places, watcher, signals, judge)
                todo = []
    print(f"\n{table.runs(sweep)}", flush=True)
    sum_up(sweep)
    if signals.received:
        print(f"go on with: resume={shlex.quote(str(sweep.folder))}", flush=True)
    return local.exit_code(sweep, signals)


@contextmanager
def watching(sweep: Record) -> Iterator[local.Watcher]:
    """A table that is drawn anew in a terminal, a line a run anywhere else."""
    if not sys.stdout.isatty():
        yield table.Lines(sweep, beginnings=False)
        return
    from nap_rl.sweep.live import LiveTable

    with LiveTable(sweep) as lines:
        yield lines


def sum_up(sweep: Record) -> None:
    """The table by arm, the picture and the page, in the sweep's folder."""
    written = to_look_at = None
    if sweep.command is TRAIN:
        from nap_rl.conf import evaluation
        from nap_rl.sweep import page, summary

        written = summary.write(sweep)
        to_look_at = page.write(sweep, evaluation.seed_and_settings)
    elif sweep.command is STUDY and any(sweep.status(trial) == "finished" for trial in sweep.trials):
        from nap_rl.studies import figures
        from nap_rl.studies import page as study_page

        written = figures.report(sweep.folder)
        to_look_at = study_page.write_or_say([sweep.folder], sweep.folder)
    print(f"\n{written}" if written else f"\nwritten to {sweep.folder / record.NAME}", flush=True)
    if to_look_at:
        print(to_look_at, flush=True)


def uses_ray(asked: settings.Asked) -> bool:
    """Whether Ray runs the sweep.

    Raises:
        ValueError: it is asked for and not installed.
    """
    from nap_rl.sweep import ray_tune

    wanted = asked.settings.engine == "ray" or asked.address is not None
    if asked.address is not None and asked.settings.engine == "local":
        raise ValueError(f"ray.address={asked.address} needs Ray: leave out sweep.engine=local")
    if ray_tune.is_installed():
        return wanted or asked.settings.engine is None
    if wanted:
        what = f"ray.address={asked.address}" if asked.address else "sweep.engine=ray"
        raise ValueError(f"{what} needs Ray, which is not installed: pip install -e '.[ray]'")
    return False


def run_with_ray(
    sweep: Record,
    todo: Sequence[Trial],
    asked: settings.Asked,
    parallel: int | None,
    watcher: local.Watcher,
    signals: local.Signals,
    judge: Judge | None,
) -> None:
    """Run on a Ray of this machine's own, or on the cluster at ray.address.

    Raises:
        ValueError: no cluster answers, or none of its machines can take a run.
    """
    from nap_rl.sweep import ray_tune

    own = asked.address is None
    gpus = len(machine.gpu_ids()) if own and sweep.settings["needs"]["on_gpu"] else 0
    with ray_tune.cluster(asked.address, threads.usable_cores(), gpus) as there:
        cpus, asked_gpus = asked.settings.cpus_per_run, asked.settings.gpus_per_run
        gpus_per_run = float("GPU" in there) if asked_gpus is None else asked_gpus
        if cpus > there.get("CPU", 0):
            raise ValueError(f"sweep.cpus_per_run={cpus}, but the cluster has {there.get('CPU', 0):g} cores")
        if gpus_per_run > there.get("GPU", 0):
            raise ValueError(f"sweep.gpus_per_run={gpus_per_run:g}, but the cluster has {there.get('GPU', 0):g} GPUs")
        takes = ray_tune.Resources(cpus, gpus_per_run, parallel)
        ray_tune.run(sweep, todo, takes, watcher, signals, judge)


def judge_of(sweep: Record, given: settings.SweepSettings) -> Judge | None:
    """What ends the worse runs, None where all go to their ends.

    Raises:
        ValueError: runs share processes, which a verdict on one run would end.
    """
    longest = max((trial.frames or 0 for trial in sweep.trials), default=0)
    if given.stop == "none" or not longest:
        return None
    if any(trial.together for trial in sweep.trials):
        raise ValueError("sweep.stop=asha ends single runs, but this sweep began with runs that share a process")
    halving = Halving(given.metric, given.grace_frames or max(longest // 16, 1), longest)
    return Judge(halving, [trial.folder for trial in sweep.trials])


def _command_named(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """The command, and everything else that was typed."""
    if not overrides or "=" in overrides[0]:
        return None, list(overrides)
    name, *rest = overrides
    if name not in COMMANDS:
        raise ValueError(f"there is no command '{name}': expected one of {', '.join(COMMANDS)}")
    return name, rest


if __name__ == "__main__":
    main()
