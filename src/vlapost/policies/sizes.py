"""The published sizes of OpenVLA-7B (Kim et al. 2024), for what needs its shapes and not its weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from vlapost.policies.openvla import OpenVLA
from vlapost.policies.prompt import PAD
from vlapost.policies.vit import ViTSizes

DINOV2_L = ViTSizes(
    width=1024, depth=24, heads=16, mlp=4096, patch=14, patches=256, registers=4, layer_scale=True, pooling_head=False
)
SIGLIP_SO400M = ViTSizes(
    width=1152, depth=27, heads=16, mlp=4304, patch=14, patches=256, registers=0, layer_scale=False, pooling_head=True
)
LLAMA_2_7B = {
    "vocab_size": 32064,
    "pad_token_id": PAD,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-6,
}


def scaled_7b(divisor: int, depth: int | None = None) -> tuple[dict[str, Any], OpenVLA]:
    """OpenVLA-7B with widths and head counts divided, on the meta device.

    Args:
        divisor: 1, 2, 4, 8 or 16.
        depth: layers of the Llama, and computed blocks of each encoder; None: all.

    Returns:
        The content of a config.json, and the network.
    """
    encoders = [
        replace(
            sizes,
            width=sizes.width // divisor,
            heads=sizes.heads // divisor,
            mlp=sizes.mlp // divisor,
            depth=sizes.depth if depth is None else depth + 1,
        )
        for sizes in (DINOV2_L, SIGLIP_SO400M)
    ]
    divided = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    text = LLAMA_2_7B | {key: LLAMA_2_7B[key] // divisor for key in divided}
    config = {
        "model_type": "openvla",
        "image_sizes": [224, 224],
        "vision_heads": [sizes.heads for sizes in encoders],
        "text_config": text if depth is None else text | {"num_hidden_layers": depth},
        "norm_stats": {},
    }
    with torch.device("meta"):
        return config, OpenVLA(config, *encoders)
