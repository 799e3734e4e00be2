"""A run of ours as an SB3 zip: of DQN or QR-DQN where SB3 has such a network, of `nap_rl.sb3.Rainbow` otherwise."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN
from stable_baselines3 import DQN
from torch import Tensor

from nap_rl import checkpoint
from nap_rl.envs.atari import FRAME_SHAPE, STACK
from nap_rl.nap import Projector
from nap_rl.nn import NetworkSpec
from nap_rl.plasticity import Method, method_named
from nap_rl.sb3 import layout
from nap_rl.sb3.algorithm import Rainbow
from nap_rl.sb3.model import MOMENTS, Moments, load_moments
from nap_rl.sb3.networks import HEADS, build_network
from nap_rl.sb3.observations import Observations

BUFFER_SIZE = 10_000  # of the zip: SB3 allocates it on loading, 56 kB a transition; `load(..., buffer_size=)` overrides


def export(run: str | Path, path: str | Path) -> str:
    """Write the newest checkpoint of a run as a zip.

    A network of the nature torso and one plain stream of 512 becomes a zip of DQN or QRDQN that SB3's own `load`
    opens, Adam's moments included. All else (C51, dueling or noisy streams, NaP's norms) becomes one of `Rainbow`.

    Warns where the run has another optimiser: the zip then has the weights, and a fresh Adam.

    Args:
        run: a run's folder, or that of one checkpoint.
        path: of the zip.

    Returns:
        What it is a zip of: "DQN", "QRDQN" or "Rainbow".

    Raises:
        FileNotFoundError: there is no checkpoint.
        checkpoint.CheckpointError: it is damaged.
        ValueError: no zip can hold the network; one sentence.
    """
    saved = checkpoint.load(checkpoint.newest_of_run(Path(run)))
    config = saved.meta["config"]
    spec = NetworkSpec.from_config(config["agent"], config["nap"])
    if spec.head not in HEADS:
        raise ValueError(f"head={spec.head} is in no SB3 zip: {', '.join(HEADS)} are")
    method = config.get("plasticity", {"name": "none"})["name"]
    if method_named(method).prepare is not Method.prepare:
        raise ValueError(f"plasticity={method} changes the network to one that is in no SB3 zip")
    observations = _observations(saved.meta)
    network = build_network(spec, observations.frame_shape, observations.stack, int(saved.meta["num_actions"]))
    moments = {}
    if _has_sb3s_adam(config):
        moments = _moments(saved.tensors["optimizer"], [name for name, _ in network.named_parameters()])
    plain = NetworkSpec(head=spec.head, outputs=spec.outputs, dueling=False, noisy_sigma0=None)
    if spec.head in ("expected", "quantile") and spec == plain and len(observations.frame_shape) == 2:
        return _export_sb3(saved, spec, moments, observations, path)
    model = Rainbow(
        "CnnPolicy" if spec.pixels else "MlpPolicy",
        None,
        nap=bool(config["agent"]["nap"] and config["nap"]["project"] and spec.norm is not None),
        policy_kwargs=spec.plain(),
        device="cpu",
        _init_setup_model=False,
        **_settings(config["agent"]),
        max_grad_norm=config["agent"]["max_grad_norm"],
        reward_clip=config["agent"]["reward_clip"],
        priority_exponent=config["agent"]["priority_exponent"],
        uniform_probability=config["agent"]["uniform_probability"],
        adam_eps=config["agent"]["adam_eps"],
    )
    model.observations = observations
    _set_up(model, saved.meta, observations)
    model.agent.network.load_state_dict(saved.tensors["network"])
    model.agent.target.load_state_dict(saved.tensors["target"])
    load_moments(model.policy.optimizer, model.agent.network, moments)
    if model.projector is not None:  # the weights are at their initial norms, which it is to know
        model.projector.remove()
        model.projector = Projector(model.agent.network, model.policy.optimizer)
    model.save(path)
    return "Rainbow"


def _export_sb3(
    saved: checkpoint.Checkpoint, spec: NetworkSpec, moments: Moments, observations: Observations, path: str | Path
) -> Literal["DQN", "QRDQN"]:
    agent = saved.meta["config"]["agent"]
    quantiles = {} if spec.head == "expected" else {"n_quantiles": spec.outputs}
    algorithm, net = (DQN, "q_net") if spec.head == "expected" else (QRDQN, "quantile_net")
    model: DQN | QRDQN = algorithm(
        "CnnPolicy",
        None,  # type: ignore[arg-type]  # as SB3's own `load` does, before it knows the spaces
        **_settings(agent),
        max_grad_norm=float("inf") if agent["max_grad_norm"] is None else agent["max_grad_norm"],
        policy_kwargs={
            "optimizer_class": torch.optim.Adam,
            "optimizer_kwargs": {"eps": agent["adam_eps"]},
            **quantiles,
        },
        device="cpu",
        _init_setup_model=False,
    )
    _set_up(model, saved.meta, observations)
    actions = int(saved.meta["num_actions"])
    names = layout.our_layers(spec, observations.frame_shape, observations.stack, actions)
    layers = dict(zip(names, [*layout.CONVOLUTIONS, layout.FEATURES, f"{net}.0"], strict=True))

    def theirs(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return layout.rename(layout.quantiles_first(tensors, actions, spec.outputs), layers)

    online, target = theirs(saved.tensors["network"]), theirs(saved.tensors["target"])
    model.policy.load_state_dict(
        {
            **{f"{net}.{name}": tensor for name, tensor in online.items()},
            **{f"{net}_target.{name}": tensor for name, tensor in target.items()},
        }
    )
    optimizer = model.policy.optimizer
    kinds = {kind: theirs({name: state[kind] for name, state in moments.items()}) for kind in MOMENTS}
    steps = [state["step"] for state in moments.values()]
    state = {
        i: {"step": steps[i], **{kind: kinds[kind][name] for kind in MOMENTS}}
        for i, name in enumerate(kinds["exp_avg"])
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    model.save(path)
    return "DQN" if algorithm is DQN else "QRDQN"


def _has_sb3s_adam(config: Mapping[str, Any]) -> bool:
    """Whether the run's optimiser is the one of a zip; warns where it is not."""
    optimizer = {"name": "adam", "beta1": 0.9, "beta2": 0.999, **config.get("optimizer", {})}
    name, *betas = (optimizer[key] for key in ("name", "beta1", "beta2"))
    if name == "adam" and betas == [0.9, 0.999]:
        return True
    what = f"optimizer={name}" if name != "adam" else f"optimizer.beta1={betas[0]} and optimizer.beta2={betas[1]}"
    warnings.warn(
        f"{what} is in no SB3 zip: the weights are exported, and learning on begins with a fresh Adam", stacklevel=3
    )
    return False


