"""Every benchmark runs with tiny settings and prints its tables."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN

from benchmarks import end_to_end, envs, gpu, growth, learner, nap_overhead, replay
from benchmarks.contenders import sb3, sb3_env
from nap_rl.replay import Replay

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """A benchmark sets the threads of its process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def rows(text: str) -> list[list[str]]:
    """The cells of every table, without headers' rules."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|-")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def figures(text: str) -> dict[str, list[float]]:
    """The numbers of each row, by its last cell of words."""
    found: dict[str, list[float]] = {}
    for row in rows(text):
        numbers = [float(cell.replace(",", "")) for cell in row if re.fullmatch(r"[0-9,.]+", cell)]
        words = [cell for cell in row if cell and not re.fullmatch(r"[0-9,.%+x-]+", cell)]
        if numbers and words:
            found[words[-1]] = numbers
    return found


def test_replay(capsys: pytest.CaptureFixture[str]) -> None:
    replay.main(
        ["--quick", "--threads", "1", "--capacities", "160", "--batches", "4", "--repetitions", "1", "--cycles", "4"]
        + ["--details"]
    )
    text = capsys.readouterr().out
    found = figures(text)
    assert {"nap_rl", "SB3", "SB3, optimised memory"} <= set(found)
    assert all(number > 0 for name in found for number in found[name])
    assert text.count("160 transitions:") == 1
    for peer in ("cpprb", "Tianshou"):
        assert (peer in found) != (f"Left out: {peer} is not installed." in text)


def test_the_replay_that_is_measured_is_full_and_what_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    _, full = replay._ours(160)
    assert len(full) == replay.ENVS * (20 - full.n_steps)  # the newest of each column wait for their returns
    monkeypatch.setattr(replay, "available_memory", lambda: 2 * Replay.nbytes(160))
    made, reasons = replay.build(160)
    assert replay.OURS in made and "SB3" not in made
    assert any(re.match(r"SB3 with 160 needs 0.0 GB", reason) for reason in reasons)


@pytest.mark.slow
@pytest.mark.parametrize("num_envs", [1, 8])
def test_sb3_updates_once_in_four_transitions(num_envs: int) -> None:
    model = sb3(DQN, sb3_env("pong", num_envs), capacity=100, batch=2, learning_starts=8)
    model.learn(16)
    steps, updates = model.num_timesteps, model._n_updates
    model.learn(64, reset_num_timesteps=False)
    assert (model.num_timesteps - steps, model._n_updates - updates) == (64, 16)


@pytest.mark.slow
def test_ours_updates_once_in_four_transitions_and_goes_on_where_it_was(tmp_path: Path) -> None:
    run, trainer = end_to_end.ours(tmp_path, 64, *end_to_end.DQN_AS_SB3, "compile=off", "device=cpu")
    steps, updates = trainer.agent_steps, trainer.agent.updates
    assert run(60) == 64  # whole steps of 8 environments
    assert (trainer.agent_steps - steps, trainer.agent.updates - updates) == (64, 16)


def test_on_a_gpu_training_is_measured_with_all_its_updates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Updates that are measured alone are not taken for the training's."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    small = ["agent.torso=data_efficient", "agent.batch_size=2", "compile=off", "device=cpu"]
    run, trainer = end_to_end.ours(tmp_path, 64, *end_to_end.DQN_AS_SB3, *small)
    found: list[float] = []

    def steps(count: int) -> int:
        before = trainer.agent.updates
        done = run(count)
        found.append((trainer.agent.updates - before) / done)
        return done

    gpu._speed(steps, gpu._repeated(trainer.agent.update), seconds=0.05, turns=2)
    assert len(found) > 2 and set(found) == {1 / 4}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_sentence_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main([])
    assert capsys.readouterr().out == (
        "## GPU\n\nNo CUDA GPU was found on this machine, so nothing was measured on one.\n\n"
    )


@pytest.mark.slow
def test_envs(capsys: pytest.CaptureFixture[str]) -> None:
    envs.main(["--quick", "--threads", "1", "--envs", "2", "--repetitions", "1", "--seconds", "0.01", "--details"])
    found = figures(capsys.readouterr().out)
    assert set(envs.MAKERS) <= set(found) and {"Rainbow + NaP", "DQN"} <= set(found)
    assert all(number > 0 for name in found for number in found[name])


@pytest.mark.slow
def test_all_environments_play_the_same_game() -> None:
    """2 environments, 4 frames a step: what a step gives has the same shape and range everywhere."""
    for make in envs.MAKERS.values():
        run, close = make(2, 1)
        seen: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = []
        step = run.args[0]  # type: ignore[attr-defined]

        def look(actions: object, step=step, seen=seen) -> None:  # type: ignore[no-untyped-def]
            made = step(actions)
            seen.append(np.asarray(made[0]))

        for _ in range(30):
            look(np.array([2, 3]))
        close()
        assert seen[-1].size == 2 * 84 * 84 and seen[-1].dtype == np.uint8
        assert seen[-1].max() > 100 and not np.array_equal(seen[-1], seen[-2])


@pytest.mark.slow
def test_learner(capsys: pytest.CaptureFixture[str]) -> None:
    learner.main(["--quick", "--threads", "1", "--batches", "2", "4", "--repetitions", "1", "--details"])
    text = capsys.readouterr().out
    found = figures(text)
    assert {"nap_rl Rainbow + NaP, fp32", "nap_rl DQN, fp32", "SB3 DQN", "SB3 QR-DQN", "never"} <= set(found)
    assert found["SB3 DQN"][-1] == 1.0 and "`aten::mm`" in text


@pytest.mark.slow
def test_growth(capsys: pytest.CaptureFixture[str]) -> None:
    growth.main(["--quick", "--threads", "1", "--updates", "20"])
    header, *found = rows(capsys.readouterr().out)
    assert header == ["updates", "MB"] and len(found) == 11
    updates = [int(count) for count, _ in found]
    assert updates == sorted(updates) and 0 <= updates[0] < updates[-1] >= 20
    assert all(float(size) > 50 for _, size in found)  # torch alone takes more


@pytest.mark.slow
def test_end_to_end(capsys: pytest.CaptureFixture[str]) -> None:
    end_to_end.main(
        ["--quick", "--threads", "1", "--fill", "64", "--seconds", "0.05", "--repetitions", "1", "--details"]
    )
    found = figures(capsys.readouterr().out)
    assert {"nap_rl Rainbow + NaP, fp32", "nap_rl DQN, fp32", "SB3 DQN", "SB3 DQN, 1 environment"} <= set(found)
    assert all(number > 0 for name in found for number in found[name])


@pytest.mark.slow
def test_nap_overhead(capsys: pytest.CaptureFixture[str]) -> None:
    nap_overhead.main(["--quick", "--threads", "1", "--details"])
    assert {"projection", "a loop", "Adam"} <= set(figures(capsys.readouterr().out))


def run_all(page: Path, *options: str) -> str:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--threads", "1", "--out", str(page), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return page.read_text()


@pytest.mark.slow
def test_all_go_into_one_page_and_one_alone_leaves_the_others(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Benchmarks\n\nof another machine\n\n## Replay\n\nof before\n")
    text = run_all(page, "--only", "gpu", "nap_overhead")
    headings = ["# Benchmarks", "## Cost of the projection", "## GPU"]
    assert re.findall(r"^#+ .*", text, re.M) == headings and "of before" not in text
    words = " ".join(text.split())
    assert f"torch {torch.__version__}" in words and "1 thread of torch" in words
    page.write_text(text.replace("| Adam ", "| kept "))
    text = run_all(page, "--only", "gpu")
    assert re.findall(r"^#+ .*", text, re.M) == headings and "| kept " in text
