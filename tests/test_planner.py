"""The planner: grasp geometry and actions by hand, then whole demonstrations in the real simulator."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from vlapost import attempts
from vlapost import replay as replay_module
from vlapost.assets.pack import open_pack
from vlapost.collect_demos import meta_of
from vlapost.config import UserError, load
from vlapost.envs.stations import TABLE
from vlapost.envs.vector import SceneVector, make_env
from vlapost.experience.action_filter import filter_actions
from vlapost.experience.shards import DemoEpisode
from vlapost.experience.writer import DemoWriter
from vlapost.planner import demonstrate as demonstrate_module
from vlapost.planner import disturb as disturb_module
from vlapost.planner import views as views_module
from vlapost.planner.actions import CLOSED, OPEN, delta_actions, vertical_actions
from vlapost.planner.demonstrate import (
    DROPPED,
    NOT_GRASPED,
    NOT_ON_PLATE,
    SAFE,
    Recording,
    demonstrate,
    replay,
    situation_of,
)
from vlapost.planner.grasp import FINGERTIP, PALM, Box, grasp_height, grasp_place, grasp_rotations, upright_box
from vlapost.planner.motion import ArmPlanner
from vlapost.planner.planner import Situation, plan_demonstration
from vlapost.planner.views import look_around

POINTING_DOWN = Rotation.from_matrix(np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]]))  # x down, y along the base's y

Scene = tuple[SceneVector, ArmPlanner]


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """One small scene of the training set and its planner, shared; every attempt starts with a reset."""
    env = make_env(load("base", ["env.obj_set=train", "env.image_size=[64,64]"]).env, num_envs=1)
    yield env, ArmPlanner(env.scenes[0].pack)
    env.close()


def test_the_box_of_a_turned_brick() -> None:
    corners = np.array([[x, y, z] for x in (-0.06, 0.06) for y in (-0.02, 0.02) for z in (0.0, 0.03)])
    turned = Rotation.from_euler("z", 30, degrees=True).apply(corners) + np.array([0.3, 0.1, 0.0])
    box = upright_box(turned)
    np.testing.assert_allclose(box.centre, [0.3, 0.1, 0.015], atol=1e-6)
    assert (box.width, box.length, box.height) == pytest.approx((0.04, 0.12, 0.03), abs=1e-6)
    # the short side of the brick is its y axis, turned by 30 degrees
    assert abs(box.short @ [-0.5, np.sqrt(0.75), 0]) == pytest.approx(1, abs=1e-6)


def test_the_gripper_closes_on_the_short_side_and_turns_the_shorter_way() -> None:
    box = Box(np.zeros(3), np.array([0.5, -np.sqrt(0.75), 0.0]), 0.04, 0.12, 0.03)
    first, second, *others = grasp_rotations(box, POINTING_DOWN)
    np.testing.assert_allclose(first.apply([1, 0, 0]), [0, 0, -1], atol=1e-12)
    np.testing.assert_allclose(first.apply([0, 1, 0]), [-0.5, np.sqrt(0.75), 0], atol=1e-12)  # 30 degrees, not 150
    np.testing.assert_allclose(second.apply([0, 1, 0]), [0.5, -np.sqrt(0.75), 0], atol=1e-12)  # the 180 degree turn
    assert len(others) == 6


def test_a_shovel_is_held_at_its_handle() -> None:
    """A 60 mm blade at x -0.09 to 0.02, a 10 mm handle at 0.02 to 0.09, 5 mm off the middle line."""
    x, y = np.meshgrid(np.linspace(-0.09, 0.09, 181), np.linspace(-0.03, 0.03, 61), indexing="ij")
    solid = (x <= 0.0201) | (np.abs(y - 0.005) <= 0.00501)
    shovel = np.stack([x[solid], y[solid], 0 * x[solid]], axis=1)
    place = grasp_place(shovel, upright_box(shovel))
    # the finger, 25 mm wide, must be past the blade: the first 5 mm step from 0 for which x - 0.0125 > 0.02
    np.testing.assert_allclose(place, [0.035, 0.005], atol=1e-6)


@pytest.mark.parametrize(
    ("height", "expected"),
    [
        (0.04, 0.02),  # the middle
        (0.01, FINGERTIP + 0.002),  # flat: tips 2 mm above the table
        (0.12, 0.12 - PALM + 0.002),  # tall: palm 2 mm above the top
    ],
)
def test_grasp_height(height: float, expected: float) -> None:
    box = Box(np.array([0, 0, height / 2]), np.array([0.0, 1, 0]), 0.03, 0.05, height)
    assert grasp_height(box) == pytest.approx(expected)


def test_actions_lead_the_virtual_target_along_the_path() -> None:
    positions = np.array([[0.3, 0.0, 0.1], [0.31, 0.0, 0.08], [0.31, 0.02, 0.08]])
    rotations = [Rotation.from_euler("XYZ", angles) for angles in ((0, 1.5, 0), (0.1, 1.4, 0.2), (0.1, 1.4, 0.5))]
    actions = delta_actions(positions, rotations, [OPEN, CLOSED])
    np.testing.assert_allclose(actions[:, :3], [[0.01, 0, -0.02], [0, 0.02, 0]], atol=1e-7)
    assert actions[:, 6].tolist() == [1, -1]
    target = rotations[0]
    for action, rotation in zip(actions, rotations[1:]):
        target = Rotation.from_euler("XYZ", action[3:6]) * target  # what the controller does
        assert (target * rotation.inv()).magnitude() < 1e-6


def test_a_planned_motion_ends_at_its_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    planner = ArmPlanner(open_pack("procedural"))
    start = np.array(TABLE.qpos)
    position, rotation = planner.pose(start)
    np.testing.assert_allclose(position, [0.2921, -0.0061, 0.1353], atol=1e-4)
    goal = position + np.array([0.05, 0.03, -0.06])
    handlers = [*(log := logging.getLogger("toppra")).handlers]
    path = planner.plan(start, goal, rotation)
    assert path is not None
    reached, turned = planner.pose(path[-1])
    np.testing.assert_allclose(reached, goal, atol=1e-3)
    assert (turned * rotation.inv()).magnitude() < 0.002
    speed = np.abs(np.diff(path[:, :6], axis=0, prepend=start[None, :6])) / 0.2
    assert speed.max() <= 0.9 + 1e-6
    assert planner.plan(start, position + np.array([1.0, 0, 0]), rotation) is None  # out of reach
    assert log.level == logging.ERROR and log.handlers == handlers  # as quiet as before: MPLib adds no handler

    def unparameterised(*args, **settings):
        raise RuntimeError("Fail to parameterize path")  # MPLib's way to say that TOPP found no timing

    monkeypatch.setattr(planner, "plan_screw", unparameterised)
    assert planner.plan(start, goal, rotation) is None


@pytest.mark.sim
def test_demonstrations_succeed_and_replay_when_merged(scene: Scene) -> None:
    env, planner = scene
    # bread, 7up can, toy bear, banana, hamburger: object * 50176 + table * 3136 + position * 4 + yaw
    episodes = [object_ * 50176 + 700 * object_ for object_ in (2, 4, 9, 12, 13)]
    recordings = {episode: demonstrate(env, planner, episode) for episode in episodes}
    succeeded = {episode: r for episode, r in recordings.items() if isinstance(r, Recording)}
    assert len(succeeded) >= 4, recordings
    replayed = 0
    for episode, recording in succeeded.items():
        assert len(recording.image) == len(recording.action) == len(recording.truth) == len(recording.success)
        _, merged = filter_actions(recording.action, "merge", 0.01, 0.06)
        assert len(merged) < len(recording.action)
        replayed += bool(replay(env, episode, torch.from_numpy(merged)).success)
    assert replayed >= len(succeeded) - 1


@pytest.mark.sim
def test_replay_counts_what_succeeds_again(monkeypatch: pytest.MonkeyPatch, scene: Scene, tmp_path: Path) -> None:
    """A demonstration, and one that is stored under the start of another object and so cannot succeed."""
    monkeypatch.setattr(attempts.Worker, "tools", scene)
    monkeypatch.setattr(attempts.Worker, "cfg", load("base", ["env.obj_set=train"]), raising=False)
    made, _ = attempts.timed_attempt(0, 2 * 50176 + 1400, None)
    assert isinstance(made, DemoEpisode)
    cfg = load("base", ["env.obj_set=train", f"demos.path={tmp_path}"])
    writer = DemoWriter(tmp_path, meta_of(cfg))
    writer.write(0, 2, [made, dataclasses.replace(made, candidate=1, episode_id=9 * 50176 + 6300)], [])
    writer.close()
    demos = list(replay_module.stored(cfg, tmp_path))
    assert [id_ for id_, _ in demos] == [2 * 50176 + 1400, 9 * 50176 + 6300]
    np.testing.assert_array_equal(demos[1][1], made.action)
    found = replay_module.measure(demos, 0.01, 0.06, map)
    assert found["none"]["actions"] == 2 * len(made.action) > found["merge"]["actions"] > found["drop"]["actions"]
    assert (found["none"]["success"]["mean"], found["merge"]["success"]["n"]) == (0.5, 2)
    with pytest.raises(UserError, match="sim_freq=500, not 100"):
        list(replay_module.stored(load("base", ["env.obj_set=train", "env.sim_freq=100"]), tmp_path))


@pytest.mark.sim
def test_steps_that_are_not_drawn_change_nothing_else(scene: Scene) -> None:
    env, planner = scene
    episode, chosen = 2 * 50176 + 1400, []

    def every_third(actions: np.ndarray) -> np.ndarray:
        chosen.append(np.arange(len(actions)) % 3 == 1)
        return chosen[0]

    whole, part = demonstrate(env, planner, episode), demonstrate(env, planner, episode, choose=every_third)
    assert isinstance(whole, Recording) and isinstance(part, Recording)
    assert [image is not None for image in part.image] == chosen[0].tolist()
    np.testing.assert_array_equal(part.action, whole.action)
    np.testing.assert_array_equal(part.success, whole.success)
    for one, other, image in zip(whole.truth, part.truth, part.image):
        torch.testing.assert_close(one.qpos, other.qpos, rtol=0, atol=0)
        torch.testing.assert_close(one.object_position, other.object_position, rtol=0, atol=0)
        assert image is None or torch.equal(one.segmentation, other.segmentation)
    for one_image, image in zip(whole.image, part.image):
        assert image is None or np.array_equal(image, one_image)


@pytest.mark.sim
def test_views_show_one_start_laid_out_anew(scene: Scene) -> None:
    env, planner = scene
    episode = 2 * 50176 + 1400
    start = env.reset(torch.tensor([episode]))
    before = env.ground_truth()
    views = look_around(env, planner, episode, 6, np.random.default_rng(0))
    assert isinstance(views, Recording)
    assert np.array_equal(views.image[0], start.image[0].numpy())  # type: ignore[arg-type]
    assert len({image.tobytes() for image in views.image if image is not None}) == 6
    assert views.action.shape == (6, 7) and not views.action.any() and not views.success.any()
    for truth in views.truth:
        object_, receptacle = truth.object_position[0], truth.receptacle_position[0]
        assert float((object_ - receptacle)[:2].norm()) > 0.07
        assert float(object_[2] - before.object_position[0, 2]) == pytest.approx(0, abs=1e-4)  # on the table
        assert truth.gripper_pose[0, :3].numpy() == pytest.approx(
            planner.pose(truth.qpos[0].double().numpy())[0], abs=1e-3
        )
        assert (truth.segmentation == 3).any()
    moved = [truth.qpos for truth in views.truth if not torch.equal(truth.qpos, before.qpos)]
    assert moved and len(moved) < 5
    again = look_around(env, planner, episode, 6, np.random.default_rng(0))
    assert isinstance(again, Recording)
    assert all(np.array_equal(one, other) for one, other in zip(views.image, again.image))  # type: ignore[arg-type]


@pytest.mark.sim
def test_a_start_from_which_something_fell_has_no_views(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views_module, "TABLE_TOP", 1.0)
    assert look_around(*scene, 0, 2, np.random.default_rng(0)) == views_module.FELL


@pytest.mark.sim
def test_the_way_back_from_what_went_wrong(monkeypatch: pytest.MonkeyPatch, scene: Scene) -> None:
    env, planner = scene
    episode = 12 * 50176 + 8400  # banana
    calm = demonstrate(env, planner, episode)
    assert isinstance(calm, Recording)
    begin = calm.truth[0]
    found: dict[str, list[Recording]] = {}
    spoilt: list[disturb_module.Spoilt] = []

    def disturb(*args: Any) -> disturb_module.Spoilt | None:
        spoilt.append(disturb_module.disturb(*args))
        return spoilt[-1]

    monkeypatch.setattr(demonstrate_module, "disturb", disturb)
    closed = 0
    for kind in ("lost", "empty", "missed", "anywhere"):
        monkeypatch.setattr(disturb_module, "SHARES", [float(kind == other) for other in disturb_module.KINDS])
        tries = [demonstrate(env, planner, episode, np.random.default_rng(seed)) for seed in range(3)]
        for one, start in zip(tries, spoilt[-3:]):
            if isinstance(one, Recording) and start.fingers == CLOSED:
                rise = one.action[: np.argmax(one.action[:, 6] == OPEN), 2].sum()
                low = planner.pose(start.qpos)[0][2]
                assert rise == pytest.approx(start.depth + max(0, SAFE - low), abs=5e-3)
                closed += 1
        found[kind] = [recording for recording in tries if isinstance(recording, Recording)]
        assert len(found[kind]) >= 2, tries
    assert closed >= 3
    again = demonstrate(env, planner, episode, np.random.default_rng(2))
    assert isinstance(again, Recording)
    np.testing.assert_array_equal(found["anywhere"][-1].action, again.action)
    rises = 0
    for recording in (r for recordings in found.values() for r in recordings):
        assert recording.success[-1]
        assert (recording.truth[0].gripper_pose[0, :3] - begin.gripper_pose[0, :3]).norm() > 0.02
        if recording.truth[0].gripper_pose[0, 2] < SAFE - 0.02:
            assert recording.action[0, 2] > 0.003  # straight up, with the fingers as they were
            np.testing.assert_allclose(recording.action[0, :2], 0, atol=2e-3)
            rises += 1
    assert rises >= 6
    moved = [(r.truth[0].object_position - begin.object_position).norm() for r in found["lost"]]
    assert max(moved) > 0.03
    for recording in found["empty"]:
        truth = recording.truth[0]
        assert (truth.gripper_pose[0, :2] - truth.receptacle_position[0, :2]).abs().max() < 0.03
        assert (truth.gripper_pose[0, :2] - truth.object_position[0, :2]).norm() > 0.04


def test_vertical_actions_add_up() -> None:
    actions = vertical_actions(-0.05, CLOSED)
    np.testing.assert_allclose(actions[:, 2], [-0.05 / 3] * 3, rtol=1e-6)
    assert not actions[:, [0, 1, 3, 4, 5]].any() and (actions[:, 6] == CLOSED).all()
    assert vertical_actions(0.0, OPEN).shape == (0, 7)


@pytest.mark.sim
def test_a_target_pushed_into_the_table_is_raised_again(monkeypatch: pytest.MonkeyPatch, scene: Scene) -> None:
    monkeypatch.setattr(disturb_module, "SHARES", (0, 0, 0, 1, 0))
    monkeypatch.setattr(disturb_module, "PRESSED", 1.0)
    monkeypatch.setattr(disturb_module, "DEPTH", (0.07, 0.07))
    env, planner = scene
    episode = 12 * 50176 + 8400
    env.reset(torch.tensor([episode]))
    spoilt = disturb_module.disturb(env, planner, situation_of(env.scenes[0]), np.random.default_rng(2))
    assert spoilt is not None
    planned = planner.pose(spoilt.qpos)[0]
    target = env.scenes[0].agent.controller.controllers["arm"]._target_pose.p[0].numpy()
    np.testing.assert_allclose(target, planned - [0, 0, 0.07], atol=3e-3)
    assert env.ground_truth().gripper_pose[0, 2] > target[2] + 0.02  # the table is in the way

    recording = demonstrate(env, planner, episode, np.random.default_rng(2))
    assert isinstance(recording, Recording)
    np.testing.assert_array_equal(recording.action[:4], vertical_actions(0.07, spoilt.fingers))


@pytest.mark.sim
def test_a_grasped_object_is_lifted_from_under_a_pushed_down_target(
    monkeypatch: pytest.MonkeyPatch, scene: Scene
) -> None:
    monkeypatch.setattr(disturb_module, "SHARES", (0, 1, 0, 0, 0))
    monkeypatch.setattr(disturb_module, "DEPTH", (0.07, 0.07))
    env, planner = scene
    recording = demonstrate(env, planner, 12 * 50176 + 8400, np.random.default_rng(2))
    assert isinstance(recording, Recording)
    np.testing.assert_array_equal(recording.action[:4], vertical_actions(0.07, CLOSED))
    assert (np.flatnonzero(recording.action[:, 6] == OPEN) >= len(recording.action) - 2).all()  # only to let go
    heights = torch.stack([truth.object_position[0, 2] for truth in recording.truth])
    assert heights.max() > heights[0] + 0.06


@pytest.mark.sim
@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ("never close", NOT_GRASPED),
        ("never close after it was lost", NOT_GRASPED),
        ("open for two steps while lifting", DROPPED),
        ("stay where it was grasped", NOT_ON_PLATE),
    ],
)
def test_failures_have_their_cause(monkeypatch: pytest.MonkeyPatch, scene: Scene, change: str, cause: str) -> None:
    env, planner = scene

    def spoilt(planner: ArmPlanner, situation: Situation, *before: object) -> np.ndarray:
        actions = plan_demonstration(planner, situation, *before)
        assert actions is not None
        closed = np.flatnonzero(actions[:, 6] == CLOSED)
        if change.startswith("never close"):
            actions[:, 6] = OPEN
        elif change == "open for two steps while lifting":
            actions[closed[5:7], 6] = OPEN
        else:
            actions[closed[0] :, :6] = 0
        return actions

    monkeypatch.setattr(demonstrate_module, "plan_demonstration", spoilt)
    monkeypatch.setattr(disturb_module, "SHARES", (1, 0, 0, 0, 0))
    lost = np.random.default_rng(2) if change.endswith("lost") else None
    assert demonstrate(env, planner, 2 * 50176 + 1400, lost) == cause
    assert bool(env.scenes[0].progress.metrics.grasp) == (change != "never close")  # what is lost was held
