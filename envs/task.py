"""A task: a gymnasium environment, and transformations drawn from a seed.

An episode is a function of (task, seed of the episode, actions).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
from gymnasium.spaces import Box, Discrete
from gymnasium.wrappers import TimeLimit

from nap_rl.dotted import import_module, import_object
from nap_rl.envs import registry  # noqa: F401  (makes our ids known)
from nap_rl.envs.transformations import TRANSFORMATIONS, Env, transform

TASK_SEED = "task_seed"
"""Keyword argument of environments that draw their own rules, such as `RandomMdp`."""
REDRAWN = (*TRANSFORMATIONS, TASK_SEED)


@dataclass(frozen=True)
class Task:
    """What `open` makes environments of.

    Attributes:
        name: in logs and files.
        id: of gymnasium.
        kwargs: of the environment's constructor.
        module: imported first, for ids that it registers.
        wrappers: dotted paths of functions or classes env -> env, the innermost first.
        redrawn: what `seed` draws: names out of `REDRAWN`.
        offset_std: standard deviation of offsets.
        seed: of everything that is redrawn.
        max_episode_steps: an episode is truncated after so many steps.
    """

    name: str
    id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    module: str | None = None
    wrappers: tuple[str, ...] = ()
    redrawn: tuple[str, ...] = ()
    offset_std: float = 1.0
    seed: int = 0
    max_episode_steps: int = 27_000

    def open(self) -> Env:
        """A new environment, observations a Box and actions Discrete.

        Raises:
            ValueError: an unknown id, module or wrapper, arguments that the environment refuses, or other spaces; one
                sentence.
        """
        if self.module is not None:
            import_module(self.module)
        kwargs = dict(self.kwargs)
        if TASK_SEED in self.redrawn:
            kwargs[TASK_SEED] = self.seed
        env = _make(self.id, kwargs)
        for path in self.wrappers:
            env = wrap(env, path)
        _check_spaces(self.id, env)
        return transform(TimeLimit(env, self.max_episode_steps), self.redrawn, self.seed, self.offset_std)


def wrap(env: Env, path: str) -> Env:
    """`env` in the wrapper at a dotted path. Raises ValueError where that gives no environment."""
    try:
        wrapped = import_object(path)(env)
    except Exception as error:
        raise ValueError(f"wrapper {path}: {error}") from None
    if not isinstance(wrapped, gymnasium.Env):
        raise ValueError(f"wrapper {path} returns {type(wrapped).__name__}, expected a gymnasium environment")
    return wrapped


def _make(name: str, kwargs: Mapping[str, Any]) -> Env:
    if ":" in name:
        raise ValueError(f"id '{name}' names a module: name it as env.module={name.split(':')[0]}")
    try:
        spec = gymnasium.spec(name)
    except gymnasium.error.Error:
        near = difflib.get_close_matches(name, gymnasium.registry, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else "env.module= names the module that registers it"
        raise ValueError(f"gymnasium knows no environment '{name}': {hint}") from None
    try:
        return gymnasium.make(spec, disable_env_checker=True, **kwargs)
    except Exception as error:  # an environment may refuse its arguments, or lack a package, in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"environment '{name}' cannot be made: {reason}") from None


def _check_spaces(name: str, env: Env) -> None:
    observations, actions = env.observation_space, env.action_space
    if not isinstance(observations, Box):
        raise ValueError(
            f"environment '{name}' has observations of {observations}, expected a Box: add a wrapper, for example "
            "env.wrappers=[gymnasium.wrappers.FlattenObservation]"
        )
    if not isinstance(actions, Discrete):
        raise ValueError(f"environment '{name}' has actions of {actions}, expected Discrete: a value agent picks one")
