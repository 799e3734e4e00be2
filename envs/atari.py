"""One Atari game in N environments that step together, over ale-py's threaded C++ vector environment.

An environment is a function of (game, seed, actions): the seed fixes no-op starts and sticky actions. A new seed makes
ale-py load the ROM again, which takes as long as a hundred steps. Training therefore seeds an emulator only now and
then (`reseed_steps`); evaluation seeds each episode, so that each can be replayed alone.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum
from types import ModuleType
from typing import Any

import numpy as np
from ale_py.vector_env import AtariVectorEnv

from nap_rl.envs.games import check_game
from nap_rl.envs.human import human_normalized
from nap_rl.envs.step import Actions, Episode, Flags, Frames, Step
from nap_rl.logging.waiting import Waiting

FRAME_SKIP = 4  # emulator frames to an agent step; the last two are max-pooled
STACK = 4  # frames that a network sees at a time
FRAME_SHAPE = (84, 84)
SCREEN_SHAPE = (210, 160)
MANY = 16  # emulators, from which on a word is said
LOAD_SECONDS = 0.12  # an emulator's, to open it or to seed it, which loads its game


class Resize(str, Enum):
    """How a screen becomes a frame: a pixel is the mean of the area under it, or interpolated from the nearest four."""

    area = "area"
    linear = "linear"


@dataclass(frozen=True)
class Protocol:
    """How a game is played. conf/env/protocol/ holds the presets.

    Attributes:
        sticky_actions: probability that the previous action is repeated (Machado et al. 2018: 0.25).
        noop_max: an episode begins with 0 to noop_max - 1 no-ops, drawn from its seed (ale-py counts so).
        full_action_set: all 18 actions instead of the game's own.
        life_loss_ends_value: a lost life zeroes the discount; the game goes on.
        max_episode_frames: emulator frames after which an episode is truncated.
        fire_on_reset: press FIRE at the start where the game needs it.
        resize: area as in ale-py, gymnasium, Stable-Baselines3 and Dopamine; or linear as in Kaixhin's Rainbow. Linear
            keeps thin objects sharp, may miss them, and needs OpenCV.
    """

    sticky_actions: float = 0.0
    noop_max: int = 30
    full_action_set: bool = False
    life_loss_ends_value: bool = True
    max_episode_frames: int = 108_000
    fire_on_reset: bool = False
    resize: Resize = Resize.area


class EmulatorError(RuntimeError):
    """An emulator failed. The message names the game, each environment's seed, and its agent steps since then."""


