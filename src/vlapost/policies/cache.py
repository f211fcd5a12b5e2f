"""Keys and values of earlier tokens in buffers of a fixed length.

transformers' growing cache copies all of it for each token. Here a token is written into its place, every call with as
many samples and words has the same shapes, and nothing waits for the device, so a CUDA graph can hold the whole of it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class FixedLayer(DynamicLayer):
    """Keys and values of one layer, at most `length` tokens of them."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the buffers, `[B, heads, length, width]`, when the first tokens come."""
        batch, heads, _, width = key_states.shape
        self.key_buffer = key_states.new_empty(batch, heads, self.length, width)
        self.value_buffer = value_states.new_empty(batch, heads, self.length, width)
        self.keys, self.values = self.key_buffer[:, :, :0], self.value_buffer[:, :, :0]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write `[B, heads, N, width]` behind what is there and return all (the signature is the library's)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        start = self.keys.shape[2]
        stop = start + key_states.shape[2]
        self.key_buffer[:, :, start:stop] = key_states
        self.value_buffer[:, :, start:stop] = value_states
        self.keys, self.values = self.key_buffer[:, :, :stop], self.value_buffer[:, :, :stop]
        return (self.keys, self.values) if start else (key_states, value_states)


def fixed_cache(layers: int, length: int) -> Cache:
    """A cache for that many layers and at most that many tokens."""
    return Cache(layers=[FixedLayer(length) for _ in range(layers)])
