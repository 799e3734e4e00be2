"""The commands of report.py, on runs written by RunLog."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from nap_rl import checkpoint
from nap_rl.logging import RunLog
from nap_rl.report import figures
from nap_rl.report.table import runs_table

REPORT = Path(__file__).parents[2] / "report.py"


def _load_main() -> Callable[[Sequence[str]], int]:
    spec = importlib.util.spec_from_file_location("report_command", REPORT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main: Callable[[Sequence[str]], int] = module.main
    return main


main = _load_main()


def make_run(folder: Path, growth: float, *, layers: int = 3, tasks: int = 2, episodes: int = 30) -> Path:
    with RunLog(folder, tensorboard=False) as log:
        for i in range(20):
            norms = {f"nap/param_norm/layer{k}": 1 + k + growth * i for k in range(layers)}
            log.metrics(i, 4 * i, 16 * i, {"task/index": i * tasks // 20, **norms})
        for i in range(episodes):
            log.episode(frames=10 * i, game="pong", cycle=0, episode_return=i - 21, length=10, env_index=0)
        nap = {"max_relative_norm_drift": growth}
        log.summary({"status": "finished", "frames": 304, "fps": 123.4, "nap": nap})
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures saved during a test."""
    found: list[Figure] = []
    real = figures.save

    def keep(figure: Figure, out: Path) -> Path:
        found.append(figure)
        return real(figure, out)

    monkeypatch.setattr(figures, "save", keep)
    return found


def test_norms_draws_a_panel_a_run_with_every_layer_and_every_switch(tmp_path: Path, drawn: list[Figure]) -> None:
    runs = [make_run(tmp_path / "plain", 0.5, tasks=3), make_run(tmp_path / "nap", 0.0, tasks=1)]
    out = tmp_path / "docs" / "norms.png"
    assert main(["norms", *map(str, runs), "--label", "LayerNorm", "--label", "NaP", "--out", str(out)]) == 0
    (figure,) = drawn
    plain, nap = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["LayerNorm", "NaP"]
    curves = {label: [line for line in axes.lines if len(line.get_xdata()) == 20] for label, axes in
              [("plain", plain), ("nap", nap)]}  # fmt: skip
    assert len(curves["plain"]) == len(curves["nap"]) == 4  # all layers together, and 3 of them
    np.testing.assert_allclose(curves["plain"][1].get_ydata(), 1 + 0.5 * np.arange(20))
    assert all(np.all(line.get_ydata() == 1) for line in curves["nap"])
    assert [line.get_xdata()[0] for line in plain.lines if len(line.get_xdata()) == 2] == [7 * 16, 14 * 16]
    assert len(nap.lines) == 4
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["all layers", "layer0", "layer1", "layer2"]
    assert imread(out).shape[1] == 1600


def test_a_layer_has_the_same_colour_in_every_panel_and_no_two_look_alike(tmp_path: Path, drawn: list[Figure]) -> None:
    runs = [make_run(tmp_path / "a", 0.1, layers=2), make_run(tmp_path / "b", 0.2, layers=15)]
    figures.norms(runs, ["a", "b"], tmp_path / "x.png")
    looks = [
        [(line.get_color(), line._unscaled_dash_pattern, line.get_linewidth()) for line in axes.lines[1:]]
        for axes in drawn[0].axes
    ]
    assert looks[0] == looks[1][:3]
    assert len(set(map(str, looks[1]))) == 16


def test_returns_draws_the_moving_mean_and_the_episodes(tmp_path: Path, drawn: list[Figure]) -> None:
    runs = [
        make_run(tmp_path / "pong-rainbow" / "0-a", 0.1),
        make_run(tmp_path / "pong-rainbow-nap" / "0-b", 0.0),
    ]
    assert main(["returns", *map(str, runs), "--window", "2", "--out", str(tmp_path / "r.png")]) == 0
    (axes,) = drawn[0].axes
    dots, mean = axes.lines[:2]
    np.testing.assert_array_equal(dots.get_ydata(), np.arange(30) - 21)
    np.testing.assert_array_equal(mean.get_ydata(), [-21, *(np.arange(1, 30) - 21.5)])
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert labels == ["pong-rainbow/0-a", "pong-rainbow-nap/0-b"]


