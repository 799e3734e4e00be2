"""One Atari game in N environments that step together, over ale-py's threaded C++ vector environment.

Frames come single and unstacked, rewards raw, and an environment is a function of (game, seed, actions). A seed fixes
no-op starts and sticky actions. Giving an emulator a new one takes 80 ms, a hundred steps' time: it is given one for
each episode where episodes have to be played again singly, and else only now and then.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from ale_py.vector_env import AtariVectorEnv

from nap_rl.envs.games import check_game
from nap_rl.envs.step import Episode, Flags, Frames, Step

FRAME_SKIP = 4  # emulator frames to an agent step; the last two are max-pooled
SCREEN = (210, 160)
FRAME = (84, 84)


class Resize(str, Enum):
    """How a screen becomes a frame: each pixel the mean of what it covers, or interpolated between the nearest four."""

    area = "area"
    linear = "linear"


@dataclass(frozen=True)
class Protocol:
    """How a game is played; the values of each preset stand in conf/env/protocol/.

    Attributes:
        sticky_actions: probability that the previous action is repeated (Machado et al. 2018: 0.25).
        noop_max: an episode begins with 0 to noop_max - 1 no-ops, drawn from its seed (ale-py's counting).
        full_action_set: all 18 actions instead of the game's own.
        life_loss_ends_value: a lost life zeroes the discount; the game goes on.
        max_episode_frames: emulator frames after which an episode is truncated.
        fire_on_reset: press FIRE at the start where the game needs it.
        resize: area as in ale-py, gymnasium, Stable-Baselines3 and Dopamine, or linear as in Kaixhin's Rainbow, which
            keeps thin things sharp, may miss them, and needs OpenCV.
    """

    sticky_actions: float = 0.0
    noop_max: int = 30
    full_action_set: bool = False
    life_loss_ends_value: bool = True
    max_episode_frames: int = 108_000
    fire_on_reset: bool = False
    resize: Resize = Resize.area


class EmulatorError(RuntimeError):
    """An emulator failed; names the game, and of each environment its seed and the agent steps since it was seeded."""


class AtariEnvs:
    """N environments of one game.

    Args:
        game: ale-py's name, for example "pong".
        num_envs: N.
        protocol: how the game is played.
        seed: with the environment's index and the number of its episode, seeds its emulator.
        reseed_steps: agent steps that an emulator plays before the next episode is begun from a new seed; until then
            episodes go on from where its random stream is. 0: each episode has a seed of its own.
        threads: of the emulators; by default as many as there are cores, N at most.

    Raises:
        ValueError: the game is unknown, num_envs < 1, or OpenCV is needed and cannot be imported.
    """

    def __init__(
        self,
        game: str,
        num_envs: int,
        protocol: Protocol | None = None,
        *,
        seed: int = 0,
        reseed_steps: int = 0,
        threads: int = 0,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"env.num_envs is {num_envs}, expected 1 or more")
        protocol = Protocol() if protocol is None else protocol
        self.game = check_game(game)
        self.num_envs = num_envs
        self.protocol = protocol
        self.seed = seed
        self.reseed_steps = reseed_steps
        self._cv2 = import_cv2("env.protocol.resize=linear") if protocol.resize is Resize.linear else None
        self._envs = vector_env(game, num_envs, protocol, threads=threads or min(num_envs, os.cpu_count() or 1))
        self.num_actions = len(self._envs.ale.get_action_set())
        self._episodes = np.zeros(num_envs, dtype=np.int64)  # begun in each environment
        self._seeded = np.zeros(num_envs, dtype=np.int64)  # of these, up to the last one that was begun from a seed
        self._lives = np.zeros(num_envs, dtype=np.int64)
        self._scores = np.zeros(num_envs)
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._sent: list[int] = []  # the step in flight
        self._actions = [bytearray() for _ in range(num_envs)]  # of each environment since it was seeded

    def reset(self) -> Frames:
        """Begin an episode in every environment, from a seed: [N, 84, 84] uint8."""
        return self._begin(np.ones(self.num_envs, dtype=bool), seeded=True)

    def step(self, actions: npt.NDArray[np.int64]) -> Step:
        """One agent step (4 frames) with actions [N]; where an episode ends, the next begins at once."""
        self.send(actions)
        return self.recv()

    def send(self, actions: npt.NDArray[np.int64]) -> None:
        """Begin a step: the emulators play in their own threads until `recv`, which has to come next."""
        actions = np.asarray(actions, dtype=np.int64)
        if len(actions) and not 0 <= actions.min() <= actions.max() < self.num_actions:  # ale-py would wait for ever
            raise ValueError(f"actions {actions.tolist()} of {self.game}, expected 0 to {self.num_actions - 1}")
        self._guarded(self._envs.send, actions)
        self._sent = actions.tolist()

    def recv(self) -> Step:
        """What the step that `send` began led to."""
        frames, rewards, terminated, truncated, info = self._guarded(self._envs.recv)
        for played, action in zip(self._actions, self._sent, strict=True):
            played.append(action)
        last_frames = self._resized(frames[:, 0])
        ended: Flags = terminated | truncated
        lost_life = info["lives"] < self._lives
        over = terminated | lost_life if self.protocol.life_loss_ends_value else terminated
        self._lives[:] = info["lives"]
        self._scores += rewards
        self._steps += 1
        episodes = [
            Episode(int(env), float(self._scores[env]), int(self._steps[env]) * FRAME_SKIP)
            for env in np.flatnonzero(ended)
        ]
        return Step(
            frames=self._begin_after(ended) if ended.any() else last_frames,
            last_frames=last_frames,
            rewards=rewards.astype(np.float32),
            discounts=(~over).astype(np.float32),
            terminated=terminated,
            ended=ended,
            episodes=episodes,
        )

    def state_dict(self) -> dict[str, Any]:
        """Of each environment the episode that began from a seed, and the actions since: it is a function of these."""
        return {
            "episodes": self._seeded.tolist(),
            "lengths": [len(played) for played in self._actions],
            "actions": np.frombuffer(b"".join(self._actions), dtype=np.uint8).copy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> Frames:
        """Play again, from the seeds on, up to where it was: the frames [N, 84, 84] that are shown there.

        All environments step together, so that one with fewer actions begins later, after steps of no account:

            env 0   * * * * * *          6 actions
            env 1   . . . . * *          2 actions: begun after 4 steps
        """
        if len(state["lengths"]) != self.num_envs:
            raise ValueError(f"env.num_envs is {self.num_envs}, but {len(state['lengths'])} environments were saved")
        lengths = np.array(state["lengths"])
        played = np.split(np.asarray(state["actions"]), lengths.cumsum()[:-1])
        longest = int(lengths.max())
        frames = self.reset()
        for t in range(longest + 1):
            begins = longest - lengths == t
            if begins.any():
                self._episodes[begins] = np.array(state["episodes"])[begins] - 1
                frames = self._begin(begins, seeded=True)
            if t < longest:
                actions = np.array([past[t - longest] if len(past) >= longest - t else 0 for past in played])
                frames = self.step(actions).frames
        return frames

    def close(self) -> None:
        """Free the emulators and their threads."""
        self._envs.close()

    def _guarded(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return call(*arguments, **options)
        except Exception as error:
            playing = [
                f"environment {env}: seed {episode_seed(self.seed, env, int(episode) - 1)}, step {len(played)}"
                for env, (episode, played) in enumerate(zip(self._seeded, self._actions, strict=True))
            ]
            raise EmulatorError(f"an emulator of {self.game} died ({'; '.join(playing)}): {error}") from error

    def _begin_after(self, ended: Flags) -> Frames:
        """New episodes where one `ended`, from a seed where it is time for one; the others show what they showed."""
        due = ended & np.array([len(played) >= self.reseed_steps for played in self._actions])
        masks = ((due, True), (ended & ~due, False))
        frames = [self._begin(mask, seeded) for mask, seeded in masks if mask.any()]
        return frames[-1]

    def _begin(self, mask: Flags, seeded: bool) -> Frames:
        """New episodes where `mask`; the other environments show what they showed."""
        envs = np.flatnonzero(mask)
        seeds = [episode_seed(self.seed, int(env), int(self._episodes[env])) for env in envs]
        frames, info = self._guarded(
            self._envs.reset, seed=np.array(seeds) if seeded else None, options={"reset_mask": mask}
        )
        self._episodes[envs] += 1
        if seeded:
            self._seeded[envs] = self._episodes[envs]
            for env in envs:
                self._actions[env].clear()
        self._lives[envs] = info["lives"][envs]
        self._scores[envs] = 0.0
        self._steps[envs] = 0
        return self._resized(frames[:, 0])

    def _resized(self, frames: Frames) -> Frames:
        """[N, 84, 84], from [N, 210, 160] where ale-py has not made them smaller."""
        if self._cv2 is None:
            return frames
        return np.stack([self._cv2.resize(frame, FRAME, interpolation=self._cv2.INTER_LINEAR) for frame in frames])


def vector_env(game: str, num_envs: int, protocol: Protocol, *, threads: int, colour: bool = False) -> AtariVectorEnv:
    """ale-py's environments, single frames a step: [N, 1, 84, 84] uint8; [N, 1, 210, 160] for linear resizing.

    With `colour`, [N, 1, 210, 160, 3].
    """
    height, width = FRAME if protocol.resize is Resize.area and not colour else SCREEN
    return AtariVectorEnv(
        game,
        num_envs,
        num_threads=threads,
        img_height=height,
        img_width=width,
        grayscale=not colour,
        stack_num=1,
        frameskip=FRAME_SKIP,
        reward_clipping=False,  # there is no other way to the raw score
        use_fire_reset=protocol.fire_on_reset,
        noop_max=protocol.noop_max,
        repeat_action_probability=protocol.sticky_actions,
        full_action_space=protocol.full_action_set,
        max_num_frames_per_episode=protocol.max_episode_frames,
    )


def import_cv2(setting: str) -> ModuleType:
    """OpenCV, for what `setting` asks. Only where it is needed: without libGL, importing it fails on bare servers.

    Raises:
        ValueError: it cannot be imported; says what to install.
    """
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise ValueError(
            f"{setting} needs OpenCV, which cannot be imported here ({error}): install the system's libGL "
            "(on Debian: libgl1), or opencv-python-headless in place of opencv-python"
        ) from None


def episode_seed(seed: int, env: int, episode: int) -> int:
    """The emulator's seed (31 bits) for an episode: a hash, so that no two runs share episodes by accident."""
    return int(np.random.SeedSequence([seed, env, episode]).generate_state(1)[0]) & 0x7FFFFFFF
