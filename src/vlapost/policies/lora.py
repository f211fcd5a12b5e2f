"""Low-rank adapters (Hu et al. 2022) on every linear layer, as the study uses them: rank 32, alpha 16, no dropout.

The target list is explicit, because what "all-linear" means changes between peft versions; it includes the two patch
convolutions and the language model's head. Layers that are never computed are left out. Adapters are float32 whatever
the base is: in bfloat16 an update of 1e-4 is lost in rounding. Files are in PEFT's format.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from vlapost.config import UserError
from vlapost.policies.files import read_json, read_tensors, refuse_pickles
from vlapost.policies.lora_layers import AdaptedLinear, FoldedLinear
from vlapost.policies.openvla import OpenVLA

VISION_TARGETS = ["qkv", "proj", "fc1", "fc2", "fc3", "q", "kv"]  # fc1..fc3 also of the projector
LLAMA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."


def lora_config(network: OpenVLA, rank: int, alpha: int) -> LoraConfig:
    """PEFT's description of the adapters: A normal with deviation 1/rank, B zero, scale alpha/rank."""
    unused = "|".join(name.replace(".", r"\.") for name in network.unused())
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        bias="none",
        init_lora_weights="gaussian",
        target_modules=VISION_TARGETS + LLAMA_TARGETS,
        exclude_modules=rf"({unused})(\..*)?",
    )


def add_adapters(network: OpenVLA, rank: int, alpha: int, folded: bool) -> None:
    """Put new adapters into the network in place; they alone become trainable.

    `folded`: base and adapter as one product (`lora_layers.py`), for a base of plain float32 weights.
    """
    config = lora_config(network, rank, alpha)
    config._register_custom_module({nn.Linear: FoldedLinear if folded else AdaptedLinear})
    inject_adapter_in_model(config, network)
    for name, parameter in network.named_parameters():
        is_adapter = "lora_" in name
        parameter.requires_grad_(is_adapter)
        if is_adapter:
            parameter.data = parameter.data.float()


def adapter_parameters(network: OpenVLA) -> dict[str, nn.Parameter]:
    """Adapter weights under the names PEFT gives them in a file."""
    return {
        PREFIX + name.replace(".default.", "."): parameter
        for name, parameter in network.named_parameters()
        if "lora_" in name
    }


def adapter_state(network: OpenVLA) -> dict[str, Tensor]:
    """Adapter weights as they are written to a file: float32 on CPU."""
    return {name: p.detach().to("cpu").contiguous() for name, p in adapter_parameters(network).items()}


def adapter_sizes(folder: Path) -> tuple[int, int]:
    """Rank and alpha of a saved adapter.

    Raises:
        UserError: the file is missing, or describes something else than plain LoRA.
    """
    settings = read_json(folder / SETTINGS)
    if "r" not in settings or "lora_alpha" not in settings:
        raise UserError(f"{folder / SETTINGS} has no 'r' or 'lora_alpha'; it is not a LoRA adapter.")
    special = [k for k in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "lora_bias") if settings.get(k)]
    if special:
        raise UserError(f"{folder / SETTINGS} sets '{special[0]}'; only plain LoRA adapters can be continued.")
    return settings["r"], settings["lora_alpha"]


def load_adapters(network: OpenVLA, path: Path, shared: OpenVLA | None = None) -> None:
    """Copy the adapter weights of a file into a network that has adapters of the same rank.

    `shared`: a network whose weights must not change; where `network` has the same ones, the file must hold them too.

    Raises:
        UserError: a file is missing, truncated or a pickle, or a tensor is missing or does not fit.
    """
    refuse_pickles(path.parent, path.name)
    found = used(read_tensors(path), network.unused())
    wanted = adapter_parameters(network)
    wrong = sorted(
        name
        for name in wanted.keys() | found.keys()
        if name not in wanted or name not in found or wanted[name].shape != found[name].shape
    )
    if wrong:
        raise UserError(
            f"{path} does not fit the checkpoint: {len(wrong)} tensors differ, first '{wrong[0]}'; "
            "was the adapter trained on another model?"
        )
    kept = {id(p) for p in shared.parameters()} if shared is not None else set()
    if any(id(p) in kept and not torch.equal(p.cpu(), found[name]) for name, p in wanted.items()):
        raise UserError(
            f"{path} has image encoders of its own, which policy.train_vision=false would share with the policy; set "
            "policy.train_vision=true, or delete the file and the value head beside it to start with a new critic."
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(found[name])


def used(tensors: dict[str, Tensor], unused: list[str]) -> dict[str, Tensor]:
    """The adapter weights of a file that are computed with.

    Published adapters also hold a copy of the head (`lm_head.base_layer.weight`) and adapters of the layers `unused`,
    which are never computed; both are skipped.
    """
    skipped = tuple(f"{PREFIX}{name}." for name in unused)
    return {n: t for n, t in tensors.items() if not n.startswith(skipped) and not n.endswith(".base_layer.weight")}


Exchange = list[tuple[nn.Parameter, Tensor]]


def remember(network: OpenVLA) -> Exchange:
    """The trainable adapters as they are. One whose B is zero does nothing: that zero is all that is kept of it."""
    kept: Exchange = []
    for module in network.modules():
        if not isinstance(module, LoraLayer):
            continue
        down, up = (cast(nn.Parameter, pair["default"].weight) for pair in (module.lora_A, module.lora_B))
        if not up.requires_grad:
            continue
        if up.any():
            kept += [(p, p.detach().clone()) for p in (down, up)]
        else:
            kept.append((up, up.new_zeros(())))
    return kept


@contextmanager
def exchanged(kept: Exchange) -> Iterator[None]:
    """The adapters are the kept ones until the block ends. Not for blocks that need gradients."""
    now = [parameter.data for parameter, _ in kept]
    try:
        for parameter, tensor in kept:
            parameter.data = tensor.to(parameter.device).expand_as(parameter)
        yield
    finally:
        for (parameter, _), tensor in zip(kept, now):
            parameter.data = tensor
