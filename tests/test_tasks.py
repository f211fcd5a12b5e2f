"""SimplerEnv's four tasks and StackCube: against ManiSkill's own declarations, by hand, and in the real simulator."""

from __future__ import annotations

import numpy as np
import pytest
import sapien
import torch
import trimesh
from mani_skill.envs.tasks.digital_twins.bridge_dataset_eval import base_env, put_on_in_scene
from mani_skill.envs.tasks.tabletop.stack_cube import StackCubeEnv
from mani_skill.utils.registration import REGISTERED_ENVS

from vlapost.assets import procedural
from vlapost.assets.pack import Pack, open_pack, write_manifest
from vlapost.assets.procedural import tables
from vlapost.config import UserError, load
from vlapost.envs import stations
from vlapost.envs.episodes import decode, draw, held_out, make_held_out, reserved
from vlapost.envs.overlay import OBJECT, OTHER, RECEPTACLE
from vlapost.envs.scene import PutOnPlateScene
from vlapost.envs.setups import TASKS, find_setup, setup_of
from vlapost.envs.stations import SINK
from vlapost.envs.tasks import declare
from vlapost.envs.vector import SceneVector, make_env
from vlapost.planner.demonstrate import Recording, demonstrate
from vlapost.planner.motion import ArmPlanner

SIMPLER = {
    "WidowXCarrotOnPlate-v1": "PutCarrotOnPlateInScene",
    "WidowXSpoonOnTowel-v1": "PutSpoonOnTableClothInScene",
    "WidowXStackBlocks-v1": "StackGreenCubeOnYellowCubeBakedTexInScene",
    "WidowXEggplantInBasket-v1": "PutEggplantInBasketScene",
}
IDS = [*SIMPLER, "WidowXStackCube-v1"]
STEPS = dict(zip(IDS, (60, 60, 60, 120, 80)))

# SimplerEnv's boxes (mm) and densities (kg/m3); cubes of StackCube have half a size of 0.02 and the default density
BODIES = """
carrot|115 32 38|700
spoon|140 34.6 26.042|1200
green_block|30 30 30|1000
eggplant|78.3 37.4 38|400
red_cube|40 40 40|1000
plate|110 110 6|1000
towel|100 100 10|330
yellow_block|30 30 30|1000
basket|130 80 2|100000
green_cube|40 40 40|1000
sink|269 393 115|100000
"""


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> put_on_in_scene.BaseBridgeEnv:
    """A task of ManiSkill whose constructor only notes what it was given, as it would without its assets."""

    def note(self, **given):
        self.given = given

    monkeypatch.setattr(base_env.BaseBridgeEnv, "__init__", note)
    return getattr(put_on_in_scene, SIMPLER[request.param])()


def pack() -> Pack:
    return open_pack("tasks")


