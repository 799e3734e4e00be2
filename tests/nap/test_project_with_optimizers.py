"""The projection with every optimiser, in every precision, and without host syncs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nap_rl.nap import Projector, normalize, weight_groups

Small = Callable[[], tuple[nn.Sequential, Tensor]]
NormOf = Callable[..., float]


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, foreach=False),
    "adam foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adam tensor lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.001),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.01, max_iter=2),
}


@pytest.mark.parametrize("affine", ["project", "regularize"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_projection_holds_with_every_optimizer(small: Small, norm_of: NormOf, name: str, affine: str) -> None:
    module, x = small()
    rho = {layer: norm_of(*ts) for layer, ts in weight_groups(module).items()}
    optimizer = OPTIMIZERS[name](module.parameters())
    projector = Projector(module, optimizer, affine=affine)  # type: ignore[arg-type]
    for _ in range(5):

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = (module(x) - 1).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
    assert max(abs(norm_of(module[n].weight) / rho[str(n)] - 1) for n in (0, 2)) < 1e-6
    assert abs(norm_of(module[4].weight) / rho["4"] - 1) > 1e-6
    assert projector.updates == 5


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{"capturable": True}, {"fused": True}, {"fused": True, "capturable": True}])
def test_projection_holds_on_cuda_within_a_captured_update(small: Small, options: dict[str, bool]) -> None:
    module, x = small()
    module, x = module.cuda(), x.cuda()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01, **options)  # type: ignore[arg-type]
    projector = Projector(module, optimizer)

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        (module(x) - 1).square().mean().backward()
        optimizer.step()

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # type: ignore[no-untyped-call]
        for _ in range(3):
            update()
        assert projector.max_relative_drift() < 1e-6
        if "capturable" in options:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                update()
            for _ in range(10):
                graph.replay()
    torch.cuda.synchronize()
    assert projector.max_relative_drift() < 1e-6


def test_autocast_updates_are_projected_in_full_precision(small: Small) -> None:
    module, x = small()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    projector = Projector(module, optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.mse_loss(module(x).float(), torch.ones(16, 3))
        loss.backward()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            optimizer.step()
    assert projector.max_relative_drift() < 1e-6
    assert module[0].weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_measured_and_scaled_in_float32(norm_of: NormOf, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 4)).to(dtype)
    normalize(module, torch.randn(8, 256).to(dtype))
    rho = norm_of(module[0].weight)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    Projector(module, optimizer)
    for factor in (1.5, 1.02):  # 1 / 1.02 is a factor that bfloat16 itself would round by 1e-3
        module[0].weight.data.mul_(factor)
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        assert norm_of(module[0].weight) == pytest.approx(rho, rel=2e-4)


def test_projection_makes_no_host_sync_and_one_multiplication_call_for_any_depth() -> None:
    class Counter(torch.utils._python_dispatch.TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    for depth in (2, 12):
        layers = [each for _ in range(depth) for each in (nn.Linear(64, 64), nn.ReLU())]
        module = nn.Sequential(*layers, nn.Linear(64, 2))
        normalize(module, torch.randn(4, 64))
        projector = Projector(module, torch.optim.SGD(module.parameters(), lr=0.1))
        with Counter() as counter:
            projector.project()
            projector.max_relative_drift()
        assert not [name for name in counter.names if "local_scalar" in name or "is_nonzero" in name]
        assert sum("_foreach_mul_" in name for name in counter.names) == 1
