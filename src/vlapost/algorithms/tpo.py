"""TPO: learning from pairs of whole episodes that begin from the same start, one better than the other.

    make train-tpo

Paper eq. 7, which is DPO (Rafailov et al. 2023) on trajectories. An iteration rolls out groups of
`experience.same_start` episodes from the same start, and within each group the best is preferred to the worst, the
second best to the second worst, and so on, by the sum of the stage rewards; equals are no pair (`train/tied_pairs`).

The loss of a pair is -log sigmoid(beta m), with the margin

    m = sum_t [log pi(a_t) - log pi_ref(a_t)] of the preferred - the same sum of the rejected episode.

An episode is 80 pictures and does not fit into one backward pass. It does not have to: the gradient of the loss is
-beta sigmoid(-beta m) times the gradient of m, and m is a sum over steps. So the margins of an update's pairs are
worked out first, without gradients (`weigh`), and then each step contributes its log-probability with that factor as
its advantage, minibatch by minibatch (`training_step`). The sum over the minibatches is the gradient of the full loss.

The reference is the policy this run started from: the same network with its first adapter (with none, where that was
new); there is no second model. The study's own code for this is not public; beta, the number of pairs, and learning
rates are ours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlapost.algorithms.base import RolloutModule
from vlapost.config import AlgorithmConfig, ExperienceConfig, OptimConfig
from vlapost.contracts import Policy, Rollout, RolloutBatch


def preference_loss(margin_P: Tensor, beta: float) -> Tensor:
    """Mean of -log sigmoid(beta m) over the pairs (paper eq. 7)."""
    return -F.logsigmoid(beta * margin_P).mean()


def preference_weight(margin_P: Tensor, beta: float) -> Tensor:
    """beta sigmoid(-beta m): how strongly each pair still pulls, minus the loss's derivative by its margin, `[P]`."""
    return beta * torch.sigmoid(-beta * margin_P)


def match(return_E: Tensor, size: int) -> Tensor:
    """Pairs (preferred, rejected) of episodes within groups of `size` neighbours, `[P, 2]`; ties are left out."""
    order_GN = return_E.view(-1, size).argsort(dim=1, descending=True, stable=True)
    order_GN = order_GN + torch.arange(0, len(return_E), size, device=return_E.device).unsqueeze(1)
    half = size // 2
    pairs = torch.stack([order_GN[:, :half], order_GN.flip(1)[:, :half]], dim=-1).flatten(0, 1)
    better = return_E[pairs[:, 0]] - return_E[pairs[:, 1]]
    return pairs[better > 1e-6]


class TPO(RolloutModule):
    """Trajectory-wise preference optimisation."""

    def __init__(
        self,
        policy: Policy,
        algorithm: AlgorithmConfig,
        experience: ExperienceConfig,
        optim: OptimConfig,
        total_steps: int,
    ):
        super().__init__(policy, algorithm, experience, optim, total_steps)
        self.measures: dict[str, float] = {}
        policy.remember()

    def pairs(self, rollout: Rollout) -> Tensor:
        """Episodes to compare, (preferred, rejected), `[P, 2]`."""
        pairs = match(rollout.reward.sum(0), self.group_size)
        possible = rollout.reward.shape[1] // self.group_size * (self.group_size // 2)
        self.measures = {"pairs": float(len(pairs)), "tied_pairs": float(possible - len(pairs))}
        return pairs

    @torch.no_grad()
    def weigh(self, samples: RolloutBatch, pairs: int) -> Tensor:
        """Advantage of the samples of `pairs` pairs, `[S]`, where S runs over pairs, preferred and rejected, and steps.

        Scaled so that the mean of `-advantage * logprob` over all S has the gradient of the full loss.
        """
        now = self._logprob(samples)
        with self.policy.reference():
            at_start = self._logprob(samples)
        gain_P2 = (now - at_start).view(pairs, 2, -1).sum(-1)
        margin = gain_P2[:, 0] - gain_P2[:, 1]
        beta = self.algorithm.beta
        self.measures |= {
            "preference_loss": float(preference_loss(margin, beta)),
            "preference_accuracy": float((margin > 0).float().mean()),
            "margin": float(margin.mean()),
        }
        weight_P2 = preference_weight(margin, beta)[:, None] * torch.tensor([1.0, -1.0], device=margin.device)
        steps = len(samples) // (2 * pairs)
        return (weight_P2 * 2 * steps)[:, :, None].expand(-1, -1, steps).flatten()

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> Tensor:
        """Some steps of an update's pairs; `optim.accumulate` minibatches are one update."""
        new = self.policy.evaluate(batch.observation, batch.action_tokens, self.temperature)
        self.log_dict({f"train/{k}": v for k, v in self.measures.items()}, batch_size=len(batch))
        self.log("train/entropy", new.entropy.mean().detach(), batch_size=len(batch))
        # over the nominal size: where there were too few pairs, a minibatch is short
        return -(batch.advantage * new.logprob.sum(-1)).sum() / self.optim.batch_size

    def _logprob(self, samples: RolloutBatch) -> Tensor:
        """Log-probability of each action under the weights as they are, `[S]`, a minibatch at a time."""
        parts = [samples.take(index) for index in torch.arange(len(samples)).split(self.optim.batch_size)]
        parts = [part.to(self.device) for part in parts]
        judged = [self.policy.evaluate(p.observation, p.action_tokens, self.temperature) for p in parts]
        return torch.cat([new.logprob.sum(-1) for new in judged])