@pytest.mark.parametrize(("theirs", "env_id"), [(i, i) for i in SIMPLER], indirect=["theirs"], ids=list(SIMPLER))
def test_episodes_have_the_numbers_they_have_in_maniskill(theirs, env_id):
    setup, given = find_setup(env_id, "test"), theirs.given
    xyz, turns = given["xyz_configs"], given["quat_configs"]
    ids = torch.arange(setup.total)
    assert setup.total == len(xyz) * len(turns)
    spec = decode(setup, ids)
    # as their `_initialize_episode` takes an episode's number apart
    expected = xyz[ids // len(turns)][:, :, :2].float()
    torch.testing.assert_close(spec.places[:, :2], expected, atol=1e-6, rtol=0)
    if env_id != "WidowXEggplantInBasket-v1":  # its quaternions also lay the mesh down
        w, z = turns[ids % len(turns), 0, 0], turns[ids % len(turns), 0, 3]
        apart = torch.remainder(spec.yaw - 2 * torch.atan2(z, w) + torch.pi, 2 * torch.pi) - torch.pi
        assert apart.abs().max() < 1e-5
    theirs.num_envs = 1
    names = [
        pool[index].name
        for pool, index in zip((pack().objects, pack().receptacles), (spec.object[0], spec.receptacle[0]))
    ]
    assert [setup.task.sentences[0].format(object=names[0], receptacle=names[1])] == theirs.get_language_instruction()
    assert REGISTERED_ENVS[f"{type(theirs).__name__}-v1"].max_episode_steps == setup.task.steps == STEPS[env_id]
    assert setup.task.friction == theirs.obj_static_friction == theirs.obj_dynamic_friction


def test_the_turns_of_the_eggplant_by_hand():
    spec = decode(find_setup("WidowXEggplantInBasket-v1", "test"), torch.tensor([9, 63]))
    # 9: place 1 of 8, turn 1 of 8; 63: the last ones
    torch.testing.assert_close(spec.places[:, 0], torch.tensor([[-0.115, 0.201], [-0.095, 0.221]]))
    assert torch.rad2deg(spec.yaw).tolist() == pytest.approx([0, 270])


def test_ids_clash_with_none_of_maniskills():
    for env_id in IDS:
        assert REGISTERED_ENVS[env_id].cls is PutOnPlateScene
        assert REGISTERED_ENVS[env_id].max_episode_steps == STEPS[env_id]
    assert REGISTERED_ENVS["StackCube-v1"].cls is StackCubeEnv
    assert REGISTERED_ENVS["PutCarrotOnPlateInScene-v1"].cls is put_on_in_scene.PutCarrotOnPlateInScene
    assert {*IDS} <= {task.env_id for task in TASKS.values()} == {*declare()}


@pytest.mark.parametrize("env_id", IDS)
def test_training_starts_where_no_evaluation_does(env_id):
    train, test = find_setup(env_id, "train"), find_setup(env_id, "test")
    ours = {tuple(row) for row in train.places.table.flatten(1).mul(1e4).round().tolist()}
    assert ours.isdisjoint({tuple(row) for row in test.places.table.flatten(1).mul(1e4).round().tolist()})
    for obj_set, setup in (("train", train), ("test", test)):
        assert torch.equal(held_out(env_id, obj_set), make_held_out(setup))
    assert len(held_out(env_id, "train").unique()) == 1024
    assert held_out(env_id, "test").tolist()[:3] == [0, 1, 2] or env_id == "WidowXStackCube-v1"


def test_of_24_episodes_none_is_left_to_train_on_and_of_64_there_are_40():
    nobody = torch.Generator().manual_seed(0)
    setup, excluded = find_setup("WidowXSpoonOnTowel-v1", "test"), reserved("WidowXSpoonOnTowel-v1", "test")
    with pytest.raises(UserError, match=r"All 24 episodes of this setup are held out; start from env\.obj_set=train"):
        draw(setup, 1, nobody, excluded)
    name = "WidowXEggplantInBasket-v1", "test"
    drawn = draw(find_setup(*name), 2000, nobody, reserved(*name))
    assert drawn.unique().tolist() == list(range(24, 64))


def test_the_wrong_bodies_are_refused():
    with pytest.raises(UserError, match=r"env\.assets is 'procedural'; with WidowXStackCube-v1 it must be tasks"):
        setup_of(load("tasks", ["env.id=WidowXStackCube-v1", "env.assets=procedural"]).env)
    with pytest.raises(UserError, match="with PutOnPlateInScene25Main-v3 it must be procedural or paper or world"):
        make_env(load("base", ["env.assets=tasks"]).env, 1)
    with pytest.raises(UserError, match=r"env\.protocol is 'paper', which has no WidowXStackCube-v1"):
        make_env(load("tasks", ["env.id=WidowXStackCube-v1", "env.protocol=paper"]).env, 1)


def test_boxes_and_densities_are_simplerenvs():
    models = pack().objects + pack().receptacles
    for model, row in zip(models, BODIES.strip().splitlines(), strict=True):
        id_, size, density = row.split("|")
        assert (model.id, model.density, model.split) == (id_, float(density), "train")
        extent = 1000 * np.subtract(model.bbox_max, model.bbox_min)
        np.testing.assert_allclose(extent, [float(s) for s in size.split()], atol=1e-3, err_msg=id_)
        for file in (model.visual, model.collision):
            bounds = trimesh.load(file, force="mesh", process=False).bounds
            np.testing.assert_allclose(bounds, [model.bbox_min, model.bbox_max], atol=1e-4, err_msg=str(file))
    cubes = [trimesh.load(model.collision, force="mesh") for model in models if "cube" in model.id]
    assert [mesh.volume for mesh in cubes] == pytest.approx([0.04**3] * 2)  # no corner is missing


def test_the_same_bytes_are_drawn_again(tmp_path):
    procedural.generate_tasks(tmp_path)
    write_manifest(tmp_path)
    assert (tmp_path / "manifest.json").read_text() == (pack().root / "manifest.json").read_text()


def make(env_id: str, obj_set: str = "test") -> SceneVector:
    return make_env(load("tasks", [f"env.id={env_id}", f"env.obj_set={obj_set}", "env.image_size=[128,128]"]).env, 1)


@pytest.mark.sim
@pytest.mark.parametrize("env_id", IDS)
def test_an_episode_starts_as_declared_is_solved_by_the_planner_and_starts_the_same_again(env_id):
    env = make(env_id)
    scene, (first, second) = env.scenes[0], held_out(env_id, "test")[[0, -1]]
    start = env.reset(first[None])
    for body, label, place in ((scene.object, OBJECT, 0), (scene.receptacle, RECEPTACLE, 1)):
        torch.testing.assert_close(body.pose.p[0, :2], scene.start.places[0, place], atol=4e-3, rtol=0)
        upright = body.pose.to_transformation_matrix()[0, 2, 2].item()
        assert upright > 0.998, label  # less than 4 degrees
        assert (env.ground_truth().segmentation == label).sum() > 40
    turned = scene.receptacle.pose.to_transformation_matrix()[0]
    assert torch.atan2(turned[1, 0], turned[0, 0]).item() == pytest.approx(scene.start.receptacle_yaw.item(), abs=0.02)
    recording = demonstrate(env, ArmPlanner(scene.pack), int(second))
    assert isinstance(recording, Recording), recording
    assert not recording.success[: len(recording.success) // 2].any()
    assert torch.equal(env.reset(first[None]).image, start.image)
    env.close()


@pytest.mark.sim
def test_the_sink_stands_where_its_basket_is_and_nothing_moves_it():
    env = make("WidowXEggplantInBasket-v1")
    env.reset(torch.tensor([0]))
    scene = env.scenes[0]
    assert scene.agent.base.pose.p[0].tolist() == pytest.approx(SINK.base)
    torch.testing.assert_close(env.ground_truth().qpos[0], torch.tensor(SINK.qpos), atol=1e-3, rtol=0)
    # basket's floor 1.5 cm above the table, on which the sink stands
    assert scene.receptacle.pose.p[0].tolist() == pytest.approx([-0.125, 0.025, 0.8695 + 0.015 + 0.001], abs=1e-3)
    assert (env.ground_truth().segmentation == OTHER).float().mean() > 0.2
    before = scene.other.pose.p.clone()
    sideways = torch.tensor([[0.0, 0.03, -0.01, 0, 0, 0, -1.0]])
    for _ in range(15):  # against the wall
        env.step_blind(sideways)
    torch.testing.assert_close(scene.other.pose.p, before, atol=2e-3, rtol=0)
    env.close()


@pytest.mark.sim
def test_an_episode_ends_after_its_tasks_steps():
    env = make("WidowXCarrotOnPlate-v1")
    env.reset(torch.tensor([0]))
    still = torch.tensor([[0.0, 0, 0, 0, 0, 0, 1.0]])
    for _ in range(58):
        env.step_blind(still)
    assert not env.step(still).truncated
    assert env.step(still).truncated
    body = env.scenes[0].object._objs[0].find_component_by_type(sapien.physx.PhysxRigidDynamicComponent)
    assert {shape.physical_material.static_friction for shape in body.collision_shapes} == {0.5}
    env.close()


@pytest.mark.parametrize(("view", "station"), [(tables.BESIDE, stations.TABLE), (tables.SINK, stations.SINK)])
def test_table_pictures_are_taken_from_where_the_camera_stands(view, station):
    """The robot faces world -x, so that x and y of its frame are turned round."""
    (bx, by, bz), (cx, cy, cz) = station.base, station.camera
    assert view.eye == pytest.approx((bx - cx, by - cy, bz + cz), abs=1e-6)
    assert view.axes == pytest.approx((*station.camera_turn[1:], station.camera_turn[0]))
