"""What a zip of `Rainbow` says beside its networks, and how a model takes it up again."""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nap_rl.agents import ValueAgent
from nap_rl.nap import Projector
from nap_rl.nn import NetworkSpec
from nap_rl.sb3.archive import number
from nap_rl.sb3.model import Model
from nap_rl.sb3.observations import Observations, plain_space
from nap_rl.sb3.settings import Settings

COUNTERS = ("num_timesteps", "_total_timesteps", "_num_timesteps_at_start", "_episode_num", "_n_updates", "_unlearnt")
PROGRESS = ("_current_progress_remaining", "exploration_rate")
STORED = {"f": np.float64, "i": np.int64, "u": np.int64}  # kinds of numpy -> dtypes that zips are read with
KEPT = ("float32", "float64", "uint8", "bool", "int32", "int64")


class Algorithm(Protocol):
    """What a zip keeps of an algorithm: names of SB3, beside what is ours."""

    policy_name: str
    nap: bool
    spec: NetworkSpec
    settings: Settings
    observations: Observations
    agent: ValueAgent
    projector: Projector | None
    observation_space: Any
    action_space: Any
    env: Any
    n_envs: int
    seed: int | None
    verbose: int
    ep_info_buffer: Any
    ep_success_buffer: Any
    _stats_window_size: int
    _n_updates: int
    _last_obs: Any
    _last_episode_starts: Any


def data(model: Algorithm) -> dict[str, Any]:
    """The fields of `data`: names of SB3 where SB3 has the thing, what is ours under "nap_rl"."""
    episodes = [{key: float(episode[key]) for key in ("r", "l", "t")} for episode in model.ep_info_buffer or ()]
    return {
        "nap_rl": {
            "policy": model.policy_name,
            "nap": model.nap,
            "network": model.spec.plain(),
            "stack": model.observations.stack,
            "frame_shape": list(model.observations.frame_shape),
            "actions": int(model.action_space.n),
            "observations": plain_space(model.observations.space),
            "exploration": model.agent.exploration.bit_generator.state,
            "action_space": model.action_space.np_random.bit_generator.state,
        },
        **model.settings.plain(),
        **{name: getattr(model, name) for name in (*COUNTERS, *PROGRESS)},
        "ep_info_buffer": episodes,
        "n_envs": model.n_envs,
        "seed": model.seed,
        "verbose": model.verbose,
    }


def variables(model: Algorithm) -> dict[str, Any]:
    """Tensors beside the networks: the noise's generator, the running episodes, the projector's norms."""
    found: dict[str, Any] = {"noise": model.agent.generator.get_state()}
    if model._last_obs is not None:
        last: Any = model._last_obs
        space: Any = model.observation_space
        if isinstance(last, dict):
            found["last_obs"] = {name: _tensor(x, space[name].dtype) for name, x in last.items()}
        else:
            found["last_obs"] = _tensor(last, space.dtype)
        found["last_episode_starts"] = torch.as_tensor(np.asarray(model._last_episode_starts, dtype=bool))
    if model.projector is not None:
        found["projector"] = model.projector.state_dict()
    return found


def arguments(saved: Model) -> tuple[str, dict[str, Any]]:
    """(policy, keyword arguments) of the model that wrote the zip."""
    hints = saved.hints
    said = hints["nap_rl"]
    found = {name: hints[name] for name in Settings().plain() if name in hints}
    found.setdefault("learning_rate", saved.adam["lr"])  # the last value of a function
    found |= {"seed": hints["seed"], "verbose": hints["verbose"]}
    return said["policy"], {**found, "nap": said["nap"] is True, "policy_kwargs": saved.spec.plain()}


def restore(model: Algorithm, saved: Model, force_reset: bool) -> None:
    """Counters, networks, optimiser, generators and projector of the zip; running episodes if not `force_reset`."""
    agent, hints, found = model.agent, saved.hints, saved.archive.variables
    for name in COUNTERS:
        setattr(model, name, int(number(hints, name, 0, 0, 1e15)))
    for name in PROGRESS:
        setattr(model, name, number(hints, name, getattr(model, name), -1e9, 1e9))
    names = [name for name, _ in agent.network.named_parameters()]
    agent.load_state_dict(
        {
            "network": saved.network,
            "target": saved.target,
            "optimizer": {i: saved.moments[name] for i, name in enumerate(names) if name in saved.moments},
            "generator": found["noise"],
            "exploration": hints["nap_rl"]["exploration"],
            "updates": model._n_updates,
            "method": agent.method.state_dict(),
        }
    )
    model.ep_info_buffer = deque(hints["ep_info_buffer"], maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(maxlen=model._stats_window_size)
    model.action_space.np_random.bit_generator.state = hints["nap_rl"]["action_space"]
    if model.projector is not None:
        model.projector.load_state_dict(found["projector"])
    if model.env is not None and not force_reset and "last_obs" in found:
        space: Any = model.observation_space
        last = found["last_obs"]
        if isinstance(last, dict):
            model._last_obs = {name: x.numpy().astype(space[name].dtype) for name, x in last.items()}
        else:
            model._last_obs = last.numpy().astype(space.dtype)
        model._last_episode_starts = found["last_episode_starts"].numpy()


def _tensor(observation: Any, dtype: np.dtype[Any]) -> Tensor:
    """An observation in its space's dtype, or in a wider one that zips are read with."""
    array = np.ascontiguousarray(observation, dtype=dtype).reshape(np.shape(observation))
    return torch.from_numpy(array if dtype.name in KEPT else array.astype(STORED[dtype.kind]))
