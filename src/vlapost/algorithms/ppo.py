"""PPO with a shared actor-critic: the value head reads h0, the hidden state that predicts the first action token.

    make train-ppo

Paper Section 3.2 and Appendix A. What differs from the public code of the study, and how to get its behaviour:

* all RL scalars are float32; there they pass through bfloat16, which adds up to 3 % noise to the ratio;
* the policy loss has its written weight; there a broadcast multiplies it by seven (`algorithm.policy_coef=7`);
* the recorded log-probability is that of the distribution sampled from; there sampling silently keeps the top 50;
* the critic starts at zero, there at random (none), its loss weighs 0.1 (`algorithm.value_coef=1`), as its gradient
  also runs through the adapter, and its rate is 1e-3 (`optim.value_lr=3e-3`).

Variants are settings: `algorithm.gamma=1 algorithm.gae_lambda=1` is PPO-ORZ, `policy.critic` says what the critic
reads, `algorithm.ratio=dimension` clips each of the seven tokens by itself (conf/ppo_dimension.yaml),
`experience.passes` are PPO's epochs, `algorithm.bootstrap_truncation=true` uses the value of the image after the last
step, and `experience.schedule=[rollout,demos]` replays demonstrations beside the rollouts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vlapost.algorithms.base import RolloutModule, reduced_mean_std, token_cross_entropy
from vlapost.contracts import DemoBatch, Rollout, RolloutBatch


def gae(
    reward_TE: Tensor, value_TE: Tensor, last_value_E: Tensor, done_TE: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16).

    `done_TE`: nothing follows this step in its episode. `last_value_E`: the value after step T, for those not done.
    Returns advantage and return (advantage + value), both `[T, E]`.
    """
    advantage_TE = torch.zeros_like(reward_TE)
    v_tp1, a_tp1 = last_value_E, torch.zeros_like(last_value_E)
    for t in reversed(range(len(reward_TE))):
        goes_on = (~done_TE[t]).to(reward_TE.dtype)
        # TD error: r_t + gamma * V(s_{t+1}) - V(s_t)
        delta = reward_TE[t] + gamma * goes_on * v_tp1 - value_TE[t]
        a_tp1 = advantage_TE[t] = delta + gamma * lam * goes_on * a_tp1
        v_tp1 = value_TE[t]
    return advantage_TE, advantage_TE + value_TE


class Surrogate(NamedTuple):
    """Policy loss and its measures, scalars."""

    loss: Tensor
    kl: Tensor
    clip_fraction: Tensor
    ratio: Tensor


def clipped_surrogate(
    logprob_BA: Tensor, old_logprob_BA: Tensor, advantage_B: Tensor, clip: float, per: str
) -> Surrogate:
    """-mean min(rho A, clip(rho, 1 - clip, 1 + clip) A), rho = pi/pi_old (paper eq. 1).

    `per` "action": one ratio per action, the product over its tokens. "dimension": each token has its own, and the
    loss of an action is their sum, so that where the ratios are 1 both have the same gradient.
    `kl` is the low-variance estimate of KL(old || new), mean((rho - 1) - log rho), of one ratio.
    """
    log_ratio = logprob_BA - old_logprob_BA
    if per == "action":
        log_ratio = log_ratio.sum(-1, keepdim=True)
    ratio, advantage = log_ratio.exp(), advantage_B.unsqueeze(-1)
    loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).sum(-1).mean()
    with torch.no_grad():
        kl = ((ratio - 1) - log_ratio).mean()
        clipped = ((ratio - 1).abs() > clip).float().mean()
    return Surrogate(loss, kl, clipped, ratio.detach().mean())


def clipped_value_loss(value: Tensor, old_value: Tensor, return_: Tensor, clip: float, delta: float) -> Tensor:
    """Mean of the larger Huber loss of the new value and of the new value kept within `clip` of the old."""
    near = old_value + (value - old_value).clamp(-clip, clip)
    huber = torch.maximum(
        F.huber_loss(value, return_, reduction="none", delta=delta),
        F.huber_loss(near, return_, reduction="none", delta=delta),
    )
    return huber.mean()


class PPO(RolloutModule):
    """Proximal policy optimisation on action log-probabilities."""

    def advantage(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Advantage (normalised over the buffers of all processes) and return of a rollout, `[T, E]` each."""
        a = self.algorithm
        done = rollout.done
        if a.bootstrap_truncation:  # all end at T, by the clock
            done = torch.zeros_like(done)
        known = rollout.reward, rollout.value, rollout.last_value, done, a.gamma
        advantage, _ = gae(*known, a.gae_lambda)
        _, return_ = gae(*known, a.value_lambda)
        if a.normalise_advantage:
            mean, std = reduced_mean_std(advantage)
            advantage = (advantage - mean) / (std + 1e-5)
        return advantage, return_

    def training_step(self, batch: RolloutBatch | DemoBatch, batch_idx: int) -> Tensor:
        """One minibatch of the current rollout, or of demonstrations where the schedule mixes them in."""
        a, size = self.algorithm, len(batch)
        if isinstance(batch, DemoBatch):
            return self._imitate(batch)
        if self.stopped:
            return self.no_gradient()
        new = self.policy.evaluate(batch.observation, batch.action_tokens, self.temperature)
        policy = clipped_surrogate(new.logprob, batch.logprob, batch.advantage, a.clip, a.ratio)
        value_loss = clipped_value_loss(new.value, batch.value, batch.return_, a.value_clip, a.huber_delta)
        entropy = new.entropy.mean()
        loss = a.policy_coef * policy.loss + a.value_coef * value_loss - a.entropy_coef * entropy
        measures = {
            "policy_loss": policy.loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "kl": policy.kl,
            "clip_fraction": policy.clip_fraction,
            "ratio": policy.ratio,
            "value_mean": new.value.mean(),
            "return_mean": batch.return_.mean(),
        }
        if batch_idx == 0:
            measures["ratio_first"] = policy.ratio
        self.log_dict({f"train/{k}": v.detach() for k, v in measures.items()}, batch_size=size)
        self.stop_above(policy.kl, a.target_kl)
        return loss

    def _imitate(self, batch: DemoBatch) -> Tensor:
        """Behaviour cloning, as in SFT. With several processes the critic needs gradients too: zeros."""
        logits = self.policy.action_logits(batch.observation, batch.action_tokens)
        loss = token_cross_entropy(logits, batch.action_tokens, self.algorithm.soft_targets)
        self.log("train/imitation_loss", loss.detach(), batch_size=len(batch))
        return self.algorithm.imitation_coef * loss + self.no_gradient()
