"""Pretraining of openvla-tiny on planner demonstrations, with an objective that teaches seeing.

    make pretrain

Cloning actions alone does not teach a small vision transformer to find the object. Two auxiliary heads, which are
thrown away afterwards, are told the truth by the simulator:

* segmentation: what each cell of 4x4 pixels shows (background, robot, object, receptacle), read from the features of
  its patch before the projector;
* position: where object, receptacle and gripper are (robot base frame), read from h0, the hidden state that predicts
  the first action token.

In the first part, seeing, every weight learns, and both heads also learn from views (planner/views.py): many more
pictures, in which nothing is done. In the second, acting, the image encoders stay as they are, so that there is no
segmentation to learn, and no views.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlapost.algorithms.base import PolicyModule, adamw, token_cross_entropy
from vlapost.config import GroundingConfig, OptimConfig
from vlapost.contracts import GroundedBatch, Policy

CLASSES = 4
CELL = 4  # pixels
PRECISION = 0.1  # 5 mm: the position loss is linear above it, so that small errors go on to count
WEIGHTS = (0.3, 1.0, 3.0, 1.0)  # the object covers under 1 % of the pixels, the background 90 %


class Sizes(Protocol):
    """Widths the heads read."""

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""

    @property
    def patch_size(self) -> int:
        """Pixels."""

    @property
    def patch_dim(self) -> int:
        """Width of the patch features before the projector."""

    @property
    def hidden_dim(self) -> int:
        """Width of h0."""


class Pretrain(PolicyModule):
    """Action loss, position loss and, unless its weight is 0, segmentation loss.

    `sizes` are those of the policy.
    """

    def __init__(
        self,
        policy: Policy,
        grounding: GroundingConfig,
        optim: OptimConfig,
        total_steps: int,
        sizes: Sizes,
    ):
        super().__init__(policy, optim, total_steps)
        self.grounding, self.grid, self.cells = grounding, sizes.patch_grid, sizes.patch_size // CELL
        segmented = CLASSES * self.cells**2
        self.segmentation_head = nn.Linear(sizes.patch_dim, segmented) if grounding.segmentation_coef else None
        self.position_head = nn.Linear(sizes.hidden_dim, 9)

    def configure_optimizers(self) -> Any:
        """AdamW on every weight that can get a gradient; no decay on vectors."""
        trainable = [p for p in cast(nn.Module, self).parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trainable if p.ndim > 1]},
            {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return adamw(groups, self.optim, self.total_steps)

    def training_step(self, batch: GroundedBatch, batch_idx: int) -> Tensor:
        """One minibatch of demonstrations, and of views if there are any, with ground truth."""
        demo, acted = batch.demo, slice(batch.acted)
        features = cast(Any, self.policy).features(demo.observation, demo.action_tokens)
        action_loss = token_cross_entropy(features.logits[acted], demo.action_tokens[acted])
        position = self.position_head(features.hidden[:, 0].float())
        position_loss = F.smooth_l1_loss(position, batch.position, beta=PRECISION)
        loss = action_loss + self.grounding.position_coef * position_loss
        distance = (features.logits[acted].argmax(-1) - demo.action_tokens[acted]).abs().float()
        measures = {
            "action_loss": action_loss,
            "position_loss": position_loss,
            "bin_distance_xy": distance[:, :2].mean(),
            "gripper_accuracy": (distance[:, 6] == 0).float().mean(),
        }
        if self.segmentation_head is not None:
            logits = cells(self.segmentation_head(features.patches.float()), self.grid, self.cells)
            weight = torch.tensor(WEIGHTS, device=logits.device)
            measures["segmentation_loss"] = F.cross_entropy(logits, cell_labels(batch.segmentation), weight=weight)
            loss = loss + self.grounding.segmentation_coef * measures["segmentation_loss"]
        measures["loss"] = loss
        logged = {f"train/{k}": v.detach() for k, v in measures.items()}
        self.log_dict(logged, batch_size=len(batch), on_step=False, on_epoch=True, sync_dist=True)
        return loss


def cells(x_BPK: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Patch outputs `[B, P, CLASSES * side^2]` as cells `[B, CLASSES, rows * side, columns * side]`."""
    return F.pixel_shuffle(x_BPK.transpose(1, 2).unflatten(2, grid), side)


def cell_labels(segmentation_BHW: Tensor) -> Tensor:
    """Label of the middle pixel of each cell, `[B, H / 4, W / 4]` int64."""
    return segmentation_BHW[:, CELL // 2 :: CELL, CELL // 2 :: CELL].long()


def standardise(position_B9: Tensor) -> Tensor:
    """Metres in the base frame to numbers of order one: 5 cm are 1, around the middle of the workspace."""
    middle = torch.tensor([0.305, 0.03, 0.04] * 3, dtype=position_B9.dtype)
    return (position_B9 - middle) / 0.05
