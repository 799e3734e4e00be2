"""Generated networks: normalised and projected, they keep every promise or are refused by name."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nap_rl.nap import Projector, normalize, scale_invariance, weight_groups

ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.GELU, nn.Softplus, nn.Sigmoid, nn.ELU, nn.Identity)


class Part(nn.Module):
    """A layer and its activation, alone, as a residual branch or as a gate; it may share its branch with the next."""

    def __init__(self, width: int, out: int, kind: str, activation: int, scale: float) -> None:
        super().__init__()
        self.kind, self.activation = kind, ACTIVATIONS[activation]()
        self.first = nn.Linear(width, out)
        self.second = nn.Linear(out, out) if kind != "plain" else None
        self.scale = nn.Parameter(torch.full((out,), scale)) if kind == "residual" else None

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.activation(self.first(x))
        if self.second is None:
            return h
        if self.scale is not None:
            return h + self.scale * self.second(h)
        return h * torch.sigmoid(self.second(h))


parts = st.tuples(
    st.sampled_from([1, 2, 3, 8, 24]),
    st.sampled_from(["plain", "residual", "gate"]),
    st.integers(0, len(ACTIVATIONS) - 1),
    st.sampled_from([0.0, 1e-6, 1e-2, 1.0]),
)


def build(shapes: list[tuple[int, str, int, float]], inputs: int, shared: bool, end: int) -> nn.Module:
    layers: list[nn.Module] = []
    width = inputs
    for out, kind, activation, scale in shapes:
        layers.append(Part(width, out, kind, activation, scale))
        width = out
    if shared:
        again = Part(width, width, "plain", 0, 1.0)
        layers += [again, again]
    return nn.Sequential(*layers, nn.Linear(width, 3), ACTIVATIONS[end]())


def spread(y: Tensor) -> float:
    """The largest standard deviation of a feature over the inputs."""
    return float(y.flatten(1).std(0).max())


@pytest.mark.slow
@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(
    st.lists(parts, min_size=1, max_size=4),
    st.sampled_from([3, 8]),
    st.booleans(),
    st.integers(0, len(ACTIVATIONS) - 1),
    st.sampled_from(["layer", "rms"]),
    st.integers(0, 1000),
)
def test_generated_networks_keep_the_promises(
    shapes: list[tuple[int, str, int, float]], inputs: int, shared: bool, end: int, norm: str, seed: int
) -> None:
    torch.manual_seed(seed)
    module, x = build(shapes, inputs, shared, end), torch.randn(32, inputs)
    names = set(dict(module.named_modules()))
    try:
        normalize(module, x, norm=norm)  # type: ignore[arg-type]
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
        projector = Projector(module, optimizer)
    except ValueError as error:
        assert any(f"'{name}'" in str(error) for name in names if name) or "owns nothing" in str(error), error
        return
    # No norm makes a constant of what differs between inputs: it sees more than one direction.
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    norms = [(n, m) for n, m in module.named_modules() if "norm" in n.rpartition(".")[2]]
    handles = [m.register_forward_hook(lambda m, a, y, n=n: seen.update({n: (a[0], y)})) for n, m in norms]
    with torch.no_grad():
        module(x)
    for handle in handles:
        handle.remove()
    assert all(spread(after) > 1e-6 for before, after in seen.values() if spread(before) > 1e-6)
    # The last layer sets the output's scale freely, and no projection holds it.
    last = str(len(shapes) + 2 * shared)
    assert last not in projector.groups and module.get_submodule(last).nap_role == "output"
    for _ in range(5):
        optimizer.zero_grad()
        (module(x) - 1).square().mean().backward()
        optimizer.step()
    assert projector.max_relative_drift() < 1e-6
    # What is projected is scale-invariant also when every scale is another one.
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("scale"):
                parameter.uniform_(0.5, 2)
    changes = scale_invariance(module, x, factors=(0.5, 2.0))
    for name in weight_groups(module):
        if name in projector.groups:
            assert changes[name] < 1e-3 or changes[name] == float("inf"), (name, changes)
