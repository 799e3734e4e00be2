"""From a configuration to what a run plays: an Atari game, a gymnasium environment, or tasks in sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from nap_rl.conf.env_schema import (
    AtariConfig,
    EnvConfig,
    GymnasiumConfig,
    MinAtarConfig,
    SequenceConfig,
    SequentialConfig,
)
from nap_rl.conf.schema import Config
from nap_rl.conf.seeds import seeds
from nap_rl.envs import (
    AtariEnvs,
    EmulatorError,
    Protocol,
    SequentialAtari,
    TaskStream,
    VectorEnv,
    Visit,
    atari,
)
from nap_rl.envs.atari import FRAME_SHAPE, STACK
from nap_rl.envs.registry import MINATAR_ID
from nap_rl.envs.sequence import TaskSequence, plan
from nap_rl.envs.task import REDRAWN, Task
from nap_rl.envs.vector import GymnasiumEnvs

OpenEnvs = Callable[[str, int, int], VectorEnv]
"""(task, number of environments, seed) -> environments in which each episode has its own seed."""

ATARI_FRAMES = 200_000_000  # the usual length of a run on one game
SMALL_FRAMES = 1_000_000
TASK_KEYS = ("id", "name", "kwargs", "frames")


class Observations(NamedTuple):
    """What a network looks at: `stack` observations of `shape` at a time."""

    shape: tuple[int, ...]
    dtype: str
    stack: int

    @classmethod
    def of(cls, env: VectorEnv) -> Observations:
        """Those of an environment."""
        return cls(tuple(env.observation_shape), str(env.observation_dtype), env.stack)


ATARI = Observations(FRAME_SHAPE, "uint8", STACK)
ATARI_ACTIONS = 18


def frame_skip(env: EnvConfig) -> int:
    """Frames to an agent step."""
    return atari.FRAME_SKIP if isinstance(env, (AtariConfig, SequentialConfig)) else GymnasiumEnvs.frame_skip


def default_frames(env: EnvConfig) -> int:
    """Length of a run with `frames=null`: the whole sequence, 200M frames of a game, 1M of a small environment."""
    whole = sequence_frames(env)
    return whole if whole is not None else ATARI_FRAMES if isinstance(env, AtariConfig) else SMALL_FRAMES


def sequence_frames(env: EnvConfig) -> int | None:
    """Frames of the whole sequence; None for a single task."""
    if isinstance(env, SequentialConfig):
        return len(env.games) * env.frames_per_game * env.cycles
    if isinstance(env, SequenceConfig):
        return env.cycles * sum(lengths(env))
    return None


def visit_frames(env: EnvConfig) -> int | None:
    """Frames of the shortest visit of a sequence; None for a single task."""
    if isinstance(env, SequentialConfig):
        return env.frames_per_game
    return min(lengths(env)) if isinstance(env, SequenceConfig) else None


def build_env(config: Config) -> TaskStream:
    """The environments of a run; a single task is a sequence of one visit."""
    env, seed = config.env, seeds(config.seed).env
    if isinstance(env, (AtariConfig, SequentialConfig)):
        return _atari(config, seed)
    by_name = {task.name: task for task in tasks(env, seed)}
    return TaskSequence(planned(config), partial(_open_visit, env, by_name, seed))


def planned(config: Config) -> list[Visit]:
    """The visits of a run; a single task has one."""
    env = config.env
    if isinstance(env, SequentialConfig):
        return plan(env.games, [env.frames_per_game] * len(env.games), env.cycles)
    if isinstance(env, SequenceConfig):
        return plan(task_names(config), lengths(env), env.cycles, env.order.name, seeds(config.seed).env)
    assert config.frames is not None
    return [Visit(0, task_names(config)[0], 0, 0, config.frames)]


def open_envs(config: Config) -> OpenEnvs:
    """What opens one task of a run for its evaluation."""
    env, seed = config.env, seeds(config.seed).env
    if isinstance(env, (AtariConfig, SequentialConfig)):
        return open_atari(_protocol(env))
    return partial(_open_task, env, {task.name: task for task in tasks(env, seed)})


def open_atari(protocol: Protocol) -> OpenEnvs:
    """What opens a game under a protocol."""

    def opener(game: str, num_envs: int, seed: int) -> VectorEnv:
        return AtariEnvs(game, num_envs, protocol, seed=seed)

    return opener


def task_names(config: Config) -> list[str]:
    """The tasks of a run, each once, in the order of its first cycle."""
    env = config.env
    if isinstance(env, AtariConfig):
        return [env.game]
    if isinstance(env, SequentialConfig):
        return list(dict.fromkeys(env.games))
    return [task.name for task in tasks(env, seeds(config.seed).env)]


def tasks(env: EnvConfig, seed: int) -> list[Task]:
    """The tasks of one cycle, all different.

    Raises:
        ValueError: two have one name, or nothing tells one visit of a task from another.
    """
    if isinstance(env, SequenceConfig):
        return _sequence_tasks(env, seed)
    if isinstance(env, MinAtarConfig):
        kwargs = {
            "game": env.game,
            "sticky_actions": env.sticky_actions,
            "difficulty_ramping": env.difficulty_ramping,
        }
        return [Task(env.game, MINATAR_ID, kwargs, max_episode_steps=env.max_episode_steps)]
    assert isinstance(env, GymnasiumConfig)
    return [
        Task(
            env.name,
            env.id,
            env.kwargs or {},
            module=env.module,
            wrappers=tuple(env.wrappers),
            max_episode_steps=env.max_episode_steps,
        )
    ]


def lengths(env: SequenceConfig) -> list[int]:
    """Frames of each task of a cycle."""
    own = [spec.get("frames", env.frames_per_task) for spec in map(_task_spec, env.tasks)]
    return [own[i % len(own)] for i in range(len(own) if env.visits is None else env.visits)]


def check(env: EnvConfig, seed: int) -> tuple[Observations, int]:
    """Open every kind of task of the configuration once: what they show, and the number of actions.

    Raises:
        ValueError: one cannot be opened, or they are of different shapes; one sentence.
    """
    if isinstance(env, SequenceConfig):
        _check_sequence(env)
    if isinstance(env, GymnasiumConfig) and not (env.kwargs is None or isinstance(env.kwargs, Mapping)):
        raise ValueError(f"env.kwargs={env.kwargs}, expected {{name: value}} or null")
    kinds = len(env.tasks) if isinstance(env, SequenceConfig) else 1
    shapes = {task.name: _shape_of(env, task) for task in tasks(env, seed)[:kinds]}
    name, shape = next(iter(shapes.items()))
    for other in shapes:
        if shapes[other] != shape:
            raise ValueError(
                f"env.tasks: {name} has {_words(shape)}, but {other} has {_words(shapes[other])}: all tasks need one "
                "shape, which env.wrappers can give them"
            )
    return shape


def shown(env: EnvConfig, seed: int) -> tuple[Observations, int]:
    """What the environments show, and the number of actions; Atari's are known, others are opened once."""
    return (ATARI, ATARI_ACTIONS) if isinstance(env, (AtariConfig, SequentialConfig)) else check(env, seed)