def _settings(agent: Mapping[str, Any]) -> dict[str, Any]:
    """What DQN, QRDQN and Rainbow call the same; transitions where SB3 counts steps of one environment."""
    every = max(round(agent["update_every_steps"]), 1)
    return {
        "learning_rate": agent["learning_rate"],
        "buffer_size": BUFFER_SIZE,
        "batch_size": agent["batch_size"],
        "gamma": agent["discount"],
        "n_steps": agent["n_steps"],
        "train_freq": every,
        "target_update_interval": agent["target_every_updates"] * every,
    }


def _observations(meta: Mapping[str, Any]) -> Observations:
    """What the network of a checkpoint looks at; checkpoints of older versions are of Atari.

    The space is that of SB3's environment: frames stacked along the first axis, or along a new one if they are
    pictures without channels.
    """
    stored = meta.get("observations", {"shape": FRAME_SHAPE, "dtype": "uint8", "stack": STACK})
    frame, dtype, stack = tuple(stored["shape"]), np.dtype(stored["dtype"]), int(stored["stack"])
    grey = len(frame) == 2 and dtype == np.uint8
    shape = (stack, *frame) if grey else (stack * frame[0], *frame[1:])
    low, high = (-np.inf, np.inf) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return Observations.of(spaces.Box(low, high, shape, dtype.type), stack, frame)


def _set_up(model: DQN | QRDQN | Rainbow, meta: Mapping[str, Any], observations: Observations) -> None:
    """The spaces that an environment would have given, and the counters."""
    model.observation_space = observations.space
    model.action_space = spaces.Discrete(int(meta["num_actions"]))
    model.n_envs = 1
    model._setup_model()
    model.num_timesteps = model._total_timesteps = int(meta["agent_steps"])
    model._n_updates = int(meta["updates"])


def _moments(tensors: Mapping[str, Tensor], names: list[str]) -> Moments:
    """Adam's moments by parameter, from a checkpoint's "index/kind"; {} before the first update."""
    moments: Moments = {}
    for key, tensor in tensors.items():
        index, kind = re.split("[/.]", key, maxsplit=1)  # a dot in checkpoints of before runs could be resumed
        moments.setdefault(names[int(index)], {})[kind] = tensor
    return {name: moments[name] for name in names if name in moments}
