"""What counts: rest, grasp, success and reward, as functions of measured positions and forces (paper §4.2, appendix A).

Nothing here knows the simulator; every function is batched over E episodes. Lengths in metres, forces in newtons,
world frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vlapost.contracts import Metrics

MAX_LINEAR, MAX_ANGULAR = 1e-2, 0.5  # m/s, rad/s: an object that was let go is slower (ManiSkill's StackCube)
MIN_GRASP_FORCE = 0.5  # newtons on each finger
MAX_GRASP_ANGLE = math.radians(85)  # between the force on a finger and its opening direction
CONSECUTIVE = 5  # control steps in a row that make a continuous grasp

GRASP_REWARD = 0.1
CONSECUTIVE_REWARD = 0.1
SUCCESS_REWARD = 1.0
MAX_WAY, LIFT = 0.4, 0.05  # metres


@dataclass(frozen=True)
class Rule:
    """When the object counts as placed; the defaults are the study's. Metres, newtons.

    diagonal, beyond: horizontally the origins are at most so far apart: half the diagonal of the receptacle's own box,
    or else the largest half extent of the upright box around it, and `beyond`. low, high: least and largest gap between
    the upright boxes of both. contact: force between them, exclusive; None: they need not touch. let_go: the object
    must also be at rest and not between the fingers.
    """

    diagonal: bool = False
    beyond: float = 0.01
    low: float = -math.inf
    high: float = 0.05
    contact: float | None = 0.03
    let_go: bool = False


@dataclass(frozen=True)
class Sensed:
    """What the rules look at after one control step; all `[E, 3]` float32.

    object_position, receptacle_position: origins of the bodies. contact_force: on the object by the receptacle.
    velocity, spin: of the object, m/s and rad/s. left_force, right_force: on a finger by the object. left_opening,
    right_opening: unit vector in which it opens.
    """

    object_position: Tensor
    receptacle_position: Tensor
    contact_force: Tensor
    velocity: Tensor
    spin: Tensor
    left_force: Tensor
    right_force: Tensor
    left_opening: Tensor
    right_opening: Tensor


@dataclass(frozen=True)
class Progress:
    """An episode so far: `metrics`, and `held` `[E]` int64, control steps in a row for which the object was held."""

    metrics: Metrics
    held: Tensor


def half_extents(rotation: Tensor, size: Tensor) -> Tensor:
    """Half sizes `[E, 3]` of the world-aligned box around a turned box: `rotation` `[E, 3, 3]`, box sizes `[E, 3]`."""
    return (rotation.abs() @ (size / 2).unsqueeze(-1)).squeeze(-1)


def settled(moving: Tensor, early: Tensor, late: Tensor) -> Tensor:
    """States `[E, n]` after settling: the late ones of scenes that were still `moving` `[E]`, else the early ones."""
    return torch.where(moving.unsqueeze(1), late, early)


def reach(rule: Rule, half: Tensor, size: Tensor) -> Tensor:
    """How far apart the origins may be, `[E]` metres: half extents `[E, 3]` of the upright box, own sizes `[E, 3]`."""
    return (size[:, :2].norm(dim=1) / 2 if rule.diagonal else half.amax(dim=1)) + rule.beyond


def is_on_target(rule: Rule, sensed: Sensed, near: Tensor, object_half: Tensor, receptacle_half: Tensor) -> Tensor:
    """`[E]` bool: the object is placed as the rule wants it, not further than `near` `[E]` from the receptacle.

    The half extents `[E, 3]` are those of the settled boxes at the start of the episode.
    """
    offset = sensed.object_position - sensed.receptacle_position
    gap = offset[:, 2] - receptacle_half[:, 2] - object_half[:, 2]
    placed = (offset[:, :2].norm(dim=1) <= near) & (offset[:, 2] > 0) & (gap >= rule.low) & (gap <= rule.high)
    if rule.contact is not None:
        placed &= sensed.contact_force.norm(dim=1) > rule.contact
    if rule.let_go:
        at_rest = (sensed.velocity.norm(dim=1) <= MAX_LINEAR) & (sensed.spin.norm(dim=1) <= MAX_ANGULAR)
        placed &= at_rest & ~is_grasping(sensed)
    return placed


def is_grasping(sensed: Sensed) -> Tensor:
    """`[E]` bool: both fingers are pressed open by the object."""
    return _pressed(sensed.left_force, sensed.left_opening) & _pressed(sensed.right_force, sensed.right_opening)


def start(count: int, device: torch.device | str = "cpu") -> Progress:
    """Nothing has happened yet in `count` episodes."""
    no = torch.zeros(count, dtype=torch.bool, device=device)
    return Progress(Metrics(no, no, no, no), torch.zeros(count, dtype=torch.int64, device=device))


def advance(progress: Progress, on_target: Tensor, grasping: Tensor) -> Progress:
    """Progress after one more control step; to be called exactly once per control step."""
    before = progress.metrics
    held = torch.where(grasping, progress.held + 1, 0)
    metrics = Metrics(
        success=on_target,
        success_once=before.success_once | on_target,
        grasp=before.grasp | grasping,
        consecutive_grasp=before.consecutive_grasp | (held >= CONSECUTIVE),
    )
    return Progress(metrics, held)


def potential(metrics: Metrics) -> Tensor:
    """Stage potential `[E]` float32 in 0..1.2; success counts only after a grasp, and only while it lasts."""
    return (
        GRASP_REWARD * metrics.grasp.float()
        + CONSECUTIVE_REWARD * metrics.consecutive_grasp.float()
        + SUCCESS_REWARD * (metrics.success & metrics.grasp).float()
    )


def reward(before: Metrics, after: Metrics) -> Tensor:
    """Reward `[E]` float32 of a control step: the difference of the stage potential."""
    return potential(after) - potential(before)


def way(
    gripper: Tensor, object_: Tensor, receptacle: Tensor, near: Tensor, object_half: Tensor, receptacle_half: Tensor
) -> Tensor:
    """How far it still is, `[E]` metres: the gripper's way to the object, and the object's up, over and down.

    Positions `[E, 3]`; the others as in `is_on_target`. Up: to `LIFT` above the receptacle. Each of the two ways counts
    up to `MAX_WAY`, so that what falls off the table does not fall on.
    """
    offset = object_ - receptacle
    aside = offset[:, :2].norm(dim=1)
    gap = offset[:, 2] - receptacle_half[:, 2] - object_half[:, 2]
    over = aside <= near
    height = torch.where(over, gap.clamp(min=0), (LIFT - gap).clamp(min=0) + LIFT)
    return (object_ - gripper).norm(dim=1).clamp(max=MAX_WAY) + (aside + height).clamp(max=MAX_WAY)


def _pressed(force: Tensor, opening: Tensor) -> Tensor:
    size = force.norm(dim=1)
    along = (force * opening).sum(dim=1)
    return (size >= MIN_GRASP_FORCE) & (along >= math.cos(MAX_GRASP_ANGLE) * size)
