from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_rl.logging import RunLog
from nap_rl.report.curves import (
    Episodes,
    column,
    moving_return,
    read_episodes,
    read_metrics,
    relative_norms,
)


def episodes_of(returns: list[float]) -> Episodes:
    return Episodes(
        np.arange(len(returns), dtype=np.float64), np.array(returns), ("pong",) * len(returns), (0,) * len(returns)
    )


def test_metrics_read_back_what_a_run_logged(tmp_path: Path) -> None:
    with RunLog(tmp_path, tensorboard=False) as log:
        log.metrics(1, 4, 16, {"a": 0.1, "b": float("nan")})
        log.metrics(2, 8, 32, {"a": -1e300})
    columns = read_metrics(tmp_path)
    assert list(columns) == ["updates", "agent_steps", "frames", "a", "b"]
    np.testing.assert_array_equal(columns["frames"], [16, 32])
    np.testing.assert_array_equal(columns["a"], [0.1, -1e300])
    assert np.isnan(columns["b"]).all()


def test_episodes_read_back_what_a_run_logged(tmp_path: Path) -> None:
    log = RunLog(tmp_path, tensorboard=False)
    for frames, game in [(100, "pong"), (200, "odd, name"), (300, "line\u2028separator")]:
        log.episode(frames=frames, game=game, cycle=0, episode_return=frames / 3, length=100, env_index=0)
    episodes = read_episodes(tmp_path)
    np.testing.assert_array_equal(episodes.frames, [100, 200, 300])
    np.testing.assert_array_equal(episodes.returns, [100 / 3, 200 / 3, 100.0])
    assert episodes.games == ("pong", "odd, name", "line\u2028separator")


@pytest.mark.parametrize("torn", ["3,12,4", "3,12,48,0.", "3"])
def test_the_torn_last_row_of_a_killed_run_is_dropped(tmp_path: Path, torn: str) -> None:
    (tmp_path / "metrics.csv").write_text(f"updates,agent_steps,frames,a\n1,4,16,0.5\n{torn}")
    np.testing.assert_array_equal(read_metrics(tmp_path)["frames"], [16])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no row yet"),
        ("updates,frames\n", "no row yet"),
        ("updates,frames\n1,2\n1,2,3\n", "line 3: 3 cells under 2 columns"),
        ("updates,frames\n1,two\n", "no number.*'two'"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_reason(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"metrics\.csv.*{message}"):
        read_metrics(tmp_path)


def test_episodes_without_a_column_name_it(tmp_path: Path) -> None:
    (tmp_path / "episodes.csv").write_text("frames,game,score\n1,pong,2\n")
    with pytest.raises(ValueError, match="no column 'return'"):
        read_episodes(tmp_path)


@pytest.mark.parametrize("read", [read_metrics, read_episodes])
def test_a_folder_without_a_run_is_named(tmp_path: Path, read: object) -> None:
    assert callable(read)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read(tmp_path / "nowhere")


def test_a_missing_column_is_answered_with_the_nearest_one() -> None:
    columns = {"train/loss": np.zeros(1), "frames": np.zeros(1)}
    assert column(columns, "frames", Path("run")) is columns["frames"]
    with pytest.raises(ValueError, match="'train/los'; the nearest is 'train/loss'"):
        column(columns, "train/los", Path("run"))


def test_a_moving_return_by_hand() -> None:
    np.testing.assert_allclose(moving_return(episodes_of([2, 4, 9, 1]), 3), [2, 3, 5, 14 / 3])


@given(returns=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), window=st.integers(1, 40))
def test_a_moving_return_looks_back_only(returns: list[float], window: int) -> None:
    means = moving_return(episodes_of(returns), window)
    expected = [sum(returns[: i + 1][-window:]) / min(window, i + 1) for i in range(len(returns))]
    np.testing.assert_allclose(means, expected, rtol=1e-9, atol=1e-6)


def test_a_moving_return_does_not_mix_the_scores_of_two_games() -> None:
    games = ("pong", "pong", "breakout", "breakout", "pong")
    episodes = Episodes(np.arange(5.0), np.array([-21.0, -19, 300, 400, -1]), games, (0,) * 5)
    np.testing.assert_array_equal(moving_return(episodes, 100), [-21, -20, 300, 350, -1])


def test_one_enormous_return_leaves_no_trace_once_it_is_out_of_the_window() -> None:
    assert moving_return(episodes_of([1e18, 1.0, 2.0, 3.0]), 2)[-1] == 2.5


def test_a_window_of_no_episode_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 episode, got 0"):
        moving_return(episodes_of([1.0]), 0)


def test_norms_are_relative_to_the_first_row_and_their_total_is_euclidean() -> None:
    columns = {
        "nap/param_norm/a": np.array([3.0, 6.0]),
        "nap/param_norm/b": np.array([4.0, 8.0]),
        "nap/param_norm/zero": np.array([0.0, 0.0]),
        "nap/grad_norm/a": np.array([1.0, 1.0]),
    }
    relative = relative_norms(columns, Path("run"))
    assert list(relative) == ["all layers", "a", "b"]
    for values in relative.values():
        np.testing.assert_allclose(values, [1.0, 2.0])
    grown = relative_norms({**columns, "nap/param_norm/zero": np.array([0.0, 10 * 3**0.5])}, Path("run"))
    np.testing.assert_allclose(grown["all layers"], [1.0, 4.0])  # sqrt(36 + 64 + 300) / sqrt(9 + 16) = 20 / 5


def test_a_total_that_a_run_logged_itself_is_not_added_to_the_layers() -> None:
    columns = {"nap/param_norm/a": np.array([3.0, 6.0]), "nap/param_norm/total": np.array([3.0, 6.0])}
    assert list(relative_norms(columns, Path("run"))) == ["all layers", "a"]


def test_a_run_without_norms_names_the_columns_it_would_need() -> None:
    with pytest.raises(ValueError, match="no column nap/param_norm/<layer>"):
        relative_norms({"frames": np.zeros(2)}, Path("run"))
    with pytest.raises(ValueError, match="above zero"):
        relative_norms({"nap/param_norm/a": np.zeros(2)}, Path("run"))
