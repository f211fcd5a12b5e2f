"""A LoRA layer computed as one product.

PEFT computes `x W' + s (x A') B'`; here it is `x (W + s B A)'`. In a small model, whose widths are near the rank, that
is 1.4 times faster, and the sum can be kept for a whole rollout. It is for float32 weights only: in bfloat16
the sum would round small adapters away, and in a large model it would cost memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners import lora
from torch import Tensor, nn


class FoldedLinear(lora.Linear):
    """Drop-in for PEFT's Linear with one adapter, no dropout and a float32 base."""

    kept: Tensor | None = None

    def folded(self) -> Tensor:
        """`W + s B A`, `[out, in]`, with gradients to A and B."""
        base: Any = self.base_layer
        down: Any = self.lora_A["default"].weight
        up: Any = self.lora_B["default"].weight
        return torch.addmm(base.weight, up, down, alpha=self.scaling["default"])

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`[..., in]` to `[..., out]`."""
        base: Any = self.base_layer
        return F.linear(x, self.folded() if self.kept is None else self.kept, base.bias)


@contextmanager
def keep_folded(*modules: nn.Module) -> Iterator[None]:
    """Fold every layer below `modules` once and use the result, which has no gradient, until the block ends."""
    layers = [layer for module in modules for layer in module.modules() if isinstance(layer, FoldedLinear)]
    try:
        with torch.no_grad():
            for layer in layers:
                layer.kept = layer.folded()
        yield
    finally:
        for layer in layers:
            layer.kept = None
