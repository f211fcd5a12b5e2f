"""What a training forward shows besides log-probabilities, for objectives that look inside."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Features:
    """One training forward, opened up.

    logits: `[B, A, V]` float32, of action token k given the image, the instruction and tokens 0..k-1.
    hidden: `[B, A, D]`, the hidden states after the final norm that predict tokens 0 to A-1; h0 is the first.
    patches: `[B, P, Dv]`, the image encoders' features before the projector.
    """

    logits: Tensor
    hidden: Tensor
    patches: Tensor


@dataclass(frozen=True)
class Sizes:
    """Widths and grid of a policy: rows and columns of patches, patch side in pixels, Dv and D of `Features`."""

    patch_grid: tuple[int, int]
    patch_size: int
    patch_dim: int
    hidden_dim: int