class AtariEnvs:
    """N environments of one game (a `VectorEnv`). Observations are single frames [N, 84, 84] uint8.

    Args:
        game: ale-py's name, for example "pong".
        num_envs: N.
        protocol: how the game is played.
        seed: seeds the emulators, together with the environment's index and the number of its episode.
        reseed_steps: agent steps between two seeds of an emulator. The next episode after them begins from a new seed;
            the others go on with the emulator's random stream. 0: each episode has its own seed.
        threads: of the emulators; 0 for min(N, cores).

    Raises:
        ValueError: the game is unknown, num_envs < 1, or OpenCV is needed and cannot be imported.
    """

    observation_shape: tuple[int, ...] = FRAME_SHAPE
    observation_dtype: np.dtype[Any] = np.dtype(np.uint8)
    stack = STACK
    frame_skip = FRAME_SKIP

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
        with self._waiting("opening", num_envs):
            self._envs = vector_env(game, num_envs, protocol, threads=threads or min(num_envs, os.cpu_count() or 1))
        self.num_actions = len(self._envs.ale.get_action_set())
        self._episodes = np.zeros(num_envs, dtype=np.int64)  # begun so far
        self._seeded = np.zeros(num_envs, dtype=np.int64)  # value of `_episodes` when last seeded
        self._lives = np.zeros(num_envs, dtype=np.int64)
        self._scores = np.zeros(num_envs)
        self._steps = np.zeros(num_envs, dtype=np.int64)  # in the running episode
        self._sent: list[int] = []  # actions of the step in flight
        self._actions = [bytearray() for _ in range(num_envs)]  # since last seeded

    def reset(self) -> Frames:
        """Begin an episode in every environment from a new seed: [N, 84, 84] uint8."""
        return self._begin(np.ones(self.num_envs, dtype=bool), seeded=True)

    def step(self, actions: Actions) -> Step:
        """One agent step (4 frames) with actions [N]; where an episode ends, the next begins at once."""
        self.send(actions)
        return self.recv()

    def send(self, actions: Actions) -> None:
        """Begin a step. The emulators play in their own threads until `recv`, which must be the next call.

        Raises:
            ValueError: an action that the game does not have; ale-py would wait for ever.
        """
        actions = np.asarray(actions, dtype=np.int64)
        if len(actions) and not 0 <= actions.min() <= actions.max() < self.num_actions:
            raise ValueError(f"actions {actions.tolist()} of {self.game}, expected 0 to {self.num_actions - 1}")
        self._guarded(self._envs.send, actions)
        self._sent = actions.tolist()

    def recv(self) -> Step:
        """End the step that `send` began."""
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
            observations=self._begin_after(ended) if ended.any() else last_frames,
            last_observations=last_frames,
            rewards=rewards.astype(np.float32),
            discounts=(~over).astype(np.float32),
            terminated=terminated,
            ended=ended,
            episodes=episodes,
        )

    def episode_seed(self, env: int, episode: int) -> int:
        """The emulator's seed of that episode, where `reseed_steps` is 0."""
        return episode_seed(self.seed, env, episode)

    def extra_scores(self, score: float) -> dict[str, float]:
        """{"human_normalized": ...} for the 57 games with published human scores, {} for the others."""
        normalized = human_normalized(self.game, score)
        return {} if normalized is None else {"human_normalized": normalized}

    def state_dict(self) -> dict[str, Any]:
        """The last seeded episode of each environment and all actions since: its state is a function of both."""
        return {
            "episodes": self._seeded.tolist(),
            "lengths": [len(played) for played in self._actions],
            "actions": np.frombuffer(b"".join(self._actions), dtype=np.uint8).copy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> Frames:
        """Replay the saved actions from the saved seeds: the frames [N, 84, 84] to act on.

        All environments step together. One with fewer actions begins later; what it plays before is thrown away:

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
                frames = self.step(actions).observations
        return frames

    def close(self) -> None:
        """Free the emulators and their threads. Closing twice is harmless."""
        self._envs.close()
        vars(self._envs).pop("ale", None)  # ale-py's close() keeps them

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
        """Begin new episodes where one `ended`, from a new seed where that is due: [N, 84, 84] of all environments."""
        due = ended & np.array([len(played) >= self.reseed_steps for played in self._actions])
        masks = ((due, True), (ended & ~due, False))
        frames = [self._begin(mask, seeded) for mask, seeded in masks if mask.any()]
        return frames[-1]

    def _begin(self, mask: Flags, seeded: bool) -> Frames:
        """Begin new episodes where `mask`: [N, 84, 84]; the other environments keep their frame."""
        envs = np.flatnonzero(mask)
        seeds = [episode_seed(self.seed, int(env), int(self._episodes[env])) for env in envs]
        with self._waiting("seeding", len(envs) if seeded else 0):
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

    def _waiting(self, what: str, count: int) -> AbstractContextManager[object]:
        if count < MANY:
            return nullcontext()
        return Waiting(f"{what} {count} emulators of {self.game}", LOAD_SECONDS * count)

    def _resized(self, frames: Frames) -> Frames:
        """[N, 84, 84] or [N, 210, 160] -> [N, 84, 84]."""
        if self._cv2 is None:
            return frames
        return np.stack(
            [self._cv2.resize(frame, FRAME_SHAPE, interpolation=self._cv2.INTER_LINEAR) for frame in frames]
        )


def vector_env(game: str, num_envs: int, protocol: Protocol, *, threads: int, colour: bool = False) -> AtariVectorEnv:
    """ale-py's vector environment. Its observations are one frame a step, uint8:

    [N, 1, 84, 84], or [N, 1, 210, 160] for linear resizing, or [N, 1, 210, 160, 3] with `colour`.
    """
    height, width = FRAME_SHAPE if protocol.resize is Resize.area and not colour else SCREEN_SHAPE
    return AtariVectorEnv(
        game,
        num_envs,
        num_threads=threads,
        img_height=height,
        img_width=width,
        grayscale=not colour,
        stack_num=1,
        frameskip=FRAME_SKIP,
        reward_clipping=False,  # the score needs raw rewards
        use_fire_reset=protocol.fire_on_reset,
        noop_max=protocol.noop_max,
        repeat_action_probability=protocol.sticky_actions,
        full_action_space=protocol.full_action_set,
        max_num_frames_per_episode=protocol.max_episode_frames,
    )


def import_cv2(setting: str) -> ModuleType:
    """The module cv2. It is imported late because that fails on servers without libGL.

    Args:
        setting: what needs it, for the message.

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
    """A seed of 31 bits for the emulator: a hash, so that runs with neighbouring seeds share no episode."""
    return int(np.random.SeedSequence([seed, env, episode]).generate_state(1)[0]) & 0x7FFFFFFF
