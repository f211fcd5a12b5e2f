"""The planner as an actor of the benchmark: what can be reached when the true state is known."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlapost.contracts import Actor, Observation, VectorEnv
from vlapost.envs.vector import SceneVector
from vlapost.planner.actions import CLOSED, OPEN
from vlapost.planner.demonstrate import situation_of
from vlapost.planner.motion import ArmPlanner
from vlapost.planner.planner import plan_demonstration

DISPLACED = 0.02  # metres: an object that has moved so far before it is grasped needs a new plan
AT_REST = 0.002  # metres between two control steps

Actions = deque[NDArray[np.float32]]


class PlannerActor(Actor):
    """Plans each episode once, and again where the object is moved before the fingers close. CPU scenes only.

    It knows nothing of a second object or receptacle beside the right one, and nothing of what the picture shows.
    """

    looks = False

    def __init__(self) -> None:
        self.planner: ArmPlanner | None = None

    def start(self, env: VectorEnv, episode_ids: Sequence[int], seed: int) -> None:
        """Plan every episode."""
        assert isinstance(env, SceneVector)
        if self.planner is None:
            self.planner = ArmPlanner(env.scenes[0].pack)
        self.env = env
        self.last = env.ground_truth().object_position
        self.planned_at = self.last.clone()
        self.plans = [self._plan(scene) for scene in range(env.num_envs)]

    def act(self, observation: Observation) -> Tensor:
        """Actions `[E, A]`; standing still where there is no plan or nothing left of it."""
        now = self.env.ground_truth().object_position
        moved, moving = (now - self.planned_at).norm(dim=1), (now - self.last).norm(dim=1)
        self.last = now
        return torch.stack([self._next(e, float(moved[e]), float(moving[e])) for e in range(len(now))])

    def _next(self, scene: int, moved: float, moving: float) -> Tensor:
        still = torch.tensor([0, 0, 0, 0, 0, 0, OPEN])
        plan = self.plans[scene]
        if plan and moved > DISPLACED and any(action[6] == CLOSED for action in plan) and plan[0][6] == OPEN:
            if moving > AT_REST:
                return still
            self.planned_at[scene] = self.last[scene]
            plan = self.plans[scene] = self._plan(scene)
        return torch.from_numpy(plan.popleft()) if plan else still

    def _plan(self, scene: int) -> Actions:
        assert self.planner is not None
        actions = plan_demonstration(self.planner, situation_of(self.env.scenes[scene]))
        return deque() if actions is None else deque(actions)
