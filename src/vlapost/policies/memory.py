"""What a recipe needs in memory, worked out before anything is loaded.

Weights, adapters and moments are counted from shapes. What autograd keeps between forward and backward is not
estimated: the training forward itself runs on the meta device, where tensors have shapes and no content, and every
tensor kept is counted once. Only fused attention, which the meta device has not, is stood in for by what it keeps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlapost.contracts import ACTION_DIM, STATE_DIM
from vlapost.policies import lora, quantize
from vlapost.policies.openvla import OpenVLA
from vlapost.policies.recompute import recompute
from vlapost.policies.value_head import ValueHead, critic_input, critic_width

PROMPT = 24  # tokens of a usual instruction, BOS not counted


@dataclass(frozen=True)
class Needs:
    """Bytes on the training device.

    weights: of the frozen base. adapters: adapters and critic, float32. gradients: of those. moments: AdamW's two.
    activations: kept from a minibatch's forward for its backward, and what is computed again in it at a time.
    cache: keys and values while a rollout decodes. rollout: pictures, and features of frozen encoders, of an iteration.
    trainable: number of weights that learn.
    """

    weights: int
    adapters: int
    gradients: int
    moments: int
    activations: int
    cache: int
    rollout: int
    trainable: int

    @property
    def learning(self) -> int:
        """At the end of a forward pass in training; what a kernel needs for itself comes on top."""
        return self.weights + self.adapters + self.gradients + self.moments + self.activations + self.rollout

    @property
    def acting(self) -> int:
        """In a rollout: gradients are gone, moments stay."""
        return self.weights + self.adapters + self.moments + self.cache + self.rollout


def needs(
    network: OpenVLA,
    *,
    dtype: torch.dtype,
    rank: int,
    train_vision: bool,
    critic: str,
    quantized: str,
    recomputed: str,
    moment_bits: int,
    batch: int,
    scenes: int,
    samples: int,
    fused: bool,
    prompt: int = PROMPT,
) -> Needs:
    """Bytes for a network on the meta device (it is changed: adapters are put in).

    Args:
        dtype: of the base. critic, quantized, recomputed: as `policy.critic`, `.quantize` and `.recompute`.
        batch: samples of a minibatch. scenes: observations acted on at a time. samples: of a rollout and process, 0
            without rollouts. fused: attention does not keep its matrix. prompt: tokens of the instruction.
    """
    network.to(dtype)
    weights = base_bytes(network, quantized)
    lora.add_adapters(network, rank, 16, folded=dtype == torch.float32 and quantized == "none")
    if not train_vision:
        network.vision_backbone.requires_grad_(False)
    head = None if critic == "none" else ValueHead(critic_width(critic, network.llama_config.hidden_size)).to("meta")
    networks = 2 if critic == "separate" else 1
    adapters = networks * sum(p.numel() for n, p in network.named_parameters() if "lora_" in n)
    trainable = networks * sum(p.numel() for p in network.parameters() if p.requires_grad)
    if head is not None:
        count = sum(p.numel() for p in head.parameters())
        adapters, trainable = adapters + count, trainable + count
    forgotten = recompute(network, recomputed)
    activations = kept_bytes(network, head, critic, batch, prompt, fused)
    # The first of each size: of Llama's last block only few positions are computed.
    for part in {sum(p.numel() for p in part.parameters()): part for part in reversed(forgotten)}.values():
        again, part.forward = part.forward, type(part).forward.__get__(part)  # as if it were kept
        activations = max(activations, kept_bytes(network, head, critic, batch, prompt, fused))
        part.forward = again
    height, width = network.image_size
    sizes = network.vision_backbone.featurizer.sizes, network.vision_backbone.fused_featurizer.sizes
    features = sizes[0].patches * (sizes[0].width + sizes[1].width) * dtype.itemsize
    return Needs(
        weights=weights,
        adapters=4 * adapters,
        gradients=4 * trainable,
        moments=trainable * 2 * moment_bits // 8,
        activations=networks * activations,
        cache=cache_bytes(network, scenes, prompt, dtype),
        rollout=samples * (3 * height * width + (0 if train_vision else features)),
        trainable=trainable,
    )


def base_bytes(network: OpenVLA, quantized: str) -> int:
    """Bytes of the base weights. A tied head counts once."""
    small: dict[int, int] = {}
    if quantized != "none":
        for name, module in network.named_modules():
            if quantize.applies(name, module, quantized):
                assert isinstance(module, nn.Linear)
                rows, columns = module.weight.shape
                # nf4: half a byte, one byte of scale per 64 weights, one float per 256 scales. int8: a float per row.
                nf4 = rows * columns // 2 + rows * columns // 64 + 4 * rows * columns // (64 * 256)
                small[id(module.weight)] = nf4 if quantized == "nf4" else rows * columns + 4 * rows
    tied = network.llama_config.tie_word_embeddings
    return sum(
        small.get(id(p), p.numel() * p.element_size())
        for n, p in network.named_parameters()
        if not (tied and n.endswith("lm_head.weight"))
    )


def cache_bytes(network: OpenVLA, scenes: int, prompt: int, dtype: torch.dtype) -> int:
    """Bytes of keys and values: BOS, patches, prompt and all action tokens but the last."""
    llama = network.llama_config
    tokens = 1 + network.vision_backbone.featurizer.sizes.patches + prompt + ACTION_DIM - 1
    heads = llama.num_key_value_heads or llama.num_attention_heads
    width = heads * (llama.hidden_size // llama.num_attention_heads)
    return 2 * scenes * llama.num_hidden_layers * tokens * width * dtype.itemsize


def kept_bytes(network: OpenVLA, head: ValueHead | None, critic: str, batch: int, prompt: int, fused: bool) -> int:
    """Bytes that autograd keeps between the forward and the backward pass of a minibatch, weights left out."""
    height, width = network.image_size
    storages: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), _fused() if fused else nullcontext():
        pixels = torch.empty(batch, 6, height, width, device="meta")
        ids = torch.empty(batch, prompt + ACTION_DIM - 1, dtype=torch.int64, device="meta")
        embeds = network.embed(network.patch_features(pixels), ids)
        length = embeds.shape[1]
        mask = torch.empty(batch, 1, length, length, dtype=torch.bool, device="meta")
        positions = torch.empty(batch, length, dtype=torch.int64, device="meta")
        hidden = network.hidden(embeds, mask, positions, ACTION_DIM)
        logprob = network.action_logits(hidden).log_softmax(-1)
        state = torch.empty(batch, STATE_DIM, device="meta")
        value = 0 if head is None else head(critic_input(critic, hidden, state)).sum()
        outcome = -(logprob.exp() * logprob).sum() + value
    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    if head is not None:
        weights |= {p.untyped_storage()._cdata for p in head.parameters()}
    total = sum(storage.nbytes() for place, storage in storages.items() if place not in weights)
    del outcome
    return total


class _FusedAttention(torch.autograd.Function):
    """Keeps what fused kernels keep: queries, keys, values, output, a number per row, and the mask as numbers."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out = torch.empty_like(query)
        row = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, row, *([] if mask is None else [mask.to(query.dtype)]))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None, None]:
        return None, None, None, None


@contextmanager
def _fused() -> Iterator[None]:
    original = F.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
        return _FusedAttention.apply(query, key, value, attn_mask)

    F.scaled_dot_product_attention = attention  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original
