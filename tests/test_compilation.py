"""Which precision, whether to compile; and that neither changes what an update learns."""

from __future__ import annotations

import shutil
import warnings
from functools import partial

import pytest
import torch
import torch._inductor.config  # which reads CXX, once, and that tests change
from torch import Tensor, nn

from nap_rl.compilation import (
    WORTH_COMPILING,
    compiled_function,
    compiled_method,
    compiler,
    pick_compile,
    pick_precision,
)


def test_auto_is_float32_until_there_is_evidence() -> None:
    assert pick_precision("auto") is torch.float32
    assert pick_precision("fp32") is torch.float32
    assert pick_precision("bf16") is torch.bfloat16
    with pytest.raises(ValueError, match="precision is 'fp16', expected auto, fp32 or bf16"):
        pick_precision("fp16")


def test_auto_compiles_long_runs_and_no_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "true")  # a program that is there
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "kept")
    assert not pick_compile("auto", WORTH_COMPILING - 1)
    assert pick_compile("auto", WORTH_COMPILING)
    assert pick_compile("on", 1)
    assert not pick_compile("off", 1e9)
    with pytest.raises(ValueError, match="compile is 'yes', expected auto, on or off"):
        pick_compile("yes", 1)


@pytest.mark.parametrize("name", ["auto", "on"])
def test_a_missing_compiler_is_a_warning_and_no_failure(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.warns(UserWarning, match="there is no C\\+\\+ compiler 'no-such-compiler'"):
        assert not pick_compile(name, 1e9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not pick_compile("off", 1e9)


class Layered(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.shift = 1.0

    def shifted(self, x: Tensor, *, times: float = 2.0) -> Tensor:
        shifted: Tensor = self.layer(x) * times + self.shift
        return shifted


@pytest.mark.parametrize(
    "backend",
    [
        "eager",
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(shutil.which(compiler()) is None, reason="needs a C++ compiler"),
            ],
        ),
    ],
)
@torch._dynamo.config.patch(suppress_errors=False)  # type: ignore[untyped-decorator]
def test_two_objects_of_one_class_have_graphs_of_their_own_and_inputs_are_still_looked_at(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of modules nothing is asked at a call, so a shared graph would give the first one's layer to the second."""
    if backend == "eager":  # the graphs as they were traced, without C++ made of them
        traced = partial(torch.compile, backend="eager", dynamic=False)
        monkeypatch.setattr(torch, "compile", lambda function, **options: traced(function))
    first, second = Layered(nn.LeakyReLU(0.5)), Layered(nn.LeakyReLU(0.25))
    compiled = [compiled_method(each.shifted, on_cpu=True) for each in (first, second)]
    for _ in range(2):
        assert [float(run(torch.tensor([-4.0]))) for run in compiled] == [-3.0, -1.0]
    assert compiled[0](torch.full((2, 3), -4.0), times=1.0).tolist() == [[-1.0] * 3] * 2  # another shape and number
    with torch.inference_mode():
        assert float(compiled[1](torch.tensor([4.0]))) == 9.0
    gradient_of = torch.tensor([-4.0], requires_grad=True)
    compiled[0](gradient_of).backward()
    assert gradient_of.grad is not None and float(gradient_of.grad) == 1.0


def halved(pair: tuple[Tensor, Tensor], *, by: float = 2.0) -> dict[str, Tensor]:
    first, second = pair
    first.add_(1.0)
    return {"sum": (first + second) / by}


def test_a_compiled_function_gives_and_changes_what_the_function_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs, options: graph)  # operator by operator
    first, second = torch.full((2,), 3.0), torch.full((2,), 4.0)
    run = compiled_function(halved, [(torch.zeros(2), torch.ones(2))], [])
    assert run()["sum"].tolist() == [1.0, 1.0]
    run = compiled_function(halved, [], [(torch.zeros(2), torch.ones(2))])
    assert run((first, second))["sum"].tolist() == [4.0, 4.0] and first.tolist() == [4.0, 4.0]


def test_what_is_fixed_is_read_and_changed_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs, options: graph)
    total = torch.zeros(2)
    add = compiled_function(lambda total, more: total.add_(more), [total], [torch.ones(2)])
    add(torch.ones(2))
    total.mul_(10.0)
    add(torch.full((2,), 3.0))
    assert total.tolist() == [13.0, 13.0]


def test_a_compiler_that_fails_is_a_warning_and_the_function_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("error: out of\nmemory")

    monkeypatch.setattr(torch._inductor, "compile", fail)
    with pytest.warns(UserWarning, match=r"run uncompiled, more slowly: the compiler failed \(error: out of memory\)"):
        run = compiled_function(halved, [], [(torch.zeros(2), torch.ones(2))])
    assert run((torch.zeros(2), torch.ones(2)))["sum"].tolist() == [1.0, 1.0]
