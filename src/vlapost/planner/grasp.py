"""Where to grasp: the upright box around an object as it lies, and gripper poses that close on its shorter side."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

FloatArray = NDArray[np.float64]

# Reach of the fingers, measured from `ee_gripper_link` along its x axis (the approach direction), metres.
FINGERTIP = 0.0154  # the tips end this far in front of it
PALM = 0.0406  # the palm is this far behind it
MARGIN = 0.002
FINGER = 0.0125  # half the width of a finger, along its z axis
OPENING = 0.044  # the widest part to close on: the gap of the open fingers less 8 mm
# Turns of the grasp about the vertical, degrees: the same grasp with the wrist the other way round comes second.
TURNS = (0, 180, 90, -90, 45, -45, 135, -135)


@dataclass(frozen=True)
class Box:
    """The smallest upright box around an object, base frame, metres.

    centre: `[3]`. short: `[3]` unit vector along the shorter horizontal side. width, length: of the sides. height.
    """

    centre: FloatArray
    short: FloatArray
    width: float
    length: float
    height: float


def upright_box(vertices: FloatArray) -> Box:
    """The box around `[n, 3]` points whose footprint is the rectangle of least area."""
    (x, y), (width, length), degrees = cv2.minAreaRect(vertices[:, :2].astype(np.float32))
    angle = np.deg2rad(degrees)
    short = np.array([np.cos(angle), np.sin(angle), 0.0])
    if width > length:
        width, length, short = length, width, np.array([-short[1], short[0], 0.0])
    low, high = vertices[:, 2].min(), vertices[:, 2].max()
    return Box(np.array([x, y, (low + high) / 2]), short, width, length, high - low)


def grasp_place(points: FloatArray, box: Box) -> FloatArray:
    """Horizontal position `[2]` of the gripper: nearest the box's middle where the object fits between the fingers.

    Args:
        points: `[n, 3]` on the object's surface, dense against the width of a finger.
    """
    short, long = box.short[:2], np.array([-box.short[1], box.short[0]])
    offsets = points[:, :2] - box.centre[:2]
    across, along = offsets @ short, offsets @ long
    reach = np.arange(0.0, box.length / 2 - FINGER, 0.005)
    for place in sorted([*reach, *-reach[1:]], key=abs):
        part = across[np.abs(along - place) < FINGER]
        if len(part) and np.ptp(part) <= OPENING:
            return box.centre[:2] + place * long + (part.min() + part.max()) / 2 * short
    return box.centre[:2]


def grasp_height(box: Box) -> float:
    """Height of the closing gripper: the box's middle, but fingertips clear of the table and palm of the top."""
    bottom, top = box.centre[2] - box.height / 2, box.centre[2] + box.height / 2
    return float(max(box.centre[2], bottom + FINGERTIP + MARGIN, top - PALM + MARGIN))


def grasp_rotations(box: Box, gripper: Rotation) -> list[Rotation]:
    """Gripper rotations to try, best first: x down, y along the shorter side, turned as little as possible."""
    opening = gripper.as_matrix()[:, 1]
    closing = box.short if box.short @ opening >= 0 else -box.short
    if box.length - box.width < 0.01 * box.length:  # as good as square: either side will do
        other = np.array([-closing[1], closing[0], 0.0])
        closing = max((closing, other, -other), key=lambda side: float(side @ opening))
    down = np.array([0.0, 0.0, -1.0])
    first = Rotation.from_matrix(np.stack([down, closing, np.cross(down, closing)], axis=1))
    return [Rotation.from_euler("z", turn, degrees=True) * first for turn in TURNS]
