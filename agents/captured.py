"""An update, or acting, as one CUDA graph: a GPU runs hundreds of small kernels faster than Python can ask for them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

WARM_UP = 3
"""Calls that are run as they are: kernels are compiled and chosen, libraries take workspace, Adam makes its moments."""

Function = Callable[..., tuple[Tensor, ...]]


class Captured:
    """`function`, which works on a GPU's memory alone, run as one CUDA graph.

    After `WARM_UP` calls, one captures what `function` does on the GPU, and from then on just that is repeated, on the
    same memory and with all of Python's numbers and decisions as they were. So whatever changes from call to call has
    to be in a tensor that is changed in place, and nothing may be read by the host. Where a capture fails, a warning
    says so and `function` is run as it is from then on.

    Args:
        function: takes tensors on the GPU, float32 of no dimension where a number was given, and returns tensors.
        device: the GPU.
        generators: all that it draws from.
    """

    def __init__(self, function: Function, device: torch.device, generators: Iterable[torch.Generator]) -> None:
        self._function = function
        self._device = device
        self._generators = tuple(generators)
        self._arguments: tuple[Tensor, ...] = ()
        self.forget()

    def forget(self) -> None:
        """Warm up and capture anew: to be called where a tensor that `function` uses was replaced by another."""
        self._calls = 0
        self._failed = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._results: tuple[Tensor, ...] = ()

    def __call__(self, *inputs: float | Tensor) -> tuple[Tensor, ...]:
        """What `function` returns for them, as tensors that the next call leaves alone.

        Without a host sync, but for tensors of the host. Another shape or type than before is captured anew.
        """
        self._fill(inputs)
        if self._calls < WARM_UP:
            self._calls += 1
            return self._run_aside()
        if self._graph is None and not self._failed:
            self._capture()  # records and runs nothing
        if self._graph is None:
            return self._function(*self._arguments)
        self._graph.replay()
        return tuple(result.clone() for result in self._results)

    def _fill(self, inputs: tuple[float | Tensor, ...]) -> None:
        kinds = [_kind(each) for each in inputs]
        if [_kind(argument) for argument in self._arguments] != kinds:
            self._arguments = tuple(torch.empty(shape, dtype=dtype, device=self._device) for shape, dtype in kinds)
            self.forget()
        for argument, given in zip(self._arguments, inputs, strict=True):
            if isinstance(given, Tensor):
                argument.copy_(given)
            else:
                argument.fill_(given)

    def _run_aside(self) -> tuple[Tensor, ...]:
        """On the stream that will capture: cuBLAS and others keep a workspace for each stream."""
        if self._calls == 1:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            results = self._function(*self._arguments)
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return results

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            for generator in self._generators:
                graph.register_generator_state(generator)
            with torch.cuda.graph(graph, stream=self._stream):
                self._results = self._function(*self._arguments)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            warnings.warn(
                f"an update, or acting, was not captured as a CUDA graph and runs without: {reason}; compile=off tries "
                "none",
                stacklevel=4,
            )
            self._failed = True
            return
        self._graph = graph


def _kind(given: float | Tensor) -> tuple[torch.Size, torch.dtype]:
    return (given.shape, given.dtype) if isinstance(given, Tensor) else (torch.Size(), torch.float32)
