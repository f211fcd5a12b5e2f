"""OpenVLA (Kim et al. 2024) as a network: two image encoders, a projector and a Llama.

    pixels -> DINOv2 | SigLIP -> projector -> [BOS][patches][padding][prompt][action tokens] -> Llama -> 256 logits

Parameter names are those of the published checkpoints (`checkpoint.py` reads and writes them).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import Cache
from transformers.models.llama.modeling_llama import repeat_kv, rotate_half

from vlapost.policies.action_tokens import FIRST_ID, LAST_ID
from vlapost.policies.prompt import BOS
from vlapost.policies.vit import VisionTransformer, ViTSizes

ENCODERS = ("featurizer", "fused_featurizer")


class VisionBackbone(nn.Module):
    """Both encoders side by side."""

    def __init__(self, featurizer: ViTSizes, fused_featurizer: ViTSizes) -> None:
        super().__init__()
        self.featurizer = VisionTransformer(featurizer)
        self.fused_featurizer = VisionTransformer(fused_featurizer)

    def forward(self, pixels: Tensor) -> Tensor:
        """`[B, 6, H, W]` to `[B, P, Dv]`, DINOv2's features first."""
        first, second = pixels.split(3, dim=1)
        return torch.cat([self.featurizer(first), self.fused_featurizer(second)], dim=2)


class Projector(nn.Module):
    """Patch features to word embeddings."""

    def __init__(self, vision: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision, 4 * vision)
        self.fc2 = nn.Linear(4 * vision, hidden)
        self.fc3 = nn.Linear(hidden, hidden)

    def forward(self, patches: Tensor) -> Tensor:
        """`[B, P, Dv]` to `[B, P, D]`."""
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(patches)))))


class OpenVLA(nn.Module):
    """The network without tokenizer, action statistics and critic.

    Args:
        config: content of config.json.
        featurizer, fused_featurizer: sizes of the two encoders.
    """

    def __init__(self, config: dict[str, Any], featurizer: ViTSizes, fused_featurizer: ViTSizes) -> None:
        super().__init__()
        self.config = config
        text = {k: v for k, v in config["text_config"].items() if k not in ("model_type", "torch_dtype", "dtype")}
        llama = LlamaConfig(**text)
        llama._attn_implementation = "sdpa"
        self.vision_backbone = VisionBackbone(featurizer, fused_featurizer)
        self.projector = Projector(featurizer.width + fused_featurizer.width, llama.hidden_size)
        self.language_model = LlamaForCausalLM(llama)

    @property
    def llama_config(self) -> LlamaConfig:
        """Sizes of the language model."""
        return self.language_model.config

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the base weights."""
        return self.language_model.model.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.language_model.model.embed_tokens.weight.device

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.config["image_sizes"]
        return height, width

    def unused(self) -> list[str]:
        """Names of the submodules that are never computed (and so never get a gradient)."""
        return [
            f"vision_backbone.{encoder}.{name}"
            for encoder in ENCODERS
            for name in getattr(self.vision_backbone, encoder).unused()
        ]

    def unfreeze(self) -> None:
        """Make every weight that is computed with trainable, for training without adapters."""
        unused = tuple(name + "." for name in self.unused())
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not name.startswith(unused))

    def patch_features(self, pixels: Tensor) -> Tensor:
        """Normalised pixels `[B, 6, H, W]` to patch features `[B, P, Dv]`."""
        return self.vision_backbone(pixels.to(self.dtype))

    def embed(self, patches: Tensor, ids: Tensor) -> Tensor:
        """Llama's input `[B, 1+P+N, D]`: BOS, the patches `[B, P, Dv]`, the embedded `ids` `[B, N]`."""
        table = self.language_model.model.embed_tokens
        bos = table(ids.new_full((len(ids), 1), BOS))
        return torch.cat([bos, self.projector(patches), table(ids)], dim=1)

    def hidden(self, embeds: Tensor, mask: Tensor, positions: Tensor, last: int, cache: Cache | None = None) -> Tensor:
        """Hidden states `[B, last, D]` after the final norm, of the last of N positions.

        Args:
            embeds: `[B, N, D]`. mask: `[B, 1, N, K]` bool, which of the K keys each of the N queries sees.
            positions: `[B, N]` int64. cache: keys and values of earlier tokens; extended in place.
        """
        model = self.language_model.model
        rope = model.rotary_emb(embeds, position_ids=positions)
        hidden = embeds
        for layer in model.layers[:-1]:
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=cache is not None,
                position_embeddings=rope,
            )
        return model.norm(last_block(model.layers[-1], hidden, mask, rope, last, cache))

    def action_logits(self, hidden: Tensor) -> Tensor:
        """Logits `[..., 256]` float32 of the action bins from hidden states `[..., D]`: 256 rows of the head only."""
        head: Any = self.language_model.lm_head
        adapted = isinstance(head, LoraLayer)
        base: Any = head.get_base_layer() if adapted else head
        rows = slice(FIRST_ID, LAST_ID + 1)
        hidden = hidden.float()
        logits = F.linear(hidden, base.weight[rows].float())
        if adapted:
            down, up = head.lora_A["default"].weight, head.lora_B["default"].weight[rows]
            logits = logits + head.scaling["default"] * F.linear(F.linear(hidden, down), up)
        return logits.flip(-1)  # vocabulary ids fall where bins rise


def last_block(
    layer: Any, hidden: Tensor, mask: Tensor, rope: tuple[Tensor, Tensor], last: int, cache: Cache | None
) -> Tensor:
    """Llama's last block, `[B, N, D]` to `[B, last, D]`: of earlier positions nobody reads more than keys and values.

    A fifth less work in a Llama of four layers, a fortieth in one of 32.
    """
    attention = layer.self_attn

    def heads(rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

    def turned(rows: Tensor) -> Tensor:
        cos, sin = (angle[:, None, -rows.shape[2] :] for angle in rope)
        return rows * cos + rotate_half(rows) * sin

    normed = layer.input_layernorm(hidden)
    keys, values = turned(heads(attention.k_proj(normed))), heads(attention.v_proj(normed))
    queries = turned(heads(attention.q_proj(normed[:, -last:])))
    if cache is not None:
        keys, values = cache.update(keys, values, attention.layer_idx)
    keys, values = (repeat_kv(part, attention.num_key_value_groups) for part in (keys, values))
    seen = F.scaled_dot_product_attention(queries, keys, values, mask[:, :, -last:])
    hidden = hidden[:, -last:] + attention.o_proj(seen.transpose(1, 2).flatten(2))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))
