"""The policy: a checkpoint folder made into something that chooses and judges actions.

One image and one instruction give seven tokens of 256 bins each, drawn one after another. The critic, if there is one,
reads the hidden state h0 after the final norm at the position that predicts the first of them (paper section 4.1), or,
to compare (paper Fig. 4b), the one that predicts the last (hn), all seven, or h0 of a second network with adapters of
its own over the same frozen weights. Or (`state`, not in the paper) it is told what the simulator knows; the actor
sees pictures and needs no critic (Pinto et al. 2017, asymmetric actor-critic).

Left out of the study's own policy: its hidden top-k of 50 when sampling, and recording the log-probability of another
distribution than the one sampled from.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlapost.contracts import ACTION_BINS, ACTION_DIM, Observation, PolicyEvaluation, PolicyOutput
from vlapost.policies import lora
from vlapost.policies.action_tokens import LAST_ID, ActionTokens
from vlapost.policies.cache import fixed_cache
from vlapost.policies.checkpoint import STATISTICS, save_openvla, write_json
from vlapost.policies.features import Features, Sizes
from vlapost.policies.files import new_folder, read_json, write_tensors
from vlapost.policies.graphs import Graphs
from vlapost.policies.hub import name_of
from vlapost.policies.lora_layers import keep_fixed
from vlapost.policies.openvla import OpenVLA
from vlapost.policies.preprocess import Preprocess
from vlapost.policies.prompt import Prompts
from vlapost.policies.value_head import ValueHead, critic_input, critic_width, save_value_head

CRITIC_ADAPTER = "critic_adapter.safetensors"


class OpenVLAPolicy(nn.Module):
    """OpenVLA with tokenizer, action statistics and an optional critic; implements `contracts.Policy`.

    Args:
        network: the network, with adapters or without.
        source: the checkpoint folder (its tokenizer and preprocessor are read).
        statistics: data set name to action statistics. unnorm_key: the one to use.
        critic: what the value head reads: h0, hn, all, separate or state; "none" builds no critic.

    Calls expect `observation` in any image size; it is resized to the network's. All calls use the module as it is:
    there is no dropout, `train()` and `eval()` make no difference.
    """

    def __init__(
        self, network: OpenVLA, source: Path, statistics: dict[str, Any], unnorm_key: str, critic: str
    ) -> None:
        super().__init__()
        self.network = network
        self.source = source
        self.statistics = statistics
        self.prompts = Prompts(source / "tokenizer.json")
        self.preprocess = Preprocess(read_json(source / "preprocessor_config.json"), network.image_size)
        self.actions = ActionTokens(statistics, unnorm_key)
        self.critic = critic
        width = critic_width(critic, network.llama_config.hidden_size)
        self.value_head = None if critic == "none" else ValueHead(width)
        self.critic_network = second_network(network) if critic == "separate" else None
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
        if self.graphs is not None:  # a recorded graph reads adapters where they lie, and works these out in no time
            return nullcontext()
        parts = ((n.vision_backbone, n.projector, n.language_model.model) for n in self.networks())
        return keep_fixed(self.network.dtype, *(module for part in parts for module in part))

    @torch.no_grad()
    def see(self, observation: Observation) -> Observation:
        """What is worth keeping: pictures at the network's size, and features where the image encoder is frozen."""
        image = observation.image
        if image.shape[1:3] != self.preprocess.size:
            small = self.preprocess.fit(image.to(self.network.device))
            observation = replace(observation, image=small.to(image.device))
        if any(parameter.requires_grad for parameter in self.network.vision_backbone.parameters()):
            return observation
        return replace(observation, patches=self._patches(self.network, observation))

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
        graphs = self.graphs if device.type == "cuda" else None  # with trainer.accelerator=cpu there are none
        ids, prompt_mask = self.prompts.batch(observation.instruction, device, 1 if graphs is None else 8)
        inputs = (self._patches(self.network, observation), ids, prompt_mask, noise.to(device))
        if graphs is None:
            tokens, logprob, hidden = self._decode(*inputs, temperature, top_k)
        else:
            tokens, logprob, hidden = graphs(self._decode, inputs, (temperature, top_k))
        return PolicyOutput(tokens, logprob, self._value(hidden, observation))

    def _decode(
        self, patches: Tensor, ids: Tensor, prompt_mask: Tensor, noise: Tensor, temperature: float, top_k: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens and log-probabilities `[B, A]`, hidden states `[B, A, D]`; the device is never waited for."""
        mask = F.pad(prompt_mask, (1 + patches.shape[1], 0), value=True)
        positions = mask.cumsum(1) - 1
        cache = fixed_cache(self.network.llama_config.num_hidden_layers, mask.shape[1] + ACTION_DIM - 1)
        hidden = self.network.hidden(self.network.embed(patches, ids), _causal(mask), positions, 1, cache)[:, 0]
        position = positions[:, -1:]
        seen = [hidden]
        tokens: list[Tensor] = []
        logprobs: list[Tensor] = []
        for k in range(ACTION_DIM):
            if k > 0:
                mask = F.pad(mask, (0, 1), value=True)
                position = position + 1
                embeds = self.network.language_model.model.embed_tokens(LAST_ID - tokens[-1])[:, None]
                hidden = self.network.hidden(embeds, mask[:, None, None], position, 1, cache)[:, 0]
                seen.append(hidden)
            logits = self.network.action_logits(hidden) / temperature
            if top_k:
                logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
            token = (logits + noise[:, k]).argmax(-1)
            tokens.append(token)
            logprobs.append(logits.log_softmax(-1).gather(1, token[:, None])[:, 0])
        return torch.stack(tokens, 1), torch.stack(logprobs, 1), torch.stack(seen, 1)

    def features(self, observation: Observation, action_tokens: Tensor) -> Features:
        """The training forward for given bins `[B, A]` (teacher forced), with gradients."""
        hidden, patches = self._forward(self.network, observation, action_tokens[:, :-1])
        return Features(self.network.action_logits(hidden), hidden, patches)

    def action_logits(self, observation: Observation, action_tokens: Tensor) -> Tensor:
        """Teacher-forced logits `[B, A, V]` float32, for cross-entropy against the bins `[B, A]`."""
        return self.features(observation, action_tokens).logits

    def evaluate(self, observation: Observation, action_tokens: Tensor, temperature: float = 1.0) -> PolicyEvaluation:
        """Log-probability and entropy of each given token `[B, A]`, and the value, with gradients."""
        features = self.features(observation, action_tokens)
        logprob_BAV = (features.logits / temperature).log_softmax(-1)
        logprob = logprob_BAV.gather(2, action_tokens[..., None])[..., 0]
        entropy = -(logprob_BAV.exp() * logprob_BAV).sum(-1)
        return PolicyEvaluation(logprob, entropy, self._value(features.hidden, observation))

    def value(self, observation: Observation) -> Tensor:
        """The critic's estimate `[B]` float32; zeros without a critic.

        A critic that reads hn judges an observation together with an action: here with the likeliest.
        """
        if self.critic in ("hn", "all"):
            return self.act(observation, None).value
        if self.critic != "h0":  # reads nothing of this network
            return self._value(torch.zeros(len(observation), 1, 1, device=self.network.device), observation)
        return self._value(self._h0(self.network, observation), observation)

    def remember(self) -> None:
        """Take the adapters as they are for `reference`; new ones, which do nothing yet, cost no memory."""
        self._remembered = lora.remember(self.network)

    def reference(self) -> AbstractContextManager[None]:
        """For a block without gradients in which the adapters are those of `remember`."""
        return lora.exchanged(self._remembered)

    def decode(self, action_tokens: Tensor) -> Tensor:
        """Bins `[B, A]` to actions `[B, A]` float32: metres and radians in the base frame, gripper +1 / -1."""
        return self.actions.decode(action_tokens)

    def encode(self, action: Tensor) -> Tensor:
        """Actions `[B, A]` to bins `[B, A]` int64."""
        return self.actions.encode(action)

    def adapter_parameters(self) -> Iterator[nn.Parameter]:
        """The trainable weights but the value head: adapters, or all weights in use of a policy without adapters."""
        return (parameter for n in self.networks() for parameter in n.parameters() if parameter.requires_grad)

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

    def networks(self) -> list[OpenVLA]:
        """The one that acts and, where the critic has its own, that one."""
        return [self.network] if self.critic_network is None else [self.network, self.critic_network]

    def _patches(self, network: OpenVLA, observation: Observation) -> Tensor:
        if observation.patches is not None:
            return observation.patches
        return network.patch_features(self.preprocess(observation.image.to(network.device)))

    def _forward(self, network: OpenVLA, observation: Observation, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states of the last `N+1` positions given `N` action tokens `[B, N]`; and the patch features."""
        patches = self._patches(network, observation)
        ids, prompt_mask = self.prompts.batch(observation.instruction, network.device)
        count = tokens.shape[1]
        mask = F.pad(prompt_mask, (1 + patches.shape[1], count), value=True)
        embeds = network.embed(patches, torch.cat([ids, LAST_ID - tokens], dim=1))
        return network.hidden(embeds, _causal(mask), mask.cumsum(1) - 1, count + 1), patches

    def _h0(self, network: OpenVLA, observation: Observation) -> Tensor:
        """The hidden state `[B, 1, D]` that predicts the first action token."""
        tokens = torch.zeros(len(observation), 0, dtype=torch.int64, device=network.device)
        return self._forward(network, observation, tokens)[0]

    def _value(self, hidden_BAD: Tensor, observation: Observation) -> Tensor:
        """The critic's estimate `[B]` from the hidden states that predict the action tokens; at least the first."""
        if self.value_head is None:
            return torch.zeros(len(hidden_BAD), device=hidden_BAD.device)
        if self.critic_network is not None:
            hidden_BAD = self._h0(self.critic_network, observation)
        return self.value_head(critic_input(self.critic, hidden_BAD, observation.state))


def save_policy(policy: OpenVLAPolicy, folder: Path | str) -> None:
    """Write what training changes to `folder` (replaced as a whole).

    adapter_model.safetensors, adapter_config.json, dataset_statistics.json; with a critic value_head.safetensors and,
    where it has its own network, critic_adapter.safetensors.
    """
    layer = policy.network.language_model.lm_head
    config = lora.lora_config(policy.network, layer.r["default"], layer.lora_alpha["default"])
    config.base_model_name_or_path = name_of(policy.source)
    with new_folder(Path(folder)) as new:
        write_tensors(policy.adapter_state(), new / lora.WEIGHTS)
        config.save_pretrained(str(new))
        write_json(new / STATISTICS, policy.statistics)
        if policy.critic_network is not None:
            write_tensors(lora.adapter_state(policy.critic_network), new / CRITIC_ADAPTER)
        if policy.value_head is not None:
            save_value_head(policy.value_head, new, policy.critic)


def second_network(network: OpenVLA) -> OpenVLA:
    """A copy whose trainable weights are its own and whose frozen weights are those of `network`, not copied."""
    shared = {id(p): p for p in [*network.parameters(), *network.buffers()] if not p.requires_grad}
    second = copy.deepcopy(network, shared)
    second.language_model.lm_head.requires_grad_(False)  # a critic has no use for it
    return second


def _causal(mask: Tensor) -> Tensor:
    """`[B, N]` bool (False at padding) to `[B, 1, N, N]`: each token sees itself, earlier tokens, no padding."""
    length = mask.shape[1]
    lower = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    return lower & mask[:, None, None, :]
