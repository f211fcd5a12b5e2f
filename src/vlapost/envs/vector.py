"""The vector environment: E episodes side by side, on CPU (scenes one after another) or on GPU (in parallel)."""

from __future__ import annotations

import ctypes
import fcntl
import gc
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from zipfile import BadZipFile

import sapien
import torch
from mani_skill.envs.utils.system.backend import parse_sim_and_render_backend
from requests import RequestException
from torch import Tensor

from vlapost.config import EnvConfig, UserError
from vlapost.contracts import Metrics, Observation, Step
from vlapost.drivers import RENDER_BACKEND
from vlapost.envs import rules
from vlapost.envs.scene import PutOnPlateScene
from vlapost.envs.setups import setup_of

WORKSPACE = (0.305, 0.03, 0.04)  # metres in the base frame, about the middle of where things are
CLOSED, OPEN = 0.015, 0.037  # metres, of a finger
FREE_EVERY = 16  # scene resets; without it a process grows by 0.3 MB per reset, for ever


@dataclass(frozen=True)
class GroundTruth:
    """The state behind the newest observation, in the robot base frame (metres; quaternions w, x, y, z).

    object_position, receptacle_position: `[E, 3]` origins of the bodies. gripper_pose: `[E, 7]`, position and
    quaternion of `ee_gripper_link`. qpos: `[E, 8]`, arm in radians, fingers in metres. segmentation: `[E, H, W]`
    uint8, 0 background, 1 robot, 2 object, 3 receptacle, 4 a second object or receptacle.
    """

    object_position: Tensor
    receptacle_position: Tensor
    gripper_pose: Tensor
    qpos: Tensor
    segmentation: Tensor


