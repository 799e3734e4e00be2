"""`agent.init_from=`: begin with the weights of an earlier run of ours, or of a Stable-Baselines3 zip.

What is named is read once a run: by the check, and again only if the file has changed since.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nap_rl import checkpoint
from nap_rl.conf import schema
from nap_rl.conf.environments import Observations
from nap_rl.conf.schema import Config
from nap_rl.envs import TaskStream

if TYPE_CHECKING:  # a run's folder is checked before torch is imported
    from torch import Tensor

    from nap_rl.agents import ValueAgent
    from nap_rl.nn import QNetwork
    from nap_rl.sb3.model import Model

TORSO = "torso."
RANDOM_SHARE = 0.1  # of the actions by which observations are gathered
OBSERVATIONS = 1_000


def check(source: str, config: Config, observations: Observations) -> None:
    """Compares the torso of `source` with the configuration's, as far as settings and shapes tell; builds nothing.

    The number of actions, the head and the streams may differ. A zip of another torso is refused before torch is
    imported.

    Raises:
        OSError, ValueError: there are no such weights, they are damaged, or their torso is another one; names `source`.
    """
    with _naming(source):
        if not Path(source).exists():
            raise FileNotFoundError(
                "nothing is there: expected a run's folder, a checkpoint's or a zip of Stable-Baselines3"
            )
        if _is_zip(source):
            _check_torso_of_zip(source, config, observations)
            _read_zip(source)
        else:
            _check_torso_of_run(checkpoint.newest_of_run(Path(source)), config)


def initialize(source: str, network: QNetwork, make_env: Callable[[], TaskStream]) -> None:
    """Copy the weights of `source` into a new network; warns of what stays fresh or changes.

    Args:
        make_env: opens environments in which a changed network is compared with the zip's.

    Raises:
        OSError, ValueError: there are no such weights, or they do not fit even in the torso; names `source`.
    """
    with _naming(source):
        difference = _from_zip(source, network, make_env) if _is_zip(source) else _from_run(source, network)
    if difference is not None:
        warnings.warn(f"agent.init_from={source}: {difference}", stacklevel=2)


def continue_learning(source: str, agent: ValueAgent) -> None:
    """Copy the target network and Adam's moments of a zip as well, if the agent's network is the zip's."""
    if not _is_zip(source):
        return
    from nap_rl.sb3 import transfer

    model = _read_zip(source)
    if transfer.initialize(model, agent.network).exact:
        transfer.continue_learning(model, agent)


def transfer(weights: Mapping[str, Tensor], network: QNetwork) -> list[str]:
    """Copy weights into a freshly built network; returns the names of what stays fresh, empty if all fits.

    If everything fits, all of it is copied. If only the torso does (other actions, another head, other streams), the
    torso is copied, and the rest stays as initialised.

    Raises:
        ValueError: the torsos differ; names the first tensor that does.
    """
    ours = network.state_dict()
    differing = sorted(name for name in {*weights, *ours} if not _fits(weights.get(name), ours.get(name)))
    if torso := [name for name in differing if name.startswith(TORSO)]:
        there, here = (_shape(tensors[torso[0]].shape if torso[0] in tensors else None) for tensors in (weights, ours))
        raise ValueError(
            f"its torso is another one ({torso[0]} is {there} there and {here} here): agent.torso, agent.nap, nap and "
            "plasticity have to be as in that run"
        )
    kept = {name: tensor for name, tensor in weights.items() if not differing or name.startswith(TORSO)}
    network.load_state_dict({**ours, **kept})
    return sorted(set(ours) - set(kept))


def _check_torso_of_run(folder: Path, config: Config) -> None:
    checkpoint.verified_tensors(folder, "network")  # a damaged file is named now
    theirs = _torso_settings(schema.from_dict(checkpoint.read_meta(folder)["config"]))
    for name, ours in _torso_settings(config).items():
        if theirs[name] != ours:
            raise ValueError(
                f"its torso is another one ({name}: {theirs[name]} there and {ours} here): agent.torso, "
                "agent.net_arch, agent.nap, nap and plasticity have to be as in that run"
            )


def _torso_settings(config: Config) -> dict[str, Any]:
    """What certainly changes the torso's function, or tensors' names or shapes; what only may is left to `transfer`."""
    norms = "plain" if config.nap.affine is schema.Affine.omit else "learnable"
    return {
        "agent.torso": config.agent.torso,
        "agent.net_arch": _list(config.agent.net_arch),
        "agent.width": config.agent.width,
        "agent.spectral_norm": config.agent.spectral_norm,
        "agent.activation": config.agent.activation.name,
        "norms by agent.nap": norms if config.agent.nap and config.nap.normalize else "none",
        "plasticity=crelu": config.plasticity.name == "crelu",
    }


