"""An adapter added into the weights it was trained on: a checkpoint folder in OpenVLA's layout.

From file to file, a shard of at most 5 GB at a time. A merged weight is `W + s B A`, computed in float32
and rounded to the number type the base stores: in bfloat16 part of a small change is lost, and how much is returned.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlapost.config import UserError
from vlapost.policies import lora
from vlapost.policies.checkpoint import HEAD, STATISTICS, empty_network, read_config, statistics_of, write_json
from vlapost.policies.files import (
    INDEX,
    Stored,
    new_folder,
    read_json,
    read_tensors,
    refuse_pickles,
    stored_model,
    write_tensors,
)
from vlapost.policies.hub import name_of

TITLE = "# OpenVLA with a merged adapter"  # first line of the card; such a folder may be replaced
SHARD_BYTES = 5 * 10**9  # as the published shards
_TABLE = "language_model.model.embed_tokens.weight"
_COPIED = (
    *("tokenizer.json", "preprocessor_config.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "generation_config.json", "tokenizer.model"),
)
_NAMING_CODE = ("preprocessor_config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Merged:
    """What was written. changed: how many tensors the adapter changed. lost: |rounding| / |change|, Frobenius norms."""

    changed: int
    lost: float


def merge(source: Path, adapter: Path, unnorm_key: str, folder: Path) -> Merged:
    """Write base `source` with `adapter` merged in to `folder` (replaced as a whole).

    Keys, number types and settings are the base's, but: a head tied to the embedding gets a tensor of its own, since
    only the head is adapted, and every `auto_map` goes, since the Python files it names are not written.

    Args:
        unnorm_key: the action statistics the card recommends; they must be among those of base and adapter.

    Raises:
        UserError: a file is missing or damaged, the adapter does not fit, or the key is unknown.
    """
    config, stored = read_config(source), stored_model(source)
    network = empty_network(source, config, stored)
    rank, alpha = lora.adapter_sizes(adapter)
    changes = _changes(adapter, network.unused(), alpha / rank)
    if network.llama_config.tie_word_embeddings and HEAD in changes:
        stored[HEAD] = stored[_TABLE]
        config = config | {"text_config": config["text_config"] | {"tie_word_embeddings": False}}
    _check(changes, stored, adapter)
    statistics = statistics_of(config, source, adapter)
    if unnorm_key not in statistics:
        known = ", ".join(sorted(statistics)) or "none"
        raise UserError(
            f"policy.unnorm_key '{unnorm_key}' is not in the statistics of base or adapter; there are: {known}."
        )
    with new_folder(folder) as new:
        merged = _write_weights(stored, changes, new)
        for name in _COPIED:
            if (source / name).is_file():
                shutil.copyfile(source / name, new / name)
        for name in _NAMING_CODE:
            if (new / name).is_file():
                write_json(new / name, _without_code(read_json(new / name)))
        write_json(new / "config.json", _without_code(config) | {"norm_stats": statistics})
        write_json(new / STATISTICS, statistics)
        (new / "README.md").write_text(_card(source, adapter, rank, alpha, unnorm_key, statistics, merged))
    return merged


def _without_code(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "auto_map"}


@dataclass(frozen=True)
class _Change:
    """One adapter: weight += scale * up @ down."""

    down: Tensor
    up: Tensor
    scale: float

    def of(self, shape: tuple[int, ...]) -> Tensor:
        """The change of a weight `[out, in]` or `[out, in, k, k]`, float32."""
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return (self.scale * product).view(shape)

    def fits(self, shape: tuple[int, ...]) -> bool:
        return (self.up.shape[0], *self.down.shape[1:]) == shape and self.up.shape[1] == self.down.shape[0]


def _changes(adapter: Path, unused: list[str], scale: float) -> dict[str, _Change]:
    """Weight name to its change; adapters of layers that are never computed are left out."""
    refuse_pickles(adapter, lora.WEIGHTS)
    found = lora.used(read_tensors(adapter / lora.WEIGHTS), unused)
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in found.items():
        layer, _, kind = name.removeprefix(lora.PREFIX).rpartition(".lora_")
        parts[layer][kind] = tensor
    whole = {"A.weight", "B.weight"}
    broken = sorted(layer for layer, part in parts.items() if part.keys() != whole)
    if broken:
        raise UserError(f"{adapter / lora.WEIGHTS}: '{broken[0]}' has not one lora_A and one lora_B; copy it again.")
    return {f"{layer}.weight": _Change(part["A.weight"], part["B.weight"], scale) for layer, part in parts.items()}


def _check(changes: dict[str, _Change], stored: dict[str, Stored], adapter: Path) -> None:
    wrong = sorted(n for n, change in changes.items() if n not in stored or not change.fits(stored[n].shape))
    if wrong:
        raise UserError(
            f"{adapter / lora.WEIGHTS} does not fit the checkpoint: {len(wrong)} tensors differ, first '{wrong[0]}'; "
            "was the adapter trained on another model?"
        )


def _write_weights(stored: dict[str, Stored], changes: dict[str, _Change], folder: Path) -> Merged:
    """Shards of at most 5 GB, with an index if there are several."""
    shards: list[list[str]] = [[]]
    room = SHARD_BYTES
    sizes = {name: _bytes(tensor) for name, tensor in stored.items()}
    for name in sorted(stored):
        if sizes[name] > room and shards[-1]:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= sizes[name]
    changed = lost = 0.0
    places: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        tensors = {}
        for name in names:
            base = stored[name].read()
            if name in changes:
                exact = base.float() + changes[name].of(stored[name].shape)
                tensors[name] = exact.to(base.dtype)
                changed += float((exact - base.float()).square().sum(dtype=torch.float64))
                lost += float((exact - tensors[name].float()).square().sum(dtype=torch.float64))
            else:
                tensors[name] = base
        write_tensors(tensors, folder / file)
        places |= dict.fromkeys(names, file)
    if len(shards) > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places})
    return Merged(len(changes), (lost / changed) ** 0.5 if changed else 0.0)


def _bytes(tensor: Stored) -> int:
    return torch.Size(tensor.shape).numel() * (4 if tensor.dtype == "F32" else 2)


def _card(
    source: Path, adapter: Path, rank: int, alpha: int, key: str, statistics: dict[str, Any], merged: Merged
) -> str:
    return f"""---
library_name: transformers
pipeline_tag: robotics
tags: [openvla, vision-language-action]
---

{TITLE}

| | |
|---|---|
| base | {name_of(source)} |
| adapter | {adapter.name}, LoRA of rank {rank} and alpha {alpha}, merged into {merged.changed} tensors |
| change lost by rounding to the base's number type | {merged.lost:.2%} |
| action statistics | {", ".join(sorted(statistics))}; trained with `{key}` |

The layout is OpenVLA's: `policy.checkpoint=<this folder> policy.unnorm_key={key}` in vlapost, and in the original code
its own model classes (no Python file is in this folder, and `config.json` names none), which do not know the
convolutions that openvla-tiny has before its patches (`patch_embed.stem`).
"""
