"""Pick and place: from the true state of a scene to the actions of a whole demonstration."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vlapost.planner.actions import CLOSED, OPEN, delta_actions
from vlapost.planner.grasp import FINGERTIP, Box, grasp_height, grasp_place, grasp_rotations, upright_box
from vlapost.planner.motion import JOINT_LIMIT, ArmPlanner

FloatArray = NDArray[np.float64]

# A motion of the gripper: position [3], rad/s^2, gripper command, and steps without motion with the other command.
Motion = tuple[FloatArray, float, float, int]

UP = np.array([0.0, 0.0, 1.0])
APPROACH = 0.05  # metres above the grasp before descending, at least
CLEARANCE = 0.015  # metres, at least, between object and fingertips while approaching
LIFT = 0.10  # metres above the grasp before carrying
# rad/s^2 of the lift, whose first step is taken in two while the fingers close: 2, 4, 16, 25 mm. Closing never stands
# still, or a policy that can't see whether its fingers are closed would repeat it for ever; nor does it stay near the
# table for longer than it must, where such a policy takes its time. Without the cut one object in eight slips.
SWIFT = 0.6
CUT = 0.33
OPEN_STEPS = 2  # control steps without motion; in the second the object comes to rest


@dataclass(frozen=True)
class Situation:
    """What the planner is told, all in the robot base frame (metres, radians).

    qpos: `[8]`. surface: `[n, 3]` points of the object's collision mesh. receptacle: `[3]` its origin. release:
    height of the object's bottom above that origin when the gripper opens. over: how far above that it comes first.
    """

    qpos: FloatArray
    surface: FloatArray
    receptacle: FloatArray
    release: float
    over: float


def plan_demonstration(
    planner: ArmPlanner, situation: Situation, height: float = 0.0, fingers: float = OPEN
) -> NDArray[np.float32] | None:
    """Actions `[T, 7]` that grasp the object from above and put it on the receptacle (paper, data collection).

    Approach 5 cm above, descend, close, lift 10 cm, carry, open. Every motion starts where the one before it was
    planned to end, so the sum of all actions is exactly the planned path. The first grasp rotation for which all
    motions can be planned is taken; None if there is none. Below `height` (metres, base frame) the gripper first goes
    straight up there, as swiftly as it lifts, with `fingers` as they are.
    """
    planned = plan_path(planner, situation, height, fingers)
    return None if planned is None else path_actions(planner, *planned)


def plan_carry(planner: ArmPlanner, situation: Situation, start: FloatArray) -> NDArray[np.float32] | None:
    """Actions `[T, 7]` that lift the object which the fingers hold and put it down; None if that can't be planned.

    start: `[8]` joint positions of the controller's target, which is where the first motion begins.
    """
    bottom = situation.surface[:, 2].min()
    grasp, rotation = planner.pose(start)
    below = planner.pose(situation.qpos)[0][2] - bottom
    planned = _path(planner, start, rotation, _carry(situation, grasp, below))
    return None if planned is None else path_actions(planner, *planned)


def path_actions(planner: ArmPlanner, path: FloatArray, gripper: list[float]) -> NDArray[np.float32]:
    """Actions `[n, 7]` along joint positions `[n + 1, 8]` with n gripper commands."""
    positions, rotations = zip(*(planner.pose(point) for point in path))
    return delta_actions(np.stack(positions), rotations, gripper)


def plan_path(
    planner: ArmPlanner, situation: Situation, height: float = 0.0, fingers: float = OPEN
) -> tuple[FloatArray, list[float]] | None:
    """The same as joint positions `[n + 1, 8]`, the present ones first, and n gripper commands."""
    box = upright_box(situation.surface)
    position, present = planner.pose(situation.qpos)
    rise = max(0.0, height - position[2])
    up = planner.plan(situation.qpos, position + rise * UP, present, SWIFT) if rise else None
    before = np.stack([situation.qpos, *up]) if up is not None else situation.qpos[None]
    for rotation in grasp_rotations(box, present):
        planned = _plan(planner, replace(situation, qpos=before[-1]), box, rotation)
        if planned is not None:
            path, gripper = planned
            return np.concatenate([before[:-1], path]), [fingers] * (len(before) - 1) + gripper
    return None


def _plan(
    planner: ArmPlanner, situation: Situation, box: Box, rotation: Rotation
) -> tuple[FloatArray, list[float]] | None:
    grasp = np.array([*grasp_place(situation.surface, box), grasp_height(box)])
    below = grasp[2] - (box.centre[2] - box.height / 2)  # how far the object reaches below the gripper frame
    over = max(APPROACH, box.height - below + FINGERTIP + CLEARANCE)
    approach = [(grasp + over * UP, JOINT_LIMIT, OPEN, 0), (grasp, JOINT_LIMIT, OPEN, 0)]
    return _path(planner, situation.qpos, rotation, approach + _carry(situation, grasp, below))


def _carry(situation: Situation, grasp: FloatArray, below: float) -> list[Motion]:
    """From the grasp up, over to the receptacle, and open; `below`: what the object reaches below the gripper frame."""
    place = situation.receptacle + (below + situation.release) * UP
    above: list[Motion] = [(place + situation.over * UP, JOINT_LIMIT, CLOSED, 0)] if situation.over else []
    return [(grasp + LIFT * UP, SWIFT, CLOSED, 0), *above, (place, JOINT_LIMIT, CLOSED, OPEN_STEPS)]


def _path(
    planner: ArmPlanner, start: FloatArray, rotation: Rotation, motions: list[Motion]
) -> tuple[FloatArray, list[float]] | None:
    """Joint positions `[n + 1, 8]`, the start first, and n gripper commands; None if a motion fails."""
    path: list[FloatArray] = [start]
    gripper: list[float] = []
    for position, acceleration, command, toggle_steps in motions:
        motion = planner.plan(path[-1], position, rotation, acceleration)
        if motion is None:
            return None
        if [*gripper[-1:], command] == [OPEN, CLOSED]:
            motion = np.insert(motion, 0, path[-1] + CUT * (motion[0] - path[-1]), axis=0)
        path += [*motion] + [motion[-1]] * toggle_steps
        gripper += [command] * len(motion) + [-command] * toggle_steps
    return np.stack(path), gripper
