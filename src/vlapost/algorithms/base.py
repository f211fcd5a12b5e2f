"""What the learning rules share: the optimiser, an adapter-sized checkpoint, and averaging of held-out episodes."""

from __future__ import annotations

import math
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn

from vlapost.config import OptimConfig, UserError
from vlapost.contracts import EpisodeBatch, Policy


class PolicyModule(L.LightningModule):
    """A policy with its optimiser. Subclasses add `training_step`, and nothing here needs their `super()`.

    A Lightning epoch is one iteration (one rollout or one block of demonstrations); a batch is one minibatch.
    Checkpoints hold the trainable tensors only: the base model stays in its own folder.
    """

    def __init__(self, policy: Policy, optim: OptimConfig, total_steps: int):
        super().__init__()
        self.policy = policy
        self.optim = optim
        self.total_steps = total_steps
        self.strict_loading = False
        self.stopped = False  # set by a learning rule that wants no further update in this iteration

    def configure_optimizers(self) -> Any:
        """One AdamW, a parameter group each for adapter and critic (paper: two AdamW of the same settings)."""
        policy = cast(Any, self.policy)
        groups = [{"params": list(policy.adapter_parameters()), "lr": self.optim.lr, "name": "adapter"}]
        critic = list(policy.critic_parameters())
        if critic:
            groups.append({"params": critic, "lr": self.optim.value_lr, "name": "critic"})
        return adamw(groups, self.optim, self.total_steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trainable tensors only."""
        trainable = {name for name, p in cast(nn.Module, self).named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trainable}

    def validation_step(self, batch: EpisodeBatch, batch_idx: int) -> None:
        """Average finished held-out episodes; simulating them is the datamodule's work."""
        for name, value in batch.metrics.items():
            self.log(f"val/{name}", value.float().mean(), on_epoch=True, sync_dist=True, batch_size=len(batch))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the gradient's size before it is clipped; refuse a step that is not finite or not wanted."""
        if self.stopped:
            optimizer.zero_grad(set_to_none=True)  # AdamW leaves parameters without a gradient as they are
            return
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        if not bool(torch.isfinite(norm)):
            optimizer.zero_grad(set_to_none=True)
            raise FloatingPointError(
                f"The gradient is not finite at optimiser step {self.global_step}; "
                "the last checkpoint is untouched. Lower optim.lr or look at the last rollout."
            )
        self.log("train/grad_norm", norm)


def adamw(groups: list[dict[str, Any]], optim: OptimConfig, total_steps: int) -> Any:
    """AdamW over parameter groups; the rate rises linearly, then stays or falls to zero along a cosine."""
    optimizer = _adamw_class(optim.moment_bits)(groups, lr=optim.lr, weight_decay=optim.weight_decay)

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / (optim.warmup_steps + 1))
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, step / total_steps))) if optim.schedule == "cosine" else 1.0
        return rise * fall

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _adamw_class(moment_bits: int) -> Any:
    """PyTorch's, or bitsandbytes' that keeps its two moments in 8 bits (Dettmers et al. 2022).

    Raises:
        UserError: bitsandbytes is not installed.
    """
    if moment_bits == 32:
        return torch.optim.AdamW
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise UserError("optim.moment_bits=8 needs bitsandbytes; run pip install bitsandbytes.") from None
    return AdamW8bit


def reduced_mean_std(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation of `x` over all processes, float64 sums."""
    x = x.double()
    sums = torch.stack([x.sum(), x.square().sum(), torch.tensor(float(x.numel()), device=x.device)])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)
    mean = sums[0] / sums[2]
    return mean.float(), (sums[1] / sums[2] - mean.square()).clamp_min(0).sqrt().float()
