"""A function as one CUDA graph: a GPU runs hundreds of small kernels faster than Python can launch them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

WARM_UP = 3
"""Calls that run eagerly: kernels get compiled and chosen, libraries take workspace, Adam makes its moments."""

Layout = tuple[torch.Size, torch.dtype]


class Captured:
    """`function`, which works on a GPU's memory alone, run as one CUDA graph.

    Calls 1 to 3 run eagerly. Call 4 records a CUDA graph. Later calls replay it: Python does not run, so every value
    that changes must be a tensor updated in place, and nothing may be read by the host. Inputs of other shapes or
    dtypes have a graph of their own. Where recording fails, a warning says so and later calls run eagerly.

    Args:
        function: of tensors on the GPU (a number becomes one: float32, no dimension) or None; returns tensors.
        device: the GPU.
        generators: all that `function` draws from.
    """

    def __init__(
        self, function: Callable[..., Any], device: torch.device, generators: Iterable[torch.Generator] = ()
    ) -> None:
        self.function = function
        self._device = device
        self._generators = tuple(generators)
        self._graphs: dict[tuple[Layout | None, ...], _Graph] = {}

    def forget(self) -> None:
        """Warm up and record anew. Call it when a tensor that `function` uses was replaced by another."""
        self._graphs.clear()

    def __call__(self, *inputs: float | Tensor | None) -> Any:
        """What `function` returns for these inputs, in tensors that later calls leave alone.

        No host sync, unless an input is in the host's memory.
        """
        graph = self._graph_for(inputs)
        if graph.calls < WARM_UP:
            graph.calls += 1
            return self._run_aside(graph)
        if graph.recorded is None and not graph.failed:
            self._record(graph)  # runs nothing
        if graph.recorded is None:
            return self.function(*graph.arguments)
        graph.recorded.replay()
        return tree_map(Tensor.clone, graph.results)

    def _graph_for(self, inputs: tuple[float | Tensor | None, ...]) -> _Graph:
        """The graph for inputs of this layout, with the inputs copied into the tensors that it reads."""
        layouts = tuple(_layout(value) for value in inputs)
        if layouts not in self._graphs:
            empty = (
                None if each is None else torch.empty(each[0], dtype=each[1], device=self._device) for each in layouts
            )
            self._graphs[layouts] = _Graph(tuple(empty))
        graph = self._graphs[layouts]
        for argument, value in zip(graph.arguments, inputs, strict=True):
            if isinstance(value, Tensor) and argument is not None:
                argument.copy_(value)
            elif value is not None and argument is not None:
                argument.fill_(value)
        return graph

    def _run_aside(self, graph: _Graph) -> Any:
        """Run on the stream that will record: cuBLAS and others keep a workspace for each stream."""
        if graph.stream is None:
            graph.stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        graph.stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(graph.stream):
            results = self.function(*graph.arguments)
        torch.cuda.current_stream(self._device).wait_stream(graph.stream)
        return results

    def _record(self, graph: _Graph) -> None:
        recorded = torch.cuda.CUDAGraph()
        try:
            for generator in self._generators:
                recorded.register_generator_state(generator)
            with torch.cuda.graph(recorded, stream=graph.stream):
                graph.results = self.function(*graph.arguments)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            warnings.warn(
                f"an update, or acting, was not captured as a CUDA graph and runs without: {reason}; compile=off tries "
                "none",
                stacklevel=3,
            )
            graph.failed = True
            return
        graph.recorded = recorded


@dataclass
class _Graph:
    """The graph for inputs of one layout, before and after it is recorded."""

    arguments: tuple[Tensor | None, ...]
    calls: int = 0
    stream: torch.cuda.Stream | None = None
    failed: bool = False
    recorded: torch.cuda.CUDAGraph | None = None
    results: Any = None


def _layout(value: float | Tensor | None) -> Layout | None:
    if value is None:
        return None
    return (value.shape, value.dtype) if isinstance(value, Tensor) else (torch.Size(), torch.float32)
