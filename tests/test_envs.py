"""The real simulator. Quick: every reset of a scene costs about 0.05 s of CPU time, every step about 10 ms."""

import os
import subprocess
import sys
from zipfile import BadZipFile

import gymnasium
import pytest
import requests
import sapien
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from vlapost.config import UserError, load
from vlapost.contracts import Observation, Step
from vlapost.envs import vector
from vlapost.envs.episodes import encode
from vlapost.envs.overlay import BACKGROUND, OBJECT, RECEPTACLE, ROBOT, composite, label, lookup_table
from vlapost.envs.setups import find_setup
from vlapost.envs.vector import SceneVector, make_env

pytestmark = pytest.mark.sim

MAIN = "PutOnPlateInScene25Main-v3"
CARROT, BOTTLE, BALL = 0, 3, 14
OPEN, CLOSED = 1.0, -1.0


def episode(object_: int, table: int = 0, position: int = 330, yaw: int = 0) -> int:
    digits = {"object": object_, "table": table, "place": position, "yaw": yaw}
    return encode(find_setup(MAIN, "train"), {name: torch.tensor([digit]) for name, digit in digits.items()}).item()


def ids(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def act(env: SceneVector, translation, rotation=(0.0, 0.0, 0.0), gripper: float = OPEN) -> Step:
    """The same action in every scene; `translation` is `[3]` or one per scene, `[E, 3]`."""
    translation = torch.as_tensor(translation, dtype=torch.float32).expand(env.num_envs, 3)
    rest = torch.tensor([*rotation, gripper]).expand(env.num_envs, 4)
    return env.step(torch.cat([translation, rest], dim=1))


def move(env: SceneVector, total: torch.Tensor, gripper: float, steps: int = 8) -> list[Step]:
    """Spread a translation `[E, 3]` over control steps, then wait two steps."""
    return [act(env, total / steps, gripper=gripper) for _ in range(steps)] + [
        act(env, (0, 0, 0), gripper=gripper) for _ in range(2)
    ]


def pick(env: SceneVector) -> list[Step]:
    """Scripted grasp of the objects and a lift by 10 cm."""
    truth = env.ground_truth()
    above = truth.object_position - truth.gripper_pose[:, :3]
    down = above * torch.tensor([0.0, 0.0, 1.0])
    steps = move(env, above - down, OPEN) + move(env, down, OPEN)
    steps += [act(env, (0, 0, 0), gripper=CLOSED) for _ in range(3)]
    return steps + move(env, torch.tensor([[0.0, 0.0, 0.10]]), CLOSED)


def test_observation(env):
    observation = env.reset(ids(episode(CARROT), episode(BALL, table=7)))
    assert observation.image.shape == (2, 128, 128, 3) and observation.image.dtype == torch.uint8
    assert observation.instruction == ("put carrot on plate", "put golf ball on plate")
    step = act(env, (0, 0, 0))
    assert step.observation.image.shape == (2, 128, 128, 3) and step.observation.image.is_contiguous()
    assert step.reward.dtype == torch.float32 and step.metrics.success.dtype == torch.bool


def test_table_picture_outside_what_is_kept(env):
    image = env.reset(ids(episode(CARROT, table=3), episode(CARROT, table=9))).image
    labels = env.ground_truth().segmentation
    pictures = torch.cat([scene.pictures for scene in env.scenes])
    outside = labels == BACKGROUND
    assert torch.equal(image[outside], pictures[outside])
    assert not torch.equal(pictures[0], pictures[1])
    for part, smallest in ((ROBOT, 0.03), (OBJECT, 0.003), (RECEPTACLE, 0.01)):
        share = (labels == part).float().mean(dim=(1, 2))
        assert (share > smallest).all() and (share < 0.5).all()
    changed = (image != pictures).any(dim=-1)
    assert (changed & ~outside).sum() > 0.8 * (~outside).sum()


def test_composite_by_hand():
    labels = label(torch.tensor([[[5, 3], [2, 9]]]), lookup_table(robot=[5], object_=3, receptacle=9)[None])
    assert labels.tolist() == [[[ROBOT, OBJECT], [BACKGROUND, RECEPTACLE]]]
    image = composite(torch.full((1, 2, 2, 3), 7).byte(), labels, torch.full((1, 2, 2, 3), 200).byte())
    assert image[..., 0].tolist() == [[[7, 7], [200, 7]]]


def test_only_the_bodies_of_the_episode_exist(env):
    env.reset(ids(episode(CARROT), episode(BOTTLE)))
    for scene in env.scenes:
        assert set(scene.scene.actors) == {"table", "object-0", "receptacle-0"}
        assert len(scene.scene.articulations) == 1


def test_initial_state(env):
    env.reset(ids(episode(CARROT), episode(CARROT)))
    truth = env.ground_truth()
    expected = torch.tensor([0.2921, -0.0061, 0.1353]).expand(2, 3)
    torch.testing.assert_close(truth.gripper_pose[:, :3], expected, atol=2e-3, rtol=0)
    scene = env.scenes[0]
    placed = scene.start.places.flatten(1)
    settled = torch.cat([scene.object.pose.p[:, :2], scene.receptacle.pose.p[:, :2]], dim=1)
    torch.testing.assert_close(settled, placed, atol=0.01, rtol=0)
    # base frame: x forward, y left, seen from the world turned by 180 degrees
    torch.testing.assert_close(truth.object_position[0, 0], 0.147 - settled[0, 0], atol=1e-4, rtol=0)
    torch.testing.assert_close(truth.object_position[0, 1], 0.028 - settled[0, 1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("yaw", range(4))
def test_the_object_lies_at_its_yaw(env, yaw):
    env.reset(ids(episode(CARROT, yaw=yaw), episode(CARROT, yaw=yaw)))
    for actor, expected in ((env.scenes[0].object, 45 * yaw), (env.scenes[0].receptacle, 0)):
        x_axis = actor.pose.to_transformation_matrix()[0, :3, 0]
        assert torch.rad2deg(torch.atan2(x_axis[1], x_axis[0])).item() == pytest.approx(expected, abs=3)


def test_gains_friction_and_density_reach_the_simulator(env):
    env.reset(ids(episode(CARROT), episode(CARROT)))
    scene = env.scenes[0]
    joints = scene.agent.robot._objs[0].active_joints
    stiffness = [1169.7892, 730.0, 808.4601, 1229.1299, 1272.2760, 1056.3327, 1000.0, 1000.0]
    damping = [330.0, 180.0, 152.1204, 309.6215, 201.0500, 269.5146, 200.0, 200.0]
    assert [joint.stiffness for joint in joints] == pytest.approx(stiffness)
    assert [joint.damping for joint in joints] == pytest.approx(damping)
    assert [joint.force_limit for joint in joints] == [200, 200, 100, 100, 100, 100, 60, 60]
    assert {joint.drive_mode for joint in joints} == {"force"}
    for actor, density in ((scene.object, 1044), (scene.receptacle, 1003)):
        body = actor._objs[0].find_component_by_type(sapien.physx.PhysxRigidDynamicComponent)
        for shape in body.collision_shapes:
            material = shape.physical_material
            assert (material.static_friction, material.dynamic_friction, material.restitution) == (1, 1, 0)
            assert shape.density == density


def test_state_holds_each_body_once_and_can_be_put_back(env):
    env.reset(ids(episode(CARROT), episode(CARROT)))
    scene = env.scenes[0]
    assert set(scene.get_state_dict()["actors"]) == {"object", "receptacle"}
    state = scene.get_state()
    assert state.shape[0] == 1
    place = scene.object.pose.p.clone()
    scene.object.set_pose(torch.tensor([[0.0, 0.0, 1.5, 1.0, 0.0, 0.0, 0.0]]))
    scene.set_state(state)
    assert torch.equal(scene.object.pose.p, place)


def test_an_episode_runs_bit_for_bit_the_same_whatever_came_before(env):
    def play(first: int, second: int):
        env.reset(ids(first, second))
        images = torch.stack([step.observation.image for step in pick(env)])
        return env.ground_truth(), images

    ball, carrot = episode(BALL, position=100), episode(CARROT, position=500, yaw=1)
    truth, images = play(ball, carrot)
    play(episode(BOTTLE), episode(BALL, position=7))
    swapped, swapped_images = play(carrot, ball)
    for name in ("object_position", "receptacle_position", "gripper_pose", "qpos", "segmentation"):
        assert torch.equal(getattr(truth, name), getattr(swapped, name).flip(0)), name
    assert torch.equal(images, swapped_images.flip(1))


def test_controller_adds_root_frame_translations_and_intrinsic_xyz_rotations(env):
    env.reset(ids(episode(CARROT), episode(CARROT)))
    start = env.ground_truth().gripper_pose[0].double()
    angles, steps = (0.03, -0.04, 0.05), 4
    for _ in range(steps):
        act(env, (0.005, 0.01, 0.01), angles)
    for _ in range(6):
        act(env, (0, 0, 0))
    reached = env.ground_truth().gripper_pose[0].double()

    def rotation(pose: torch.Tensor) -> Rotation:
        return Rotation.from_quat(pose[[4, 5, 6, 3]].numpy())

    turn = Rotation.from_euler("XYZ", angles) ** steps
    other_side = rotation(start) * turn
    wanted = turn * rotation(start)
    torch.testing.assert_close(
        reached[:3], start[:3] + steps * torch.tensor([0.005, 0.01, 0.01]).double(), atol=2e-3, rtol=0
    )
    assert (rotation(reached) * wanted.inv()).magnitude() < 0.01
    assert (rotation(reached) * other_side.inv()).magnitude() > 0.1


def test_one_large_rotation_tells_intrinsic_from_extrinsic(env):
    env.reset(ids(episode(CARROT), episode(CARROT)))
    controller = env.scenes[0].agent.controller.controllers["arm"]
    start = controller.ee_pose_at_base.q[0].numpy()
    angles = (0.3, -0.4, 0.5)
    act(env, (0, 0, 0), angles)
    target = controller._target_pose.q[0].numpy()
    done = Rotation.from_quat(target[[1, 2, 3, 0]]) * Rotation.from_quat(start[[1, 2, 3, 0]]).inv()
    assert (done * Rotation.from_euler("XYZ", angles).inv()).magnitude() < 1e-4
    assert (done * Rotation.from_euler("xyz", angles).inv()).magnitude() > 0.1


def test_gripper_range(env):
    env.reset(ids(episode(CARROT), episode(CARROT)))
    for command, metres in ((OPEN, 0.037), (CLOSED, 0.015)):
        for _ in range(3):
            act(env, (0, 0, 0), gripper=command)
        fingers = env.ground_truth().qpos[:, 6:]
        torch.testing.assert_close(fingers, torch.full((2, 2), metres), atol=1e-3, rtol=0)


def test_pick_and_place_earns_each_stage_once(env):
    env.reset(ids(episode(CARROT), episode(CARROT, position=620)))
    steps = pick(env)
    assert steps[-1].metrics.grasp.all() and steps[-1].metrics.consecutive_grasp.all()
    assert not steps[-1].metrics.success_once.any()
    truth = env.ground_truth()
    assert (truth.object_position[:, 2] > 0.07).all()
    to_plate = truth.receptacle_position - truth.object_position
    across = to_plate * torch.tensor([1.0, 1.0, 0.0])
    steps += move(env, across, CLOSED)
    steps += move(env, to_plate - across + torch.tensor([0.0, 0.0, 0.03]), CLOSED)
    steps += [act(env, (0, 0, 0), gripper=OPEN) for _ in range(4)]
    rewards = torch.stack([step.reward for step in steps])
    assert steps[-1].metrics.success.all()
    torch.testing.assert_close(rewards.sum(dim=0), torch.tensor([1.2, 1.2]))
    assert ((rewards.abs() < 1e-6) | (rewards.abs() > 0.09)).all()


def test_an_object_that_falls_on_the_plate_succeeds_without_reward(env):
    env.reset(ids(episode(CARROT), episode(CARROT)))
    scene = env.scenes[0]
    place = scene.receptacle.pose.p + torch.tensor([[0.0, 0.0, 0.04]])
    scene.object.set_pose(torch.cat([place, scene.object.pose.q], dim=1))
    for _ in range(3):
        step = act(env, (0, 0, 0))
        assert step.reward.tolist() == [0, 0]
    assert step.metrics.success.tolist() == [True, False]
    assert not step.metrics.grasp.any()


def test_an_approach_is_paid_by_the_metre(env, monkeypatch: pytest.MonkeyPatch):
    """The object lies still, so only the gripper's way gets shorter."""
    monkeypatch.setattr(env, "approach_reward", 10.0)
    env.reset(ids(episode(CARROT), episode(CARROT)))

    def distance() -> Tensor:
        return (env.ground_truth().object_position - env.gripper_pose()[:, :3]).norm(dim=1)

    before = distance()
    rewards = [act(env, (0, 0, -0.02)).reward for _ in range(3)]
    torch.testing.assert_close(torch.stack(rewards).sum(0), 10 * (before - distance()), atol=2e-3, rtol=0)
    assert (rewards[-1] > 0.05).all()


def test_truncation_at_80(env):
    env.reset(ids(episode(CARROT), episode(CARROT)))
    still = torch.tensor([[0.0, 0, 0, 0, 0, 0, OPEN]] * 2)
    for _ in range(78):
        env.step_blind(still)
    assert not env.step(still).truncated
    assert env.step(still).truncated
    env.reset(ids(episode(CARROT), episode(CARROT)))
    assert not env.step(still).truncated


@pytest.fixture
def telling(env, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "tells_state", True)


@pytest.mark.usefixtures("telling")
def test_a_restarted_scene_is_as_new_and_the_other_goes_on(env):
    def play(restart: bool) -> list[Observation]:
        seen = [env.reset(ids(episode(CARROT), episode(CARROT)))]
        for k in range(4):
            if restart and k == 2:
                seen.append(env.restart(torch.tensor([1]), ids(episode(BOTTLE))))
            step = act(env, (0.01, 0, 0))
            assert step.reward.tolist() == [0, 0]
            seen.append(step.observation)
        return seen

    alone, other = play(False), play(True)
    fresh = env.reset(ids(episode(CARROT), episode(BOTTLE)))
    restarted = other[3]
    assert torch.equal(restarted.image[1], fresh.image[1])
    assert torch.equal(restarted.state[1], fresh.state[1])
    assert restarted.instruction == fresh.instruction
    for a, b in zip([*alone[:3], *alone[2:]], other):  # the restart is a look more, not a step more
        assert torch.equal(a.image[0], b.image[0])
        assert torch.equal(a.state[0], b.state[0])
    assert torch.equal(other[2].image[1], alone[2].image[1])  # what was seen before stays as it was
    assert other[-1].state[:, 0].tolist() == pytest.approx([1 - 4 / 80, 1 - 2 / 80])


def test_nobody_is_told_who_does_not_ask(env):
    assert env.reset(ids(episode(CARROT), episode(CARROT))).state is None


@pytest.mark.usefixtures("telling")
def test_what_a_critic_is_told(env):
    seen = env.reset(ids(episode(CARROT), episode(CARROT)))
    truth = env.ground_truth()
    middle = torch.tensor([0.305, 0.03, 0.04])
    places = torch.cat([truth.object_position, truth.receptacle_position, truth.gripper_pose[:, :3]], 1)
    torch.testing.assert_close(seen.state[:, 1:10], (places - middle.repeat(3)) / 0.05, atol=1e-5, rtol=0)
    assert seen.state[:, 0].tolist() == [1, 1]
    assert seen.state[:, 10].tolist() == pytest.approx([1, 1], abs=0.02)  # open
    assert not seen.state[:, 11:].any()
    scene = env.scenes[0]
    place = scene.receptacle.pose.p + torch.tensor([[0.0, 0.0, 0.04]])
    scene.object.set_pose(torch.cat([place, scene.object.pose.q], dim=1))
    for _ in range(3):
        seen = act(env, (0, 0, 0)).observation
    assert seen.state[:, 12].tolist() == [1, 0]  # success of the first scene
    scene.object.set_pose(sapien.Pose([0.0, 0.0, -30.0]))  # fell off the table long ago
    assert act(env, (0, 0, 0)).observation.state[0, 1:4].abs().max() == 10


@pytest.fixture(scope="module")
def gym():
    """The environment under its gym id: one scene at the paper's 640x480."""
    made = gymnasium.make(MAIN, num_envs=1)
    yield made
    made.close()


def test_gym_seed_decides_the_episode(gym):
    def draw(**arguments) -> int:
        torch.rand(1)  # the global generator has no say
        gym.reset(**arguments)
        return gym.unwrapped.episode_id.item()

    first, next_ = draw(seed=7), draw()
    assert (draw(seed=7), draw()) == (first, next_)
    assert len({first, next_, draw(seed=8)}) == 3


def test_gym_success_does_not_terminate(gym):
    gym.reset(options={"episode_id": ids(episode(CARROT))})
    scene = gym.unwrapped
    place = scene.receptacle.pose.p + torch.tensor([[0.0, 0.0, 0.04]])
    scene.object.set_pose(torch.cat([place, scene.object.pose.q], dim=1))
    for _ in range(3):
        _, _, terminated, truncated, info = gym.step(torch.tensor([[0.0, 0, 0, 0, 0, 0, OPEN]]))
    assert info["success"].tolist() == [True] and terminated.tolist() == [False] and not truncated.any()


def test_gym_refuses_to_reset_some_scenes(gym):
    with pytest.raises(UserError, match="leave env_idx out"):
        gym.reset(options={"env_idx": ids()})


def test_gym_reset_can_draw_another_set(gym):
    unseen = gym.unwrapped.pack.objects[16:]
    for seed in range(2):
        gym.reset(seed=seed, options={"obj_set": "test"})
        assert gym.unwrapped.get_language_instruction()[0] in [f"put {thing.name} on plate" for thing in unseen]
    gym.reset(seed=0)
    assert gym.unwrapped.setup.objects == range(16)


def test_camera_sees_the_grid_where_the_papers_does(gym):
    gym.reset(options={"episode_id": ids(episode(CARROT))})
    view = gym.unwrapped.scene.sensors["3rd_view_camera"].get_params()
    corners = torch.tensor([[x, y, 0.8695, 1.0] for x in (-0.235, -0.085) for y in (-0.075, 0.075)])
    pixels = corners @ (view["intrinsic_cv"][0] @ view["extrinsic_cv"][0]).T
    u, v = pixels[:, 0] / pixels[:, 2], pixels[:, 1] / pixels[:, 2]
    assert (u.min().item(), u.max().item()) == pytest.approx((169, 421), abs=2)
    assert (v.min().item(), v.max().item()) == pytest.approx((179, 359), abs=2)


def test_gym_id_at_the_papers_size_shows_the_same_view(env, gym):
    id_ = episode(CARROT)
    env.reset(ids(id_, id_))
    small = env.ground_truth().segmentation[0]
    observation, info = gym.reset(options={"episode_id": ids(id_)})
    camera = observation["sensor_data"]["3rd_view_camera"]
    large = camera["segmentation"][0, :, :, 0]
    assert camera["rgb"].shape == (1, 480, 640, 3) and info["success"].tolist() == [False]

    def centre(labels: torch.Tensor) -> torch.Tensor:
        """Centre of the plate, as shares of height and width."""
        return ((labels == RECEPTACLE).nonzero() + 0.5).mean(dim=0) / torch.tensor(labels.shape)

    torch.testing.assert_close(centre(small), centre(large), atol=3e-3, rtol=0)
    assert gym.get_wrapper_attr("get_language_instruction")() == ["put carrot on plate"]
    _, _, _, truncated, info = gym.step(torch.tensor([[0.0, 0, 0, 0, 0, 0, OPEN]]))
    assert not truncated.any() and info["is_src_obj_grasped"].tolist() == [False]


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("env.id=Nope-v1", r"env\.id is 'Nope-v1'"),
        ("env.obj_set=trian", r"env\.obj_set is 'trian'"),
        ("env.backend=tpu", r"env\.backend is 'tpu'"),
        ("env.shader=rt", r"env\.shader is 'rt'"),
        ("env.sim_freq=333", r"env\.sim_freq is 333"),
    ],
)
def test_wrong_settings_are_user_errors(word, sentence):
    with pytest.raises(UserError, match=sentence):
        make_env(load("base", [word]).env, 1)


def test_gpu_physics_with_software_pictures_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(vector, "RENDER_BACKEND", "cpu")
    with pytest.raises(UserError, match="pictures are drawn in software"):
        make_env(load("base", ["env.backend=gpu"]).env, 1)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            requests.ConnectionError("no route to github.com"),
            r"downloads once into {}, .*no route.*; delete that folder",
        ),
        (BadZipFile("not a zip file"), r"downloads once into {}, .*not a zip file\); delete that folder"),
        (
            OSError("libcuda.so: no such file"),
            r"could not be loaded \(libcuda.so: no such file\); if the file .* in {}",
        ),
    ],
)
def test_gpu_physics_that_cannot_be_had_is_told(monkeypatch, tmp_path, error, sentence):
    def enable_gpu():
        raise error

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(vector, "_check_devices", lambda cfg: None)
    monkeypatch.setattr(vector.sapien.physx, "enable_gpu", enable_gpu)
    with pytest.raises(UserError, match=sentence.format(f"{tmp_path}/.sapien/physx")):
        make_env(load("base", ["env.backend=gpu"]).env, 1)


