"""The policy: a checkpoint folder made into something that chooses and judges actions.

One image and one instruction give seven tokens of 256 bins each, drawn one after another. The critic, if there is one,
reads the hidden state h0 after the final norm at the position that predicts the first of them (paper section 4.1).

Left out of the study's own policy: its hidden top-k of 50 when sampling, and recording the log-probability of another
distribution than the one sampled from.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlapost.config import PolicyConfig, UserError
from vlapost.contracts import ACTION_BINS, ACTION_DIM, Observation, PolicyEvaluation, PolicyOutput
from vlapost.policies import lora
from vlapost.policies.action_tokens import LAST_ID, ActionTokens
from vlapost.policies.cache import fixed_cache
from vlapost.policies.checkpoint import STATISTICS, load_openvla, save_openvla, statistics_of, write_json
from vlapost.policies.features import Features, Sizes
from vlapost.policies.files import new_folder, read_json, restore, write_tensors
from vlapost.policies.folded import keep_folded
from vlapost.policies.graphs import Graphs
from vlapost.policies.openvla import OpenVLA
from vlapost.policies.preprocess import Preprocess
from vlapost.policies.prompt import Prompts
from vlapost.policies.recompute import recompute
from vlapost.policies.value_head import VALUE_HEAD, ValueHead, load_value_head


class OpenVLAPolicy(nn.Module):
    """OpenVLA with tokenizer, action statistics and an optional critic; implements `contracts.Policy`.

    Args:
        network: the network, with adapters or without.
        source: the checkpoint folder (its tokenizer and preprocessor are read).
        statistics: data set name to action statistics. unnorm_key: the one to use.
        critic: build the value head.

    Calls expect `observation` in any image size; it is resized to the network's. All calls use the module as it is:
    there is no dropout, `train()` and `eval()` make no difference.
    """

    def __init__(
        self, network: OpenVLA, source: Path, statistics: dict[str, Any], unnorm_key: str, critic: bool
    ) -> None:
        super().__init__()
        self.network = network
        self.source = source
        self.statistics = statistics
        self.prompts = Prompts(source / "tokenizer.json")
        self.preprocess = Preprocess(read_json(source / "preprocessor_config.json"), network.image_size)
        self.actions = ActionTokens(statistics, unnorm_key)
        self.value_head = ValueHead(network.llama_config.hidden_size) if critic else None
        self.graphs: Graphs | None = None
        self.to(network.device)

    @property
    def sizes(self) -> Sizes:
        """What heads on top of `features` need to know."""
        backbone = self.network.vision_backbone
        patch = backbone.featurizer.sizes.patch
        height, width = self.network.image_size
        return Sizes(
            patch_grid=(height // patch, width // patch),
            patch_size=patch,
            patch_dim=backbone.featurizer.sizes.width + backbone.fused_featurizer.sizes.width,
            hidden_dim=self.network.llama_config.hidden_size,
        )

    def fixed_weights(self) -> AbstractContextManager[None]:
        """For a block in which no weight changes, as a rollout: what can be worked out from weights alone is, once."""
        network = self.network
        return keep_folded(network.vision_backbone, network.projector, network.language_model.model)

    @torch.no_grad()
    def see(self, observation: Observation) -> Observation:
        """What is worth keeping: pictures at the network's size, and features where the image encoder is frozen."""
        image = observation.image
        if image.shape[1:3] != self.preprocess.size:
            small = self.preprocess.fit(image.to(self.network.device))
            observation = replace(observation, image=small.to(image.device))
        if any(parameter.requires_grad for parameter in self.network.vision_backbone.parameters()):
            return observation
        return replace(observation, patches=self._patches(observation))

    @torch.no_grad()
    def act(
        self, observation: Observation, noise: Tensor | None, temperature: float = 1.0, top_k: int = 0
    ) -> PolicyOutput:
        """Draw seven tokens: `argmax(logits / temperature + noise)`, one token after another.

        Args:
            observation: B images and instructions.
            noise: standard Gumbel noise `[B, A, V]`, which makes the argmax a sample; None takes the most likely token
                and ignores `temperature`.
            temperature: > 0; of temperature 1 when greedy.
            top_k: how many bins may be drawn, the likeliest; 0: all. The recorded log-probability is that of the
                distribution drawn from, with temperature and top-k.
        """
        device = self.network.device
        if noise is None:  # argmax(logits + 0)
            noise, temperature = torch.zeros(len(observation), ACTION_DIM, ACTION_BINS), 1.0
        ids, prompt_mask = self.prompts.batch(observation.instruction, device, 1 if self.graphs is None else 8)
        inputs = (self._patches(observation), ids, prompt_mask, noise.to(device))
        if self.graphs is None:
            return PolicyOutput(*self._decode(*inputs, temperature, top_k))
        return PolicyOutput(*self.graphs(self._decode, inputs, (temperature, top_k)))

    def _decode(
        self, patches: Tensor, ids: Tensor, prompt_mask: Tensor, noise: Tensor, temperature: float, top_k: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens `[B, A]`, log-probability and value `[B]`. Shapes follow from shapes; the device is not waited for."""
        mask = F.pad(prompt_mask, (1 + patches.shape[1], 0), value=True)
        positions = mask.cumsum(1) - 1
        cache = fixed_cache(self.network.llama_config.num_hidden_layers, mask.shape[1] + ACTION_DIM - 1)
        hidden = self.network.hidden(self.network.embed(patches, ids), _causal(mask), positions, cache)[:, -1]
        value = self._value(hidden)
        position = positions[:, -1:]
        tokens: list[Tensor] = []
        logprobs: list[Tensor] = []
        for k in range(ACTION_DIM):
            if k > 0:
                mask = F.pad(mask, (0, 1), value=True)
                position = position + 1
                embeds = self.network.language_model.model.embed_tokens(LAST_ID - tokens[-1])[:, None]
                hidden = self.network.hidden(embeds, mask[:, None, None], position, cache)[:, 0]
            logits = self.network.action_logits(hidden) / temperature
            if top_k:
                logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
            token = (logits + noise[:, k]).argmax(-1)
            tokens.append(token)
            logprobs.append(logits.log_softmax(-1).gather(1, token[:, None])[:, 0])
        return torch.stack(tokens, 1), torch.stack(logprobs, 1).sum(1), value

    def features(self, observation: Observation, action_tokens: Tensor) -> Features:
        """The training forward for given bins `[B, A]` (teacher forced), with gradients."""
        hidden, patches = self._forward(observation, action_tokens[:, :-1])
        return Features(self.network.action_logits(hidden), hidden[:, 0], patches)

    def action_logits(self, observation: Observation, action_tokens: Tensor) -> Tensor:
        """Teacher-forced logits `[B, A, V]` float32, for cross-entropy against the bins `[B, A]`."""
        return self.features(observation, action_tokens).logits

    def evaluate(self, observation: Observation, action_tokens: Tensor, temperature: float = 1.0) -> PolicyEvaluation:
        """Log-probability and entropy of each given token `[B, A]`, and the value, with gradients."""
        features = self.features(observation, action_tokens)
        logprob_BAV = (features.logits / temperature).log_softmax(-1)
        logprob = logprob_BAV.gather(2, action_tokens[..., None])[..., 0]
        entropy = -(logprob_BAV.exp() * logprob_BAV).sum(-1)
        return PolicyEvaluation(logprob, entropy, self._value(features.h0))

    def value(self, observation: Observation) -> Tensor:
        """The critic's estimate `[B]` float32; zeros without a critic."""
        tokens = torch.zeros(len(observation), 0, dtype=torch.int64, device=self.network.device)
        hidden, _ = self._forward(observation, tokens)
        return self._value(hidden[:, 0])

    def decode(self, action_tokens: Tensor) -> Tensor:
        """Bins `[B, A]` to actions `[B, A]` float32: metres and radians in the base frame, gripper +1 / -1."""
        return self.actions.decode(action_tokens)

    def encode(self, action: Tensor) -> Tensor:
        """Actions `[B, A]` to bins `[B, A]` int64."""
        return self.actions.encode(action)

    def adapter_parameters(self) -> Iterator[nn.Parameter]:
        """The network's trainable weights: the adapters, or all computed weights of a policy without adapters."""
        return (parameter for parameter in self.network.parameters() if parameter.requires_grad)

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        """The value head's weights; none without a critic."""
        return iter(()) if self.value_head is None else self.value_head.parameters()

    def adapter_state(self) -> dict[str, Tensor]:
        """Adapter weights on CPU under PEFT's file names."""
        return lora.adapter_state(self.network)

    def save(self, folder: Path | str) -> None:
        """Write adapters, critic and statistics (see `save_policy`)."""
        save_policy(self, folder)

    def save_full(self, folder: Path | str) -> None:
        """Write the whole checkpoint folder of a policy without adapters, bfloat16; `folder` is replaced as a whole."""
        save_openvla(self.network, self.source, self.statistics, Path(folder))

    def _inputs(self, observation: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """Patch features `[B, P, Dv]`, prompt ids `[B, L]`, mask `[B, 1+P+L]` of BOS, patches and prompt."""
        device = self.network.device
        patches = self._patches(observation)
        ids, prompt_mask = self.prompts.batch(observation.instruction, device)
        mask = F.pad(prompt_mask, (1 + patches.shape[1], 0), value=True)
        return patches, ids, mask

    def _patches(self, observation: Observation) -> Tensor:
        if observation.patches is not None:
            return observation.patches
        return self.network.patch_features(self.preprocess(observation.image.to(self.network.device)))

    def _forward(self, observation: Observation, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states of the last `N+1` positions given `N` action tokens `[B, N]`; and the patch features."""
        patches, ids, mask = self._inputs(observation)
        count = tokens.shape[1]
        mask = F.pad(mask, (0, count), value=True)
        embeds = self.network.embed(patches, torch.cat([ids, LAST_ID - tokens], dim=1))
        hidden = self.network.hidden(embeds, _causal(mask), mask.cumsum(1) - 1)
        return hidden[:, -(count + 1) :], patches

    def _value(self, h0: Tensor) -> Tensor:
        return torch.zeros(len(h0), device=h0.device) if self.value_head is None else self.value_head(h0)


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
    if cfg.cuda_graph and (folded or torch.device(device).type != "cuda"):
        raise UserError(
            "policy.cuda_graph is true, which needs a GPU and trainer.precision=bf16-true; set it to false."
        )
    if cfg.adapter:
        _check_adapter(folder, cfg)
    network = load_openvla(source, device, dtype, cfg.quantize)
    lora.add_adapters(network, cfg.lora_rank, cfg.lora_alpha, folded)
    if not cfg.train_vision:
        network.vision_backbone.requires_grad_(False)
    recompute(network, cfg.recompute)
    statistics = statistics_of(network.config, source, *([folder] if cfg.adapter else []))
    policy = OpenVLAPolicy(network, source, statistics, cfg.unnorm_key, cfg.critic)
    policy.graphs = Graphs() if cfg.cuda_graph else None
    if cfg.adapter:
        lora.load_adapters(network, folder)
        if policy.value_head is not None:
            load_value_head(policy.value_head, folder)
    return policy


def load_full_policy(folder: Path | str, unnorm_key: str, device: torch.device | str = "cpu") -> OpenVLAPolicy:
    """The policy of a checkpoint folder in float32, without adapters or critic, every weight in use trainable.

    Raises:
        UserError: as `load_policy`.
    """
    source = Path(folder)
    network = load_openvla(source, device, torch.float32)
    network.unfreeze()
    return OpenVLAPolicy(network, source, statistics_of(network.config, source), unnorm_key, critic=False)


def save_policy(policy: OpenVLAPolicy, folder: Path | str) -> None:
    """Write what training changes to `folder` (replaced as a whole).

    adapter_model.safetensors, adapter_config.json, dataset_statistics.json and, with a critic, value_head.safetensors.
    """
    layer = policy.network.language_model.lm_head
    config = lora.lora_config(policy.network, layer.r["default"], layer.lora_alpha["default"])
    config.base_model_name_or_path = policy.source.name
    with new_folder(Path(folder)) as new:
        write_tensors(policy.adapter_state(), new / lora.WEIGHTS)
        config.save_pretrained(str(new))
        write_json(new / STATISTICS, policy.statistics)
        if policy.value_head is not None:
            head = policy.value_head.state_dict(prefix="value_head.")
            write_tensors({name: tensor.cpu() for name, tensor in head.items()}, new / VALUE_HEAD)


def _check_adapter(folder: Path, cfg: PolicyConfig) -> None:
    restore(folder)
    if not folder.is_dir():
        raise UserError(f"There is no adapter folder {folder} (policy.adapter); train one or leave the key empty.")
    rank, alpha = lora.adapter_sizes(folder)
    if (rank, alpha) != (cfg.lora_rank, cfg.lora_alpha):
        raise UserError(
            f"The adapter {folder} has rank {rank} and alpha {alpha}, but the configuration says {cfg.lora_rank} and "
            f"{cfg.lora_alpha}; set policy.lora_rank={rank} policy.lora_alpha={alpha}."
        )


def _causal(mask: Tensor) -> Tensor:
    """`[B, N]` bool (False at padding) to `[B, 1, N, N]`: each token sees itself, earlier tokens, no padding."""
    length = mask.shape[1]
    lower = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    return lower & mask[:, None, None, :]
