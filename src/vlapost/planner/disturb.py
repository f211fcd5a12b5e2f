"""Spoil the start of a demonstration, so that the planner shows the way back.

Demonstrations that never fail teach nothing about failure: a policy that closes its fingers beside the object sees a
picture it has never seen, and stays there. The disturbance itself is not recorded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vlapost.contracts import Observation
from vlapost.envs.vector import SceneVector
from vlapost.planner.actions import CLOSED, OPEN, vertical_actions
from vlapost.planner.grasp import grasp_height, grasp_place, grasp_rotations, upright_box
from vlapost.planner.motion import ArmPlanner
from vlapost.planner.planner import Situation, path_actions, plan_path

FloatArray = NDArray[np.float64]
# What happens first: an object is put down elsewhere, or grasped as it should be; the gripper comes to the receptacle
# without the object, closes beside it, or goes anywhere.
KINDS = ("lost", "grasped", "empty", "missed", "anywhere")
SHARES = (0.1, 0.1, 0.25, 0.4, 0.15)
BESIDE, RELEASED = 0.02, (0.02, 0.06)  # metres from the receptacle's middle, at most, and above it
MISS = (0.01, 0.06)  # metres between a missed grasp and the right one
# Share after which the controller's target is pushed down (always with the object grasped, never where nothing is below
# that would stop the gripper), and how far in metres.
PRESSED, DEPTH = 0.5, (0.02, 0.10)
LOW, HIGH = np.array([0.21, -0.07, 0.05]), np.array([0.40, 0.13, 0.22])  # box of gripper positions, base frame


@dataclass(frozen=True)
class Spoilt:
    """What a disturbance leaves behind.

    observation: what is seen. qpos: `[8]` joint positions that its motion was planned to end at. depth: metres by which
    the controller's target was then pushed down, whether the arm could follow or not. fingers: the last command they
    were given. grasped: whether they closed around the object as they should.
    """

    observation: Observation
    qpos: FloatArray
    depth: float
    fingers: float
    grasped: bool


def disturb(env: SceneVector, planner: ArmPlanner, situation: Situation, rng: np.random.Generator) -> Spoilt | None:
    """Carry out a disturbance in a one-scene environment; None if the drawn one is impossible."""
    kind = rng.choice(KINDS, p=SHARES)
    if kind == "lost":
        elsewhere = np.array([*rng.uniform(LOW, HIGH)[:2], situation.receptacle[2]])
        planned = plan_path(planner, replace(situation, receptacle=elsewhere))
    elif kind == "grasped":
        planned = plan_path(planner, situation)
    else:
        planned = _reach(planner, situation, rng, kind)
    if planned is None:
        return None
    path, gripper = planned
    pressed = kind == "grasped" or (kind != "anywhere" and rng.random() < PRESSED)
    depth = rng.uniform(*DEPTH) if pressed else 0.0
    if kind == "grasped":
        closed = gripper.index(CLOSED) + 1
        path, gripper = path[: closed + 1], gripper[:closed]
    moves = [path_actions(planner, path, gripper), vertical_actions(-depth, gripper[-1])]
    *actions, last = torch.from_numpy(np.concatenate(moves))
    for action in actions:
        env.step_blind(action[None])
    return Spoilt(env.step(last[None]).observation, path[-1], depth, gripper[-1], kind == "grasped")


def _reach(
    planner: ArmPlanner, situation: Situation, rng: np.random.Generator, kind: str
) -> tuple[FloatArray, list[float]] | None:
    """A motion to a missed grasp, to the receptacle or to anywhere, after which the fingers are mostly closed."""
    box = upright_box(situation.surface)
    _, present = planner.pose(situation.qpos)
    turn = any_turn(rng)
    if kind == "missed":
        distance, angle = rng.uniform(*MISS), rng.uniform(0, 2 * np.pi)
        place = grasp_place(situation.surface, box) + distance * np.array([np.cos(angle), np.sin(angle)])
        target = np.array([*place, grasp_height(box) + rng.uniform(0, 0.05)])
        rotation = turn * grasp_rotations(box, present)[0]
    elif kind == "empty":
        rotation = turn * grasp_rotations(box, present)[0]
        target = situation.receptacle + np.array([*rng.uniform(-BESIDE, BESIDE, 2), rng.uniform(*RELEASED)])
    else:
        target, rotation = rng.uniform(LOW, HIGH), turn * present
    motion = planner.plan(situation.qpos, target, rotation)
    if motion is None:
        return None
    closing = 2 if rng.random() < 0.7 else 0
    path = np.stack([situation.qpos, *motion, *[motion[-1]] * closing])
    return path, [OPEN] * len(motion) + [CLOSED] * closing


def any_turn(rng: np.random.Generator) -> Rotation:
    """Up to 60 degrees about the vertical."""
    return Rotation.from_euler("z", rng.uniform(-60, 60), degrees=True)
