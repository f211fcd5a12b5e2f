"""Activation checkpointing (Chen et al. 2016): forget what a part computed, and compute it again in the backward pass.

`mlp` forgets the inside of Llama's feed-forward layers, where most of the memory is; `blocks` takes more time and keeps
nothing but the input of every transformer block; of Llama's last one, which computes little, it keeps all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vlapost.policies.openvla import OpenVLA


def recompute(network: OpenVLA, what: str) -> list[nn.Module]:
    """Set it up in place; gradients stay the same.

    Args:
        what: none | mlp | blocks.

    Returns:
        The modules whose inside is forgotten.
    """
    layers = network.language_model.model.layers
    backbone = network.vision_backbone
    parts: dict[str, list[nn.Module]] = {
        "none": [],
        "mlp": [layer.mlp for layer in layers],
        "blocks": [*layers[:-1], *backbone.featurizer.blocks[:-1], *backbone.fused_featurizer.blocks[:-1]],
    }
    for module in parts[what]:
        _forget(module)
    return parts[what]


def _forget(module: nn.Module) -> None:
    forward = module.forward

    def again(*args: Any, **kwargs: Any) -> Any:  # Llama calls its blocks with many keywords
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    module.forward = again
