"""A zip in our terms, every shape checked: what acts, and Adam's moments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nap_rl.nn import NetworkSpec, QNetwork
from nap_rl.sb3 import layout
from nap_rl.sb3.archive import Archive, ZipError, naming, read
from nap_rl.sb3.learning import adam_settings, trained_with_adam
from nap_rl.sb3.networks import build_network
from nap_rl.sb3.observations import Observations, space_from_plain
from nap_rl.sb3.said_spaces import MOST_SIZE, said_observations, whole

MOMENTS = ("exp_avg", "exp_avg_sq")
Moments = dict[str, dict[str, Tensor]]


class Model(NamedTuple):
    """A zip of DQN, QRDQN or Rainbow."""

    path: Path
    algorithm: str
    spec: NetworkSpec
    observations: Observations
    actions: int
    network: dict[str, Tensor]
    target: dict[str, Tensor]
    moments: Moments  # Adam's, by parameter; {} where the zip has none of Adam
    adam: dict[str, Any]  # lr, betas, eps and weight_decay
    archive: Archive

    @property
    def stack(self) -> int:
        """Frames in an observation."""
        return self.observations.stack

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Of one frame."""
        return self.observations.frame_shape

    @property
    def hints(self) -> dict[str, Any]:
        """The plain fields of `data`, to be checked."""
        return self.archive.hints

    def build(self) -> QNetwork:
        """The online network."""
        network = build_network(self.spec, self.frame_shape, self.stack, self.actions)
        network.load_state_dict(self.network)
        return network

    def optimizer(self, network: QNetwork) -> torch.optim.Adam:
        """Adam over `network`, with the moments and settings of the zip."""
        optimizer = torch.optim.Adam(network.parameters(), **self.adam, fused=True)
        load_moments(optimizer, network, self.moments)
        return optimizer


def load_moments(optimizer: torch.optim.Optimizer, network: QNetwork, moments: Moments) -> None:
    """Adam's moments by name of parameter; the optimiser keeps its own settings."""
    state = {i: moments[name] for i, (name, _) in enumerate(network.named_parameters()) if name in moments}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def read_model(path: str | Path) -> Model:
    """Read a zip of DQN, of sb3-contrib's QRDQN or of `nap_rl.sb3.Rainbow`.

    Raises:
        FileNotFoundError: there is no such file.
        ZipError: the zip is damaged or hostile, or its policy cannot act here; one sentence.
    """
    archive = read(path)
    with naming(archive.path):
        try:
            return _model(archive)
        except ZipError:
            raise
        except (ValueError, TypeError, KeyError, RuntimeError, OverflowError, MemoryError, AttributeError) as error:
            raise ZipError(f"describes no network that can be built: {error}") from None


def _model(archive: Archive) -> Model:
    if "nap_rl" in archive.hints:
        return _rainbow(archive)
    prefixes = {name.split(".", 1)[0] for name in archive.policy}
    for net in layout.NETS:
        if prefixes == {net, f"{net}_target"}:
            return _sb3(archive, net)
    found = ", ".join(sorted(prefixes)[:4]) or "nothing"
    raise ZipError(f"is no zip of DQN, QRDQN or Rainbow: its policy holds {found[:80]}")


def _sb3(archive: Archive, net: str) -> Model:
    """DQN or QR-DQN: names and layouts of SB3."""
    online, target = _split(archive, net)
    _check_policy_kwargs(archive.hints.get("policy_kwargs"))
    theirs = layout.sb3_layers(online, net)
    rows = online[f"{theirs[-1]}.bias"].numel()
    actions, quantiles = _outputs(archive.hints, net, rows)
    spec = replace(layout.describe(online, net, quantiles), activation=layout.said_activation(archive.hints, theirs))
    observations = said_observations(archive.hints, spec, online)
    sizes = (observations.frame_shape, observations.stack, actions)
    layers = dict(zip(theirs, layout.our_layers(spec, *sizes), strict=True))

    def ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return layout.actions_first(layout.rename(tensors, layers), actions, quantiles)

    network = ours(online)
    _check_shapes(network, spec.shapes(*sizes), exactly=True)
    moments = _moments(archive, list(online), online) if trained_with_adam(archive) else {}
    kinds = {kind: ours({name: state[kind] for name, state in moments.items()}) for kind in MOMENTS}
    steps = layout.rename({name: state["step"] for name, state in moments.items()}, layers)
    renamed = {name: {"step": steps[name], **{kind: kinds[kind][name] for kind in MOMENTS}} for name in steps}
    adam = adam_settings(archive, default_eps=1e-8)
    return Model(
        archive.path, layout.NETS[net], spec, observations, actions, network, ours(target), renamed, adam, archive
    )


def _rainbow(archive: Archive) -> Model:
    """Ours: the names are as they are, and `data` says in plain values what they belong to."""
    said = archive.hints["nap_rl"]
    spec = NetworkSpec.from_plain(said["network"])
    stack, actions, frame_shape = said["stack"], said["actions"], tuple(said["frame_shape"])
    for size in (stack, actions, *frame_shape):
        if type(size) is not int or not 1 <= size <= MOST_SIZE:
            raise ZipError(f"gives {size!r:.40} as a size, expected a whole number")
    online, target = _split(archive, "q_net")
    # The network without norms is compared first, so that nothing is built which the zip has no tensors for.
    _check_shapes(online, spec.shapes(frame_shape, stack, actions), exactly=False)
    network = build_network(spec, frame_shape, stack, actions)
    _check_shapes(online, {name: tuple(t.shape) for name, t in network.state_dict().items()}, exactly=True)
    moments = _moments(archive, [name for name, _ in network.named_parameters()], online)
    adam = adam_settings(archive, default_eps=1.5e-4)
    observations = Observations.of(space_from_plain(said["observations"]), stack, frame_shape)
    return Model(archive.path, "Rainbow", spec, observations, actions, online, target, moments, adam, archive)


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


def _outputs(hints: Mapping[str, Any], net: str, rows: int) -> tuple[int, int]:
    """(actions, quantiles) of an output layer; what the zip says is compared with the layer's rows."""
    space = hints.get("action_space")
    space = space if isinstance(space, dict) else {}
    start, said = whole(space.get("start", 0)), whole(space.get("n"))
    if start:
        raise ZipError(f"has an action_space that starts at {start}, expected Discrete(n) from 0")
    if net == "q_net":
        actions, quantiles = rows, 1
    else:
        # SB3's default where neither field says it.
        quantiles = whole(hints.get("n_quantiles")) or (rows // said if said else 200)
        actions = rows // quantiles if 0 < quantiles <= rows else 0
    if not 1 <= actions <= MOST_SIZE or actions * quantiles != rows:
        raise ZipError(f"has {rows} outputs, which are not {quantiles} quantiles for each of some actions")
    return actions, quantiles


def _check_policy_kwargs(kwargs: Any) -> None:
    """What shapes cannot tell, as far as SB3 wrote it in plain text."""
    if not isinstance(kwargs, dict):
        return
    if str(kwargs.get("normalize_images")) == "False":
        raise ZipError("was trained with normalize_images=False, but our networks divide pixels by 255")
    extractor = str(kwargs.get("features_extractor_class", ".NatureCNN'"))
    if not any(known in extractor for known in (".NatureCNN'", ".FlattenExtractor'")):
        raise ZipError(f"was trained with features_extractor_class {extractor[:80]}, expected NatureCNN")


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
