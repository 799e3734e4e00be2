"""SB3's zips as agents of ours: DQN and QR-DQN (sb3-contrib) exactly, and `nap_rl.sb3.Rainbow`.

SB3's names are mapped to ours and every shape is compared with the network that is built to take it. Two layouts
differ: SB3 has the quantiles of QR-DQN before the actions, and its CnnPolicy a layer of its own between convolutions
and output, which is the hidden layer of our stream.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nap_rl.agents import ValueAgent
from nap_rl.nn import NetworkSpec, QNetwork
from nap_rl.replay import Replay
from nap_rl.sb3.archive import Archive, ZipError, naming, number, read
from nap_rl.sb3.policy import build_network, to_stacks

CNN = {
    "features_extractor.cnn.0": "torso.0",
    "features_extractor.cnn.2": "torso.2",
    "features_extractor.cnn.4": "torso.4",
    "features_extractor.linear.0": "streams.advantage.hidden",
}
OUTPUT = "streams.advantage.output"
NETS = {"q_net": "DQN", "quantile_net": "QRDQN"}
SB3_TRAIN_FREQ = 4  # agent steps an update: what a zip was trained with is pickled in it, so this is SB3's default
Moments = dict[str, dict[str, Tensor]]


class Model(NamedTuple):
    """A zip in our terms, every shape checked."""

    path: Path
    algorithm: str  # DQN, QRDQN or Rainbow
    spec: NetworkSpec
    frame_shape: tuple[int, ...]
    stack: int
    actions: int
    network: dict[str, Tensor]
    target: dict[str, Tensor]
    moments: Moments  # Adam's, by parameter; {} where the zip has none of Adam
    adam: dict[str, Any]  # lr, betas, eps and weight_decay
    hints: dict[str, Any]
    variables: dict[str, Any]  # further tensors of a Rainbow zip

    def build(self) -> QNetwork:
        """The online network."""
        network = build_network(self.spec, self.frame_shape, self.stack, self.actions)
        network.load_state_dict(self.network)
        return network

    def optimizer(self, network: QNetwork) -> torch.optim.Adam:
        """Adam over `network` as it was when the zip was written."""
        optimizer = torch.optim.Adam(network.parameters(), **self.adam, fused=True)
        load_moments(optimizer, network, self.moments)
        return optimizer


@dataclass(frozen=True)
class LoadedPolicy:
    """An SB3 policy that can act, as SB3's do, and learn on, as ours do: `agent`."""

    agent: ValueAgent
    model: Model
    exploration_rate: float

    def predict(
        self,
        observation: npt.NDArray[Any],
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = True,
    ) -> tuple[npt.NDArray[np.int64], tuple[npt.NDArray[Any], ...] | None]:
        """Actions [N] (0-dim for one observation) and `state` as it came: there is no recurrence.

        Args:
            observation: [*shape] or [N, *shape]; images with their channels first or last, the newest frame last.
            episode_start: not needed.
            deterministic: greedy and without noise; else epsilon-greedy with the rate that was saved, under noise.
        """
        del episode_start
        model = self.model
        shape = observation_shape(model.spec, model.frame_shape, model.stack)
        stacks, batched = to_stacks(observation, shape, model.stack, model.frame_shape)
        if model.spec.torso == "mlp" and model.algorithm != "Rainbow":
            stacks = stacks.astype(np.float32)  # SB3 divides pictures by 255, and no other bytes
        epsilon = 0.0 if deterministic else self.exploration_rate
        actions = self.agent.act(stacks, epsilon, noisy=not deterministic)
        return (actions if batched else actions.reshape(())), state


def load(
    path: str | Path, *, capacity: int = 100_000, num_envs: int = 1, device: torch.device | str = "cpu"
) -> LoadedPolicy:
    """An SB3 zip as a policy, and as an agent that learns on with the settings of the zip.

    Args:
        path: written by DQN, sb3-contrib's QRDQN or `nap_rl.sb3.Rainbow`, CnnPolicy or MlpPolicy.
        capacity, num_envs: of the agent's replay, which starts empty (SB3 keeps none in a zip).
        device: of the agent.

    Raises:
        FileNotFoundError: there is no such file.
        ZipError: the zip is damaged or hostile, or what it holds cannot be had here; one sentence.
    """
    model = read_model(path)
    with naming(model.path):
        return _policy(model, capacity, num_envs, device)


