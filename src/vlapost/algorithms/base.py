"""What the learning rules share: the optimiser, an adapter-sized checkpoint, and averaging of held-out episodes."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from vlapost.config import AlgorithmConfig, ExperienceConfig, OptimConfig, UserError
from vlapost.contracts import ACTION_BINS, DemoBatch, EpisodeBatch, Policy

if TYPE_CHECKING:
    from typing_extensions import Self

MOST_SKIPPED = 3  # updates in a row


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
        self.stopped = False  # by a learning rule that wants no further update in this iteration
        self.skipped = 0  # updates in a row without a finite gradient

    def configure_optimizers(self) -> Any:
        """One AdamW, a parameter group each for adapter and critic (paper: two AdamW of the same settings)."""
        groups: list[dict[str, Any]] = [
            {"params": list(self.policy.adapter_parameters()), "lr": self.optim.lr, "name": "adapter"}
        ]
        critic = list(self.policy.critic_parameters())
        if critic:
            groups.append({"params": critic, "lr": self.optim.value_lr, "name": "critic"})
        return adamw(groups, self.optim, self.total_steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trainable tensors only."""
        trainable = {name for name, p in cast(nn.Module, self).named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trainable}

    def validation_step(self, batch: EpisodeBatch | DemoBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Average finished held-out episodes (simulating them is the datamodule's work) and held-out demonstrations."""
        if isinstance(batch, EpisodeBatch):
            means = {name: value.float().mean() for name, value in batch.metrics.items()}
        else:
            logits = self.policy.action_logits(batch.observation, batch.action_tokens)
            means = {"demo_loss": token_cross_entropy(logits, batch.action_tokens)}
        values = {f"val/{name}": value for name, value in means.items()}
        size: Any = float(len(batch))  # Lightning would round the mean over processes of a whole number
        self.log_dict(values, on_epoch=True, sync_dist=True, batch_size=size, add_dataloader_idx=False)

    def on_train_epoch_start(self) -> None:
        """New samples: updates are allowed again."""
        self.stopped = False

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Keep the minibatch at hand: if it goes wrong, it is what one wants to look at."""
        self.newest_batch = batch

    def stop_above(self, kl: Tensor, limit: float) -> None:
        """No further update in this iteration once the policy has moved beyond `limit`, in all processes together.

        A `kl` that is not finite says nothing: its update is skipped and counted.
        """
        if limit > 0 and not self.stopped:
            found = cast(Tensor, self.all_gather(kl.detach()))
            self.stopped = bool((found.isfinite() & (found > limit)).any())

    def cpu(self) -> Self:
        """Stay where it is: Lightning moves a module to the CPU after training, here a whole base for each process."""
        return self

    def no_gradient(self) -> Tensor:
        """A loss of zero that reaches every weight: several processes have to agree which ones get gradients."""
        weights = (*self.policy.adapter_parameters(), *self.policy.critic_parameters())
        return 0.0 * cast(Tensor, sum(weight.sum() for weight in weights))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the gradient's size before it is clipped; skip a step that is not wanted, empty or not finite.

        AdamW leaves parameters without a gradient exactly as they are, and their moments too.

        Raises:
            UserError: the third step in a row that is not finite; the minibatch is written beside the run.
        """
        self.log("train/stopped_steps", float(self.stopped))
        if self.stopped:
            optimizer.zero_grad(set_to_none=True)
            return
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        finite, empty = bool(torch.isfinite(norm)), bool(norm == 0)
        self.skipped = 0 if finite else self.skipped + 1
        self.log("train/empty_steps", float(empty))
        self.log("train/skipped_steps", float(not finite))
        if finite:
            self.log("train/grad_norm", norm)
        if finite and not empty:
            return
        optimizer.zero_grad(set_to_none=True)
        if self.skipped >= MOST_SKIPPED:
            where, what = dump(self.newest_batch, Path(self.trainer.log_dir or "."), self.global_rank)
            raise UserError(
                f"{MOST_SKIPPED} updates in a row had no finite gradient, before optimiser step {self.global_step} "
                f"({what}); the last minibatch of each process is beside {where}. The same command would come to the "
                "same step: begin again under another run=NAME, with a lower optim.lr."
            )


class RolloutModule(PolicyModule):
    """A policy that learns from its own rollouts, at the temperature they were sampled at."""

    def __init__(
        self,
        policy: Policy,
        algorithm: AlgorithmConfig,
        experience: ExperienceConfig,
        optim: OptimConfig,
        total_steps: int,
    ):
        super().__init__(policy, optim, total_steps)
        self.algorithm = algorithm
        self.temperature, self.group_size = experience.temperature, experience.same_start


def token_cross_entropy(logits_BAV: Tensor, tokens_BA: Tensor, width: float = 0.0) -> Tensor:
    """Mean cross-entropy of the demonstrated tokens, a scalar.

    With `width` > 0 the target is no single bin but a normal distribution around it with that deviation in bins: a
    neighbour is less wrong than a stranger.
    """
    logits, tokens = logits_BAV.float().flatten(0, 1), tokens_BA.flatten()
    if width == 0:
        return F.cross_entropy(logits, tokens)
    distance = torch.arange(ACTION_BINS, device=tokens.device) - tokens.unsqueeze(1)
    return F.cross_entropy(logits, (-0.5 * (distance / width).square()).softmax(-1))


def dump(batch: Any, folder: Path, rank: int) -> tuple[Path, str]:
    """Write the tensors of a batch; returns the file, and which of them are not finite."""
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in _tensors(batch)
    }
    path = folder / f"not-finite-{rank}.safetensors"
    save_file(tensors, path)
    wrong = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    return path, f"not finite in its minibatch: {', '.join(wrong)}" if wrong else "its minibatch is finite"


def _tensors(batch: Any) -> list[tuple[str, Tensor]]:
    """Names and tensors of a dataclass and of those it holds."""
    found: list[tuple[str, Tensor]] = []
    for item in fields(batch):
        value = getattr(batch, item.name)
        if isinstance(value, Tensor):
            found.append((item.name, value))
        elif is_dataclass(value):
            found += _tensors(value)
    return found


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
