"""OpenVLA's checkpoint folders: config.json, safetensors in one file or in shards, tokenizer and preprocessor.

Nothing in a folder is ever executed. The published config.json names Python files in `auto_map`; neither the key nor
such a file is looked at. Sizes of the encoders are read off the weights; their head counts come from `vision_heads` in
config.json ([16, 16] if absent).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from vlapost.config import UserError
from vlapost.policies import quantize
from vlapost.policies.files import Stored, new_folder, read_json, restore, stored_model, write_tensors
from vlapost.policies.openvla import ENCODERS, OpenVLA
from vlapost.policies.vit import ViTSizes

STATISTICS = "dataset_statistics.json"
HEAD = "language_model.lm_head.weight"
_ENCODER = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight")


def load_openvla(folder: Path, device: torch.device | str, dtype: torch.dtype, quantized: str = "none") -> OpenVLA:
    """The network of a checkpoint folder, frozen.

    Weights go to `device` and `dtype` one tensor at a time, so memory holds the model once and one tensor more.

    Args:
        quantized: none | nf4 | int8, how the weights of linear layers are kept (`quantize.py`).

    Raises:
        UserError: the folder or a file is missing or truncated, or tensors do not fit; the sentence names it.
    """
    restore(folder)
    if not folder.is_dir():
        raise UserError(f"There is no checkpoint folder {folder}; `make pretrain` creates models/openvla-tiny.")
    config, stored = read_config(folder), stored_model(folder)
    network = empty_network(folder, config, stored)
    for name, tensor in stored.items():
        place, _, leaf = name.rpartition(".")
        module = network.get_submodule(place)
        if quantized != "none" and leaf == "weight" and quantize.applies(place, module, quantized):
            quantize.replace(network, place, tensor.read(dtype=dtype), quantized, device)
        else:
            setattr(module, leaf, nn.Parameter(tensor.read(device, dtype), requires_grad=False))
    if network.llama_config.tie_word_embeddings:
        network.language_model.lm_head.weight = network.language_model.model.embed_tokens.weight
    network.language_model.model.rotary_emb = LlamaRotaryEmbedding(network.llama_config).to(device)
    return network.requires_grad_(False).eval()


def read_config(folder: Path) -> dict[str, Any]:
    """Content of config.json.

    Raises:
        UserError: the file is missing or describes another architecture than OpenVLA.
    """
    path = folder / "config.json"
    config = read_json(path)
    if (kind := config.get("model_type", "openvla")) != "openvla":
        raise UserError(
            f"{path} describes a model of type '{kind}', not 'openvla'; set policy.checkpoint to an OpenVLA."
        )
    for key in ("image_sizes", "text_config"):
        if key not in config:
            raise UserError(f"{path} has no '{key}'; it is not the config of an OpenVLA checkpoint.")
    return config


def empty_network(folder: Path, config: dict[str, Any], stored: dict[str, Stored]) -> OpenVLA:
    """The network that fits the stored tensors, on the meta device. A head tied to the embedding is taken off `stored`.

    Raises:
        UserError: tensors are missing, too many or of other shapes than config.json says.
    """
    heads = config.get("vision_heads", [16, 16])
    sizes = [_encoder_sizes(stored, encoder, count, folder) for encoder, count in zip(ENCODERS, heads)]
    with torch.device("meta"):
        network = OpenVLA(config, *sizes)
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if network.llama_config.tie_word_embeddings:
        wanted.pop(HEAD, None)
        stored.pop(HEAD, None)
    found = {name: tensor.shape for name, tensor in stored.items()}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise UserError(
            f"The weights in {folder} do not fit its config.json: {len(wrong)} tensors differ, first '{name}' "
            f"(expected {wanted.get(name, 'none')}, found {found.get(name, 'none')})."
        )
    height, width = network.image_size
    for encoder in sizes:
        if (height // encoder.patch) * (width // encoder.patch) != encoder.patches:
            raise UserError(
                f"{folder / 'config.json'} says images of {height}x{width} pixels, but the weights have "
                f"{encoder.patches} patches of {encoder.patch} pixels; correct image_sizes."
            )
    return network


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
        del state[HEAD]
    with new_folder(folder) as new:
        for name in ("tokenizer.json", "preprocessor_config.json"):
            shutil.copyfile(source / name, new / name)
        write_json(new / "config.json", network.config)
        write_json(new / STATISTICS, statistics)
        write_tensors(state, new / "model.safetensors")


def statistics_of(config: dict[str, Any], *folders: Path) -> dict[str, Any]:
    """Action statistics by data set: those of config.json, overruled by the dataset_statistics.json of each folder."""
    statistics = dict(config.get("norm_stats", {}))
    for folder in folders:
        if (folder / STATISTICS).is_file():
            statistics |= read_json(folder / STATISTICS)
    return statistics


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file as the folders hold them."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _encoder_sizes(stored: dict[str, Stored], encoder: str, heads: int, folder: Path) -> ViTSizes:
    prefix = f"vision_backbone.{encoder}."
    shapes = {name.removeprefix(prefix): torch.Size(t.shape) for name, t in stored.items() if name.startswith(prefix)}
    for name in _ENCODER:
        if name not in shapes:
            raise UserError(f"The weights in {folder} have no '{prefix}{name}'; they are not an OpenVLA checkpoint.")
    sizes = ViTSizes.from_shapes(shapes, heads)
    if sizes.width % heads:
        raise UserError(
            f"{folder / 'config.json'}: {heads} heads do not divide the width {sizes.width} of {encoder}; "
            "write the right head counts as 'vision_heads'."
        )
    return sizes
