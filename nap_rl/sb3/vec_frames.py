"""How observations of SB3's vectors of environments divide into frames."""

from __future__ import annotations

from gymnasium import spaces
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecFrameStack,
    VecMonitor,
    VecTransposeImage,
    VecVideoRecorder,
    unwrap_vec_normalize,
)
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper

from nap_rl.sb3.observations import check_space, is_image_space, size

# Wrappers through which an observation comes as it is, or with its channels moved to the front.
TRANSPARENT = (VecTransposeImage, VecMonitor, VecCheckNan, VecVideoRecorder)


def frame_layout(env: VecEnv, images: bool) -> tuple[int, tuple[int, ...]]:
    """(stack, frame_shape): how many frames an observation is made of, and the shape of one.

    More than one only for a VecFrameStack of images or of vectors; what other wrappers stack is one observation. Images
    have their channels first, and no channel axis where they have one channel.

    Args:
        images: whether the observations are to be images.

    Raises:
        ValueError: observations that Rainbow cannot take; one sentence.
    """
    space = env.observation_space
    check_space(space)
    if images and not is_image_space(space):
        raise ValueError(f"CnnPolicy needs images (uint8, 3 dimensions), but observations are {space}: use MlpPolicy")
    if unwrap_vec_normalize(env) is not None:  # below other wrappers too
        raise ValueError("VecNormalize is not supported: its view of an observation changes while that is stored")
    stack, below = 1, env
    while isinstance(below, VecEnvWrapper):
        if isinstance(below, VecFrameStack) and isinstance(space, spaces.Box) and (images or len(space.shape) == 1):
            stack = below.stacked_obs.n_stack
            break
        if not isinstance(below, TRANSPARENT):
            break
        below = below.venv
    if not isinstance(space, spaces.Box) or space.shape == ():
        return 1, (size(space),)
    if images and space.shape[0] == stack:
        return stack, space.shape[1:]
    return stack, (space.shape[0] // stack, *space.shape[1:])
