"""The setups of the benchmark in the real simulator."""

import os

import pytest
import torch

from test_envs import BOTTLE, CARROT, CLOSED, OPEN, act, ids, move
from vlapost.config import load
from vlapost.envs.bodies import put
from vlapost.envs.episodes import decode, encode, held_out, make_held_out, solved
from vlapost.envs.overlay import BACKGROUND, OTHER, composite
from vlapost.envs.scene import PutOnPlateScene
from vlapost.envs.setups import EVALUATED, find_setup
from vlapost.envs.stations import TABLE
from vlapost.envs.vector import SceneVector, make_env
from vlapost.solved_starts import is_solved

pytestmark = pytest.mark.sim

TRAINING = "PutOnPlateInScene25Main-v3", "train"


def variant(name: str, obj_set: str = "test", *more: str) -> SceneVector:
    """One scene of another setup of the benchmark."""
    words = [f"env.id=PutOnPlateInScene25{name}", f"env.obj_set={obj_set}", "env.image_size=[128,128]", *more]
    return make_env(load("base", words).env, 1)


@pytest.mark.parametrize("name", EVALUATED)
def test_an_episode_does_not_depend_on_what_ran_before(name):
    setup = EVALUATED[name]
    env = variant(setup.env_id.removeprefix("PutOnPlateInScene25"), setup.obj_set)
    first, second = held_out(setup.env_id, setup.obj_set)[:2]

    def run(id_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        images = [env.reset(id_[None]).image] + [act(env, (0.01, 0, -0.02)).observation.image for _ in range(6)]
        return torch.cat(images), env.scenes[0].get_state()

    images, state = run(first)
    run(second)
    again, same_state = run(first)
    assert torch.equal(images, again) and torch.equal(state, same_state)
    spec = env.scenes[0].start
    places = [(env.scenes[0].receptacle, spec.places[0, 1])]
    if env.scenes[0].other is not None:
        places.append((env.scenes[0].other, spec.places[0, 2]))
        assert (env.ground_truth().segmentation == OTHER).sum() > 10
    for body, place in places:  # receptacles stay where they fall, within a sixth of the grid's spacing; objects roll
        near = 0.06 if body is env.scenes[0].other and setup.env_id.endswith("MultiCarrot-v1") else 0.005
        torch.testing.assert_close(body.pose.p[0, :2], place, atol=near, rtol=0)
    env.close()


PAPER = pytest.mark.skipif("VLAPOST_ASSETS" not in os.environ, reason="needs the paper's asset pack")


@pytest.mark.filterwarnings("ignore:The asset pack")
@pytest.mark.parametrize(
    ("pack", "known"), [("procedural", [566303]), pytest.param("paper", [590718, 593256], marks=PAPER)]
)
def test_what_settles_on_its_plate_is_solved_and_not_listed(pack: str, known: list[int]):
    """A plant of the paper's pack falls over and touches the plate; what is listed in its place does not."""
    plain, listed = make_held_out(find_setup(*TRAINING)), held_out(*TRAINING)
    assert set(known) <= set(solved(*TRAINING)) <= set(plain.tolist())
    env = variant("Main-v3", "train", f"env.assets={pack}")
    assert all(is_solved(env.scenes[0], id_) for id_ in known)
    assert not any(is_solved(env.scenes[0], id_) for id_ in listed[plain != listed].tolist())
    env.close()


@pytest.mark.filterwarnings("ignore:The asset pack")
@pytest.mark.parametrize(("pack", "known"), [("procedural", 1409520), pytest.param("paper", 441565, marks=PAPER)])
def test_what_falls_on_its_plate_when_it_is_put_elsewhere_is_not_listed(pack: str, known: int):
    name = "PutOnPlateInScene25PositionChangeTo-v1", "test"
    plain, listed = make_held_out(find_setup(*name)), held_out(*name)
    assert known in solved(*name) and known in plain and known not in listed
    env = variant("PositionChangeTo-v1", "test", f"env.assets={pack}")
    assert is_solved(env.scenes[0], known)
    assert not any(is_solved(env.scenes[0], id_) for id_ in listed[plain != listed].tolist()[:4])
    env.close()


PAIR, WITH_OBJECT, WITH_RECEPTACLE = (0.95, 0.95), (0.95, 0.92, 1.0), (1.0, 0.92, 0.96)
HEIGHTS = {
    "multi-object": WITH_OBJECT, "multi-unseen-object": WITH_OBJECT, "reposition": WITH_OBJECT,
    "disturb-receptacle": WITH_RECEPTACLE, "multi-receptacle": WITH_RECEPTACLE,
}  # fmt: skip


def test_heights_that_bodies_fall_from(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PutOnPlateScene, "_settle", lambda scene: None)
    for name, setup in EVALUATED.items():
        expected = HEIGHTS.get(name, PAIR)
        assert find_setup(setup.env_id, setup.obj_set).places.heights == expected
        if name not in ("ind", "multi-object", "multi-receptacle"):
            continue
        env = variant(setup.env_id.removeprefix("PutOnPlateInScene25"), setup.obj_set)
        env.reset(ids(5))
        scene = env.scenes[0]
        there = [body.pose.p[0, 2].item() for body in (scene.object, scene.receptacle, scene.other) if body is not None]
        assert there == pytest.approx(expected, abs=1e-6)
        env.close()
    paper = variant("MultiCarrot-v1", "test", "env.protocol=paper")
    setup = find_setup("PutOnPlateInScene25MultiCarrot-v1", "test", "paper")
    every = encode(setup, {"other_object": torch.arange(8)})
    spec = decode(setup, every)
    (alone,) = (spec.other_object == spec.object).nonzero().flatten().tolist()
    for number, height in ((alone, 1.0), (alone - 1, 0.95)):
        paper.reset(every[[number]])
        assert paper.scenes[0].object.pose.p[0, 2].item() == pytest.approx(height, abs=1e-6)
    paper.close()


def test_on_the_wrong_receptacle_is_no_success():
    env = variant("MultiPlate-v1", "train")
    env.reset(ids(5))
    scene = env.scenes[0]
    for body, success in ((scene.other, False), (scene.receptacle, True)):
        put(scene.object, body.pose.p[:, :2], body.pose.p[:, 2] + 0.06, torch.zeros(1))
        steps = [act(env, (0, 0, 0)) for _ in range(4)]
        assert bool(steps[-1].metrics.success) == success
        assert (scene.object.pose.p - body.pose.p)[0, :2].norm() < 0.05  # it lies there all the same
    env.close()


def test_grasping_the_wrong_object_does_not_count():
    env = variant("MultiCarrot-v1", "train")
    setup = find_setup("PutOnPlateInScene25MultiCarrot-v1", "train")
    digits = {"object": BOTTLE, "other_object": 12, "place": 700, "yaw": 1}  # 13 places after the bottle: the carrot
    env.reset(encode(setup, {name: torch.tensor([digit]) for name, digit in digits.items()}))
    scene = env.scenes[0]
    assert scene.get_language_instruction() == ["put plastic bottle on plate"] and scene.chosen[0][2] == CARROT
    scene.object, scene.other = scene.other, scene.object  # for the script alone
    truth = env.ground_truth()
    scene.object, scene.other = scene.other, scene.object
    above = truth.object_position - truth.gripper_pose[:, :3]
    down = above * torch.tensor([0.0, 0.0, 1.0])
    move(env, above - down, OPEN), move(env, down, OPEN)
    [act(env, (0, 0, 0), gripper=CLOSED) for _ in range(3)]
    before = scene.other.pose.p[0, 2].clone()
    step = move(env, torch.tensor([[0.0, 0.0, 0.10]]), CLOSED)[-1]
    assert scene.other.pose.p[0, 2] > before + 0.05
    assert not step.metrics.grasp and not step.metrics.success_once
    env.close()


@pytest.mark.parametrize("everything", [False, True])
def test_texture_over_bodies_or_over_everything(everything):
    env = variant("VisionWhole05-v1" if everything else "VisionTexture05-v1")
    image = env.reset(ids(5)).image
    scene = env.scenes[0]
    labels = env.ground_truth().segmentation
    plain = composite(scene.scene.sensors["3rd_view_camera"].get_obs(rgb=True)["rgb"], labels, scene.pictures)
    changed = (image != plain).any(-1)
    kept = labels != BACKGROUND
    assert changed[kept].float().mean() > 0.9
    assert (changed[~kept].float().mean() > 0.9) == everything
    again = env.scenes[0].render_observation()[0]
    assert torch.equal(image, again)
    moved = act(env, (0, 0, 0)).observation.image  # nothing moves, but the crop is another
    assert (moved != image).any(-1)[kept].float().mean() > 0.5
    env.close()
    authors = variant("VisionTexture05-v1", "test", "env.protocol=paper")
    image = authors.reset(ids(5)).image
    step = act(authors, (0, 0, 0)).observation.image
    assert (step != image).any(-1).float().mean() < 0.05
    authors.close()


def test_initial_pose_of_the_arm():
    env = variant("EEPose-v1")
    setup = find_setup("PutOnPlateInScene25EEPose-v1", "test")
    env.reset(encode(setup, {"arm_offset": torch.tensor([0])}))
    offset = env.ground_truth().qpos[0, :6] - torch.tensor(TABLE.qpos[:6])
    torch.testing.assert_close(offset, torch.tensor([-0.15, -0.15, -0.08, -0.15, -0.15, -0.6]), atol=1e-5, rtol=0)
    before = env.ground_truth().gripper_pose.clone()
    act(env, (0, 0, 0))  # the controller's target is where the gripper is
    torch.testing.assert_close(env.ground_truth().gripper_pose, before, atol=4e-3, rtol=0)
    env.close()


def test_the_object_is_put_elsewhere_after_the_fifth_step():
    env = variant("PositionChangeTo-v1")
    env.reset(ids(12345))
    scene = env.scenes[0]
    heights = []
    for step in range(1, 9):
        act(env, (0, 0, 0))
        at = scene.object.pose.p[0]
        torch.testing.assert_close(at[:2], scene.start.places[0, 0 if step < 5 else 2], atol=0.03, rtol=0)
        heights.append(at[2].item())
    assert heights[4] == pytest.approx(1.0 - 9.81 * 0.1**2 / 2, abs=2e-3)  # 50 steps of 2 ms in free fall
    assert heights[7] < 0.92
    env.close()


def test_sentences_in_both_protocols():
    setup = find_setup("PutOnPlateInScene25Instruct-v1", "test")
    id_ = encode(setup, {"object": torch.tensor([15]), "template": torch.tensor([6])})
    for protocol, sentence in (("v2", "Put bbq sauce onto plate."), ("paper", "put bbq sauce onto plate.")):
        env = variant("Instruct-v1", "test", f"env.protocol={protocol}")
        assert env.reset(id_).instruction == (sentence,)
        env.close()
