"""The table and the loose bodies of a scene: built, put in place, measured."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

import numpy as np
import sapien
import sapien.physx as physx
import torch
from mani_skill.envs.scene import ManiSkillScene
from mani_skill.utils.structs import Actor, Pose
from torch import Tensor

from vlapost.assets.pack import Model
from vlapost.envs import rules

TABLE_TOP = 0.8695  # metres
TABLE_HALF_SIZE = (0.6, 0.6, 0.05)
TABLE_CENTRE = (-0.15, 0.0)
WAITING = {
    "object": 3.0,
    "receptacle": 4.0,
    "other": 5.0,
}  # metres up; on a GPU they are simulated there
MAX_LINEAR, MAX_ANGULAR = 1e-3, 1e-2  # m/s, rad/s: slower bodies are at rest


def build_table(scene: ManiSkillScene, mesh: bool) -> None:
    """The table, which the overlay covers: a box, or as in the authors' code a mesh, on which bodies roll less."""
    table = scene.create_actor_builder()
    if mesh:
        table.add_nonconvex_collision_from_file(str(files(__package__) / "stage.obj"))
        table.initial_pose = sapien.Pose([0, 0, TABLE_TOP - TABLE_HALF_SIZE[2]])
    else:
        table.add_box_collision(half_size=TABLE_HALF_SIZE)
        table.initial_pose = sapien.Pose([*TABLE_CENTRE, TABLE_TOP - TABLE_HALF_SIZE[2]])
    table.build_static("table")


def build(scene: ManiSkillScene, name: str, models: Sequence[Model], friction: float) -> Actor:
    """One body in each of E parallel scenes, merged into one actor."""
    material = physx.PhysxMaterial(static_friction=friction, dynamic_friction=friction, restitution=0.0)
    actors = []
    for index, model in enumerate(models):
        builder = scene.create_actor_builder()
        builder.add_multiple_convex_collisions_from_file(str(model.collision), material=material, density=model.density)
        builder.add_visual_from_file(str(model.visual))
        builder.set_scene_idxs([index])
        builder.initial_pose = sapien.Pose([0.0, 0.0, WAITING[name]])
        actors.append(builder.build(f"{name}-{index}"))
        scene.remove_from_state_dict_registry(actors[-1])
    merged = Actor.merge(actors, name=name)
    scene.add_to_state_dict_registry(merged)  # `get_state` has one entry per body, batched over scenes
    return merged


def put(actor: Actor, xy: Tensor, height: float | Tensor, yaw: Tensor, side: Tensor | None = None) -> None:
    """Put a body at `xy` `[E, 2]` (metres, world), turned by `yaw` `[E]` (radians) about z, at rest.

    height: metres, of all or `[E]`. side: quaternion `[E, 4]` (w, x, y, z) of how it lies before it is turned; upright
    without one.
    """
    position = torch.cat([xy, torch.as_tensor(height).reshape(-1, 1).expand(len(xy), 1)], dim=1)
    zero = torch.zeros_like(yaw)
    quaternion = torch.stack([(yaw / 2).cos(), zero, zero, (yaw / 2).sin()], dim=1)
    pose = Pose.create_from_pq(position, quaternion, device=actor.device)
    actor.set_pose(pose if side is None else pose * Pose.create_from_pq(q=side, device=actor.device))
    actor.set_linear_velocity(torch.zeros(len(xy), 3, device=actor.device))
    actor.set_angular_velocity(torch.zeros(len(xy), 3, device=actor.device))


def half_extents(actor: Actor, size: Tensor) -> Tensor:
    """Half sizes `[E, 3]` of the world-aligned boxes around the bodies as they lie; `size` `[E, 3]` of their own."""
    return rules.half_extents(actor.pose.to_transformation_matrix()[:, :3, :3], size)


def sizes(models: Sequence[Model]) -> Tensor:
    """Sizes `[E, 3]` of the bodies' own boxes, metres."""
    return torch.tensor([np.subtract(model.bbox_max, model.bbox_min).tolist() for model in models])


def are_moving(actors: Sequence[Actor], together: bool) -> Tensor:
    """`[E]` bool: scenes whose bodies are not at rest; `together`: if one scene's are not, none is."""
    linear = torch.cat([actor.linear_velocity for actor in actors], dim=1)
    angular = torch.cat([actor.angular_velocity for actor in actors], dim=1)
    if together:
        return ((linear.norm() > MAX_LINEAR) | (angular.norm() > MAX_ANGULAR)).expand(len(linear))
    return (linear.norm(dim=1) > MAX_LINEAR) | (angular.norm(dim=1) > MAX_ANGULAR)