def _policy(model: Model, capacity: int, num_envs: int, device: torch.device | str) -> LoadedPolicy:
    network = model.build().to(device)
    hints, pixels = model.hints, model.spec.torso != "mlp"
    # SB3's AtariWrapper clips rewards outside of the agent.
    ours = model.algorithm == "Rainbow"
    clip = number(hints, "reward_clip", 0.0, 0.0, math.inf) if ours else float(pixels)
    train_freq = number(hints, "train_freq", 4, 1, 1e9) if ours else SB3_TRAIN_FREQ
    update_every = train_freq / (number(hints, "gradient_steps", 1, 1, 1e9) if ours else 1)
    target_every = number(hints, "target_update_interval", 10_000, 1, 1e15) / update_every
    replay = Replay(
        capacity,
        num_envs,
        frame_shape=model.frame_shape,
        frame_dtype=torch.uint8 if pixels else torch.float32,
        stack=model.stack,
        n_steps=int(number(hints, "n_steps", 1, 1, 1_000)),
        discount=number(hints, "gamma", 0.99, 0.0, 1.0),
        reward_clip=clip or None,
        exponent=number(hints, "priority_exponent", 0.0, 0.0, 10.0),
        uniform_probability=number(hints, "uniform_probability", 0.0, 0.0, 1.0),
        device=device,
    )
    agent = ValueAgent(
        network,
        model.optimizer(network),
        replay,
        double=ours,
        batch_size=int(number(hints, "batch_size", 32, 1, 1 << 20)),
        target_every_updates=max(int(target_every), 1),
        max_grad_norm=number(hints, "max_grad_norm", 0.0, 0.0, math.inf) or None,
    )
    agent.target.load_state_dict(model.target)
    agent.updates = int(number(hints, "_n_updates", 0, 0, 1 << 60))
    return LoadedPolicy(agent, model, number(hints, "exploration_rate", 0.0, 0.0, 1.0))


def read_model(path: str | Path) -> Model:
    """What `load` makes an agent of, without making it; the same errors."""
    archive = read(path)
    with naming(archive.path):
        try:
            return _model(archive)
        except ZipError:
            raise
        except (ValueError, TypeError, KeyError, RuntimeError, OverflowError, MemoryError) as error:
            raise ZipError(f"describes no network that can be built: {error}") from None


def _model(archive: Archive) -> Model:
    if "nap_rl" in archive.hints:
        return _rainbow(archive)
    prefixes = {name.split(".", 1)[0] for name in archive.policy}
    for net in NETS:
        if prefixes == {net, f"{net}_target"}:
            return _sb3(archive, net)
    found = ", ".join(sorted(prefixes)[:4]) or "nothing"
    raise ZipError(f"is no zip of DQN, QRDQN or Rainbow: its policy holds {found[:80]}")


def observation_shape(spec: NetworkSpec, frame_shape: tuple[int, ...], stack: int) -> tuple[int, ...]:
    """Of an observation as SB3 has it: frames one behind the other, channels first."""
    if spec.torso != "mlp" and len(frame_shape) == 2:
        return (stack, *frame_shape)
    return (stack * frame_shape[0], *frame_shape[1:])