class SceneVector:
    """`contracts.VectorEnv` over ManiSkill scenes. `scenes` gives the planner the simulator itself."""

    def __init__(self, scenes: list[PutOnPlateScene], num_envs: int) -> None:
        self.scenes = scenes
        self.num_envs = num_envs
        self._resets = 0
        self._images, self._labels = torch.empty(0), torch.empty(0)  # of the newest observation
        self.approach_reward = 0.0  # per metre that gripper and object have come nearer, beside the stage rewards
        self.drawing = 0.0  # seconds that pictures have taken
        self.tells_state = False  # whether observations hold the state, for a critic that reads it

    @property
    def steps(self) -> int:
        """Control steps of an episode."""
        return self.scenes[0].setup.task.steps

    def reset(self, episode_ids: Tensor) -> Observation:
        """Start the given episodes, `[E]` int64; equal ids give equal episodes, whatever ran before."""
        if len(episode_ids) != self.num_envs:
            raise ValueError(f"{len(episode_ids)} episode ids for {self.num_envs} scenes")
        self._done = torch.zeros(self.num_envs)
        self._start(self.scenes, episode_ids)
        return self.look()

    def restart(self, which: Tensor, episode_ids: Tensor) -> Observation:
        """Start other episodes, `[K]` ids, in the scenes `which` `[K]`, on CPU; the others stay where they are."""
        self._done[which] = 0
        self._start([self.scenes[k] for k in which.tolist()], episode_ids)
        images, labels = self._images.clone(), self._labels.clone()  # earlier observations keep theirs
        for k in which.tolist():
            images[k], labels[k] = (x[0] for x in self.scenes[k].render_observation())
        self._images, self._labels = images, labels
        return self._observation()

    def _start(self, scenes: list[PutOnPlateScene], episode_ids: Tensor) -> None:
        self._resets += len(episode_ids)
        if self._resets >= FREE_EVERY:
            self._resets = 0
            free_memory()
        for scene, ids in zip(scenes, episode_ids.chunk(len(scenes))):
            scene.reset(options={"episode_id": ids})
        sentences = [s for scene in self.scenes for s in scene.get_language_instruction()]
        self._instructions = tuple(s.lower() if self.scenes[0].setup.paper else s for s in sentences)

    def step(self, action: Tensor, look: bool = True) -> Step:
        """Apply `[E, 7]` actions for 0.2 s and look; without a look the observation has the picture before."""
        before, way = self._metrics(), self._way()
        metrics = self.step_blind(action)
        return Step(
            observation=self.look() if look else self._observation(),
            reward=rules.reward(before, metrics) + self.approach_reward * (way - self._way()),
            metrics=metrics,
            truncated=bool((self._done >= self.steps).all()),
        )

    def step_blind(self, action: Tensor) -> Metrics:
        """Apply `[E, 7]` actions without rendering."""
        self._done += 1
        for scene, part in zip(self.scenes, action.float().chunk(len(self.scenes))):
            scene.advance(part.to(scene.device))
            scene.measure()
        return self._metrics()

    def ground_truth(self) -> GroundTruth:
        """State behind the newest observation."""
        parts = zip(*(_ground_truth(scene) for scene in self.scenes))
        object_, receptacle, gripper, qpos = (torch.cat(tensors) for tensors in parts)
        return GroundTruth(object_, receptacle, gripper, qpos, self._labels)

    def gripper_pose(self) -> Tensor:
        """Pose `[E, 7]` of the gripper in the robot base frame."""
        return torch.cat([_gripper_pose(scene) for scene in self.scenes])

    def close(self) -> None:
        """Free simulator and renderer."""
        for scene in self.scenes:
            scene.close()

    def look(self) -> Observation:
        """Draw the present."""
        begin = perf_counter()
        images, labels = zip(*(scene.render_observation() for scene in self.scenes))
        self._images, self._labels = torch.cat(images), torch.cat(labels)
        self.drawing += perf_counter() - begin
        return self._observation()

    def _observation(self) -> Observation:
        return Observation(self._images, self._instructions, state=self._state() if self.tells_state else None)

    def _state(self) -> Tensor:
        """`contracts.Observation.state` of the present, on CPU."""
        object_, receptacle, gripper, qpos = (torch.cat(x).cpu() for x in zip(*map(_ground_truth, self.scenes)))
        left = 1 - self._done.unsqueeze(1) / self.steps
        bodies = (object_, receptacle, gripper[:, :3])
        places = [((p - torch.tensor(WORKSPACE)) / 0.05).clamp(-10, 10) for p in bodies]  # what falls, falls for ever
        opening = (qpos[:, -1:] - CLOSED) / (OPEN - CLOSED)
        held = torch.cat([scene.progress.held for scene in self.scenes]) > 0
        m = self._metrics()
        flags = torch.stack([held, m.success, m.success_once, m.grasp, m.consecutive_grasp], 1).float().cpu()
        return torch.cat([left, *places, opening, flags], 1)

    def _way(self) -> Tensor:
        """How far it still is, `[E]` metres; where nobody pays for it, nobody measures it."""
        if not self.approach_reward:
            return torch.zeros(self.num_envs, device=self.scenes[0].device)
        return torch.cat([_way(scene) for scene in self.scenes])

    def _metrics(self) -> Metrics:
        parts = [scene.progress.metrics for scene in self.scenes]
        return Metrics(
            success=torch.cat([part.success for part in parts]),
            success_once=torch.cat([part.success_once for part in parts]),
            grasp=torch.cat([part.grasp for part in parts]),
            consecutive_grasp=torch.cat([part.consecutive_grasp for part in parts]),
        )


