"""Projection under torch.compile and DistributedDataParallel: neither broken nor silently skipped."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nap_rl.nap import LayerMonitor, Projector, normalize, normalize_and_project


def task(affine: str, every: int) -> tuple[nn.Module, torch.optim.Optimizer, Projector, Tensor, Tensor]:
    torch.manual_seed(0)
    torch._dynamo.reset()
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
    x, y = torch.randn(16, 3, 6, 6), torch.randint(0, 4, (16,))
    _, optimizer, projector = normalize_and_project(
        module,
        lambda p: torch.optim.Adam(p, lr=1e-2),
        x,
        affine=affine,  # type: ignore[arg-type]
        every=every,
    )
    return module, optimizer, projector, x, y


def run(forward: Callable[[Tensor], Tensor], step: Callable[[], object], x: Tensor, y: Tensor, n: int) -> None:
    for _ in range(n):
        F.cross_entropy(forward(x), y).backward()
        step()


def compiled_step(optimizer: torch.optim.Optimizer, backend: str) -> Callable[[], object]:
    return torch.compile(lambda: optimizer.step(), backend=backend)


@pytest.mark.parametrize(("affine", "every"), [("project", 1), ("regularize", 3)])
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_module_and_compiled_step_project_as_eager_ones_do(affine: str, every: int, backend: str) -> None:
    updates = 3 * every + (every > 1)  # with every > 1, the last update is one without projection
    module, optimizer, projector, x, y = task(affine, every)
    run(module, optimizer.step, x, y, updates)
    expected = [p.detach().clone() for p in module.parameters()]
    drift = projector.max_relative_drift().item()
    assert drift < 1e-6 if every == 1 else drift > 1e-6
    for compiled in ("module", "step"):
        module, optimizer, projector, x, y = task(affine, every)
        forward = torch.compile(module, backend=backend) if compiled == "module" else module
        step = compiled_step(optimizer, backend) if compiled == "step" else optimizer.step
        run(forward, step, x, y, updates)
        assert projector.updates == updates
        assert projector.max_relative_drift().item() == pytest.approx(drift, abs=1e-5)
        for p, q in zip(module.parameters(), expected, strict=True):
            torch.testing.assert_close(p.detach(), q, rtol=1e-3, atol=1e-4)


def test_compiled_step_does_not_compile_anew_at_every_update() -> None:
    module, optimizer, projector, x, y = task("regularize", 3)
    compiled = compiled_step(optimizer, "eager")
    run(module, compiled, x, y, 7)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    run(module, compiled, x, y, 6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    assert projector.updates == 13


def test_module_within_torch_compile_keeps_its_names() -> None:
    module, optimizer, _, x, _ = task("project", 1)
    compiled = torch.compile(module, backend="eager")
    assert list(Projector(compiled, optimizer, affine="project").groups) == ["0", "1.norm"]  # type: ignore[arg-type]
    assert LayerMonitor(compiled, optimizer).names == ["0", "3"]  # type: ignore[arg-type]


WORKER = """
import sys
import torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from nap_rl.nap import Projector, normalize

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
torch.manual_seed(0)
module = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))
normalize(module, torch.randn(8, 6))
parallel = DistributedDataParallel(module)
optimizer = torch.optim.Adam(parallel.parameters(), lr=0.01)
projector = Projector(parallel, optimizer, affine="project")
assert set(projector.groups) == {"0", "1.norm"}, projector.groups
rho = module[0].weight.detach().norm()
torch.manual_seed(rank)
for _ in range(5):
    optimizer.zero_grad()
    (parallel(torch.randn(8, 6)) - 1).square().mean().backward()
    optimizer.step()
assert abs(module[0].weight.detach().norm() / rho - 1) < 1e-6
mine = torch.cat([p.detach().flatten() for p in module.parameters()])
other = [torch.empty_like(mine) for _ in range(2)]
dist.all_gather(other, mine)
assert torch.equal(other[0], other[1]), "the ranks differ"
dist.destroy_process_group()
print("same on both ranks")
"""


@pytest.mark.slow
def test_two_ranks_of_ddp_project_alike(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    workers = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "worker.py"), str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin"},
        )
        for rank in range(2)
    ]
    outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    assert all("same on both ranks" in out for out in outputs), outputs
    assert [worker.returncode for worker in workers] == [0, 0]


def test_ddp_around_the_module_before_normalize_is_refused() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._orig_mod = nn.Linear(2, 2)

    with pytest.raises(ValueError, match="wrap it in DistributedDataParallel"):
        normalize(Wrapped(), torch.randn(1, 2))