def load_moments(optimizer: torch.optim.Optimizer, network: QNetwork, moments: Moments) -> None:
    """Adam's moments by name of parameter; the optimiser keeps its own settings."""
    state = {i: moments[name] for i, (name, _) in enumerate(network.named_parameters()) if name in moments}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _sb3(archive: Archive, net: str) -> Model:
    """DQN or QR-DQN: names and layouts of SB3."""
    online, target = _split(archive, net)
    _check_policy_kwargs(archive.hints.get("policy_kwargs"))
    space = archive.hints.get("action_space")
    if isinstance(space, dict) and str(space.get("start", "0")) != "0":
        raise ZipError(f"numbers its actions from {str(space['start']):.20}, expected from 0")
    linear = sorted({int(n.split(".")[1]) for n in online if n.startswith(f"{net}.") and n.split(".")[1].isdigit()})
    pixels = any(name.startswith("features_extractor.cnn.") for name in online)
    renamed = dict(CNN) if pixels else {f"{net}.{i}": f"torso.{1 + i}" for i in linear[:-2]}
    if len(linear) != 1 if pixels else len(linear) < 2:
        raise ZipError("has other fully connected layers than one hidden layer before the output, which a stream has")
    if not pixels:
        renamed[f"{net}.{linear[-2]}"] = "streams.advantage.hidden"
    renamed[f"{net}.{linear[-1]}"] = OUTPUT
    network, names = _rename(online, renamed), list(online)

    quantiles = int(number(archive.hints, "n_quantiles", 200, 1, 1 << 20)) if net == "quantile_net" else 1
    rows = network[f"{OUTPUT}.bias"].numel()
    if rows % quantiles:
        raise ZipError(f"has {rows} outputs, which are not {quantiles} quantiles for each of some actions")
    hidden = network["streams.advantage.hidden.weight"].shape[0]
    spec = NetworkSpec(
        torso="nature" if pixels else "mlp",
        net_arch=() if pixels else tuple(network[f"torso.{1 + i}.weight"].shape[0] for i in linear[:-2]),
        hidden=hidden,
        head="quantile" if net == "quantile_net" else "expected",
        outputs=quantiles,
        dueling=False,
        noisy_sigma0=None,
    )
    first = network["torso.0.weight" if pixels else _first_linear(network)]
    stack, frame_shape = (first.shape[1], (84, 84)) if pixels else (1, (first.shape[1],))
    actions = rows // quantiles
    _check_shapes(network, spec.shapes(frame_shape, stack, actions), exactly=True)

    def ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # SB3: row n * A + a is quantile n of action a; ours: row a * N + n.
        return {
            name: tensor.view(quantiles, actions, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)
            if name.startswith(OUTPUT)
            else tensor
            for name, tensor in tensors.items()
        }

    moments = _moments(archive, names, online) if _trained_with_adam(archive) else {}
    by_kind = {kind: ours(_rename({n: m[kind] for n, m in moments.items()}, renamed)) for kind in MOMENTS if moments}
    steps = _rename({n: m["step"] for n, m in moments.items()}, renamed)
    return Model(
        archive.path,
        NETS[net],
        spec,
        frame_shape,
        stack,
        actions,
        ours(network),
        ours(_rename(target, renamed)),
        {name: {"step": steps[name], **{kind: by_kind[kind][name] for kind in by_kind}} for name in steps},
        _adam(archive, default_eps=1e-8),
        archive.hints,
        {},
    )


def _rainbow(archive: Archive) -> Model:
    """Ours: the names are as they are, and `data` says in plain values what they belong to."""
    said = archive.hints["nap_rl"]
    spec = NetworkSpec.from_plain(said["network"])
    stack, actions, frame_shape = said["stack"], said["actions"], tuple(said["frame_shape"])
    for size in (stack, actions, *frame_shape):
        if type(size) is not int or not 1 <= size <= 1 << 20:
            raise ZipError(f"gives {size!r:.40} as a size, expected a whole number")
    online, target = _split(archive, "q_net")
    # The network without norms is compared first, so that nothing is built which the zip has no tensors for.
    _check_shapes(online, spec.shapes(frame_shape, stack, actions), exactly=False)
    network = build_network(spec, frame_shape, stack, actions)
    _check_shapes(online, {name: tuple(t.shape) for name, t in network.state_dict().items()}, exactly=True)
    names = [name for name, _ in network.named_parameters()]
    moments = _moments(archive, names, online)
    adam = _adam(archive, default_eps=1.5e-4)
    sizes = (frame_shape, stack, actions)
    return Model(archive.path, "Rainbow", spec, *sizes, online, target, moments, adam, archive.hints, archive.variables)


