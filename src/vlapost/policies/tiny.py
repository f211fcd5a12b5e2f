"""openvla-tiny: an untrained OpenVLA of 5 million parameters, but for a stem in the published checkpoints' layout.

Everything is there in small: both encoders with their unused last block, registers and pooling head, the projector, a
Llama with the full id space, tokenizer, preprocessor settings and action statistics.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlapost.policies.action_tokens import FIRST_ID, LAST_ID
from vlapost.policies.checkpoint import write_json
from vlapost.policies.files import new_folder, write_tensors
from vlapost.policies.openvla import OpenVLA
from vlapost.policies.prompt import PAD
from vlapost.policies.tiny_tokenizer import write_tokenizer
from vlapost.policies.vit import LayerScale, PoolingHead, VisionTransformer, ViTSizes

IMAGE = 128
STEM = (16, 32, 64)  # beyond the published layout: without convolutions so few pictures do not teach where things are
FEATURIZER = ViTSizes(
    width=128, depth=4, heads=4, mlp=512, patch=16, patches=64, registers=4, layer_scale=True, pooling_head=False,
    stem=STEM,
)  # fmt: skip
FUSED_FEATURIZER = ViTSizes(
    width=64, depth=4, heads=4, mlp=240, patch=16, patches=64, registers=0, layer_scale=False, pooling_head=True,
    stem=STEM,
)  # fmt: skip
TEXT = {
    "model_type": "llama",
    "vocab_size": 32064,
    "pad_token_id": PAD,
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}
MEANS, STDS = ([0.485, 0.456, 0.406], [0.5, 0.5, 0.5]), ([0.229, 0.224, 0.225], [0.5, 0.5, 0.5])


def write_tiny(folder: Path | str, seed: int, statistics: dict[str, Any]) -> None:
    """Write the untrained checkpoint folder (replaced as a whole), bfloat16.

    Args:
        folder: for example models/openvla-tiny.
        seed: of the initial weights.
        statistics: data set name to `{"action": {"q01": [7], "q99": [7], "mask": [7]}, ...}`.
    """
    config = {
        "model_type": "openvla",
        "image_sizes": [IMAGE, IMAGE],
        "image_resize_strategy": "resize-naive",
        "n_action_bins": 256,
        "pad_token_id": PAD,
        "pad_to_multiple_of": 64,
        "use_fused_vision_backbone": True,
        "vision_heads": [FEATURIZER.heads, FUSED_FEATURIZER.heads],
        "text_config": TEXT,
        "norm_stats": statistics,
    }
    normalise = [{"mean": mean, "std": std} for mean, std in zip(MEANS, STDS)]
    preprocessor = {"image_resize_strategy": "resize-naive", "tvf_normalize_params": normalise}
    with new_folder(Path(folder)) as new:
        known = write_tokenizer(new / "tokenizer.json")
        network = OpenVLA(config, FEATURIZER, FUSED_FEATURIZER)
        initialise(network, known, torch.Generator().manual_seed(seed))
        state = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in network.state_dict().items()}
        del state["language_model.lm_head.weight"]  # tied to embed_tokens
        write_tensors(state, new / "model.safetensors")
        write_json(new / "config.json", config)
        write_json(new / "preprocessor_config.json", preprocessor)
        write_json(new / "dataset_statistics.json", statistics)


def initialise(network: OpenVLA, known: list[int], generator: torch.Generator) -> None:
    """Initial weights for training from scratch.

    Matrices, tokens and positions are normal with deviation 0.02 cut at two deviations, convolutions
    1/sqrt(fan-in), biases 0, norms and layer scales 1. Embeddings of ids that cannot occur are 0.
    """

    def normal(tensor: Tensor, deviation: float = 0.02) -> None:
        nn.init.trunc_normal_(tensor, std=deviation, a=-2 * deviation, b=2 * deviation, generator=generator)

    for module in network.modules():
        if isinstance(module, nn.Linear):
            normal(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            normal(module.weight, module.weight[0].numel() ** -0.5)
            nn.init.zeros_(cast(Tensor, module.bias))
        elif isinstance(module, LayerScale):
            nn.init.ones_(module.scale_factor)
        elif isinstance(module, PoolingHead):
            normal(module.latent)
        elif isinstance(module, VisionTransformer):
            normal(module.pos_embed)
            if module.sizes.registers:
                normal(module.cls_token)
                normal(module.reg_token)
    table = network.language_model.model.embed_tokens.weight.data
    used = torch.zeros(len(table), 1)
    used[[*known, *range(FIRST_ID, LAST_ID + 1)]] = 1.0
    normal(table)
    table.mul_(used)
