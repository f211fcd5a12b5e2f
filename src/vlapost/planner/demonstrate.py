"""One attempt at a demonstration in the simulator: plan, execute, record, judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from torch import Tensor

from vlapost.contracts import Metrics
from vlapost.envs.places import OBJECT
from vlapost.envs.scene import PutOnPlateScene
from vlapost.envs.vector import GroundTruth, SceneVector
from vlapost.planner.actions import CLOSED, vertical_actions
from vlapost.planner.disturb import Spoilt, disturb
from vlapost.planner.motion import ArmPlanner
from vlapost.planner.planner import Situation, plan_carry, plan_demonstration

SAFE = 0.12  # metres in the base frame: after a disturbance the gripper goes up there before anything else
NO_PLAN = "screw plan failed"
TOO_LONG = "longer than an episode"
NOT_GRASPED = "not grasped"
DROPPED = "dropped before the plate"
NOT_ON_PLATE = "not on the plate at the end"


@dataclass(frozen=True)
class Recording:
    """A successful attempt of T steps, recorded before each action.

    image: T pictures `[H, W, 3]` uint8, None where none was drawn (`truth.segmentation` is then an earlier one).
    truth: T states. action: `[T, 7]` float32. success: `[T]` bool, after the step.
    """

    instruction: str
    image: list[NDArray[np.uint8] | None]
    truth: list[GroundTruth]
    action: NDArray[np.float32]
    success: NDArray[np.bool_]


def demonstrate(
    env: SceneVector,
    planner: ArmPlanner,
    episode_id: int,
    disturbance: np.random.Generator | None = None,
    choose: Callable[[NDArray[np.float32]], NDArray[np.bool_]] | None = None,
) -> Recording | str:
    """Try the episode in a one-scene environment; a failed attempt is answered by its cause.

    disturbance: spoils the start with numbers from this generator (see `disturb`); None leaves it alone.
    choose: told the planned actions `[T, 7]`, says of which steps `[T]` there has to be a picture; None draws all.
    """
    observation = env.reset(torch.tensor([episode_id]))
    situation = situation_of(env.scenes[0])
    spoilt = disturb(env, planner, situation, disturbance) if disturbance else None
    if spoilt is None:
        actions = plan_demonstration(planner, situation)
    else:
        observation, actions = spoilt.observation, _way_back(env, planner, spoilt)
    if actions is None:
        return NO_PLAN
    if len(actions) > env.scenes[0].setup.task.steps:
        return TOO_LONG
    drawn = np.ones(len(actions), np.bool_) if choose is None else choose(actions)
    images: list[NDArray[np.uint8] | None] = []
    truths, success = [], []
    grasped = held = False
    for action, seen, looks in zip(torch.from_numpy(actions), drawn, [*drawn[1:], False]):
        images.append(observation.image[0].numpy() if seen else None)
        truths.append(env.ground_truth())
        step = env.step(action[None], look=bool(looks))
        observation = step.observation
        success.append(bool(step.metrics.success))
        now = bool(env.scenes[0].progress.held)
        grasped |= now  # not metrics.grasp, which counts what was held while the start was spoilt
        if action[6] == CLOSED:
            held = now
    if not success[-1]:
        return _cause(grasped, held)
    return Recording(observation.instruction[0], images, truths, actions, np.array(success))


def _way_back(env: SceneVector, planner: ArmPlanner, spoilt: Spoilt) -> NDArray[np.float32] | None:
    """Actions that raise the controller's target to where it was before it was pushed down, and solve the task.

    The fingers stay as they are until the gripper is at `SAFE`, where a lift ends too: below a picture does not tell
    whether they hold anything, and to open in doubt would be to drop what is held. It is a place, not a distance: the
    end of a rise must be seen in the picture, or a policy rises out of reach.
    """
    situation = situation_of(env.scenes[0])
    if spoilt.grasped or bool(env.scenes[0].progress.held):
        actions = plan_carry(planner, situation, spoilt.qpos)
    else:
        actions = plan_demonstration(planner, replace(situation, qpos=spoilt.qpos), SAFE, spoilt.fingers)
    return None if actions is None else np.concatenate([vertical_actions(spoilt.depth, spoilt.fingers), actions])


def replay(env: SceneVector, episode_id: int, actions: Tensor) -> Metrics:
    """The measures after executing `[T, 7]` actions open loop in a one-scene environment, without rendering steps."""
    env.reset(torch.tensor([episode_id]))
    for action in actions:
        metrics = env.step_blind(action[None])
    return metrics


def situation_of(scene: PutOnPlateScene) -> Situation:
    """The true state of a single scene as the planner wants it."""
    to_base = scene.agent.base.pose.inv()
    to_object = (to_base * scene.object.pose).to_transformation_matrix()[0].double().numpy()
    task, local = scene.setup.task, surface_points(scene.models[OBJECT][0].collision)
    return Situation(
        qpos=scene.agent.robot.get_qpos()[0].double().numpy(),
        surface=local @ to_object[:3, :3].T + to_object[:3, 3],
        receptacle=(to_base * scene.receptacle.pose).p[0].double().numpy(),
        release=task.release,
        over=task.over,
    )


@cache
def surface_points(path: Path) -> NDArray[np.float64]:
    """Vertices and 4,000 evenly spread points `[n, 3]` of a collision mesh, body frame, metres."""
    mesh = trimesh.load_mesh(path, process=False)
    points, _ = trimesh.sample.sample_surface(mesh, 4000, seed=0)
    return np.concatenate([mesh.vertices, points])


def _cause(grasped: bool, held: bool) -> str:
    """Why the attempt failed; `grasped`, `held`: the object was between the fingers in any of its steps, and in the
    last before they opened.
    """
    if not grasped:
        return NOT_GRASPED
    return NOT_ON_PLATE if held else DROPPED