def free_memory() -> None:
    """Give the memory of rebuilt scenes back: they are cyclic garbage, and what they leave is scattered."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def make_env(cfg: EnvConfig, num_envs: int | None = None) -> SceneVector:
    """The environment of a configuration, with `num_envs` scenes if given, else as many as it says.

    Raises:
        UserError: unknown environment or object set; an asset pack that lacks the bodies, or files missing from it; no
            Vulkan driver, or none for the GPU that is to simulate.
    """
    count = cfg.num_envs if num_envs is None else num_envs
    setup_of(cfg)
    _check_devices(cfg)
    if cfg.backend == "gpu":
        _load_physx()
        return SceneVector([_make_scene(cfg, count)], count)
    return SceneVector([_make_scene(cfg, 1) for _ in range(count)], count)


def _check_devices(cfg: EnvConfig) -> None:
    if cfg.backend == "gpu" and not torch.cuda.is_available():
        raise UserError("env.backend is 'gpu' but there is no CUDA device; set env.backend=cpu.")
    if cfg.backend == "gpu" and RENDER_BACKEND == "cpu":
        raise UserError(
            "env.backend is 'gpu' but pictures are drawn in software, which cannot show scenes on a GPU; set "
            "env.backend=cpu, or install NVIDIA's graphics library libGLX_nvidia.so.0 and leave VK_DRIVER_FILES unset."
        )
    try:
        sapien.render.RenderSystem(parse_sim_and_render_backend(*_backends(cfg)).render_device)
    except RuntimeError:
        raise UserError(
            "No Vulkan driver can render here; run `make setup`, which installs Mesa's software driver, and if this "
            "machine has a GPU without a Vulkan driver, set VK_DRIVER_FILES to the lvp_icd file it installs."
        ) from None


def _load_physx() -> None:
    """Load PhysX for GPUs, which sapien downloads when it is first used: one process at a time."""
    folder = Path.home() / ".sapien"
    folder.mkdir(exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            sapien.physx.enable_gpu()
        except (RequestException, BadZipFile) as error:
            raise UserError(
                f"env.backend is 'gpu', whose PhysX sapien downloads once into {folder / 'physx'}, and that failed "
                f"({error}); delete that folder and try again with a network, fill it on another machine, or set "
                "env.backend=cpu."
            ) from None
        except OSError as error:
            raise UserError(
                f"env.backend is 'gpu', whose PhysX could not be loaded ({error}); if the file named is in "
                f"{folder / 'physx'}, delete it and try again, else install it, or set env.backend=cpu."
            ) from None


def _backends(cfg: EnvConfig) -> tuple[str, str]:
    """Where ManiSkill simulates and where it renders: on this process's current device if on a GPU.

    Named without a number, the first GPU would draw for all processes, and be made the current one of each.
    """
    if RENDER_BACKEND == "cpu":
        return "cpu", "cpu"
    current = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else RENDER_BACKEND
    return current if cfg.backend == "gpu" else "cpu", current


def _make_scene(cfg: EnvConfig, num_envs: int) -> PutOnPlateScene:
    sim_backend, render_backend = _backends(cfg)
    return PutOnPlateScene(
        env_id=cfg.id,
        num_envs=num_envs,
        obj_set=cfg.obj_set,
        protocol=cfg.protocol,
        assets=cfg.assets,
        image_size=(cfg.image_size[0], cfg.image_size[1]),
        shader=cfg.shader,
        sim_freq=cfg.sim_freq,
        obs_mode="none",
        sim_backend=sim_backend,
        render_backend=render_backend,
    )


def _ground_truth(scene: PutOnPlateScene) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    to_base = scene.agent.base.pose.inv()
    return (
        (to_base * scene.object.pose).p,
        (to_base * scene.receptacle.pose).p,
        _gripper_pose(scene),
        scene.agent.robot.get_qpos(),
    )


def _way(scene: PutOnPlateScene) -> Tensor:
    """How far gripper and object still have to go, `[E]` metres; 0 at success."""
    gripper, object_, receptacle = (body.pose.p for body in (scene.agent.gripper, scene.object, scene.receptacle))
    way = rules.way(gripper, object_, receptacle, scene.near, *scene.halves)
    return way.masked_fill(scene.progress.metrics.success, 0.0)


def _gripper_pose(scene: PutOnPlateScene) -> Tensor:
    return (scene.agent.base.pose.inv() * scene.agent.gripper.pose).raw_pose
