"""One start, laid out anew many times: what pretraining learns to see by.

A demonstration costs half a second and shows its bodies where they started. Without physics a picture costs 10 ms, and
each shows them elsewhere. Nothing is done in it, so there is no action to learn.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from vlapost.contracts import ACTION_DIM
from vlapost.envs.bodies import TABLE_TOP, put
from vlapost.envs.places import CLOSE, GRID_CENTRE, GRID_EDGE, GRID_SPACING
from vlapost.envs.vector import CLOSED, OPEN, SceneVector
from vlapost.planner.demonstrate import Recording
from vlapost.planner.disturb import HIGH, LOW, any_turn
from vlapost.planner.motion import ArmPlanner

MOVED = 0.6  # share of the pictures in which the arm is not where it starts
FELL, SUNK = "fell off the table", 0.02  # metres below the table's top that no origin is that lies on it
REACH = GRID_EDGE / 2 + GRID_SPACING  # metres from the middle in x and y: the grid of training and the ring around it


def look_around(
    env: SceneVector, planner: ArmPlanner, episode_id: int, count: int, rng: np.random.Generator
) -> Recording | str:
    """`count` pictures of an episode's bodies in a one-scene environment: the start itself, then elsewhere.

    Object and receptacle keep the side they settled on, are turned about z and stay `CLOSE` apart; the arm reaches
    anywhere, with fingers open to any width. The actions are zeros. A start from which something fell is answered by
    its cause.
    """
    observation = env.reset(torch.tensor([episode_id]))
    scene = env.scenes[0]
    bodies = [(body, body.pose.p.clone(), body.pose.q.clone()) for body in (scene.object, scene.receptacle)]
    if min(float(position[0, 2]) for _, position, _ in bodies) < TABLE_TOP - SUNK:
        return FELL
    start = scene.agent.robot.get_qpos()[0].double().numpy()
    images, truths = [observation.image[0].numpy()], [env.ground_truth()]
    while len(images) < count:
        places = rng.uniform(-REACH, REACH, (2, 2)) + GRID_CENTRE
        if np.linalg.norm(places[0] - places[1]) <= CLOSE:
            continue
        for (body, position, rotation), place in zip(bodies, places):
            yaw = torch.tensor([rng.uniform(0, 2 * np.pi)]).float()
            put(body, torch.from_numpy(place).float()[None], float(position[0, 2]), yaw, rotation)
        scene.agent.robot.set_qpos(torch.from_numpy(_posture(planner, start, rng)).float()[None])
        images.append(env.look().image[0].numpy())
        truths.append(env.ground_truth())
    nothing = np.zeros((count, ACTION_DIM), np.float32)
    return Recording(observation.instruction[0], list(images), truths, nothing, np.zeros(count, np.bool_))


def _posture(planner: ArmPlanner, start: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Joint positions `[8]`: the start's, or with the gripper somewhere in the box that disturbances reach."""
    if rng.random() >= MOVED:
        return start
    turn = any_turn(rng)
    motion = planner.plan(start, rng.uniform(LOW, HIGH), turn * planner.pose(start)[1])
    posture = (start if motion is None else motion[-1]).copy()
    posture[-2:] = rng.uniform(CLOSED, OPEN)
    return posture
