"""Where the robot and its camera, a Logitech C920, stand: at the benchmark's table, or at SimplerEnv's sink."""

from __future__ import annotations

from dataclasses import dataclass

Position = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]  # w, x, y, z


@dataclass(frozen=True)
class Station:
    """One place to work at.

    base: position of the robot's base, metres, world; its +x points along world -x. qpos: initial joints, six of the
    arm in radians and two fingers in metres. camera, camera_turn: pose of the camera in the frame of the base.
    """

    base: Position
    qpos: tuple[float, ...]
    camera: Position
    camera_turn: Quaternion


TABLE = Station(
    base=(0.147, 0.028, 0.870),
    qpos=(-0.01840777, 0.0398835, 0.22242722, -0.00460194, 1.36524296, 0.00153398, 0.037, 0.037),
    camera=(0.0, -0.16, 0.36),
    camera_turn=(0.8992917, -0.09263245, 0.35892478, 0.23209205),
)
SINK = Station(
    base=(0.127, 0.060, 0.850),
    qpos=(-0.2600599, -0.12875618, 0.04461369, -0.00652761, 1.7033415, -0.26983038, 0.037, 0.037),
    camera=(-0.00300001, -0.21, 0.39),
    camera_turn=(-0.907313, 0.0782, -0.36434, -0.194741),
)
