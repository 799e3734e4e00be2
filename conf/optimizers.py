"""From `optimizer=` to the optimiser of a network."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from nap_rl.conf.environments import Observations
from nap_rl.conf.learning_rates import gives_output
from nap_rl.conf.optimizer_schema import OPTIMIZERS, AdamOptimizer, CustomOptimizer, MuonOptimizer, SGDOptimizer
from nap_rl.conf.schedule_schema import RecordedSchedule, Scope
from nap_rl.conf.schema import Config
from nap_rl.dotted import import_object

if TYPE_CHECKING:  # settings are checked before torch is imported
    import torch

    from nap_rl.nn import QNetwork


def check(config: Config) -> None:
    """Raises ValueError for an optimiser that is none, or whose settings exclude each other. Needs no torch."""
    settings = config.optimizer
    name = settings.name
    if not isinstance(settings, CustomOptimizer):
        names = [each for each in OPTIMIZERS if each != "custom"]
        if name not in names:
            raise ValueError(
                f"optimizer.name={name} is none of {', '.join(names)}: "
                f"a class by its dotted path goes with optimizer=custom optimizer.name={name}"
            )
        if OPTIMIZERS[name] is not type(settings):
            raise ValueError(f"optimizer.name={name} has other settings: choose optimizer={name}")
        if getattr(settings, "nesterov", False) and not getattr(settings, "momentum", 1.0):
            raise ValueError("optimizer.nesterov=true with optimizer.momentum=0.0, expected a momentum above 0")
        return
    if "." not in name:
        raise ValueError(f"optimizer.name={name} is no dotted path of a class, expected one such as torch.optim.NAdam")
    if not isinstance(settings.options, (dict, type(None))):
        raise ValueError(
            f"optimizer.options={settings.options!r:.60}, expected arguments by name such as {{eps: 1e-3}}"
        )
    if own := sorted({"lr", "params"} & set(settings.options or {})):
        raise ValueError(f"optimizer.options.{own[0]} is set by agent.learning_rate and the network: leave it out")


def check_custom(config: Config, observations: Observations, num_actions: int) -> None:
    """Raises ValueError unless an optimiser by its dotted path steps the configuration's network and can be resumed.

    It makes three steps on a network that is thrown away, the third one on a copy too, from what a checkpoint keeps.
    """
    if not isinstance(config.optimizer, CustomOptimizer):
        return
    import torch

    from nap_rl.checkpoint.optimizer_state import counters, set_counters
    from nap_rl.conf.networks import build_network

    name = f"optimizer.name={config.optimizer.name}"
    network = build_network(config, num_actions, observations)
    optimizer = build(config, network)
    with torch.random.fork_rng(devices=[]):
        for update in (1, 2):
            _step(network, optimizer, update, name)
        resumed = copy.deepcopy(network)
        other = build(config, resumed)
        other.load_state_dict({**other.state_dict(), "state": _saved_and_loaded(optimizer, name)})
        try:
            set_counters(other, copy.deepcopy(counters(optimizer)))
        except ValueError as error:
            raise ValueError(
                f"{name} keeps {error} in its groups, which no checkpoint holds: use another one"
            ) from None
        _step(network, optimizer, 3, name)
        _step(resumed, other, 3, name)
    if not all(torch.equal(*pair) for pair in zip(network.parameters(), resumed.parameters(), strict=True)):
        raise ValueError(f"{name} does not go on exactly from its state_dict, as a resumed run has to: use another one")


def _saved_and_loaded(optimizer: torch.optim.Optimizer, name: str) -> dict[Any, dict[str, Any]]:
    from nap_rl.checkpoint.optimizer_state import decode_moments, encode_moments

    state: dict[Any, dict[str, Any]] = {}
    for index, moments in optimizer.state_dict()["state"].items():
        if not isinstance(index, int):
            raise ValueError(f"{name} keeps {index!r} of no parameter, which no checkpoint holds: use another one")
        try:
            state[index] = decode_moments(encode_moments(copy.deepcopy(moments)))
        except ValueError as error:
            raise ValueError(f"{name} keeps {error}, which no checkpoint holds: use another one") from None
    return state


def _step(network: QNetwork, optimizer: torch.optim.Optimizer, update: int, name: str) -> None:
    import torch

    torch.manual_seed(update)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    try:
        optimizer.step()
    except Exception as error:  # a class of anybody's may do anything
        raise ValueError(
            f"{name} makes no step on this network: {type(error).__name__}: {' '.join(str(error).split()):.200}"
        ) from None


def build(
    config: Config, network: QNetwork, *, rate: float | torch.Tensor | None = None, captured: bool = False
) -> torch.optim.Optimizer:
    """The optimiser over all parameters of `network`.

    Args:
        rate: the first learning rate; None for agent.learning_rate.
        captured: for a CUDA graph; see `can_be_captured`.

    Raises:
        ValueError: a class by its dotted path that is none, or does not take these options; one sentence.
    """
    import torch

    from nap_rl.nap import weight_groups
    from nap_rl.nap.groups import split_groups

    optimizer = _build(config, network, config.agent.learning_rate if rate is None else rate, captured)
    if isinstance(config.schedule, RecordedSchedule) and config.schedule.scope is Scope.layer:
        layers = weight_groups(network)
        split_groups(optimizer, {name: layers[name] for name in layers if not gives_output(name)})
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


def can_be_captured(config: Config) -> bool:
    """Whether its step can be part of a CUDA graph."""
    return config.optimizer.name in ("adam", "adamw")


def _build(config: Config, network: QNetwork, rate: float | torch.Tensor, captured: bool) -> torch.optim.Optimizer:
    import torch

    settings, eps = config.optimizer, config.agent.adam_eps
    options: dict[str, Any] = {key: value for key, value in asdict(settings).items() if key != "name"}
    if isinstance(settings, CustomOptimizer):
        return _custom(settings, network, float(rate))
    if isinstance(settings, (AdamOptimizer, MuonOptimizer)):
        betas = options.pop("beta1"), options.pop("beta2")
    if isinstance(settings, AdamOptimizer):
        kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
        parameters = network.parameters()
        return kind(parameters, lr=rate, betas=betas, eps=eps, fused=True, capturable=captured, **options)
    rate = float(rate)
    if isinstance(settings, MuonOptimizer):
        from nap_rl.optimizers import MuonAndAdamW

        matrices = hidden_matrices(network)
        chosen = {id(matrix) for matrix in matrices}
        others = [parameter for parameter in network.parameters() if id(parameter) not in chosen]
        decay = options["weight_decay"]
        adamw = {"betas": betas, "eps": eps, "weight_decay": decay, "fused": True}
        return MuonAndAdamW(matrices, others, lr=rate, muon=options, adamw=adamw)
    if isinstance(settings, SGDOptimizer):
        return torch.optim.SGD(network.parameters(), lr=rate, fused=True, **options)
    return torch.optim.RMSprop(network.parameters(), lr=rate, **options)


def hidden_matrices(network: QNetwork) -> list[torch.Tensor]:
    """Weights [out, in] of fully connected layers that give no output."""
    from nap_rl.nap import weight_groups

    layers = weight_groups(network)
    return [each for name in layers if not gives_output(name) for each in layers[name] if each.ndim == 2]


def _custom(settings: CustomOptimizer, network: QNetwork, rate: float) -> torch.optim.Optimizer:
    import torch

    name = f"optimizer.name={settings.name}"
    try:
        kind = import_object(settings.name)
        if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
            raise ValueError("it is no class of torch.optim.Optimizer")
        return cast(torch.optim.Optimizer, cast(Any, kind)(network.parameters(), lr=rate, **(settings.options or {})))
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"{name}: {' '.join(str(error).split()):.200}") from None
