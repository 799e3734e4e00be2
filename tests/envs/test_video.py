"""A film of an episode, read back."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from nap_rl.envs import AtariEnvs, Protocol
from nap_rl.envs.atari import episode_seed
from nap_rl.envs.film import Expected
from nap_rl.envs.video import SIZE, check_video, write_video

PROTOCOL = Protocol(sticky_actions=0.25, max_episode_frames=320)


def test_the_film_has_a_picture_an_action_in_colour_and_the_episodes_own_score(tmp_path: Path) -> None:
    envs = AtariEnvs("asterix", 1, PROTOCOL, seed=5)
    envs.reset()
    rng, actions, finished = np.random.default_rng(0), [], []
    while not finished:
        actions.append(int(rng.integers(envs.num_actions)))
        finished = envs.step(np.array(actions[-1:])).episodes
    envs.close()
    score = write_video(tmp_path / "new" / "film.mp4", "asterix", PROTOCOL, episode_seed(5, 0, 0), actions)
    assert score == finished[0].score
    film, pictures = cv2.VideoCapture(str(tmp_path / "new" / "film.mp4")), []
    while (read := film.read())[0]:
        pictures.append(read[1])
    assert len(pictures) == len(actions)
    assert pictures[0].shape == (SIZE[1], SIZE[0], 3) and film.get(cv2.CAP_PROP_FPS) == 15.0
    assert np.ptp(pictures[-1].astype(int), axis=2).max() > 50  # colours, not greys
    assert not np.array_equal(pictures[5], pictures[-1])


def test_beside_the_game_stands_what_is_expected(tmp_path: Path) -> None:
    expected = [Expected(np.array([value] * 6), 0) for value in (0.1, 0.9)]
    write_video(tmp_path / "film.mp4", "pong", PROTOCOL, 0, [0, 0], expected)
    film = cv2.VideoCapture(str(tmp_path / "film.mp4"))
    first, second = (film.read()[1].astype(int) for _ in range(2))
    width, height = SIZE
    assert first.shape == (height, 2 * width, 3) and not film.read()[0]
    assert np.ptp(first[:, :width], axis=2).max() > 50  # the game
    assert np.abs(first[:, width:] - second[:, width:]).max() > 100  # longer bars


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").mkdir()
    with pytest.raises(OSError, match="cannot write the video"):
        write_video(tmp_path / "film.mp4", "pong", PROTOCOL, 0, [0, 0])


def test_without_opencv_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match=r"video=true needs OpenCV.*libgl1"):
        check_video()


def test_a_film_is_vp9_in_mp4_which_browsers_play(tmp_path: Path) -> None:
    write_video(tmp_path / "film.mp4", "pong", PROTOCOL, 0, [0, 0, 0])
    content = (tmp_path / "film.mp4").read_bytes()
    assert content[4:8] == b"ftyp" and b"vp09" in content and b"mp4v" not in content


def test_a_missing_encoder_is_found_before_the_first_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    check_video()
    monkeypatch.setattr(cv2.VideoWriter, "isOpened", lambda _: False, raising=False)
    with pytest.raises(ValueError, match="video=true needs OpenCV with a VP9 encoder"):
        check_video()
