"""From settings to a policy."""

from __future__ import annotations

from pathlib import Path

import torch

from vlapost.config import PolicyConfig, UserError
from vlapost.policies import lora
from vlapost.policies.checkpoint import load_openvla, statistics_of
from vlapost.policies.files import restore
from vlapost.policies.graphs import Graphs
from vlapost.policies.policy import CRITIC_ADAPTER, OpenVLAPolicy
from vlapost.policies.recompute import recompute
from vlapost.policies.value_head import load_value_head


def load_policy(cfg: PolicyConfig, device: torch.device | str, dtype: torch.dtype) -> OpenVLAPolicy:
    """The policy a configuration describes: a frozen base with trainable adapters and, if wanted, a critic.

    The base weights are `dtype`; adapters and critic are float32 always. `cfg.adapter` continues a saved adapter (and
    its critic, if it has one), else new ones are made from the global random generator: seed it first.

    Raises:
        UserError: a folder, file or key is missing or does not fit; the sentence names it.
    """
    source, folder = Path(cfg.checkpoint), Path(cfg.adapter)
    if cfg.lora_rank < 1:
        raise UserError(f"policy.lora_rank is {cfg.lora_rank}; it must be 1 or more.")
    folded = dtype == torch.float32 and cfg.quantize == "none"
    if cfg.cuda_graph and (folded or not torch.cuda.is_available()):
        raise UserError(
            "policy.cuda_graph is true, which needs a GPU and trainer.precision=bf16-true; set it to false."
        )
    if cfg.adapter:
        check_adapter(folder, cfg)
    network = load_openvla(source, device, dtype, cfg.quantize)
    lora.add_adapters(network, cfg.lora_rank, cfg.lora_alpha, folded)
    if cfg.adapter:
        lora.load_adapters(network, folder / lora.WEIGHTS)
    if not cfg.train_vision:
        network.vision_backbone.requires_grad_(False)
    others = [Path(place) for place in (cfg.statistics, cfg.adapter) if place]
    statistics = statistics_of(network.config, source, *others)
    policy = OpenVLAPolicy(network, source, statistics, cfg.unnorm_key, cfg.critic)
    policy.graphs = Graphs() if cfg.cuda_graph else None
    for part in policy.networks():
        recompute(part, cfg.recompute)
    if cfg.adapter and policy.value_head is not None:
        load_value_head(policy.value_head, folder, cfg.critic)
        if policy.critic_network is not None and (folder / CRITIC_ADAPTER).is_file():
            lora.load_adapters(policy.critic_network, folder / CRITIC_ADAPTER, shared=network)
    return policy


def load_full_policy(folder: Path | str, unnorm_key: str, device: torch.device | str = "cpu") -> OpenVLAPolicy:
    """The policy of a checkpoint folder in float32, without adapters or critic, every weight in use trainable.

    Raises:
        UserError: as `load_policy`.
    """
    source = Path(folder)
    network = load_openvla(source, device, torch.float32)
    network.unfreeze()
    return OpenVLAPolicy(network, source, statistics_of(network.config, source), unnorm_key, critic="none")


def check_adapter(folder: Path, cfg: PolicyConfig) -> None:
    """Make sure that the adapter folder `cfg.adapter` is there and has the rank and alpha of the settings.

    Raises:
        UserError: it is not, or has not.
    """
    restore(folder)
    if not folder.is_dir():
        raise UserError(f"There is no adapter folder {folder} (policy.adapter); train one or leave the key empty.")
    rank, alpha = lora.adapter_sizes(folder)
    if (rank, alpha) != (cfg.lora_rank, cfg.lora_alpha):
        raise UserError(
            f"The adapter {folder} has rank {rank} and alpha {alpha}, but the configuration says {cfg.lora_rank} and "
            f"{cfg.lora_alpha}; set policy.lora_rank={rank} policy.lora_alpha={alpha}."
        )
