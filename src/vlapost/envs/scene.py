"""The scene: a table, the robot, an object, a receptacle, sometimes a second one, and how an episode starts and goes
on (paper appendix A). What differs is declared in `setups.py` and `tasks.py`. World frame: z up, table at 0.8695 m.

One `PutOnPlateScene` holds E parallel scenes on the GPU, or a single one on the CPU. Only the bodies an episode needs
are built, so other bodies need another scene: on the CPU every reset builds a new one, which also makes an episode's
course independent of those before it (contact caches make rolling objects come to rest elsewhere).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import sapien
import torch
from mani_skill.envs.sapien_env import BaseEnv
from mani_skill.envs.scene import ManiSkillScene
from mani_skill.sensors.camera import CameraConfig
from mani_skill.utils import sapien_utils
from mani_skill.utils.registration import register_env
from mani_skill.utils.structs import Actor
from mani_skill.utils.structs.types import SimConfig
from torch import Tensor

from vlapost.assets.pack import open_pack
from vlapost.config import CONTROL_FREQ, UserError
from vlapost.drivers import RENDER_BACKEND
from vlapost.envs import bodies, overlay, rules, textures
from vlapost.envs.camera import CAMERA, CAMERA_SIZE, camera_config
from vlapost.envs.episodes import NONE, chosen, decode
from vlapost.envs.places import OBJECT, RECEPTACLE, THIRD
from vlapost.envs.robot import ARM_JOINTS, FACING, PARKED_POSE, WidowX
from vlapost.envs.setup import Blend
from vlapost.envs.setups import declare, find_setup

REPOSITION_HEIGHT = 1.0  # from which the object falls when it is put elsewhere during an episode, metres
SETTLE_STEPS, LONG_SETTLE_STEPS = 50, 600  # physics steps at 500 Hz: 0.1 s, and 1.2 s more where something moves


class PutOnPlateScene(BaseEnv):
    """ManiSkill environment; reset options `episode_id` (`[E]` int64) and `obj_set` (see `setups.declare`).

    The physics of a control step (`advance`), its measures (`measure`, `progress`) and its picture
    (`render_observation`) can be asked for one by one; `step` does all three.
    """

    SUPPORTED_OBS_MODES = ("rgb+segmentation", "none")
    SUPPORTED_REWARD_MODES = ("none",)
    scene: ManiSkillScene
    agent: WidowX

    def __init__(
        self,
        env_id: str,
        num_envs: int = 1,
        obj_set: str = "train",
        protocol: str = "v2",
        assets: str = "procedural",
        image_size: tuple[int, int] = CAMERA_SIZE,
        shader: str = "default",
        sim_freq: int = 500,
        render_backend: str = RENDER_BACKEND,
        **kwargs: Any,
    ) -> None:
        self.env_id, self.obj_set, self.protocol, self.shader = env_id, obj_set, protocol, shader
        self.pack, self.draws = open_pack(assets), torch.Generator()  # draws: of episodes that nobody names
        self.image_size = (image_size[0], image_size[1])
        self.chosen: list[tuple[int, int, int, int]] = []
        sim_config = SimConfig(sim_freq=sim_freq, control_freq=CONTROL_FREQ, spacing=20)
        super().__init__(num_envs=num_envs, sim_config=sim_config, render_backend=render_backend, **kwargs)

    # ------------------------------------------------------------------ building

    def _load_agent(self, options: dict) -> None:
        self.agent = WidowX(self.scene, self._control_freq, self.pack.robot_urdf, PARKED_POSE)

    def _load_scene(self, options: dict) -> None:
        for robot in self.agent.robot._objs:
            sapien_utils.set_articulation_render_material(robot, specular=0.9, roughness=0.3)
        bodies.build_table(self.scene, mesh=self.setup.paper)
        objects, receptacles, friction = self.pack.objects, self.pack.receptacles, self.setup.task.friction
        self.models = [objects[o] for o, *_ in self.chosen], [receptacles[r] for _, r, *_ in self.chosen]
        self.object = bodies.build(self.scene, "object", self.models[OBJECT], friction)
        self.receptacle = bodies.build(self.scene, "receptacle", self.models[RECEPTACLE], friction)
        others = [objects[o] for _, _, o, _ in self.chosen if o != NONE]
        others += [receptacles[r] for _, _, _, r in self.chosen if r != NONE]
        self.other: Actor | None = bodies.build(self.scene, "other", others, friction) if others else None

    def _load_lighting(self, options: dict) -> None:
        self.scene.set_ambient_light([0.3, 0.3, 0.3])
        self.scene.add_directional_light([0, 0, -1], [2.2, 2.2, 2.2])
        self.scene.add_directional_light([-1, -0.5, -1], [0.7, 0.7, 0.7])
        self.scene.add_directional_light([1, 1, -1], [0.7, 0.7, 0.7])

    @property
    def _default_sensor_configs(self) -> list[CameraConfig]:
        return [camera_config(self.image_size, self.shader, self.agent.base, self.setup.task.station)]

    def _clear(self) -> None:
        """Free the old scene at once, without ManiSkill's full garbage collection (175 ms)."""
        self.object = self.receptacle = self.other = None  # type: ignore[assignment]
        if self.scene is None or self.gpu_sim_enabled:
            self.__dict__.pop("segmentation_id_map", None)  # with the cameras' mounts, the last to hold the old scene
            self._sensor_configs: dict = {}
            super()._clear()
            return
        for scene in self.scene.sub_scenes:
            scene.clear()
        self.scene = self.agent = None  # type: ignore[assignment]
        self._sensors: dict = {}

    # ------------------------------------------------------------------ reset

    def reset(self, seed: Any = None, options: dict | None = None) -> tuple[dict, dict]:
        """Start the episodes `options["episode_id"]`, or ones drawn from `seed`, none held out; all scenes together.

        Raises:
            UserError: `options["env_idx"]` asks for some of the scenes only; no such episode or set; too few ids.
        """
        options = dict(options or {})
        if len(options.get("env_idx", range(self.num_envs))) != self.num_envs:
            raise UserError("Scenes of the benchmark are reset all together; leave env_idx out of the reset's options.")
        named = self.env_id, options.get("obj_set", self.obj_set), self.protocol
        self.setup = find_setup(*named, self.pack.name)
        if seed is not None:
            self.draws.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        self.episode_id = chosen(self.setup, named, options.get("episode_id"), self.num_envs, self.draws)
        spec = self.start = decode(self.setup, self.episode_id.cpu())
        drawn = torch.stack([spec.object, spec.receptacle, spec.other_object, spec.other_receptacle], 1)
        before, self.chosen = self.chosen, [tuple(row) for row in drawn.tolist()]
        options["reconfigure"] = self.chosen != before or not self._sim_device.is_cuda()
        return super().reset(seed=seed, options=options)

    def _initialize_episode(self, env_idx: Tensor, options: dict) -> None:
        self.agent.robot.set_pose(PARKED_POSE)
        heights = torch.tensor(self.setup.places.heights)
        alone = self.start.other_object == self.start.object  # only with the authors' mistake: see `decode`
        self._place(self.object, OBJECT, self.start.yaw, torch.where(alone, heights[-1], heights[OBJECT]))
        self._place(self.receptacle, RECEPTACLE, self.start.receptacle_yaw, heights[RECEPTACLE])
        if self.other is not None:
            self._place(self.other, THIRD, self.start.yaw * bool(self.setup.other_objects), heights[THIRD])
        if self.gpu_sim_enabled:
            self.scene._gpu_apply_all()
        self._settle()
        station = self.setup.task.station
        self.agent.robot.set_pose(sapien.Pose(station.base, FACING))
        qpos = torch.tensor([station.qpos] * self.num_envs)
        qpos[:, : len(ARM_JOINTS)] += self.start.arm_offset
        self.agent.reset(qpos.to(self.device))
        sizes = [bodies.sizes(models).to(self.device) for models in self.models]
        self.halves = [bodies.half_extents(body, size) for body, size in zip((self.object, self.receptacle), sizes)]
        self.near = rules.reach(self.setup.task.rule, self.halves[RECEPTACLE], sizes[RECEPTACLE])
        self.progress = rules.start(self.num_envs, self.device)
        self.elapsed = 0  # control steps; ManiSkill's own counter stands still without its `step`
        self._prepare_overlay()

    def _place(self, actor: Actor, place: int, yaw: Tensor, height: float | Tensor) -> None:
        """Put a body at one of the episode's places, turned about z and at rest."""
        bodies.put(actor, self.start.places[:, place], height, yaw)

    def _settle(self) -> None:
        """Let the bodies fall; scenes that still move get longer, while those at rest are put back as they were.

        With the protocol `paper` one moving scene gives all that are simulated together longer.
        """
        self._simulate(SETTLE_STEPS * self._sim_freq // 500)
        moving = bodies.are_moving(self._loose(), together=self.setup.paper)
        if not moving.any():
            return
        early = [(actor, actor.get_state().clone()) for actor in self._loose()]
        self._simulate(LONG_SETTLE_STEPS * self._sim_freq // 500)
        if not moving.all():
            for actor, state in early:
                actor.set_state(rules.settled(moving, state, actor.get_state()))
            self.scene._gpu_apply_all()
            self.scene._gpu_fetch_all()

    def _loose(self) -> list[Actor]:
        """The bodies that can move."""
        return [self.object, self.receptacle] + ([self.other] if self.other is not None else [])

    # ------------------------------------------------------------------ control step

    def advance(self, action: Tensor) -> None:
        """Physics of one control step (0.2 s) under `action` `[E, 7]`; no measures, no picture."""
        self.agent.set_action(action)
        if self.gpu_sim_enabled:
            self.scene.px.gpu_apply_articulation_target_position()
        self._simulate(self._sim_steps_per_control)
        self.elapsed += 1
        if self.elapsed == self.setup.reposition:
            self._place(self.object, THIRD, self.start.yaw, REPOSITION_HEIGHT)
            if self.gpu_sim_enabled:
                self.scene._gpu_apply_all()
            self._simulate(SETTLE_STEPS * self._sim_freq // 500)

    def _simulate(self, steps: int) -> None:
        physics = self.scene.px
        for _ in range(steps):
            physics.step()
        if self.gpu_sim_enabled:
            self.scene._gpu_fetch_all()

    def measure(self) -> None:
        """Bring `progress` up to date; once per control step."""
        sensed = self.sense()
        on_target = rules.is_on_target(self.setup.task.rule, sensed, self.near, *self.halves)
        self.progress = rules.advance(self.progress, on_target, rules.is_grasping(sensed))

    def sense(self) -> rules.Sensed:
        """Positions and forces the rules look at."""
        agent, query = self.agent, self.scene.get_pairwise_contact_forces
        left_opening, right_opening = agent.opening_directions()
        return rules.Sensed(
            object_position=self.object.pose.p,
            receptacle_position=self.receptacle.pose.p,
            contact_force=query(self.object, self.receptacle).float(),
            velocity=self.object.linear_velocity,
            spin=self.object.angular_velocity,
            left_force=query(agent.left_finger, self.object).float(),
            right_force=query(agent.right_finger, self.object).float(),
            left_opening=left_opening,
            right_opening=right_opening,
        )

    def _step_action(self, action: Any) -> Tensor:
        action = torch.as_tensor(action, dtype=torch.float32, device=self.device).reshape(self.num_envs, -1)
        self.advance(action)
        self.measure()
        return action

    def step(self, action: Any) -> tuple[Any, Tensor, Tensor, Tensor, dict]:
        """ManiSkill's step, but success does not terminate an episode: only its last step ends it."""
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, torch.zeros_like(terminated), truncated, info

    def evaluate(self) -> dict[str, Tensor]:
        """The measures, for ManiSkill's `info`; asking twice changes nothing."""
        metrics = self.progress.metrics
        return {
            "success": metrics.success,
            "is_src_obj_grasped": metrics.grasp,
            "consecutive_grasp": metrics.consecutive_grasp,
        }

    # ------------------------------------------------------------------ picture

    def _prepare_overlay(self) -> None:
        height, width = self.image_size
        tables, drawn = self.pack.tables, self.start.texture.tolist()
        pictures = [overlay.table_picture(tables[t].image, height, width) for t in self.start.table.tolist()]
        self.pictures = torch.stack(pictures).to(self.device)
        paths = [tables[t].texture for t in drawn] if self.setup.blend else []
        self.textures = [overlay.table_picture(path, height, width).to(self.device) for path in paths]
        rows = [
            overlay.lookup_table(
                [link.entity.per_scene_id for link in robot.links], *(body.per_scene_id for body in loose)
            )
            for robot, *loose in zip(self.agent.robot._objs, *(body._objs for body in self._loose()))
        ]
        self.lookup = torch.stack(rows).to(self.device)

    def render_observation(self) -> tuple[Tensor, Tensor]:
        """The observed image `[E, H, W, 3]` uint8, table picture composited, and its labels `[E, H, W]` uint8."""
        self.scene.update_render(update_sensors=True, update_human_render_cameras=False)
        camera = self.scene.sensors[CAMERA]
        camera.capture()
        picture = camera.get_obs(rgb=True, depth=False, position=False, segmentation=True)
        rendered = picture["rgb"].to(self.device)  # a GPU may render what the CPU simulates
        labels = overlay.label(picture["segmentation"][..., 0].to(self.device), self.lookup)
        image = overlay.composite(rendered, labels, self.pictures)
        if self.setup.blend is not None:
            image = self._blend(self.setup.blend, image, labels)
        return image, labels

    def _blend(self, blend: Blend, image: Tensor, labels: Tensor) -> Tensor:
        """Texture over the picture, as the setup wants it; its crops depend on episode and control step alone."""
        keys = None if self.setup.paper else [(id_, self.elapsed) for id_ in self.episode_id.tolist()]
        layers, shown = textures.layers(self.textures, labels, blend.everything, keys)
        return textures.blend(image, layers, shown, blend.ratio)

    def get_obs(self, info: dict | None = None, unflattened: bool = False) -> dict:
        """ManiSkill's observation: the composited picture and its labels."""
        if self.obs_mode == "none":
            return {}
        image, labels = self.render_observation()
        return {"sensor_data": {CAMERA: {"rgb": image, "segmentation": labels.unsqueeze(-1)}}}

    def get_language_instruction(self) -> list[str]:
        """One sentence per scene; names are in lower case, as OpenVLA has always been told them."""
        sentences = self.setup.task.sentences
        return [
            sentences[template].format(object=object_.name.lower(), receptacle=receptacle.name.lower())
            for template, object_, receptacle in zip(self.start.template.tolist(), *self.models)
        ]


for _env_id, _sets in declare("v2").items():
    _task = next(iter(_sets.values())).task
    register_env(_env_id, max_episode_steps=_task.steps, env_id=_env_id, assets=_task.packs[0])(PutOnPlateScene)
