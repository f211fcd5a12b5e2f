"""OpenVLA (Kim et al. 2024) as a network: two image encoders, a projector and a Llama.

    pixels -> DINOv2 | SigLIP -> projector -> [BOS][patches][padding][prompt][action tokens] -> Llama -> 256 logits

Parameter names and files are those of the published checkpoints, so a folder in that layout loads as it is. Sizes of
the encoders are read off the weights; their head counts come from `vision_heads` in config.json ([16, 16] if absent).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import Cache
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from vlapost.config import UserError
from vlapost.policies.action_tokens import FIRST_ID, LAST_ID
from vlapost.policies.files import new_folder, read_json, read_model, restore, write_tensors
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

    def hidden(self, embeds: Tensor, mask: Tensor, positions: Tensor, cache: Cache | None = None) -> Tensor:
        """Hidden states after the final norm, `[B, N, D]`.

        Args:
            embeds: `[B, N, D]`. mask: `[B, 1, N, K]` bool, which of the K keys each of the N queries sees.
            positions: `[B, N]` int64. cache: keys and values of earlier tokens; extended in place.
        """
        return self.language_model.model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def action_logits(self, hidden: Tensor) -> Tensor:
        """Logits `[..., 256]` float32 of the action bins from hidden states `[..., D]`: 256 rows of the head only."""
        head: Any = self.language_model.lm_head
        adapted = isinstance(head, LoraLayer)
        base: Any = head.get_base_layer() if adapted else head
        rows = slice(FIRST_ID, LAST_ID + 1)
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.float()
            logits = F.linear(hidden, base.weight[rows].float())
            if adapted:
                down, up = head.lora_A["default"].weight, head.lora_B["default"].weight[rows]
                logits = logits + head.scaling["default"] * F.linear(F.linear(hidden, down), up)
        return logits.flip(-1)  # vocabulary ids fall where bins rise


def load_openvla(folder: Path, device: torch.device | str, dtype: torch.dtype) -> OpenVLA:
    """The network of a checkpoint folder, frozen.

    Raises:
        UserError: the folder or a file is missing or truncated, or tensors do not fit; the sentence names it.
    """
    restore(folder)
    if not folder.is_dir():
        raise UserError(f"There is no checkpoint folder {folder}; `make pretrain` creates models/openvla-tiny.")
    config = read_json(folder / "config.json")
    for key in ("image_sizes", "text_config"):
        if key not in config:
            raise UserError(f"{folder / 'config.json'} has no '{key}'; it is not the config of an OpenVLA checkpoint.")
    state = {name: tensor.to(dtype) for name, tensor in read_model(folder, device).items()}
    heads = config.get("vision_heads", [16, 16])
    sizes = [_encoder_sizes(state, encoder, count, folder) for encoder, count in zip(ENCODERS, heads)]
    with torch.device("meta"):
        network = OpenVLA(config, *sizes)
    tied = network.llama_config.tie_word_embeddings
    if tied:
        state["language_model.lm_head.weight"] = state["language_model.model.embed_tokens.weight"]
    _check_shapes(network, state, folder)
    network.load_state_dict(state, strict=True, assign=True)
    if tied:
        network.language_model.lm_head.weight = network.language_model.model.embed_tokens.weight
    network.language_model.model.rotary_emb = LlamaRotaryEmbedding(network.llama_config).to(device)
    height, width = network.image_size
    for encoder in sizes:
        if (height // encoder.patch) * (width // encoder.patch) != encoder.patches:
            raise UserError(
                f"{folder / 'config.json'} says images of {height}x{width} pixels, but the weights have "
                f"{encoder.patches} patches of {encoder.patch} pixels; correct image_sizes."
            )
    return network.requires_grad_(False).eval()


def save_openvla(network: OpenVLA, source: Path, statistics: dict[str, Any], folder: Path) -> None:
    """Write a checkpoint folder in OpenVLA's layout, bfloat16.

    Args:
        network: without adapters.
        source: the folder it was loaded from; tokenizer and preprocessor files are copied.
        statistics: written as dataset_statistics.json.
        folder: is replaced as a whole.
    """
    state = {name: tensor.to("cpu", torch.bfloat16).contiguous() for name, tensor in network.state_dict().items()}
    if any("lora_" in name for name in state):
        raise ValueError("save_openvla writes a network without adapters; save_policy writes adapters")
    if network.llama_config.tie_word_embeddings:
        del state["language_model.lm_head.weight"]
    with new_folder(folder) as new:
        for name in ("tokenizer.json", "preprocessor_config.json"):
            shutil.copyfile(source / name, new / name)
        (new / "config.json").write_text(json.dumps(network.config, indent=2) + "\n", encoding="utf-8")
        (new / "dataset_statistics.json").write_text(json.dumps(statistics, indent=2) + "\n", encoding="utf-8")
        write_tensors(state, new / "model.safetensors")


def _encoder_sizes(state: dict[str, Tensor], encoder: str, heads: int, folder: Path) -> ViTSizes:
    prefix = f"vision_backbone.{encoder}."
    shapes = {name.removeprefix(prefix): t.shape for name, t in state.items() if name.startswith(prefix)}
    for name in ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight"):
        if name not in shapes:
            raise UserError(f"The weights in {folder} have no '{prefix}{name}'; they are not an OpenVLA checkpoint.")
    sizes = ViTSizes.from_shapes(shapes, heads)
    if sizes.width % heads:
        raise UserError(
            f"{folder / 'config.json'}: {heads} heads do not divide the width {sizes.width} of {encoder}; "
            "write the right head counts as 'vision_heads'."
        )
    return sizes


def _check_shapes(network: OpenVLA, state: dict[str, Tensor], folder: Path) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise UserError(
            f"The weights in {folder} do not fit its config.json: {len(wrong)} tensors differ, first '{name}' "
            f"(expected {wanted.get(name, 'none')}, found {found.get(name, 'none')})."
        )
