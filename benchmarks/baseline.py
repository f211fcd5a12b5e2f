"""The usual way of doing what the policy does, on the same weights: what the benchmark compares with."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from vlapost.contracts import ACTION_DIM, Observation
from vlapost.policies.action_tokens import FIRST_ID, LAST_ID
from vlapost.policies.policy import OpenVLAPolicy
from vlapost.policies.prompt import PAD


class ActionsOnly(LogitsProcessor):
    """Nothing but action tokens."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        allowed = torch.full_like(scores, -torch.inf)
        allowed[:, FIRST_ID : LAST_ID + 1] = scores[:, FIRST_ID : LAST_ID + 1]
        return allowed


def inputs(policy: OpenVLAPolicy, observation: Observation) -> tuple[Tensor, Tensor, Tensor]:
    """Patch features `[B, P, Dv]`, prompt ids `[B, L]`, mask `[B, 1+P+L]` of BOS, patches and prompt."""
    patches = policy._patches(policy.network, observation)
    ids, prompt_mask = policy.prompts.batch(observation.instruction, policy.network.device)
    return patches, ids, F.pad(prompt_mask, (1 + patches.shape[1], 0), value=True)


@torch.no_grad()
def generate(policy: OpenVLAPolicy, observation: Observation) -> Tensor:
    """Greedy bins `[B, A]` by transformers' own loop."""
    patches, ids, mask = inputs(policy, observation)
    found: Any = policy.network.language_model.generate(
        inputs_embeds=policy.network.embed(patches, ids),
        attention_mask=mask.long(),
        max_new_tokens=ACTION_DIM,
        min_new_tokens=ACTION_DIM,
        do_sample=False,
        pad_token_id=PAD,
        logits_processor=LogitsProcessorList([ActionsOnly()]),
    )
    return LAST_ID - found


def forward(policy: OpenVLAPolicy, observation: Observation, tokens: Tensor, hidden: bool) -> Any:
    """transformers' own forward over the whole sequence, with all logits and, if wanted, all hidden states."""
    patches, ids, mask = inputs(policy, observation)
    mask = F.pad(mask, (0, ACTION_DIM - 1), value=True)
    return policy.network.language_model(
        inputs_embeds=policy.network.embed(patches, torch.cat([ids, LAST_ID - tokens[:, :-1]], 1)),
        attention_mask=mask.long(),
        position_ids=(mask.cumsum(1) - 1).clamp_min(0),
        use_cache=False,
        output_hidden_states=hidden,
    )


def all_logits(policy: OpenVLAPolicy, observation: Observation, tokens: Tensor) -> Tensor:
    """Log-probabilities `[B, A]` by way of the logits of every position over the whole vocabulary."""
    logits = forward(policy, observation, tokens, hidden=False).logits
    actions = logits[:, -ACTION_DIM:, FIRST_ID : LAST_ID + 1].flip(-1)
    return actions.log_softmax(-1).gather(2, tokens[..., None])[..., 0]


def everything_kept(policy: OpenVLAPolicy, observation: Observation, tokens: Tensor) -> None:
    """A training step with all logits and all hidden states, and the critic on one of these."""
    output = forward(policy, observation, tokens, hidden=True)
    logprob = output.logits.float().log_softmax(-1)[:, -ACTION_DIM:]
    chosen = logprob.gather(2, LAST_ID - tokens[..., None])
    value = policy._value(output.hidden_states[-1][:, -ACTION_DIM:], observation)
    (chosen.sum() + value.sum()).backward()