def _shape_of(env: EnvConfig, task: Task) -> tuple[Observations, int]:
    envs = _open_task(env, {task.name: task}, task.name, 1, 0)
    try:
        envs.reset()
        return Observations.of(envs), envs.num_actions
    except EmulatorError as error:
        raise ValueError(str(error)) from None
    finally:
        envs.close()


def _words(shape: tuple[Observations, int]) -> str:
    observations, actions = shape
    return f"observations {list(observations.shape)} {observations.dtype} and {actions} actions"


def _check_sequence(env: SequenceConfig) -> None:
    if not env.tasks:
        raise ValueError("env.tasks is empty: name at least one, for example env.tasks=[CartPole-v1]")
    unknown = [name for name in env.redraw if name not in REDRAWN]
    if unknown:
        raise ValueError(f"env.redraw names {unknown[0]}, which is none of {', '.join(REDRAWN)}")
    if env.visits is not None and env.visits < 1:
        raise ValueError(f"env.visits={env.visits}, expected 1 or more")
    if env.visits is not None and env.visits > len(env.tasks) and not env.redraw:
        raise ValueError(
            f"env.visits={env.visits}, but env.tasks has {len(env.tasks)} and env.redraw is empty: use env.cycles to "
            "come back to the same tasks, or name in env.redraw what makes a new task"
        )
    for length in lengths(env):
        if not (isinstance(length, int) and length >= env.num_envs):
            raise ValueError(
                f"a task of env.tasks has {length} frames, expected a step of each of {env.num_envs} environments or "
                "more: raise env.frames_per_task or the task's own frames"
            )


