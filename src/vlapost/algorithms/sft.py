"""SFT: supervised fine-tuning on demonstrated actions.

    make train-sft

Token cross-entropy over the 256 action bins of the seven action tokens (paper Section 3). What differs from the
original, and how to get its behaviour:

* it trains on the closing `</s>` too and normalises over 32,064 words; neither changes what the policy samples;
* the rate rises and falls along a cosine, there it is constant (`optim.schedule=constant optim.warmup_steps=0`);
* gradients are clipped at 10, there not at all (`optim.grad_clip=0`);
* the warm-up's adapter goes on learning, there a new one is put on merged weights (`make export`, then
  `policy.checkpoint`).
"""

from __future__ import annotations

from torch import Tensor

from vlapost.algorithms.base import PolicyModule, token_cross_entropy
from vlapost.config import AlgorithmConfig, OptimConfig
from vlapost.contracts import DemoBatch, Policy


class SFT(PolicyModule):
    """Supervised fine-tuning."""

    def __init__(self, policy: Policy, algorithm: AlgorithmConfig, optim: OptimConfig, total_steps: int):
        super().__init__(policy, optim, total_steps)
        self.algorithm = algorithm

    def training_step(self, batch: DemoBatch, batch_idx: int) -> Tensor:
        """One minibatch of demonstrations."""
        logits = self.policy.action_logits(batch.observation, batch.action_tokens)
        loss = token_cross_entropy(logits, batch.action_tokens, self.algorithm.soft_targets)
        distance = (logits.argmax(-1) - batch.action_tokens).abs().float()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        self.log("train/token_accuracy", (distance == 0).float().mean(), batch_size=len(batch))
        self.log("train/bin_distance", distance.mean(), batch_size=len(batch))
        return loss
