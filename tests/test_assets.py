"""Asset packs: the procedural one against the benchmark's table, and what happens when files are wrong."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import sapien
import trimesh

import vlapost.drivers  # noqa: F401  (chooses the Vulkan driver)
from vlapost.assets import pack as pack_module
from vlapost.assets import procedural
from vlapost.assets.pack import Model, Pack, edition, exact_edition, open_pack, verify, write_manifest
from vlapost.assets.procedural.world import FAMILIES, HUES
from vlapost.config import UserError
from vlapost.policies.tiny_tokenizer import COLOURS, WORLD_OBJECTS, WORLD_RECEPTACLES

# id, name, box in mm (spec: paper's object and receptacle databases), density in kg/m3
OBJECTS = """
001_carrot_simpler|carrot|118.3 32.2 41.2|1044
002_kitchen shovel_1|kitchen shovel|57.1 148.9 21.2|557
003_bread_1|bread|44.5 44.9 29.1|526
004_plastic bottle_1|plastic bottle|36.1 121.5 39.0|1916
005_7up can_1|7up can|33.1 61.0 33.1|790
006_zuchinni_1|zuchinni|110.1 30.7 26.0|715
007_ketchup bottle_1|ketchup bottle|20.8 81.3 20.8|500
008_watering can_1|watering can|112.3 40.7 48.9|1591
009_pipe_1|pipe|34.7 73.9 34.7|1116
010_toy bear_1|toy bear|42.6 38.6 56.4|667
011_fast food cup_1|fast food cup|24.8 24.8 53.7|500
012_plant_1|plant|40.9 42.5 72.6|1051
013_banana_1|banana|107.6 40.1 18.4|500
014_hamburger_1|hamburger|49.3 51.0 41.2|863
015_golf ball_1|golf ball|30.6 30.6 30.6|500
016_BBQ sauce_1|BBQ sauce|53.0 32.5 77.2|1057
017_travel cup_1|travel cup|51.8 85.8 34.4|1018
018_pepper_1|pepper|44.2 45.1 45.6|835
019_nonstop can_1|nonstop can|34.8 34.8 85.3|1248
020_potato_1|potato|49.0 74.1 44.6|1355
021_baguette_1|baguette|38.3 139.0 25.8|1367
022_champagne glass_1|champagne glass|28.4 28.4 85.5|500
023_kitchen spoon_1|kitchen spoon|49.5 126.3 17.2|500
024_onion_1|onion|50.9 62.2 51.2|1137
025_cup_1|cup|58.7 44.3 37.2|1018
"""
RECEPTACLES = """
001_plate_simpler|plate|110 110 6.0|1003
002_cloth_1|cloth|110 110 9.4|6975
003_carpet_1|carpet|110 94.2 3.7|2815
004_newspaper_1|newspaper|81.5 116.2 4.1|2278
005_sheet metal_1|sheet metal|110.8 94.3 3.2|2389
006_drawing tablet_1|drawing tablet|112.8 84.0 3.6|2868
007_tomato slice_1|tomato slice|110 110 4.3|3089
008_pizza_1|pizza|110 110 6.5|3862
009_flat bowl_1|flat bowl|110 110 11.9|4847
010_gramophone disk_1|gramophone disk|110 110 2.7|2193
011_frying pan_1|frying pan|110 110 8.5|5104
012_mouse pad_1|mouse pad|110 110 6.4|3332
013_cutting board_1|cutting board|126.2 110 2.7|3107
014_chess board_1|chess board|110 110 6.0|6368
015_manhole cover_1|manhole cover|110 110 4.5|3743
016_envelope_1|envelope|110 80 3.0|1824
017_notepad_1|notepad|110 80 4.0|3087
"""
TABLES = """
001_table_simpler 002_blue_plastic_table_1 003_TV_cabinet_1 004_picnic_table_1 005_dest_1 006_table_1
007_yellow_desk_1 008_table_2 009_table_3 010_table_4 011_table_5 012_pink_table_1 013_table_6 014_grass_table_1
015_table_7 016_coloful_desk_1 017_glass_table_1 018_green_table_1 019_pink_desk_1 020_stone_table_1
021_dining_table_2
"""
TABLE_TOP = 0.8695


@pytest.fixture(scope="module")
def pack() -> Pack:
    return open_pack("procedural")


def check_models(models: tuple[Model, ...], table: str, trained: int) -> None:
    rows = [row.split("|") for row in table.strip().splitlines()]
    assert [(m.id, m.name, m.density) for m in models] == [(i, n, float(d)) for i, n, _, d in rows]
    assert [m.index for m in models] == list(range(len(rows)))
    assert [m.split for m in models] == ["train"] * trained + ["test"] * (len(rows) - trained)
    for model, (_, _, size, _) in zip(models, rows):
        extent = 1000 * (np.array(model.bbox_max) - np.array(model.bbox_min))
        np.testing.assert_allclose(extent, [float(s) for s in size.split()], atol=0.15, err_msg=model.id)


def test_ids_names_splits_boxes_and_densities(pack: Pack) -> None:
    check_models(pack.objects, OBJECTS, trained=16)
    check_models(pack.receptacles, RECEPTACLES, trained=1)
    assert [t.id.replace(" ", "_") for t in pack.tables] == TABLES.split()
    assert [t.split for t in pack.tables] == ["train"] * 16 + ["test"] * 5
    assert [t.mix for t in pack.tables] == [0.0] + [1.0] * 20
    assert pack.objects[0].bbox_min == (-0.064146, -0.016275, -0.017784)


def test_meshes_fill_their_boxes(pack: Pack) -> None:
    for model in pack.objects + pack.receptacles:
        box = np.array([model.bbox_min, model.bbox_max])
        for file in (model.visual, model.collision):
            bounds = trimesh.load(file, force="mesh", process=False).bounds
            np.testing.assert_allclose(bounds, box, atol=1e-4, err_msg=str(file))


def test_pictures_are_640x480_and_show_the_same_table(pack: Pack) -> None:
    for table in pack.tables:
        for file in (table.image, table.texture):
            assert cv2.imread(str(file), cv2.IMREAD_UNCHANGED).shape == (480, 640, 3), file
    # pale green top on a dark lawn: pixels (u, v) just inside and outside the outline of the benchmark's photographs
    picture = cv2.imread(str(pack.tables[17].image))
    inside = [picture[v, u, 2] for u, v in ((164, 85), (10, 190), (630, 230), (300, 300), (10, 305))]
    outside = [picture[v, u, 2] for u, v in ((164, 60), (10, 155), (630, 200), (500, 100), (10, 460))]
    assert min(inside) > 110
    assert max(outside) < 100


def test_a_second_generation_is_identical(pack: Pack, tmp_path: Path) -> None:
    """Fails too when the drawing code has changed since this machine drew the pack, and VERSION has not."""
    procedural.generate(tmp_path)
    write_manifest(tmp_path)
    write_manifest(tmp_path)  # once more: it does not list itself
    assert (tmp_path / "manifest.json").read_text() == (pack.root / "manifest.json").read_text()


def test_a_world_is_drawn_by_kind_and_number_alone(tmp_path: Path) -> None:
    world, again = tmp_path / "world", tmp_path / "again"
    procedural.generate_world(world, {"objects": 12, "receptacles": 4, "tables": 2})
    for folder, index in (("objects", 7), ("receptacles", 3), ("tables", 1)):
        id_, entry = procedural._write_random(again, folder, index)
        database = json.loads((world / folder / "model_db.json").read_text())
        assert json.loads(json.dumps(entry)) == database[id_] == list(database.values())[index]
    files = [file for file in again.rglob("*") if file.is_file()]
    assert len(files) == 6  # two of each body, table and texture
    for file in files:
        assert file.read_bytes() == (world / file.relative_to(again)).read_bytes(), file
    unseen = {word for row in OBJECTS.strip().splitlines()[16:] for word in row.split("|")[1].split()}
    families = {family.name for family in FAMILIES}
    assert families == set(WORLD_OBJECTS.split(", "))  # the tokenizer knows every word
    assert set(HUES) | {"brown", "black", "white", "grey"} == set(COLOURS.split(", "))
    assert families.isdisjoint(unseen)
    for folder in ("objects", "receptacles"):
        for id_, entry in json.loads((world / folder / "model_db.json").read_text()).items():
            assert entry["name"].split()[1] in (WORLD_OBJECTS + ", " + WORLD_RECEPTACLES).split(", ")
            box = np.array([entry["bbox"]["min"], entry["bbox"]["max"]])
            for file in ("textured.glb", "collision.obj"):
                bounds = trimesh.load(world / folder / id_ / file, force="mesh", process=False).bounds
                np.testing.assert_allclose(bounds, box, atol=1e-4, err_msg=f"{id_}/{file}")
            if folder == "objects":
                assert min(np.ptp(box, axis=0)[:2]) < 0.052, id_  # the gripper opens to 52 mm
    assert cv2.imread(str(world / "tables/001_table.png")).shape == (480, 640, 3)


def test_verify_names_the_file_with_a_flipped_bit(pack: Pack, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(pack.root, root)
    copy = Pack("procedural", root, (), (), (), root, root)
    assert verify(copy) > 120
    victim = root / "objects" / "009_pipe_1" / "textured.glb"
    content = bytearray(victim.read_bytes())
    content[1000] ^= 1
    victim.write_bytes(content)
    with pytest.raises(UserError, match=r"009_pipe_1/textured\.glb is corrupt"):
        verify(copy)
    victim.unlink()
    with pytest.raises(UserError, match=r"009_pipe_1/textured\.glb is missing"):
        verify(copy)


def test_a_pack_with_a_damaged_collision_shape_does_not_open(
    pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(pack.root, root)
    victim = root / "objects" / "001_carrot_simpler" / "collision.obj"
    victim.write_text(victim.read_text().replace("1", "2", 1))
    monkeypatch.setenv("VLAPOST_ASSETS", str(root))
    with pytest.raises(UserError, match=r"001_carrot_simpler/collision\.obj is corrupt .*; copy the pack again"):
        open_pack("paper")
    assert open_pack("procedural") is pack  # read and compared once


def test_missing_visuals_are_told_once_and_not_by_workers(
    pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name in ("first", "second"):
        root = tmp_path / name
        shutil.copytree(pack.root, root)
        (root / "objects" / "010_toy bear_1" / "textured.glb").unlink()
        (root / "manifest.json").unlink()
        write_manifest(root)
        monkeypatch.setenv("VLAPOST_ASSETS", str(root))
        for _ in range(2):
            bear = open_pack("paper").objects[9]
            assert bear.visual == bear.collision
        told = [str(warning.message) for warning in recwarn if "no visual mesh" in str(warning.message)]
        assert len(told) == 1 and "010_toy bear_1" in told[0] and "first" in told[0]
        monkeypatch.setenv("LOCAL_RANK", "1")


def test_collision_pieces_are_convex_and_small_in_sapien(pack: Pack) -> None:
    material = sapien.physx.PhysxMaterial(1.0, 1.0, 0.0)
    for model in pack.objects + pack.receptacles:
        shapes = sapien.physx.PhysxCollisionShapeConvexMesh.load_multiple(
            str(model.collision), np.ones(3, np.float32), material
        )
        objects = model.collision.read_text().count("\no ") + 1
        assert len(shapes) == objects <= 8
        assert max(len(shape.vertices) for shape in shapes) <= 48, model.id


def test_bodies_dropped_as_the_benchmark_does_come_to_rest_upright(pack: Pack) -> None:
    """From z = 0.95 m, 1.4 s: still, tilted by less than 3 degrees, moved by less than 3 mm."""
    scene = sapien.Scene()
    scene.set_timestep(1 / 500)
    material = sapien.physx.PhysxMaterial(1.0, 1.0, 0.0)
    ground = sapien.Entity()
    static = sapien.physx.PhysxRigidStaticComponent()
    static.attach(sapien.physx.PhysxCollisionShapeBox([30, 2, 0.05], sapien.physx.PhysxMaterial(0.3, 0.3, 0.0)))
    ground.add_component(static)
    ground.set_pose(sapien.Pose([0, 0, TABLE_TOP - 0.05]))
    scene.add_entity(ground)
    bodies = []
    models = pack.objects + pack.receptacles
    for place, model in enumerate(models):
        body = sapien.physx.PhysxRigidDynamicComponent()
        for shape in sapien.physx.PhysxCollisionShapeConvexMesh.load_multiple(
            str(model.collision), np.ones(3, np.float32), material
        ):
            shape.density = model.density
            body.attach(shape)
        entity = sapien.Entity()
        entity.add_component(body)
        entity.set_pose(sapien.Pose([0.5 * place, 0, 0.95], [np.cos(np.pi / 8), 0, 0, np.sin(np.pi / 8)]))
        scene.add_entity(entity)
        bodies.append(body)
    for _ in range(700):
        scene.step()
    for place, (model, body) in enumerate(zip(models, bodies)):
        pose = body.entity.pose
        upright = pose.to_transformation_matrix()[2, 2]
        assert np.degrees(np.arccos(min(upright, 1.0))) < 3, model.id
        assert np.linalg.norm(pose.p[:2] - [0.5 * place, 0]) < 0.003, model.id
        assert np.linalg.norm(body.linear_velocity) < 1e-3, model.id
        assert abs(pose.p[2] + model.bbox_min[2] - TABLE_TOP) < 0.001, model.id


def test_the_papers_pack_is_told_by_its_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLAPOST_ASSETS", raising=False)
    names = [exact_edition("paper"), exact_edition("procedural")]
    assert names == ["paper", edition("procedural")]
    monkeypatch.setenv("VLAPOST_ASSETS", str(tmp_path))
    for content in ("{}", "[]"):
        (tmp_path / "manifest.json").write_text(content)
        names.append(exact_edition("paper"))
    assert len(set(names)) == 4 and edition("paper") == "paper"


def test_robot_has_the_real_limits_and_reach(pack: Pack) -> None:
    scene = sapien.Scene()
    loader = scene.create_urdf_loader()
    loader.fix_root_link = True
    robot = loader.load(str(pack.robot_urdf), str(pack.robot_srdf))
    assert [joint.name for joint in robot.active_joints] == [
        *("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate"),
        *("left_finger", "right_finger"),
    ]
    pi = 3.14159265
    low = [-pi, -1.88496, -2.14675, -3.14158, -1.74533, -3.14158, 0.015, 0.015]
    high = [pi, 1.98968, 1.60570, 3.14158, 2.14675, 3.14158, 0.037, 0.037]
    np.testing.assert_allclose(robot.qlimits, np.stack([low, high], -1), atol=1e-5)
    start = [-0.01840777, 0.0398835, 0.22242722, -0.00460194, 1.36524296, 0.00153398, 0.037, 0.037]
    robot.set_qpos(np.array(start, np.float32))
    links = {link.name: link for link in robot.links}
    np.testing.assert_allclose(links["ee_gripper_link"].entity_pose.p, [0.2921, -0.0061, 0.1353], atol=2e-4)
    # the open fingers leave 52 mm: link origins +-37 mm, inner faces 11 mm inwards
    gap = {}
    for side in ("left", "right"):
        link = links[f"{side}_finger_link"]
        face = [s.local_pose.p[1] + sign * s.half_size[1] for s in link.collision_shapes for sign in (-1, 1)]
        gap[side] = min(face) if side == "left" else max(face)
    assert gap["left"] == pytest.approx(-0.011)
    assert gap["right"] == pytest.approx(0.011)


def test_processes_that_start_together_generate_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []

    def generate(root: Path) -> None:
        calls.append(root)
        (root / "file").write_text("content")

    monkeypatch.setattr(pack_module, "ROOT", tmp_path)
    monkeypatch.setattr(procedural, "generate", generate)
    leftover = tmp_path / "data" / "assets" / "tmp-interrupted"
    leftover.mkdir(parents=True)
    threads = [threading.Thread(target=pack_module._generated_root, args=("procedural",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert not leftover.exists()
    assert {p.name for p in leftover.parent.iterdir()} == {".lock", pack_module.edition("procedural")}


def test_wrong_packs_are_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'papier'; it must be procedural, paper, world or tasks"):
        open_pack("papier")
    monkeypatch.delenv("VLAPOST_ASSETS", raising=False)
    with pytest.raises(UserError, match="VLAPOST_ASSETS is not set"):
        open_pack("paper")
    monkeypatch.setenv("VLAPOST_ASSETS", str(tmp_path))
    with pytest.raises(UserError, match=r"is not an asset pack: it holds no manifest\.json"):
        open_pack("paper")
    (tmp_path / "manifest.json").write_text('{"files": []}')
    with pytest.raises(UserError, match=r"objects/model_db\.json is missing"):
        open_pack("paper")


@pytest.mark.skipif("VLAPOST_ASSETS" not in os.environ, reason="needs the paper's asset pack in $VLAPOST_ASSETS")
def test_paper_pack_agrees_with_the_procedural_one(pack: Pack) -> None:
    pack_module._open.cache_clear()
    with pytest.warns(UserWarning, match="010_toy bear_1, 017_travel cup_1, 005_sheet metal_1"):
        paper = open_pack("paper")
    assert verify(paper) == 172
    for ours, theirs in zip(pack.objects + pack.receptacles, paper.objects + paper.receptacles):
        assert (ours.id, ours.name, ours.split, ours.density) == (theirs.id, theirs.name, theirs.split, theirs.density)
        assert (ours.bbox_min, ours.bbox_max) == (theirs.bbox_min, theirs.bbox_max)
    for ours, theirs in zip(pack.tables, paper.tables):
        assert (ours.id, ours.split, ours.mix) == (theirs.id, theirs.split, theirs.mix)
        assert ours.texture.name == theirs.texture.name
