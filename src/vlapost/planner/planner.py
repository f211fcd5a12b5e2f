"""Pick and place: from the true state of a scene to the actions of a whole demonstration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vlapost.planner.actions import CLOSED, OPEN, delta_actions
from vlapost.planner.grasp import Box, grasp_height, grasp_rotations, upright_box
from vlapost.planner.motion import ArmPlanner

FloatArray = NDArray[np.float64]

APPROACH = 0.05  # metres above the grasp before descending
LIFT = 0.10  # metres above the grasp before carrying
RELEASE = 0.01  # metres between the bottom of the object and the receptacle's origin when the gripper opens
CLOSE_STEPS, OPEN_STEPS = 1, 2  # control steps without motion; the second open step lets the object come to rest


@dataclass(frozen=True)
class Situation:
    """What the planner is told, all in the robot base frame (metres, radians).

    qpos: `[8]`. vertices: `[n, 3]` of the object's collision mesh. receptacle: `[3]` its origin.
    """

    qpos: FloatArray
    vertices: FloatArray
    receptacle: FloatArray


def plan_demonstration(planner: ArmPlanner, situation: Situation) -> NDArray[np.float32] | None:
    """Actions `[T, 7]` that grasp the object from above and put it on the receptacle (paper, data collection).

    Approach 5 cm above, descend, close, lift 10 cm, carry, open. Every motion starts where the one before it was
    planned to end, so the sum of all actions is exactly the planned path. The first grasp rotation for which all
    motions can be planned is taken; None if there is none.
    """
    box = upright_box(situation.vertices)
    _, gripper = planner.pose(situation.qpos)
    for rotation in grasp_rotations(box, gripper):
        path = _plan(planner, situation, box, rotation)
        if path is not None:
            return _to_actions(planner, *path)
    return None


def _plan(
    planner: ArmPlanner, situation: Situation, box: Box, rotation: Rotation
) -> tuple[FloatArray, list[float]] | None:
    """Joint path `[n + 1, 8]` from the present position, and `n` gripper commands, with one grasp rotation."""
    up = np.array([0.0, 0.0, 1.0])
    grasp = np.array([box.centre[0], box.centre[1], grasp_height(box)])
    below = grasp[2] - (box.centre[2] - box.height / 2)  # of the object below the gripper frame
    release = situation.receptacle + (below + RELEASE) * up
    path = [situation.qpos]
    gripper: list[float] = []
    stages = [(grasp + APPROACH * up, OPEN), (grasp, OPEN), None, (grasp + LIFT * up, CLOSED), (release, CLOSED)]
    for stage in stages:
        if stage is None:
            path += [path[-1]] * CLOSE_STEPS
            gripper += [CLOSED] * CLOSE_STEPS
            continue
        motion = planner.plan(path[-1], stage[0], rotation)
        if motion is None:
            return None
        path += list(motion)
        gripper += [stage[1]] * len(motion)
    path += [path[-1]] * OPEN_STEPS
    gripper += [OPEN] * OPEN_STEPS
    return np.stack(path), gripper


def _to_actions(planner: ArmPlanner, path: FloatArray, gripper: list[float]) -> NDArray[np.float32]:
    positions, rotations = zip(*(planner.pose(qpos) for qpos in path))
    return delta_actions(np.stack(positions), rotations, gripper)