def _check_torso_of_zip(source: str, config: Config, observations: Observations) -> None:
    from nap_rl.sb3 import layout

    theirs, ours = layout.read_torso(source), _torso_settings(config)
    if theirs is None:
        return
    if not theirs.fits(observations.stack, observations.shape):
        seen = [observations.stack, *observations.shape]
        raise ValueError(f"it acts on {theirs.acts_on}, and {config.env.name} shows observations of {seen}")
    said = {"agent.torso": theirs.name, "agent.net_arch": _list(theirs.net_arch), "agent.activation": theirs.activation}
    for name, value in said.items():
        if ours[name] != value:
            raise ValueError(
                f"its torso is another one ({name}: {value} there and {ours[name]} here): use {name}={value}"
            )
    norms = (config.nap.norm.name, config.nap.axes.name, config.nap.affine is not schema.Affine.omit)
    if theirs.norms is not None and (ours["norms by agent.nap"] == "none" or norms != theirs.norms):
        norm, axes, affine = theirs.norms
        settings = f"agent.nap=true nap.norm={norm} nap.axes={axes}" + ("" if affine else " nap.affine=omit")
        raise ValueError(f"its torso has NaP's norms: use {settings}")
    if ours["plasticity=crelu"]:
        raise ValueError("plasticity=crelu gives the torso twice the features of a zip's: use another method")


def _list(widths: Sequence[int]) -> str:
    """As it is typed."""
    return f"[{','.join(map(str, widths))}]"


@contextmanager
def _naming(source: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise type(error)(f"agent.init_from={source}: {error}") from None


def _is_zip(source: str) -> bool:
    return Path(source).is_file()


def _from_run(source: str, network: QNetwork) -> str | None:
    fresh = transfer(_read_run(source), network)
    if any(getattr(stream, "is_injected", False) for stream in network.streams.children()):
        raise ValueError("its streams were injected already, which plasticity=injection does once: use another method")
    layers = sorted({name.rsplit(".", 1)[0] for name in fresh})
    return f"only the torso fits and is kept; FRESH are {', '.join(layers)}" if fresh else None


def _from_zip(source: str, network: QNetwork, make_env: Callable[[], TaskStream]) -> str | None:
    from nap_rl.sb3 import transfer

    model = _read_zip(source)
    fit = transfer.initialize(model, network)
    return transfer.describe(model, network, fit, lambda before: real_stacks(make_env(), before))


def _read_run(source: str) -> Mapping[str, Tensor]:
    """The online network's tensors, by their names in `QNetwork`, on the CPU."""
    return checkpoint.load_tensors(checkpoint.newest_of_run(Path(source)), "network")


def _read_zip(source: str) -> Model:
    status = Path(source).stat()
    return _read_zip_once(source, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1)
def _read_zip_once(source: str, size: int, changed: int) -> Model:
    from nap_rl.sb3.model import read_model

    return read_model(source)


def real_stacks(env: TaskStream, network: QNetwork) -> npt.NDArray[np.uint8]:
    """Observations [1000, stack, *frame] of `env`, acted in greedily but for every tenth action; closes it."""
    import torch

    from nap_rl.agents import FrameStack

    rng = np.random.default_rng(0)
    frames, first = env.reset(), np.ones(env.num_envs, dtype=bool)
    stack = FrameStack.of(env)
    seen: list[npt.NDArray[np.uint8]] = []
    while len(seen) * env.num_envs < OBSERVATIONS:
        seen.append(stack.push(frames, first).copy())
        with torch.no_grad():
            actions = network.q_values(torch.from_numpy(seen[-1])).argmax(dim=1).numpy()
        random = rng.random(env.num_envs) < RANDOM_SHARE
        step = env.step(np.where(random, rng.integers(0, env.num_actions, env.num_envs), actions))
        frames, first = step.observations, step.ended
    env.close()
    return np.concatenate(seen)[:OBSERVATIONS]


def _fits(theirs: Tensor | None, ours: Tensor | None) -> bool:
    return theirs is not None and ours is not None and theirs.shape == ours.shape


def _shape(shape: Sequence[int] | None) -> str:
    return "missing" if shape is None else "x".join(map(str, shape)) or "a number"
