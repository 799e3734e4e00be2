"""Streams: features [B, F] -> outputs [B, A, N], N numbers for each of A actions. A head says what they mean."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nap_rl.nn.noisy import LayerNoise, NoisyLinear, noise_sizes, sample_noise

Noise = Sequence[LayerNoise]
"""One (eps_in, eps_out) for every noisy layer of a network, in the order of `Streams.noisy_layers`."""


class Stream(nn.Module):
    """One hidden layer, if any, and one output layer: [B, F] -> [B, outputs].

    The output layer computes in its weights' precision, under autocast too: bfloat16 has 8 bits, and the values of two
    actions are often closer than that.
    """

    def __init__(self, features: int, hidden: int, outputs: int, sigma0: float | None) -> None:
        super().__init__()

        def linear(n_in: int, n_out: int) -> nn.Module:
            return nn.Linear(n_in, n_out) if sigma0 is None else NoisyLinear(n_in, n_out, sigma0)

        self.hidden = linear(features, hidden) if hidden else nn.Identity()
        self.activation = nn.ReLU() if hidden else nn.Identity()
        self.output = linear(hidden or features, outputs)

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """x [B, F] -> [B, outputs]; without noise, noisy layers act at their mean."""
        # Plain layers take no noise at all, so it is passed only where there is some.
        noise_hidden, noise_output = ((), ()) if noise is None else ((noise[0],), (noise[1],))
        hidden = self.activation(self.hidden(x, *noise_hidden))
        with torch.autocast(x.device.type, enabled=False):
            y: Tensor = self.output(hidden.to(next(self.output.parameters()).dtype), *noise_output)
        return y

    def body_to(self, dtype: torch.dtype) -> None:
        """All but the output layer."""
        self.hidden.to(dtype)
        self.activation.to(dtype)


class InjectedStream(Stream):
    """own(x) + old(x) - initial(x): the stream itself, which is trained, and two frozen copies of it.

    All three act under the same noise. As long as old = initial, the sum is own(x) and its gradient that of own(x), to
    the bit. The stream's tensors keep their names; the copies' are `old....` and `initial....`.
    """

    def __init__(self, stream: Stream) -> None:
        nn.Module.__init__(self)
        self.hidden, self.activation, self.output = stream.hidden, stream.activation, stream.output
        self.old, self.initial = (copy.deepcopy(stream).requires_grad_(False) for _ in range(2))

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """As `Stream.forward`. The gradient of x comes through all three."""
        y = super().forward(x, noise)
        frozen_x = x.view_as(x)  # gradients of equal copies cancel here, before that of own(x) could round them
        total: Tensor = y + (self.old(frozen_x, noise) - self.initial(frozen_x, noise))
        return total

    @property
    def is_injected(self) -> bool:
        """Whether the copies differ. Waits for a GPU."""
        pairs = zip(self.old.state_dict().values(), self.initial.state_dict().values(), strict=True)
        return not all(torch.equal(*pair) for pair in pairs)

    def body_to(self, dtype: torch.dtype) -> None:
        super().body_to(dtype)
        self.old.body_to(dtype)
        self.initial.body_to(dtype)

    def own_tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers of the stream itself, by their names in a copy."""
        tensors = self.state_dict()
        return {name: tensors[name] for name in self.initial.state_dict()}


class Streams(nn.Module):
    """One stream, or a value and an advantage stream (dueling, Wang et al. 2016, arXiv 1511.06581, equation 9).

    Args:
        features: F of the torso.
        actions: A.
        outputs: N, outputs an action: 1 for an expected value, the atoms or quantiles of a distribution otherwise.
        hidden: width of the hidden layer of each stream; 0 for streams of an output layer alone, which must be plain.
        dueling: y = v + a - mean_a(a), for each of the N outputs.
        sigma0: None for plain linear layers; else all four layers are noisy (see `NoisyLinear`).
    """

    def __init__(
        self, features: int, actions: int, outputs: int, hidden: int, dueling: bool, sigma0: float | None
    ) -> None:
        super().__init__()
        self.actions = actions
        self.outputs = outputs
        self.advantage = Stream(features, hidden, actions * outputs, sigma0)
        self.value = Stream(features, hidden, outputs, sigma0) if dueling else None

    def keep_copies(self) -> None:
        """Make each stream an `InjectedStream`, which computes what it computed."""
        self.advantage = InjectedStream(self.advantage)
        self.value = None if self.value is None else InjectedStream(self.value)

    @property
    def noise_sizes(self) -> list[int]:
        """Numbers of noise that each noisy layer takes. Read anew each time: CReLU doubles a layer's inputs."""
        return noise_sizes(self.noisy_layers())

    def noisy_layers(self) -> list[NoisyLinear]:
        """The layers that take noise, in the order in which `forward` reads it; empty for plain streams."""
        streams = (self.advantage,) if self.value is None else (self.advantage, self.value)
        layers = (layer for stream in streams for layer in (stream.hidden, stream.output))
        return [layer for layer in layers if isinstance(layer, NoisyLinear)]

    def sample_noise(self, generator: torch.Generator | None = None, rows: int | None = None) -> Noise | None:
        """Independent noise for each noisy layer (and each of `rows`, if given); None where no layer is noisy."""
        layers = self.noisy_layers()
        return sample_noise(layers, generator, rows) if layers else None

    def forward(self, features: Tensor, noise: Noise | None = None) -> Tensor:
        """features [B, F] -> [B, A, N]."""
        noise_a, noise_v = (None, None) if noise is None else (noise[:2], noise[2:])
        a: Tensor = self.advantage(features, noise_a).view(-1, self.actions, self.outputs)
        if self.value is None:
            return a
        v: Tensor = self.value(features, noise_v).unsqueeze(1)
        return v + a - a.mean(dim=1, keepdim=True)
