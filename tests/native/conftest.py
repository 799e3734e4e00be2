"""Native layers beside the plain ones, on every CPU: the operators may be stood in for by plain torch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from nap_rl import cli
from nap_rl.agents import ValueAgent
from nap_rl.conf import build, schema
from nap_rl.conf.check import to_config
from nap_rl.native import layers, library
from nap_rl.native.convolution import has_convolution
from nap_rl.native.products import has_product

Function = Callable[[Tensor], Tensor]


def _scaled(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) / 255 if x.dtype is torch.uint8 else x


def _convolution(x: Tensor, weight: Tensor, stride: int, dtype: torch.dtype) -> Tensor:
    y = F.conv2d(_scaled(x, dtype).float(), weight, stride=stride).to(dtype)
    return y.contiguous(memory_format=torch.channels_last)


def _convolution_input_gradient(dy: Tensor, weight: Tensor, height: int, width: int, stride: int) -> Tensor:
    shape = [len(dy), weight.shape[1], height, width]
    dx = conv2d_input(shape, weight, dy.float(), stride=stride).to(dy.dtype)
    return dx.contiguous(memory_format=torch.channels_last)


def _convolution_weight_gradient(dy: Tensor, x: Tensor, kernel: int, stride: int) -> Tensor:
    x = _scaled(x, torch.float32).float()
    return conv2d_weight(x, [dy.shape[1], x.shape[1], kernel, kernel], dy.float(), stride=stride).contiguous()


STAND_INS: dict[str, Callable[..., Tensor]] = {
    "convolution": _convolution,
    "convolution_input_gradient": _convolution_input_gradient,
    "convolution_weight_gradient": _convolution_weight_gradient,
    "product": lambda x, weight: x @ weight.t(),
    "few_rows": lambda x, weight: x @ weight.t(),
    "input_gradient": lambda dy, weight: dy @ weight,
    "weight_gradient": lambda dy, x: dy.float().t() @ x.float(),
}


@pytest.fixture(params=["stand-ins", "native"])
def operators(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The operators in plain torch, for every layer; or as compiled here, where this CPU has them."""
    if request.param == "native":
        known = library() is not None and has_product(32, 8, torch.float32)
        if not known or not has_convolution(32, 32, 3, 1, torch.float32):
            pytest.skip("needs a C++ compiler and AVX-512")
        yield "native"
        return
    monkeypatch.setattr(layers, "has_product", lambda *sizes: True)
    monkeypatch.setattr(layers, "has_convolution", lambda *sizes, pixels=False: True)
    with torch.library._scoped_library("nap_rl", "IMPL") as fragment:
        for name, function in STAND_INS.items():
            fragment.impl(name, function, "CPU", allow_override=True)
        yield "stand-ins"


def _gradients(function: Function, x: Tensor, dy: Tensor, learnt: list[nn.Parameter]) -> tuple[list[Tensor], set[str]]:
    """The output and its gradients to x, where it has one, and to what is learnt; and the native operators that ran."""
    leaves = [x, *learnt] if x.requires_grad else learnt
    with torch.profiler.profile() as profile:
        y = function(x)
        found = [y.detach(), *torch.autograd.grad((y.float() * dy).sum(), leaves)]
    return found, {event.key for event in profile.key_averages() if event.key.startswith("nap_rl::")}


def _check(layer: nn.Module, run: Callable[..., Tensor], x: Tensor, dy: Tensor, precision: torch.dtype) -> set[str]:
    native = copy.deepcopy(layer)
    layers.replace_layers(native)
    assert list(native.state_dict()) == list(layer.state_dict())

    def in_precision(module: nn.Module) -> Function:
        def forward(x: Tensor) -> Tensor:
            with torch.autocast("cpu", precision, enabled=precision is not torch.float32):
                return run(module, x)

        return forward

    torch._dynamo.reset()
    compiled = torch.compile(in_precision(native), backend="aot_eager", fullgraph=True)
    plain, none = _gradients(in_precision(layer), x, dy, [*layer.parameters()])
    found, taken = _gradients(compiled, x, dy, [*native.parameters()])
    uncompiled, none_either = _gradients(in_precision(native), x, dy, [*native.parameters()])
    assert none == none_either == set()
    for a, b, c in zip(found, plain, uncompiled, strict=True):
        assert a.dtype is b.dtype and torch.equal(b, c)
        bound = 1e-5 if precision is torch.float32 else 3e-2
        torch.testing.assert_close(a, b, rtol=0.0, atol=bound * float(b.abs().max()))
    return {name.removeprefix("nap_rl::") for name in taken}


@pytest.fixture
def rainbow() -> Callable[..., ValueAgent]:
    """A small agent as a run builds it, plain, over a replay of noise pictures; the same at every call."""
    schema.register()
    cli.register_resolvers()
    small = [
        "agent=rainbow",
        "agent.nap=true",
        "agent.torso=data_efficient",
        "agent.hidden=32",
        "agent.batch_size=8",
        "env.num_envs=2",
        "replay.capacity=200",
        "agent.min_replay_steps=100",
        "device=cpu",
        "native=off",
    ]

    def make(*overrides: str) -> ValueAgent:
        config = to_config(cli.compose("config", [*small, "compile=off", *overrides]))
        agent, _ = build.build_agent(config, 4, torch.device("cpu"))
        with torch.no_grad():  # one action is clearly the best: of two that are nearly equal, rounding would choose
            bias = agent.network.streams.advantage.output.bias_mu
            assert isinstance(bias, Tensor)
            bias += torch.linspace(0, 4, len(bias))
            agent.copy_to_target()
        rng = np.random.default_rng(0)
        for k in range(90):
            frames = rng.integers(0, 256, (2, 84, 84)).astype(np.uint8)
            agent.replay.add(frames, rng.integers(0, 4, 2), rng.normal(size=2), np.ones(2), np.full(2, k % 30 == 0))
        return agent

    return make


@pytest.fixture
def check_layer() -> Callable[[nn.Module, Callable[..., Tensor], Tensor, Tensor, torch.dtype], set[str]]:
    """A native layer gives what `run(layer, x)` gives, compiled and not; returns the operators it took, compiled."""
    return _check