def _sequence_tasks(env: SequenceConfig, seed: int) -> list[Task]:
    specs = [_task_spec(spec) for spec in env.tasks]
    made = []
    for i in range(len(lengths(env))):
        spec, draw = specs[i % len(specs)], i // len(specs)
        name = spec.get("name") or spec["id"].rsplit("/", 1)[-1]
        made.append(
            Task(
                f"{name}-{draw}" if env.redraw else name,
                spec["id"],
                spec.get("kwargs") or {},
                module=env.module,
                wrappers=tuple(env.wrappers),
                redrawn=tuple(env.redraw),
                offset_std=env.offset_std,
                seed=int(np.random.SeedSequence([seed, i, 1]).generate_state(1)[0]),
                max_episode_steps=env.max_episode_steps,
            )
        )
    names = [task.name for task in made]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two of env.tasks are called {twice[0]}: give one a name={{name: ..., id: ...}} of its own")
    return made


def _task_spec(spec: Any) -> Mapping[str, Any]:
    """`CartPole-v1` or {id: CartPole-v1, ...} as the latter."""
    if isinstance(spec, str):
        return {"id": spec}
    if not isinstance(spec, Mapping) or "id" not in spec or not set(spec) <= set(TASK_KEYS):
        raise ValueError(f"env.tasks has {spec}, expected an id of gymnasium or {{{', '.join(TASK_KEYS)}}}")
    return spec


def _open_visit(env: EnvConfig, by_name: Mapping[str, Task], seed: int, visit: Visit) -> VectorEnv:
    # Seeds differ by visit: the second visit of a task must not replay the episodes of the first.
    visit_seed = int(np.random.SeedSequence([seed, visit.number]).generate_state(1)[0])
    return _open_task(env, by_name, visit.task, env.num_envs, visit_seed)


def _open_task(env: EnvConfig, by_name: Mapping[str, Task], task: str, num_envs: int, seed: int) -> VectorEnv:
    if isinstance(env, (GymnasiumConfig, SequenceConfig)):
        return GymnasiumEnvs(by_name[task], num_envs, seed=seed, stack=env.stack, channels_first=env.channels_first)
    return GymnasiumEnvs(by_name[task], num_envs, seed=seed)


def _atari(config: Config, seed: int) -> SequentialAtari:
    env = config.env
    if isinstance(env, SequentialConfig):
        games, frames, cycles = env.games, env.frames_per_game, env.cycles
    else:
        assert isinstance(env, AtariConfig) and config.frames is not None
        games, frames, cycles = [env.game], config.frames, 1
    return SequentialAtari(games, frames, cycles, env.num_envs, _protocol(env), seed=seed)


def _protocol(env: AtariConfig | SequentialConfig) -> Protocol:
    settings = asdict(env.protocol)
    settings.pop("name")
    if isinstance(env, SequentialConfig):
        settings["full_action_set"] = True
    return Protocol(**settings)
