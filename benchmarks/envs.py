"""Environments: agent steps a second of Pong from 1 to 64 environments, ours and the peers'; and acting with ours.

    python -m benchmarks.envs [--envs 1 8 64] [--seconds 1]

All skip 4 frames, take the larger of the last two, and give 84x84 grey pictures. gymnasium's and SB3's are vectors of
wrapped single environments, in this process (Sync, Dummy) or one process each (Async, Subproc); ale-py's is a C++
vector, and ours is over it: with whole episodes' scores, a seed for each episode, and frames after an episode's end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import ale_py
import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from gymnasium.wrappers import AtariPreprocessing
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from benchmarks import measure
from benchmarks.contenders import compose
from nap_rl.agents import FrameStack
from nap_rl.conf import build
from nap_rl.envs import AtariEnvs, Protocol
from nap_rl.envs.atari import vector_env
from nap_rl.envs.sequential import RESEED_STEPS
from nap_rl.machine import pick_device

ACTIONS = 6  # of Pong
OURS, RAW = "nap_rl", "ale-py, vector"
Runner = tuple[Callable[[int], int], Callable[[], None]]  # so many vector steps; close


def actions(num_envs: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """[256, N], drawn beforehand."""
    return np.random.default_rng(0).integers(0, ACTIONS, (256, num_envs))


def ours(num_envs: int, threads: int) -> Runner:
    env = AtariEnvs("pong", num_envs, reseed_steps=RESEED_STEPS, threads=min(threads, num_envs))
    drawn = actions(num_envs)
    env.reset()
    return partial(_repeat, env.step, drawn), env.close


def raw(num_envs: int, threads: int) -> Runner:
    env, drawn = vector_env("pong", num_envs, Protocol(), threads=min(threads, num_envs)), actions(num_envs)
    env.reset()
    return partial(_repeat, env.step, drawn), env.close


def one_of_gymnasium() -> gymnasium.Env[object, object]:
    return AtariPreprocessing(gymnasium.make("ALE/Pong-v5", frameskip=1, repeat_action_probability=0.0))


def gymnasium_vector(num_envs: int, threads: int, asynchronous: bool) -> Runner:
    makers = [one_of_gymnasium] * num_envs
    env = AsyncVectorEnv(makers, context="fork") if asynchronous else SyncVectorEnv(makers)
    drawn = actions(num_envs)
    env.reset(seed=0)
    return partial(_repeat, env.step, drawn), env.close


def sb3_vector(num_envs: int, threads: int, subprocesses: bool) -> Runner:
    kind: type[DummyVecEnv] | type[SubprocVecEnv] = SubprocVecEnv if subprocesses else DummyVecEnv
    kwargs = {"start_method": "fork"} if subprocesses else {}
    env = make_atari_env("PongNoFrameskip-v4", num_envs, seed=0, vec_env_cls=kind, vec_env_kwargs=kwargs)
    drawn = actions(num_envs)
    env.reset()
    return partial(_repeat, env.step, drawn), env.close


def _repeat(
    step: Callable[..., object], drawn: np.ndarray[tuple[int, ...], np.dtype[np.int64]], vector_steps: int
) -> int:
    for k in range(vector_steps):
        step(drawn[k % len(drawn)])
    return vector_steps


# Those with processes of their own first: they are forked before there are threads of emulators.
MAKERS: dict[str, Callable[[int, int], Runner]] = {
    "gymnasium, Async": partial(gymnasium_vector, asynchronous=True),
    "SB3, Subproc": partial(sb3_vector, subprocesses=True),
    "gymnasium, Sync": partial(gymnasium_vector, asynchronous=False),
    "SB3, Dummy": partial(sb3_vector, subprocesses=False),
    RAW: raw,
    OURS: ours,
}


def stepping(num_envs: int, threads: int, seconds: float, turns: int) -> list[list[object]]:
    """Rows of agent steps a second, over all environments."""
    vectors = {name: make(num_envs, threads) for name, make in MAKERS.items()}
    vector_steps = measure.rates({name: run for name, (run, _) in vectors.items()}, seconds, turns)
    for _, close in vectors.values():
        close()
    rows: list[list[object]] = []
    for name in reversed(MAKERS):
        rate = measure.median(vector_steps, name) * num_envs
        rows.append([num_envs, name, rate, measure.ratio(vector_steps, OURS, name)])
    return rows


def acting(threads: int, repetitions: int, num_envs: int = 8) -> list[list[object]]:
    """Rows of milliseconds an agent step: the network's actions alone, and with the emulators."""
    rows: list[list[object]] = []
    for name, overrides in {
        "Rainbow + NaP": ["agent=rainbow", "agent.nap=true"],
        "Rainbow": ["agent=rainbow"],
        "DQN": ["agent=dqn"],
    }.items():
        env = AtariEnvs("pong", num_envs, reseed_steps=RESEED_STEPS, threads=threads)
        config = compose(*overrides, "replay.capacity=50000", "device=cpu")
        agent, _ = build.build_agent(config, env.num_actions, pick_device("cpu"))
        stack, state = FrameStack.of(env), [env.reset(), np.ones(num_envs, dtype=bool)]

        def act(agent=agent, stack=stack, state=state):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            return agent.act(stack.push(*state))

        def act_and_step(act=act, env=env, state=state) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
            step = env.step(act())
            state[:] = step.observations, step.ended

        times = measure.interleaved({"act": act, "act and step": act_and_step}, repetitions)
        rows.append([name, *(measure.median(times, each) / num_envs for each in times)])
        env.close()
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--envs", type=int, nargs="+")
    parser.add_argument("--seconds", type=float, help="of each turn")
    arguments = parser.parse_args(argv)
    measure.prepare(arguments.threads)
    gymnasium.register_envs(ale_py)
    quick = arguments.quick
    turns = arguments.repetitions or (2 if quick else 5)
    seconds = arguments.seconds or (0.1 if quick else 1.0)

    measure.say(
        "## Environments",
        "Agent steps a second of Pong over all environments, random actions, medians of turns; `x` is ours over it.",
    )
    rows: list[list[object]] = []
    for num_envs in arguments.envs or ([1, 8] if quick else [1, 8, 64]):
        rows += stepping(num_envs, arguments.threads, seconds, turns)
    print(measure.table(["environments", "vector", "agent steps/s", "x"], rows), end="\n\n")
    if not arguments.details:
        return
    measure.say(
        "Acting (one pass of the network in fp32, stacks included) and stepping, 8 environments, ms an agent step:"
    )
    print(measure.table(["agent", "act", "act and step"], acting(arguments.threads, 10 if quick else 200)))


if __name__ == "__main__":
    main()