def make_sequence(folder: Path) -> Path:
    """Asterix, breakout, and both again, 8,000 frames each; rows are logged every 3,000 frames from 2,000 on."""
    env = {"games": ["asterix", "breakout"], "frames_per_game": 8_000, "cycles": 2}
    with RunLog(folder, tensorboard=False) as log:
        for frames in range(2_000, 32_000, 3_000):
            log.metrics(1, 1, frames, {"task/index": frames // 8_000 % 2, "nap/param_norm/a": 1.0})
        for frames in range(1_000, 33_000, 1_000):
            visit = (frames - 1) // 8_000
            game = env["games"][visit % 2]  # type: ignore[index]
            score = 500.0 if game == "asterix" else 2.0
            log.episode(frames=frames, game=game, cycle=visit // 2, episode_return=score, length=9, env_index=0)
        log.summary({"status": "finished"})
    checkpoint.save(folder / "checkpoints", "frames-000000032000", tensors={}, meta={"config": {"env": env}})
    return folder


def test_norms_draws_switches_where_they_were_with_the_names_of_the_games(tmp_path: Path, drawn: list[Figure]) -> None:
    figures.norms([make_sequence(tmp_path / "run")], ["run"], tmp_path / "x.png")
    (axes,) = drawn[0].axes
    lines = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2]
    assert lines == [8_000, 16_000, 24_000]
    named = [(text.get_position()[0], text.get_text().strip()) for text in axes.texts]
    assert named == [(0, "asterix"), (8_000, "breakout"), (16_000, "asterix"), (24_000, "breakout")]
    assert axes.get_xlim()[0] == 0


def test_returns_of_a_sequence_have_a_panel_a_game_and_visits_over_each_other(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    figures.returns([make_sequence(tmp_path / "run")], ["run"], tmp_path / "x.png")
    axes = drawn[0].axes
    assert [each.get_title(loc="left") for each in axes] == ["asterix", "breakout"]
    for panel, score in zip(axes, (500, 2), strict=True):
        means = panel.lines[1::2]
        assert len(means) == 2  # visits, never joined
        for line in means:
            np.testing.assert_array_equal(line.get_xdata(), np.arange(1_000, 9_000, 1_000))
            assert set(line.get_ydata()) == {score}
        assert panel.get_xlabel() == "emulator frames since the visit began"
    assert axes[1].texts[0].get_text().splitlines() == [
        "visit 1: after asterix, at 8k",
        "visit 2: after asterix, at 24k",
    ]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["run, visit 1", "run, visit 2"]


def test_runs_on_different_games_are_never_in_one_panel(tmp_path: Path, drawn: list[Figure]) -> None:
    for game in ("pong", "breakout"):
        with RunLog(tmp_path / game, tensorboard=False) as log:
            log.episode(frames=10, game=game, cycle=0, episode_return=1.0, length=9, env_index=0)
    figures.returns([tmp_path / "pong", tmp_path / "breakout"], ["a", "b"], tmp_path / "x.png")
    assert [axes.get_title(loc="left") for axes in drawn[0].axes] == ["pong", "breakout"]
    assert {axes.get_xlabel() for axes in drawn[0].axes} == {"emulator frames"}


def test_a_run_with_one_logged_row_is_drawn_as_points(tmp_path: Path, drawn: list[Figure]) -> None:
    with RunLog(tmp_path / "run", tensorboard=False) as log:
        log.metrics(0, 0, 800, {"nap/param_norm/a": 2.0})
    figures.norms([tmp_path / "run"], ["run"], tmp_path / "x.png")
    assert {line.get_marker() for line in drawn[0].axes[0].lines} == {"o"}


def test_the_table_leaves_studies_out_with_a_word(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a", 0.1)
    for name in ("s0", "s1"):
        (tmp_path / "runs" / name).mkdir()
        summary = json.dumps({"config": {"study": "random_labels"}, "early_accuracy": 0.9})
        (tmp_path / "runs" / name / "summary.json").write_text(summary)
    lines = runs_table(tmp_path / "runs").splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["a", "left"]
    assert lines[-1] == "left out: 2 of studies, which `python study.py report FOLDER` shows"


def test_the_table_lists_a_run_that_has_no_summary_yet(tmp_path: Path) -> None:
    with RunLog(tmp_path / "runs" / "going", tensorboard=False) as log:
        log.metrics(1, 4, 16_000, {"train/loss": 1.0})
    assert runs_table(tmp_path / "runs").splitlines()[2].split() == ["going", "-", "16,000", "-", "-", "-"]


def test_a_figure_drawn_twice_is_the_same_file(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 0.1)
    for name in ["a.png", "b.png"]:
        figures.norms([run], ["run"], tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_table_has_a_line_a_run_and_dashes_for_what_is_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "runs" / "b" / "0-x", 1.5e-7)
    with RunLog(tmp_path / "runs" / "a" / "0-y", tensorboard=False) as log:
        log.summary({"status": "stopped", "frames": 40_000_000, "fps": float("nan"), "nap": None})
    assert main(["table", str(tmp_path / "runs")]) == 0
    header, rule, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "status", "frames", "fps", "last", "return", "norm", "drift"]
    assert set(rule) == {"-", " "}
    assert first.split() == ["a/0-y", "stopped", "40,000,000", "-", "-", "-"]
    assert second.split() == ["b/0-x", "finished", "304", "123", "-6.50", "1.5e-07"]
    assert len(first) == len(second) == len(rule)


def test_the_last_return_is_of_the_last_game_and_its_last_hundred_episodes(tmp_path: Path) -> None:
    with RunLog(tmp_path / "run", tensorboard=False) as log:
        for i, game in enumerate(["pong"] * 50 + ["breakout"] * 130):
            episode_return = {"pong": -21.0, "breakout": float(i)}[game]
            log.episode(frames=i, game=game, cycle=0, episode_return=episode_return, length=1, env_index=0)
        log.summary({"status": "finished"})
    assert runs_table(tmp_path).splitlines()[2].split() == [
        "run",
        "finished",
        "-",
        "-",
        "129.50",
        "-",
    ]  # 80..179


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table", "nowhere"], "no summary.json under nowhere"),
        (["table", "damaged"], "damaged/summary.json is not JSON"),
        (["table", "list"], "list/summary.json holds a list"),
        (["norms", "nowhere", "--out", "x.png"], "no nowhere/metrics.csv"),
        (["norms", "bare", "--out", "x.png"], "no column nap/param_norm/<layer>"),
        (
            ["norms", "run", "--label", "a", "--label", "b", "--out", "x.png"],
            "one --label for each of the 1 runs, not 2",
        ),
        (["norms", "run", "--out", "x.nopng"], "nopng"),
        (["norms", "clockless", "--out", "x.png"], "no column 'frames'"),
        (["returns", "bare", "--out", "x.png"], "no row yet"),
        (["returns", "run", "--window", "0", "--out", "x.png"], "at least 1 episode, got 0"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(Path("run"), 0.1)
    with RunLog(Path("bare"), tensorboard=False) as log:
        log.metrics(0, 0, 0, {"train/loss": 1.0})
    Path("clockless").mkdir()
    Path("clockless", "metrics.csv").write_text("updates,nap/param_norm/a\n1,2\n")
    for folder, text in [("damaged", "{"), ("list", "[]")]:
        Path(folder).mkdir()
        Path(folder, "summary.json").write_text(text)
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""
    assert not Path("x.png").exists()


def test_a_run_without_a_finished_episode_is_left_out_with_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], drawn: list[Figure]
) -> None:
    for name in ("a", "new", "b"):
        make_run(tmp_path / name, 0.1, episodes=0 if name == "new" else 30)
    out = tmp_path / "r.png"
    runs = [str(tmp_path / name) for name in ("a", "new", "b")]
    assert main(["returns", *runs, "--label", "A", "--label", "N", "--label", "B", "--out", str(out)]) == 0
    assert capsys.readouterr().err == f"report.py: left out: {tmp_path / 'new' / 'episodes.csv'} has no row yet.\n"
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["A", "B"]


def test_the_command_runs_as_a_program_and_without_a_display(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 0.1)
    environment = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "MPLBACKEND")}
    command = [sys.executable, str(REPORT), "returns", str(run), "--out", str(tmp_path / "r.png")]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    assert (tmp_path / "r.png").stat().st_size > 0
    failed = subprocess.run([*command[:2], "table", "nowhere"], cwd=tmp_path, capture_output=True, text=True)
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr
