"""From planned joint paths to the actions of the delta end-effector controller."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

OPEN, CLOSED = 1.0, -1.0
STRIDE = 0.02  # metres per step where only the height changes


def delta_actions(
    positions: NDArray[np.float64], rotations: Sequence[Rotation], gripper: Sequence[float]
) -> NDArray[np.float32]:
    """Actions that lead the controller's virtual target through n + 1 poses, the first being where it is.

    The controller adds translations in the base frame and multiplies rotations from the left, so step i is
    p[i+1] - p[i] and the intrinsic XYZ Euler angles of R[i+1] R[i]^T.

    Args:
        positions: `[n + 1, 3]` metres, base frame. rotations: n + 1, base frame. gripper: n, +1 open, -1 closed.

    Returns:
        `[n, 7]` float32.
    """
    turns = [(after * before.inv()).as_euler("XYZ") for before, after in zip(rotations, rotations[1:])]
    return np.column_stack([np.diff(positions, axis=0), turns, gripper]).astype(np.float32)


def vertical_actions(distance: float, gripper: float) -> NDArray[np.float32]:
    """Actions `[n, 7]` that lead the virtual target straight up by `distance` metres, down if negative."""
    count = math.ceil(abs(distance) / STRIDE)
    actions = np.zeros((count, 7), np.float32)
    actions[:, 2] = np.diff(np.linspace(0, distance, count + 1))
    actions[:, 6] = gripper
    return actions