def _split(archive: Archive, net: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The online and the target network, which have the same names and shapes."""
    parts: dict[str, dict[str, Tensor]] = {net: {}, f"{net}_target": {}}
    for name, tensor in archive.policy.items():
        part, _, rest = name.partition(".")
        if part not in parts:
            raise ZipError(f"has a tensor '{name[:60]}' that is in neither network")
        parts[part][rest] = tensor
    online, target = parts[net], parts[f"{net}_target"]
    _check_shapes(target, {name: tuple(tensor.shape) for name, tensor in online.items()}, exactly=True)
    return online, target


def _check_shapes(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], exactly: bool) -> None:
    """ZipError unless the tensors are those; if not `exactly`, others may be there and biases may be missing."""
    for name, shape in shapes.items():
        if name in tensors and tuple(tensors[name].shape) != shape:
            raise ZipError(f"has '{name}' with shape {list(tensors[name].shape)}, expected {list(shape)}")
        if name not in tensors and (exactly or "bias" not in name):
            raise ZipError(f"has no tensor '{name}'")
    if exactly and (more := sorted(set(tensors) - set(shapes))):
        raise ZipError(f"has a tensor '{more[0][:60]}' too many")
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 and not name.endswith("num_batches_tracked"):
            raise ZipError(f"has '{name[:60]}' as {tensor.dtype}, expected float32")


def _rename(tensors: Mapping[str, Tensor], layers: Mapping[str, str]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if layer not in layers:
            raise ZipError(f"has a tensor '{name[:60]}', which is in no CnnPolicy or MlpPolicy of SB3")
        renamed[f"{layers[layer]}.{kind}"] = tensor
    return renamed


def _first_linear(network: Mapping[str, Tensor]) -> str:
    return "torso.1.weight" if "torso.1.weight" in network else "streams.advantage.hidden.weight"


def _check_policy_kwargs(kwargs: Any) -> None:
    """What shapes cannot tell, as far as SB3 wrote it in plain text."""
    if not isinstance(kwargs, dict):
        return
    if kwargs.get("normalize_images") is False:
        raise ZipError("was trained with normalize_images=False, but our networks divide pixels by 255")
    for name, known in {
        "activation_fn": (".ReLU'",),
        "features_extractor_class": (".NatureCNN'", ".FlattenExtractor'"),
    }.items():
        value = str(kwargs.get(name, known[0]))
        if not any(end in value for end in known):
            raise ZipError(f"was trained with {name} {value[:80]}, expected {known[0].strip(chr(39) + '.')}")


def _trained_with_adam(archive: Archive) -> bool:
    kwargs = archive.hints.get("policy_kwargs")
    name = str(kwargs.get("optimizer_class", ".Adam'")) if isinstance(kwargs, dict) else ".Adam'"
    if ".Adam'" in name:
        return True
    warnings.warn(f"{archive.path} was trained with {name:.80}: Adam takes its place, without moments", stacklevel=4)
    return False


MOMENTS = ("exp_avg", "exp_avg_sq")


def _moments(archive: Archive, names: list[str], tensors: Mapping[str, Tensor]) -> Moments:
    """Adam's state by parameter; {} before the first update or where another optimiser wrote it.

    SB3 before 2.4 listed the target network's parameters behind those of the online one; they have no state.
    """
    state = archive.optimizer.get("state")
    if not isinstance(state, dict) or not all(isinstance(entry, dict) for entry in state.values()):
        return {}
    entries = {i: entry for i, entry in state.items() if type(i) is int and i < len(names)}
    if not entries or not all({"step", *MOMENTS} <= set(entry) for entry in entries.values()):
        return {}
    if set(entries) != set(range(len(names))):
        raise ZipError(f"has Adam's state of {len(entries)} of {len(names)} parameters")
    moments: Moments = {}
    for i, name in enumerate(names):
        step = torch.as_tensor(entries[i]["step"], dtype=torch.float32)
        kinds = {kind: entries[i][kind] for kind in MOMENTS}
        for kind, tensor in kinds.items():
            if not isinstance(tensor, Tensor) or tensor.shape != tensors[name].shape or step.numel() != 1:
                raise ZipError(f"has an {kind} of '{name}' that does not fit it")
        moments[name] = {"step": step.reshape(()), **kinds}
    return moments


def _adam(archive: Archive, default_eps: float) -> dict[str, Any]:
    groups = archive.optimizer.get("param_groups")
    group = groups[0] if isinstance(groups, list) and groups and isinstance(groups[0], dict) else {}
    betas = group.get("betas")
    if not isinstance(betas, list) or len(betas) != 2:
        betas = [0.9, 0.999]
    named = {"beta1": betas[0], "beta2": betas[1]}
    return {
        "lr": number(group, "lr", 1e-4, 0.0, 10.0),
        "betas": (number(named, "beta1", 0.9, 0.0, 0.9999999), number(named, "beta2", 0.999, 0.0, 0.9999999)),
        "eps": number(group, "eps", default_eps, 0.0, 1.0),
        "weight_decay": number(group, "weight_decay", 0.0, 0.0, 1.0),
    }
