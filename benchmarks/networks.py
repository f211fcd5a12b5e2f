"""Random policies of chosen size made on the device, and the operations they need (no weights, no download)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from vlapost.config import ROOT
from vlapost.contracts import ACTION_DIM, Observation
from vlapost.policies import lora, quantize
from vlapost.policies.files import read_json
from vlapost.policies.openvla import OpenVLA
from vlapost.policies.policy import OpenVLAPolicy
from vlapost.policies.recompute import recompute
from vlapost.policies.sizes import scaled_7b

SOURCE = ROOT / "models" / "openvla-tiny"  # of tokenizer, normalisation and action statistics
RANK, ALPHA = 32, 16
INSTRUCTION = "put carrot on plate"


@dataclass(frozen=True)
class Size:
    """OpenVLA-7B with widths divided and, unless None, `depth` computed layers in each of its three transformers."""

    name: str
    divisor: int
    depth: int | None


def make_network(size: Size, device: str, dtype: torch.dtype, quantized: str = "none") -> OpenVLA:
    """Weights N(0, 0.02), norms and layer scales 1, biases 0; frozen."""
    _, network = scaled_7b(size.divisor, size.depth)
    torch.manual_seed(0)
    for place, module in list(network.named_modules()):
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            value = torch.empty(parameter.shape, device=device, dtype=dtype)
            if parameter.dim() > 1:
                value.normal_(std=0.02)
            else:
                value.fill_(float(leaf != "bias"))
            if quantized != "none" and leaf == "weight" and quantize.applies(place, module, quantized):
                quantize.replace(network, place, value, quantized, device)
                module = network.get_submodule(place)
            else:
                setattr(module, leaf, nn.Parameter(value, requires_grad=False))
    network.language_model.model.rotary_emb = LlamaRotaryEmbedding(network.llama_config).to(device)
    return network.requires_grad_(False).eval()


def make_policy(
    size: Size, device: str, dtype: torch.dtype, quantized: str = "none", recomputed: str = "none"
) -> OpenVLAPolicy:
    """With new adapters on every linear layer, and a critic."""
    network = make_network(size, device, dtype, quantized)
    lora.add_adapters(network, RANK, ALPHA, folded=dtype == torch.float32 and quantized == "none")
    recompute(network, recomputed)
    return plain_policy(network, critic="h0")


def plain_policy(network: OpenVLA, critic: str) -> OpenVLAPolicy:
    """A network as it is, with the small model's tokenizer."""
    statistics = read_json(SOURCE / "dataset_statistics.json")
    return OpenVLAPolicy(network, SOURCE, statistics, next(iter(statistics)), critic=critic)


def observation(batch: int, device: str) -> Observation:
    """Random pictures and one instruction."""
    image = torch.randint(0, 256, (batch, 224, 224, 3), dtype=torch.uint8, device=device)
    return Observation(image, (INSTRUCTION,) * batch)


@dataclass(frozen=True)
class Work:
    """Per sample, in operations (a multiplication and an addition are two) or bytes.

    see: encoders and projector. read: Llama over BOS, patches and prompt. token: one decoding pass. adapt: the part of
    the adapters in a training forward. weights: Llama's bytes, read in every decoding pass. cache: one sample's keys
    and values.
    """

    see: float
    read: float
    token: float
    adapt: float
    weights: float
    cache: float

    def acting(self, batch: int, peak: tuple[float, float]) -> float:
        """Least seconds of one decision for `batch` samples: products, then six passes over weights and cache."""
        operations, bandwidth = peak
        passes = ACTION_DIM - 1
        decode = max(batch * self.token / operations, (self.weights + batch * self.cache) / bandwidth)
        return batch * (self.see + self.read) / operations + passes * decode

    def learning(self, batch: int, peak: tuple[float, float]) -> float:
        """Least seconds of forward and backward: the base needs no gradients of its weights, the adapters do.

        What is computed again (`policy.recompute`) is not counted: it is no work that has to be done.
        """
        forward = self.see + self.read + (ACTION_DIM - 1) * self.token
        return batch * (2 * forward + 3 * self.adapt) / peak[0]


def work(size: Size, prompt: int) -> Work:
    """Counted from the shapes of the network without adapters, bfloat16."""
    _, network = scaled_7b(size.divisor, size.depth)
    llama = network.llama_config
    layers, hidden = llama.num_hidden_layers, llama.hidden_size
    see = adapters = 0.0
    for encoder in (network.vision_backbone.featurizer, network.vision_backbone.fused_featurizer):
        s = encoder.sizes
        tokens = s.patches + (s.registers + 1 if s.registers else 0)
        see += 2 * tokens * _linear(encoder.blocks[:-1]) + 4 * tokens**2 * s.width * (s.depth - 1)
        adapters += 2 * tokens * _adapted(encoder.blocks[:-1])
    patches = network.vision_backbone.featurizer.sizes.patches
    see += 2 * patches * _linear(network.projector)
    length = 1 + patches + prompt
    *blocks, last = network.language_model.model.layers
    attention = last.self_attn
    everywhere = nn.ModuleList([*blocks, attention.k_proj, attention.v_proj])
    where_read = nn.ModuleList([attention.q_proj, attention.o_proj, last.mlp])  # seven positions, one of the prompt's
    per_token = 2.0 * (_linear(everywhere) + _linear(where_read))
    read = 2 * length * _linear(everywhere) + 4 * length**2 * hidden * (layers - 1)
    read += 2 * _linear(where_read) + 4 * length * hidden
    adapters += 2 * patches * _adapted(network.projector)
    adapters += 2 * (length + ACTION_DIM - 1) * _adapted(everywhere) + 2 * ACTION_DIM * _adapted(where_read)
    cache = 2 * 2.0 * layers * length * hidden
    return Work(see, read, per_token + 4 * length * hidden * layers, adapters, per_token, cache)


def _linear(part: nn.Module) -> int:
    return sum(m.weight.numel() for m in part.modules() if isinstance(m, nn.Linear))


def _adapted(part: nn.Module) -> int:
    return sum(RANK * (m.in_features + m.out_features) for m in part.modules() if isinstance(m, nn.Linear))
