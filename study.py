"""The paper's supervised studies.

python study.py study=random_labels nap=true method=redo seed=0     one study, in a folder of its own
python study.py study=images data=fashion_mnist variant=nap         a ResNet on images that stay: baseline, norm or nap
python study.py study=language data=text data.root=FOLDER        a decoder on text: baseline, norm or nap
python study.py -m seed=0,1,2 nap=true,false jobs=2 hydra.sweep.dir=runs/studies/mine
                                                                    many, in parallel; again: what is missing
python study.py report runs/studies/mine                            their figure, its numbers and a page to look at
torchrun --nproc-per-node=2 study.py study=images hydra.run.dir=FOLDER    one run in two processes, or on two GPUs

The same command with the same hydra.run.dir=FOLDER goes on with a study that was stopped.

Exit codes: 0 finished; 2 bad input or data, one sentence; 3 diverged; 128 + signal stopped, with a checkpoint.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from nap_rl import cli
from nap_rl.studies import job, ranks, sweep
from nap_rl.studies.config import SUMMARY

SWEEP_FOLDER = "hydra.sweep.dir"
MULTIRUN = {"-m", "--multirun"}


def one(config: DictConfig, folder: Path) -> int:
    study = job.typed(config)
    if job.finished(folder, study):
        print(f"{folder} is finished already")
        return 0
    code = job.run(study, folder)
    if code == 0 and ranks.here().writes:
        print(folder)
        print(_page(folder))
    return code


def check(config: DictConfig) -> None:
    """Everything that can be wrong, found before a folder is made or a network built."""
    study = job.check(config)
    if "hydra" in config:
        if ranks.here().processes > 1 and not any("hydra.run.dir=" in each for each in config.hydra.overrides.hydra):
            raise ValueError("torchrun starts several processes of one run: name its folder with hydra.run.dir=FOLDER")
        job.finished(Path(config.hydra.run.dir), study)


def many(arguments: list[str]) -> int:
    """`-m`: Hydra's grammar, our processes: its own launchers are slow for small jobs and cannot resume."""
    folder = [a.removeprefix(f"{SWEEP_FOLDER}=") for a in arguments if a.startswith(f"{SWEEP_FOLDER}=")]
    if len(folder) != 1:
        raise ValueError(f"-m needs {SWEEP_FOLDER}=FOLDER once, so that it can go on there.")
    overrides = [a for a in arguments if not a.startswith(f"{SWEEP_FOLDER}=")]
    code = sweep.run(overrides, Path(folder[0]))
    if any(Path(folder[0]).rglob(SUMMARY)):
        print(_page(Path(folder[0])))
    return code


def _page(folder: Path) -> str:
    """Where the page is that was written, or why there is none."""
    from nap_rl.studies import page  # matplotlib takes a second

    return page.write_or_say([folder], folder)


def report(arguments: list[str]) -> int:
    from nap_rl.studies import figures  # matplotlib takes a second

    if len(arguments) != 1:
        raise ValueError("report takes one folder, that of a sweep or of one study.")
    print(figures.report(Path(arguments[0])))
    print(_page(Path(arguments[0])))
    return 0


def main() -> None:
    """The console entry point."""
    cli.main(command)


def command(typed: list[str]) -> int:
    """Do what was typed; returns the exit code."""
    job.register_schema()
    cli.register_resolvers()
    sweep_wanted = not MULTIRUN.isdisjoint(typed)
    if not sweep_wanted and typed[:1] != ["report"]:
        cli.run(one, job.config_name(typed), check, module=job.CONF, help=__doc__ or "", goes_on=True)
    with cli.refusing_bad_input():
        return many([text for text in typed if text not in MULTIRUN]) if sweep_wanted else report(typed[1:])


if __name__ == "__main__":
    main()
