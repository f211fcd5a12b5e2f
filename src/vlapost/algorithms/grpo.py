"""GRPO: policy gradient without a critic; what an episode is worth is said by the episodes beside it.

    make train-grpo

`algorithm.advantage` chooses the form:

* `group` (default): groups of `experience.same_start` episodes that begin from the same start; an episode's advantage
  is its return against the mean of its group, in deviations of its group. A group whose returns are all equal teaches
  nothing: its advantage is zero, and it is counted (`train/flat_groups`).
* `valid`, `whole`: the study's two forms (paper eq. 3-4 and 5-6), with all episodes of an iteration as one group:
  `experience.same_start=1` is its GRPO, and the number of all episodes its GRPO(s). Both have a defect, which is why
  they are not the default. `valid`: the reward of a grasp lies below the mean of the rewards and counts as a loss, so
  an episode that grasps ends below one that does nothing. `whole`: every step without a reward costs the same, whatever
  the state.

The loss is PPO's clipped surrogate. No critic is built. What the study's code does besides: it multiplies the loss by
seven (`algorithm.policy_coef=7`), and evaluates a critic that nobody reads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlapost.algorithms.base import RolloutModule, reduced_mean_std
from vlapost.algorithms.ppo import clipped_surrogate
from vlapost.contracts import Rollout, RolloutBatch

EPSILON = 1e-5


def group_advantage(reward_TE: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return of each episode, standardised within its group of `size` neighbours, at every step: `[T, E]`.

    Also which groups have no spread, `[E / size]` bool; their advantage is zero.
    """
    return_GN = reward_TE.sum(0).view(-1, size)
    std_G1 = return_GN.std(1, correction=0, keepdim=True)
    flat_G1 = std_G1 < EPSILON
    advantage_GN = (return_GN - return_GN.mean(1, keepdim=True)) / (std_G1 + EPSILON)
    return advantage_GN.masked_fill(flat_G1, 0.0).flatten().expand_as(reward_TE), flat_G1[:, 0]


def to_come(x_TE: Tensor) -> Tensor:
    """Sum from each step on, `[T, E]`."""
    return x_TE.flip(0).cumsum(0).flip(0)


def valid_reward_advantage(reward_TE: Tensor) -> Tensor:
    """Sum from each step on of the rewards that are not zero, standardised among themselves (paper eq. 3-4)."""
    valid_TE = reward_TE != 0
    mean, std = reduced_mean_std(reward_TE[valid_TE])
    normalised = torch.where(valid_TE, (reward_TE - mean) / (std + EPSILON), 0.0)
    return to_come(normalised)


def whole_reward_advantage(reward_TE: Tensor) -> Tensor:
    """Sum from each step on of all rewards, standardised, zeros too (paper eq. 5-6)."""
    mean, std = reduced_mean_std(reward_TE)
    return to_come((reward_TE - mean) / (std + EPSILON))


class GRPO(RolloutModule):
    """Group relative policy optimisation on action log-probabilities."""

    flat_groups = 0.0  # share of the newest rollout's groups

    def advantage(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Advantage of a rollout and the sum of the rewards to come, `[T, E]` each."""
        reward, form = rollout.reward, self.algorithm.advantage
        if form == "group":
            advantage, flat = group_advantage(reward, self.group_size)
            self.flat_groups = float(flat.float().mean())
        else:
            advantage = valid_reward_advantage(reward) if form == "valid" else whole_reward_advantage(reward)
        return advantage, to_come(reward)

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> Tensor:
        """One minibatch of the current rollout."""
        a, size = self.algorithm, len(batch)
        if self.stopped:
            return self.no_gradient()
        new = self.policy.evaluate(batch.observation, batch.action_tokens, self.temperature)
        policy = clipped_surrogate(new.logprob, batch.logprob, batch.advantage, a.clip, a.ratio)
        entropy = new.entropy.mean()
        measures = {
            "policy_loss": policy.loss,
            "entropy": entropy,
            "kl": policy.kl,
            "clip_fraction": policy.clip_fraction,
            "ratio": policy.ratio,
            "return_mean": batch.return_.mean(),
        }
        if batch_idx == 0:
            measures["ratio_first"] = policy.ratio
            if a.advantage == "group":
                measures["flat_groups"] = torch.tensor(self.flat_groups)
        self.log_dict({f"train/{k}": v.detach() for k, v in measures.items()}, batch_size=size)
        self.stop_above(policy.kl, a.target_kl)
        return a.policy_coef * policy.loss - a.entropy_coef * entropy
