"""The camera of the benchmark, a Logitech C920 on the robot's base (paper appendix A; SIMPLER)."""

from __future__ import annotations

import numpy as np
import sapien
from mani_skill.sensors.camera import CameraConfig
from mani_skill.utils.structs import Link

from vlapost.envs.stations import Station

CAMERA = "3rd_view_camera"
CAMERA_SIZE = (480, 640)  # height, width the intrinsics below belong to
FOCAL, CENTRE = 623.588, (319.501, 239.545)  # pixels


def camera_config(size: tuple[int, int], shader: str, base: Link, station: Station) -> CameraConfig:
    """The camera on the robot's base at any size (height, width): the same view, intrinsics scaled."""
    height, width = size
    x, y = width / CAMERA_SIZE[1], height / CAMERA_SIZE[0]
    intrinsic = np.array([[FOCAL * x, 0, CENTRE[0] * x], [0, FOCAL * y, CENTRE[1] * y], [0, 0, 1]])
    return CameraConfig(
        uid=CAMERA,
        pose=sapien.Pose(station.camera, station.camera_turn),
        width=width,
        height=height,
        intrinsic=intrinsic,
        mount=base,
        shader_pack=shader,
    )
