"""Straight motions of the arm: MPLib's screw planner with time-optimal path parameterisation."""

from __future__ import annotations

import logging
from time import perf_counter

import mplib
import numpy as np
import toppra
from mplib.pymp import ArticulatedModel, PlanningWorld
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vlapost.assets.pack import Pack

FloatArray = NDArray[np.float64]

# A path without timing is answered by another, not by a warning. MPLib would set this up anew at every plan, with one
# handler more each time, until each warning is printed thousands of times.
logging.getLogger("toppra").setLevel(logging.ERROR)
toppra.setup_logging = lambda level: None

GRIPPER_LINK = "ee_gripper_link"
JOINT_LIMIT = 0.9  # rad/s and rad/s^2, of every arm joint
CONTROL_PERIOD = 0.2  # seconds of an action; a path has a point for each
ARM_JOINTS = 6
# Joint norm (rad) between the knots of a screw, tried in turn: at MPLib's 0.1 a path ends 3 mm off its goal, but a path
# whose last knot is too close to the goal is refused, so that a step alone would lose good motions.
PATH_STEPS = (0.02, 0.03, 0.05)


class ArmPlanner(mplib.Planner):
    """Plans in the robot base frame, against self-collision only; build it once per process.

    MPLib's own constructor asks for convex-hull files beside every mesh of the URDF; this one takes meshes as they are.
    """

    def __init__(self, pack: Pack):
        self.robot = ArticulatedModel(
            str(pack.robot_urdf), str(pack.robot_srdf), np.array([0, 0, -9.81]), [], [], convex=False
        )
        self.robot.set_move_group(GRIPPER_LINK)
        self.pinocchio_model = self.robot.get_pinocchio_model()
        self.planning_world = PlanningWorld([self.robot], ["robot"], [], [])
        self.move_group = GRIPPER_LINK
        self.link_name_2_idx = {name: i for i, name in enumerate(self.pinocchio_model.get_link_names())}
        self.move_group_joint_indices = self.robot.get_move_group_joint_indices()
        self.joint_limits = np.concatenate(self.pinocchio_model.get_joint_limits())
        self.planning = 0.0  # seconds that plans have taken
        self.joint_vel_limits = self.joint_acc_limits = np.full(ARM_JOINTS, JOINT_LIMIT)

    def pose(self, qpos: FloatArray) -> tuple[FloatArray, Rotation]:
        """Where the gripper is at `qpos` `[8]`: position `[3]` (m) and rotation, base frame."""
        self.pinocchio_model.compute_forward_kinematics(qpos)
        pose = self.pinocchio_model.get_link_pose(self.link_name_2_idx[GRIPPER_LINK])
        return pose[:3].copy(), Rotation.from_quat(np.roll(pose[3:], -1))

    def plan(
        self, qpos: FloatArray, position: FloatArray, rotation: Rotation, acceleration: float = JOINT_LIMIT
    ) -> FloatArray | None:
        """A screw motion from `qpos` `[8]` to a pose of the gripper in the base frame.

        The trajectory planned keeps every joint within JOINT_LIMIT rad/s and `acceleration` rad/s^2.

        Returns:
            `[n, 8]` joint positions without the start, spread evenly over the trajectory: MPLib takes
            int(duration / CONTROL_PERIOD) points including both ends, so they are a little more than a control period
            apart and one point per control step runs a little faster than planned. None if there is no such motion
            within the joint limits and without self-collision.
        """
        begin = perf_counter()
        try:
            return self._plan(qpos, position, rotation, acceleration)
        finally:
            self.planning += perf_counter() - begin

    def _plan(
        self, qpos: FloatArray, position: FloatArray, rotation: Rotation, acceleration: float
    ) -> FloatArray | None:
        self.joint_acc_limits = np.full(ARM_JOINTS, acceleration)
        target = np.concatenate([position, np.roll(rotation.as_quat(), 1)])
        for step in PATH_STEPS:
            try:
                result = self.plan_screw(target, qpos, qpos_step=step, time_step=CONTROL_PERIOD, wrt_world=False)
            except RuntimeError:  # the path found cannot be parameterised by time; about one motion in 10,000
                continue
            if result["status"] == "Success" and len(result["position"]) > 1:
                path = np.tile(qpos, (len(result["position"]) - 1, 1))
                path[:, :ARM_JOINTS] = result["position"][1:]
                return path
        return None