@pytest.mark.parametrize(
    ("backend", "renderer", "gpu", "expected"),
    [
        ("gpu", "gpu", 3, ("cuda:3", "cuda:3")),
        ("cpu", "gpu", 3, ("cpu", "cuda:3")),  # without its number the first GPU would draw for every process
        ("cpu", "cpu", 3, ("cpu", "cpu")),  # and CUDA is left alone
        ("cpu", "gpu", None, ("cpu", "gpu")),  # a GPU that draws and does not compute
        ("cpu", "cpu", None, ("cpu", "cpu")),
    ],
)
def test_scenes_are_drawn_where_their_process_computes(monkeypatch, backend, renderer, gpu, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: gpu)
    monkeypatch.setattr(vector, "RENDER_BACKEND", renderer)
    assert vector._backends(load("base", [f"env.backend={backend}"]).env) == expected


def test_without_a_vulkan_driver_the_error_says_what_to_do():
    code = "from vlapost.config import load; from vlapost.envs.vector import make_env; make_env(load('base').env, 1)"
    without = os.environ | {"VK_DRIVER_FILES": "/nonexistent/lvp_icd.json"}
    done = subprocess.run([sys.executable, "-c", code], env=without, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "UserError: No Vulkan driver can render here; run `make setup`" in done.stderr


@pytest.mark.skipif("VLAPOST_ASSETS" not in os.environ, reason="needs the paper's asset pack")
@pytest.mark.filterwarnings("ignore:The asset pack")
def test_paper_pack():
    papers = make_env(load("base", ["env.obj_set=train", "env.assets=paper"]).env, 1)
    image = papers.reset(ids(episode(CARROT))).image
    assert image.shape == (1, 128, 128, 3)
    steps = pick(papers)
    assert steps[-1].metrics.consecutive_grasp.all()
    papers.close()
