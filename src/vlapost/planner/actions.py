"""From planned joint paths to the actions of the delta end-effector controller."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

OPEN, CLOSED = 1.0, -1.0


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
