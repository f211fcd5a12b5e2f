"""The WidowX-250S as tuned for BridgeData: gains, limits, controller and camera (paper appendix A; SIMPLER).

An action is seven numbers. 0..2: translation in metres, root frame. 3..5: rotation as intrinsic XYZ Euler angles in
radians, R = Rx Ry Rz, applied from the left in the root frame. 6: gripper, +1 open, -1 closed. They add up on a
virtual target pose that starts at the real pose of the gripper and is never set back to it within an episode; nothing
is clipped but the gripper. Inverse kinematics turns the target into one joint target for the whole control step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import sapien
import torch
from mani_skill.agents.base_agent import BaseAgent
from mani_skill.agents.controllers import PDEEPoseController, PDEEPoseControllerConfig, PDJointPosMimicControllerConfig
from mani_skill.envs.scene import ManiSkillScene
from mani_skill.utils.structs import Pose

ARM_JOINTS = ["waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate"]
FINGER_JOINTS = ["left_finger", "right_finger"]
GRIPPER_PARTS = ["gripper_link", "gripper_bar_link", "left_finger_link", "right_finger_link"]
GRIPPER_LINK = "ee_gripper_link"

FACING = [0, 0, 0, 1]  # the base's quaternion in the world
PARKED_POSE = sapien.Pose([0.147, 0.028, 1.870], FACING)  # out of the way while bodies fall

ARM_STIFFNESS = [
    1169.7891719504198,
    730.0,
    808.4601346394447,
    1229.1299089624076,
    1272.2760456418862,
    1056.3326605132252,
]
ARM_DAMPING = [
    330.0,
    180.0,
    152.12036565582588,
    309.6215302722146,
    201.04998711007383,
    269.51458932695414,
]
ARM_FORCE_LIMIT = [200, 200, 100, 100, 100, 100]
FINGER_RANGE = (
    0.014,
    0.038,
)  # metres at -1 and +1; a millimetre beyond the joint limits, so that a closed gripper presses

CONTROL_MODE = "arm_pd_ee_target_delta_pose_align2_gripper_pd_joint_pos"


class VirtualTarget(PDEEPoseController):
    """ManiSkill's controller; it works the gripper's real pose out only where inverse kinematics looks at it."""

    _target_pose: Pose

    def set_action(self, action: torch.Tensor) -> None:
        """Move the target by `[E, 6]` and drive the arm to it; where it is out of reach the arm stays as it is."""
        self._target_pose = self.compute_target_pose(self._target_pose, action)
        joints = self.kinematics.compute_ik(
            self._target_pose,
            self.articulation.get_qpos(),
            current_pose=self.ee_pose_at_base if self.scene.gpu_sim_enabled else None,
            solver_config=self.config.delta_solver_config,
        )
        self.set_drive_targets(self.qpos if joints is None else joints)


@dataclass
class VirtualTargetConfig(PDEEPoseControllerConfig):
    """Names the class above."""

    controller_cls = VirtualTarget


class WidowX(BaseAgent):
    """The robot of one ManiSkill scene, read from an asset pack's URDF."""

    uid = "vlapost_widowx250s"

    def __init__(self, scene: ManiSkillScene, control_freq: int, urdf_path: Path, initial_pose: sapien.Pose) -> None:
        self.urdf_path = str(urdf_path)
        super().__init__(scene, control_freq, CONTROL_MODE, initial_pose=initial_pose)

    def _after_loading_articulation(self) -> None:
        for name in GRIPPER_PARTS:  # they touch by construction
            self.robot.links_map[name].set_collision_group_bit(group=2, bit_idx=31, bit=1)

    def _after_init(self) -> None:
        links = self.robot.links_map
        self.base, self.gripper = links["base_link"], links[GRIPPER_LINK]
        self.left_finger, self.right_finger = links["left_finger_link"], links["right_finger_link"]

    @property
    def _controller_configs(self) -> dict:
        arm = VirtualTargetConfig(
            joint_names=ARM_JOINTS,
            pos_lower=-1.0,
            pos_upper=1.0,
            rot_lower=-math.pi / 2,
            rot_upper=math.pi / 2,
            stiffness=ARM_STIFFNESS,
            damping=ARM_DAMPING,
            force_limit=ARM_FORCE_LIMIT,
            ee_link=GRIPPER_LINK,
            urdf_path=self.urdf_path,
            frame="root_translation:root_aligned_body_rotation",
            use_target=True,
            normalize_action=False,  # with it off, the bounds above are only declared, never applied
        )
        gripper = PDJointPosMimicControllerConfig(
            joint_names=FINGER_JOINTS,
            lower=FINGER_RANGE[0],
            upper=FINGER_RANGE[1],
            stiffness=1000,
            damping=200,
            force_limit=60,
            mimic={"right_finger": {"joint": "left_finger"}},
        )
        return {CONTROL_MODE: {"arm": arm, "gripper": gripper}}

    def opening_directions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """World directions `[E, 3]` in which the left and the right finger open: link +y and -y."""
        w, x, y, z = torch.stack([self.left_finger.pose.q, self.right_finger.pose.q]).unbind(-1)
        along_y = torch.stack([2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)], -1)
        return along_y[0], -along_y[1]
