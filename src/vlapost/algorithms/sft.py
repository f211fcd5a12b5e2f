"""SFT: supervised fine-tuning on demonstrated actions.

    make train-sft

Token cross-entropy over the 256 action bins of the seven action tokens (paper Section 3). The original trains on the
closing `</s>` too and normalises over 32,064 words; neither changes what the policy samples, so both are left out.
"""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor

from vlapost.algorithms.base import PolicyModule
from vlapost.contracts import DemoBatch


def token_cross_entropy(logits_BAV: Tensor, tokens_BA: Tensor) -> Tensor:
    """Mean negative log-probability of the demonstrated tokens, a scalar."""
    return F.cross_entropy(logits_BAV.float().flatten(0, 1), tokens_BA.flatten())


class SFT(PolicyModule):
    """Supervised fine-tuning."""

    def training_step(self, batch: DemoBatch, batch_idx: int) -> Tensor:
        """One minibatch of demonstrations."""
        logits = cast(Any, self.policy).action_logits(batch.observation, batch.action_tokens)
        loss = token_cross_entropy(logits, batch.action_tokens)
        distance = (logits.argmax(-1) - batch.action_tokens).abs().float()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        self.log("train/token_accuracy", (distance == 0).float().mean(), batch_size=len(batch))
        self.log("train/bin_distance", distance.mean(), batch_size=len(batch))
        return loss
