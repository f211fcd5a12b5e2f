"""A WidowX-250S of boxes and cylinders: kinematics and inertias of the real arm, shapes of our own.

Joint origins, axes, limits and inertias are the manufacturer's. Of the shapes only the finger pads matter to a
grasp: their inner faces lie at y = -0.011 m (left) and +0.011 m (right) in the finger frames and end at
x = 0.043 m, so the joint range 0.015..0.037 m opens a gap of 8..52 mm. Upper arm and base are as slim as the real
ones because the camera stands beside the base and sees them.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

Vector = tuple[float, float, float]
TURN = math.pi / 2
HALF = math.pi


@dataclass(frozen=True)
class Link:
    """Mass (kg), centre of mass (m), orientation of the inertia frame (rpy) and inertia ixx ixy ixz iyy iyz izz."""

    name: str
    mass: float
    centre: Vector
    rpy: Vector
    inertia: tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class Joint:
    """Joint from `parent` to `child` at `origin` (m); limits in rad or m, effort in N m or N."""

    name: str
    kind: str
    parent: str
    child: str
    origin: Vector
    axis: Vector = (1, 0, 0)
    lower: float = 0.0
    upper: float = 0.0
    effort: float = 0.0
    velocity: float = math.pi


@dataclass(frozen=True)
class Box:
    """A box between two corners, metres, in the frame of `link`."""

    link: str
    low: Vector
    high: Vector


@dataclass(frozen=True)
class Cylinder:
    """A cylinder about the x or z axis of `link`: from `start` to `end` along it, metres."""

    link: str
    axis: str
    start: float
    end: float
    radius: float


NO_ROTATION = (0.0, 0.0, 0.0)
MARKER = (0.001, 0.0, 0.0, 0.001, 0.0, 0.001)  # links that only mark a frame

LINKS = (
    Link(
        "base_link", 0.538736, (-0.0380446, 0.000613892, 0.0193354), (0, 0, TURN),
        (0.002115, -1.635e-05, 6.998e-07, 0.0006921, 4.642e-05, 0.002524),
    ),
    Link(
        "shoulder_link", 0.480879, (2.23482e-05, 4.14609e-05, 0.0066287), (0, 0, TURN),
        (0.000379, 2.2e-09, -3.561e-07, 0.0005557, 1.2245e-06, 0.0005889),
    ),
    Link(
        "upper_arm_link", 0.430811, (0.0171605, 2.725e-07, 0.191323), (0, 0, TURN),
        (0.003463, -1e-10, -2e-10, 0.003587, 0.0004272, 0.0004566),
    ),
    Link(
        "upper_forearm_link", 0.234589, (0.107963, 0.000115876, 0), NO_ROTATION,
        (3.971e-05, 2.3528e-06, 0, 0.0008878, 0, 0.000888),
    ),
    Link(
        "lower_forearm_link", 0.220991, (0.0374395, 0.00522252, 0), (HALF, 0, 0),
        (6.369e-05, -2.292e-05, 0, 0.0001677, 0, 0.0001834),
    ),
    Link(
        "wrist_link", 0.084957, (0.04236, -1.0663e-05, 0.010577), (0, 0, TURN),
        (3.082e-05, 1.91e-08, 2.3e-09, 2.822e-05, 2.5481e-06, 3.152e-05),
    ),
    Link(
        "gripper_link", 0.072885, (0.021631, 2.516e-07, 0.01141), (0, 0, TURN),
        (2.537e-05, 0, 0, 1.836e-05, 4.34e-07, 1.674e-05),
    ),
    Link("ee_arm_link", 0.001, (0, 0, 0), NO_ROTATION, MARKER),
    Link(
        "gripper_prop_link", 0.00434, (0.000846, -1.6817e-06, 4.2e-05), (0, 0, TURN),
        (5.923e-07, 0, 3.195e-07, 1.1156e-06, -4e-10, 5.743e-07),
    ),
    Link(
        "gripper_bar_link", 0.034199, (0.009687, 8.177e-07, 0.004962), (0, 0, TURN),
        (7.4125e-06, -8e-10, -6e-10, 2.843e-05, -1.3889e-06, 2.86e-05),
    ),
    Link("fingers_link", 0.001, (0, 0, 0), NO_ROTATION, MARKER),
    Link(
        "left_finger_link", 0.016246, (0.013816, 0, 0), (HALF, HALF, TURN),
        (4.731e-06, -4.56e-07, 0, 1.5506e-06, 0, 3.7467e-06),
    ),
    Link(
        "right_finger_link", 0.016246, (0.013816, 0, 0), (0, HALF, TURN),
        (4.731e-06, 4.56e-07, 0, 1.5506e-06, 0, 3.7467e-06),
    ),
    Link("ee_gripper_link", 0.001, (0, 0, 0), NO_ROTATION, MARKER),
)  # fmt: skip

X, Y, Z, MINUS_Y = (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, -1, 0)
ROLL = math.pi - 1e-5  # the manufacturer's limit of both roll joints

JOINTS = (
    Joint("waist", "revolute", "base_link", "shoulder_link", (0, 0, 0.072), Z, -math.pi, math.pi, 10),
    Joint(
        "shoulder", "revolute", "shoulder_link", "upper_arm_link", (0, 0, 0.03865), Y,
        -1.8849555921538759, 1.9896753472735358, 20,
    ),
    Joint(
        "elbow", "revolute", "upper_arm_link", "upper_forearm_link", (0.04975, 0, 0.25), Y,
        -2.1467549799530254, 1.6057029118347832, 15,
    ),
    Joint(
        "forearm_roll", "revolute", "upper_forearm_link", "lower_forearm_link", (0.175, 0, 0), X,
        -ROLL, ROLL, 2,
    ),
    Joint(
        "wrist_angle", "revolute", "lower_forearm_link", "wrist_link", (0.075, 0, 0), Y,
        -1.7453292519943295, 2.1467549799530254, 5,
    ),
    Joint(
        "wrist_rotate", "revolute", "wrist_link", "gripper_link", (0.065, 0, 0), X,
        -ROLL, ROLL, 1,
    ),
    Joint("ee_arm", "fixed", "gripper_link", "ee_arm_link", (0.043, 0, 0)),
    Joint("gripper", "fixed", "ee_arm_link", "gripper_prop_link", (0.0055, 0, 0)),
    Joint("gripper_bar", "fixed", "ee_arm_link", "gripper_bar_link", (0, 0, 0)),
    Joint("ee_bar", "fixed", "gripper_bar_link", "fingers_link", (0.023, 0, 0)),
    Joint("left_finger", "prismatic", "fingers_link", "left_finger_link", (0, 0, 0), Y, 0.015, 0.037, 5, 1),
    Joint("right_finger", "prismatic", "fingers_link", "right_finger_link", (0, 0, 0), MINUS_Y, 0.015, 0.037, 5, 1),
    Joint("ee_gripper", "fixed", "fingers_link", "ee_gripper_link", (0.027575, 0, 0)),
)  # fmt: skip

VISUAL = (
    Box("base_link", (-0.157, -0.0515, 0), (-0.05, 0.0515, 0.037)),
    Cylinder("base_link", "z", 0, 0.070, 0.060),
    Box("shoulder_link", (-0.022, -0.046, 0.001), (0.022, 0.046, 0.049)),
    Box("upper_arm_link", (-0.0144, -0.014, -0.0144), (0.0144, 0.014, 0.066)),
    Box("upper_arm_link", (-0.010, -0.010, 0.066), (0.010, 0.010, 0.215)),
    Box("upper_arm_link", (-0.010, -0.042, 0.215), (0.021, 0.042, 0.266)),
    Box("upper_arm_link", (0.021, -0.030, 0.238), (0.060, -0.016, 0.264)),
    Box("upper_arm_link", (0.021, 0.016, 0.238), (0.060, 0.030, 0.264)),
    Box("upper_forearm_link", (-0.0144, -0.014, -0.0144), (0.066, 0.014, 0.0144)),
    Box("upper_forearm_link", (0.066, -0.010, -0.010), (0.140, 0.010, 0.010)),
    Cylinder("upper_forearm_link", "x", 0.140, 0.175, 0.021),
    Cylinder("lower_forearm_link", "x", 0, 0.008, 0.0245),
    Box("lower_forearm_link", (0.008, -0.0144, -0.0174), (0.056, 0.035, 0.0174)),
    Box("lower_forearm_link", (0.056, -0.019, -0.0174), (0.086, 0.019, 0.0174)),
    Box("wrist_link", (-0.003, -0.022, -0.0112), (0.026, 0.022, 0.0115)),
    Box("wrist_link", (0.026, -0.022, -0.0112), (0.057, 0.022, 0.0353)),
    Box("wrist_link", (0.057, -0.020, -0.020), (0.065, 0.020, 0.0353)),
    Box("gripper_link", (0, -0.020, -0.019), (0.043, 0.020, 0.014)),
    Box("gripper_link", (0, -0.0143, 0.014), (0.043, 0.0143, 0.0353)),
    Box("gripper_bar_link", (0, -0.052, -0.008), (0.010, 0.052, 0.010)),
    Box("gripper_bar_link", (0, -0.022, -0.0143), (0.010, 0.022, 0.0355)),
    Box("gripper_bar_link", (0.022, -0.052, -0.006), (0.0285, 0.052, 0.006)),
    Box("left_finger_link", (-0.012, -0.004, -0.0125), (0.012, 0.005, 0.0125)),
    Box("left_finger_link", (-0.012, -0.011, -0.0125), (0.043, -0.004, 0.0125)),
    Box("right_finger_link", (-0.012, -0.005, -0.0125), (0.012, 0.004, 0.0125)),
    Box("right_finger_link", (-0.012, 0.004, -0.0125), (0.043, 0.011, 0.0125)),
)

# Links of the gripper collide with one box each, which leaves out what the fingers and the bar keep objects away from:
# contacts are solved 500 times a second, and every further box would add its own. Other links collide as they look.
COLLISION = (
    Box("gripper_link", (0, -0.020, -0.019), (0.043, 0.020, 0.014)),
    Box("gripper_bar_link", (0, -0.052, -0.008), (0.0285, 0.052, 0.010)),
    Box("left_finger_link", (-0.012, -0.011, -0.0125), (0.043, -0.004, 0.0125)),
    Box("right_finger_link", (-0.012, 0.004, -0.0125), (0.043, 0.011, 0.0125)),
)

# Links that touch by construction.
NEIGHBOURS = (
    ("base_link", "upper_arm_link"),
    ("gripper_link", "gripper_bar_link"),
    ("gripper_link", "left_finger_link"),
    ("gripper_link", "right_finger_link"),
    ("gripper_bar_link", "left_finger_link"),
    ("gripper_bar_link", "right_finger_link"),
    ("left_finger_link", "right_finger_link"),
)


def write_robot(folder: Path) -> None:
    """Write `wx250s.urdf` and `wx250s.srdf` (pairs of links that need no collision check) into `folder`."""
    folder.mkdir(parents=True)
    _write(_urdf(), folder / "wx250s.urdf")
    srdf = ET.Element("robot", name="wx250s")
    for first, second in NEIGHBOURS:
        ET.SubElement(
            srdf, "disable_collisions", link1=first, link2=second, reason="Default"
        )  # the word SAPIEN honours
    _write(srdf, folder / "wx250s.srdf")


def _urdf() -> ET.Element:
    robot = ET.Element("robot", name="wx250s")
    black = ET.SubElement(robot, "material", name="black")
    ET.SubElement(black, "color", rgba="0.05 0.05 0.055 1")
    for link in LINKS:
        element = ET.SubElement(robot, "link", name=link.name)
        seen = [shape for shape in VISUAL if shape.link == link.name]
        for shape in seen:
            visual = ET.SubElement(element, "visual")
            _add_shape(visual, shape)
            ET.SubElement(visual, "material", name="black")
        for shape in [shape for shape in COLLISION if shape.link == link.name] or seen:
            _add_shape(ET.SubElement(element, "collision"), shape)
        inertial = ET.SubElement(element, "inertial")
        ET.SubElement(inertial, "origin", xyz=_text(link.centre), rpy=_text(link.rpy))
        ET.SubElement(inertial, "mass", value=repr(link.mass))
        names = ("ixx", "ixy", "ixz", "iyy", "iyz", "izz")
        ET.SubElement(inertial, "inertia", {name: repr(float(i)) for name, i in zip(names, link.inertia)})
    for joint in JOINTS:
        element = ET.SubElement(robot, "joint", name=joint.name, type=joint.kind)
        ET.SubElement(element, "origin", xyz=_text(joint.origin), rpy="0 0 0")
        ET.SubElement(element, "parent", link=joint.parent)
        ET.SubElement(element, "child", link=joint.child)
        ET.SubElement(element, "axis", xyz=_text(joint.axis))
        if joint.kind != "fixed":
            limit = {"lower": joint.lower, "upper": joint.upper, "effort": joint.effort, "velocity": joint.velocity}
            ET.SubElement(element, "limit", {name: repr(float(value)) for name, value in limit.items()})
    return robot


def _add_shape(element: ET.Element, shape: Box | Cylinder) -> None:
    """Give a visual or collision element its origin and geometry."""
    if isinstance(shape, Box):
        centre = tuple((a + b) / 2 for a, b in zip(shape.low, shape.high))
        ET.SubElement(element, "origin", xyz=_text(centre), rpy="0 0 0")
        size = tuple(b - a for a, b in zip(shape.low, shape.high))
        ET.SubElement(ET.SubElement(element, "geometry"), "box", size=_text(size))
        return
    middle = (shape.start + shape.end) / 2
    xyz, rpy = ((middle, 0, 0), (0, TURN, 0)) if shape.axis == "x" else ((0, 0, middle), (0, 0, 0))
    ET.SubElement(element, "origin", xyz=_text(xyz), rpy=_text(rpy))
    sizes = {"radius": repr(shape.radius), "length": repr(round(shape.end - shape.start, 6))}
    ET.SubElement(ET.SubElement(element, "geometry"), "cylinder", sizes)


def _text(values: tuple[float, ...]) -> str:
    return " ".join(repr(round(float(value), 12)) for value in values)


def _write(root: ET.Element, path: Path) -> None:
    ET.indent(root)
    ET.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
