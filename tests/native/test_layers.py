"""Native layers against the plain ones they stand for: outputs, gradients, autocast, and when they take native code."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nap_rl.native import layers, library
from nap_rl.native.layers import NativeConv2d, NativeLinear, NativeNoisyLinear, NativeQNetwork, replace_layers
from nap_rl.nn import ExpectedValue, ImpalaTorso, NatureTorso, NoisyLinear, QNetwork, Streams

PRECISIONS = [torch.float32, torch.bfloat16]
PRODUCTS = {"product", "input_gradient", "weight_gradient"}
CONVOLUTIONS = {"convolution", "convolution_input_gradient", "convolution_weight_gradient"}
Check = Callable[..., set[str]]


def apply(layer: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = layer(x)
    return y


def noisy(layer: nn.Module, x: Tensor) -> Tensor:
    """One draw for the whole batch, the same at every call."""
    eps_in, eps_out = torch.linspace(-1, 2, 1024), torch.linspace(2, -1, 512)
    y: Tensor = layer(x, (eps_in, eps_out))
    return y


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("kind", "run"), [(nn.Linear, apply), (NoisyLinear, noisy)])
def test_large_linear_layers_are_native_products_in_compiled_graphs(
    check_layer: Check, operators: str, kind: type[nn.Module], run: Check, precision: torch.dtype
) -> None:
    torch.manual_seed(0)
    x, dy = torch.randn(20, 1024, requires_grad=True), torch.randn(20, 512)
    taken = check_layer(kind(1024, 512), run, x, dy, precision)
    assert taken == PRODUCTS or (operators == "native" and precision is torch.bfloat16 and not taken)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rows", [5, 9])
@pytest.mark.parametrize("bias", [True, False])
def test_small_linear_layers_and_large_batches_are_torch_products(
    check_layer: Check, bias: bool, rows: int, precision: torch.dtype
) -> None:
    torch.manual_seed(0)
    x, dy = torch.randn(rows, 24, requires_grad=True), torch.randn(rows, 7)
    assert check_layer(nn.Linear(24, 7, bias=bias), apply, x, dy, precision) == set()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_convolutions_are_native_in_compiled_graphs(
    check_layer: Check, operators: str, bias: bool, precision: torch.dtype
) -> None:
    torch.manual_seed(0)
    x, dy = torch.randn(5, 4, 20, 24, requires_grad=True), torch.randn(5, 32, 4, 5)
    taken = check_layer(nn.Conv2d(4, 32, 8, 4, bias=bias), apply, x, dy, precision)
    assert taken == CONVOLUTIONS or (operators == "native" and precision is torch.bfloat16 and not taken)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_first_convolution_of_a_network_reads_pixels(
    check_layer: Check, operators: str, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    torso = nn.Sequential(nn.Conv2d(4, 32, 8, 4), nn.Flatten())
    network = QNetwork(torso, Streams(32 * 20 * 20, 3, 1, hidden=8, dueling=False, sigma0=None), ExpectedValue())
    stacks, dy = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8), torch.randn(3, 3, 1)
    seen: list[torch.dtype] = []
    reads = NativeConv2d.reads

    def spy(layer: NativeConv2d, x: Tensor) -> bool:
        if torch.compiler.is_compiling():
            seen.append(x.dtype)
        return reads(layer, x)

    monkeypatch.setattr(NativeConv2d, "reads", spy)
    taken = check_layer(network, apply, stacks, dy, precision)
    known = operators == "stand-ins" or precision is torch.float32 or "convolution" in taken
    assert ("convolution" in taken) is known
    assert seen[-1] is (torch.uint8 if known else torch.float32)


@pytest.mark.parametrize("channels", [4, 3])
def test_pixels_that_no_layer_reads_are_divided_by_255_in_a_compiled_graph(channels: int) -> None:
    network = QNetwork(nn.Flatten(), Streams(channels * 132, 3, 1, 4, False, None), ExpectedValue())
    replace_layers(network)
    assert isinstance(network, NativeQNetwork)
    stacks = torch.arange(2 * channels * 12 * 11).remainder(256).view(2, channels, 12, 11).to(torch.uint8)
    torch._dynamo.reset()
    divided = torch.compile(network.scale, dynamic=False, fullgraph=True, backend="aot_eager")(stacks)
    assert divided.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(divided, stacks.float() / 255.0) and torch.equal(network.scale(stacks), divided)


@pytest.mark.skipif(library() is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("kind", [nn.Linear, NoisyLinear])
def test_acting_takes_few_rows_in_inference_mode_alone(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = kind(1024, 512)
    x, noise = torch.randn(8, 1024), (torch.randn(8, 1024), torch.randn(8, 512))
    arguments = (x, noise) if isinstance(layer, NoisyLinear) else (x,)
    plain, calls, few_rows = layer(*arguments), [], layers.few_rows
    monkeypatch.setattr(layers, "few_rows", lambda x, weight: calls.append(len(x)) or few_rows(x, weight))
    replace_layers(layer)
    with torch.no_grad():
        layer(*arguments)
    assert not calls
    with torch.inference_mode():
        found = layer(*arguments)
        layer(torch.randn(17, 1024))
    assert calls == [8] * (2 if isinstance(layer, NoisyLinear) else 1)
    torch.testing.assert_close(found, plain.detach(), rtol=1e-4, atol=1e-4)


def test_a_network_kept_in_bfloat16_gives_bfloat16(operators: str) -> None:
    """As a target network is: weights in bfloat16, under autocast."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 16, 1024)).bfloat16()
    x = torch.rand(20, 4, 20, 20)

    def run(x: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            y: Tensor = module(x)
        return y

    plain = run(x)
    replace_layers(module)
    torch._dynamo.reset()
    found = torch.compile(run, backend="aot_eager", fullgraph=True)(x)
    assert found.dtype is plain.dtype is torch.bfloat16
    torch.testing.assert_close(found, plain, rtol=0.0, atol=3e-2 * float(plain.abs().max()))


def test_layers_that_native_code_does_not_know_stay_as_they_are() -> None:
    network = QNetwork(NatureTorso(), Streams(3136, 3, 1, 8, True, 0.5), ExpectedValue())
    network.torso.append(nn.Conv2d(4, 4, 3, padding=1))
    network.torso.append(nn.Conv2d(4, 4, (3, 1)))
    names = list(network.state_dict())
    replace_layers(network)
    assert list(network.state_dict()) == names
    kinds = [type(layer) for layer in network.torso if isinstance(layer, nn.Conv2d)]
    assert kinds == [NativeConv2d] * 3 + [nn.Conv2d] * 2
    assert {type(layer) for layer in network.streams.noisy_layers()} == {NativeNoisyLinear}
    impala, linear = ImpalaTorso(), nn.Linear(3, 3)
    replace_layers(impala)
    replace_layers(linear)
    assert not any(isinstance(layer, NativeConv2d) for layer in impala.modules()) and isinstance(linear, NativeLinear)
