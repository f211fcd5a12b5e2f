"""Decoding as a CUDA graph: thousands of small kernels started by one call instead of one by one from Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]


class Graphs:
    """Records a function of tensors once for each combination of shapes, and replays it.

    What the function reads besides its arguments, as weights, is read where it lay at the recording: an optimiser that
    changes weights in place is followed, a new tensor in the place of an old one is not.
    """

    def __init__(self) -> None:
        self.recorded: dict[Any, tuple[torch.cuda.CUDAGraph, list[Tensor], tuple[Tensor, ...]]] = {}
        self.pool: Any = None  # the graphs run one after another, so all may use the same memory

    def __call__(
        self, function: Function, inputs: tuple[Tensor, ...], constants: tuple[Any, ...]
    ) -> tuple[Tensor, ...]:
        """`function(*inputs, *constants)`, for tensors of one GPU and hashable constants, without gradients."""
        key = (constants, tuple((tensor.shape, tensor.dtype) for tensor in inputs))
        with torch.cuda.device(inputs[0].device):  # a graph is of the current GPU, and a renderer may have changed that
            if key not in self.recorded:
                self.recorded[key] = self._record(function, inputs, constants)
            graph, places, outputs = self.recorded[key]
            for place, tensor in zip(places, inputs):
                place.copy_(tensor)
            graph.replay()
            return tuple(output.clone() for output in outputs)

    def _record(
        self, function: Function, inputs: tuple[Tensor, ...], constants: tuple[Any, ...]
    ) -> tuple[torch.cuda.CUDAGraph, list[Tensor], tuple[Tensor, ...]]:
        places = [tensor.clone() for tensor in inputs]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):  # libraries choose kernels and take workspaces when first called
                function(*places, *constants)
        torch.cuda.current_stream().wait_stream(aside)
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            outputs = function(*places, *constants)
        return graph, places, outputs
