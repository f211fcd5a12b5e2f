"""The planner's demonstrations go out in a format and in another convention, come back, and succeed as they did."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mani_skill.utils.wrappers import RecordEpisode
from scipy.spatial.transform import Rotation
from tests.test_exchange import framed, serialised

from vlapost import cli, config, export_demos, import_demos
from vlapost.attempts import as_demo
from vlapost.collect_demos import episode_of, meta_of
from vlapost.envs.setups import setup_of
from vlapost.envs.vector import SceneVector, make_env
from vlapost.exchange.shards import episodes
from vlapost.experience.demos import DemoDataset
from vlapost.experience.shards import write_shard
from vlapost.planner.demonstrate import Recording, demonstrate, replay
from vlapost.planner.motion import ArmPlanner

pytestmark = pytest.mark.sim

WORDS = ["env.obj_set=train", "env.image_size=[64,64]"]
EPISODES = (2 * 50176 + 1400, 12 * 50176 + 8400)

Recorded = tuple[SceneVector, list[Recording]]


@pytest.fixture(scope="module")
def recorded() -> Iterator[Recorded]:
    """A scene, and a demonstration of each of two episodes."""
    env = make_env(config.load("base", WORDS).env, num_envs=1)
    planner = ArmPlanner(env.scenes[0].pack)
    recordings = [demonstrate(env, planner, episode) for episode in EPISODES]
    assert all(isinstance(recording, Recording) for recording in recordings), recordings
    yield env, recordings  # type: ignore[misc]
    env.close()


def imported(folder: Path, format_: str, source: Path, *words: str) -> DemoDataset:
    with cli.console.capture():
        import_demos.run([f"from={format_}", f"source={source}", f"demos.path={folder}", *WORDS, *words])
    return DemoDataset(folder, "none", 0.01, 0.06)


def assert_they_succeed(env: SceneVector, data: DemoDataset, recordings: list[Recording]) -> None:
    """Open-loop replay, from the starts the demonstrations had."""
    assert data.episodes == len(recordings)
    for number, (episode, recording) in enumerate(zip(EPISODES, recordings)):
        actions = data.actions[data.episode == number]
        np.testing.assert_allclose(actions.numpy(), recording.action, atol=1e-6)
        assert bool(replay(env, episode, actions).success), episode


def test_through_lerobot_and_back(recorded: Recorded, tmp_path: Path) -> None:
    env, recordings = recorded
    (tmp_path / "demos").mkdir()
    demonstrations = [as_demo(i, EPISODES[i], recording) for i, recording in enumerate(recordings)]
    write_shard(tmp_path / "demos", meta_of(config.load("base", WORDS)), 0, 2, demonstrations, [])
    words = [f"demos.path={tmp_path / 'demos'}", "demos.episodes=2", "demos.filter=none"]
    with cli.console.capture():
        export_demos.run([*words, f"out={tmp_path / 'lerobot'}"])
    data = imported(tmp_path / "back", "lerobot", tmp_path / "lerobot")
    pictures, sentences = data.observation(torch.arange(len(data)))
    assert np.array_equal(pictures.numpy(), np.stack([image for r in recordings for image in r.image]))
    assert sentences[0] == recordings[0].instruction and sentences[-1] == recordings[1].instruction
    assert_they_succeed(env, data, recordings)


def test_from_a_program_of_other_conventions(recorded: Recorded, tmp_path: Path) -> None:
    """Extrinsic angles in degrees, centimetres, a base turned by -90 degrees, 0 open and 1 closed, larger pictures.

    Declared, they succeed; taken for ours, the actions are others.
    """
    env, recordings = recorded
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    turn = Rotation.from_euler("z", -90, degrees=True)  # our axes in theirs
    for number, recording in enumerate(recordings):
        action = recording.action.astype(np.float64)
        rotation = turn * Rotation.from_euler("XYZ", action[:, 3:6]) * turn.inv()
        numbers = np.column_stack(
            [100 * turn.apply(action[:, :3]), rotation.as_euler("xyz", degrees=True), action[:, 6] < 0]
        )
        pictures = np.stack(recording.image).repeat(2, axis=1).repeat(2, axis=2)
        np.savez(theirs / f"{number}.npz", image=pictures, action=numbers, instruction=recording.instruction)
    words = ["rotation=xyz", f"radians={np.pi / 180}", "metres=0.01", "turn=90", "gripper=[0,1]"]
    data = imported(tmp_path / "back", "npz", theirs, *(f"exchange.{word}" for word in words))
    assert_they_succeed(env, data, recordings)
    pictures, _ = data.observation(torch.tensor([0]))
    assert np.abs(pictures[0].numpy().astype(int) - recordings[0].image[0]).mean() < 2  # halved again
    wrong = imported(tmp_path / "wrong", "npz", theirs, "exchange.gripper=[0,1]", "exchange.metres=0.01")
    assert float((wrong.actions[:, :3] - data.actions[:, :3]).abs().max()) > 0.01


def test_from_an_rlds_data_set(recorded: Recorded, tmp_path: Path) -> None:
    """As Octo's half of the study's warm-up: rotations as axis times angle, here with 1 open and 0 closed."""
    env, recordings = recorded
    theirs = tmp_path / "ours/1.0.0"
    theirs.mkdir(parents=True)
    splits = [{"name": "train", "shardLengths": ["2"]}]
    (theirs / "dataset_info.json").write_text(json.dumps({"name": "ours", "splits": splits}))
    step = {
        "observation": {
            "featuresDict": {"features": {"image": {"image": {"shape": {"dimensions": ["64", "64", "3"]}}}}}
        },
        "action": {"tensor": {"shape": {"dimensions": ["7"]}}},
    }
    steps = {"steps": {"sequence": {"feature": {"featuresDict": {"features": step}}}}}
    (theirs / "features.json").write_text(json.dumps({"featuresDict": {"features": steps}}))
    examples = []
    for recording in recordings:
        action = recording.action.astype(np.float64)
        turned = Rotation.from_euler("XYZ", action[:, 3:6]).as_rotvec()
        numbers = np.column_stack([action[:, :3], turned, action[:, 6] > 0]).astype(np.float32)
        pictures = [cv2.imencode(".png", image[..., ::-1])[1].tobytes() for image in recording.image]
        words = [recording.instruction.encode()] * len(action)
        content = {"steps/observation/image": pictures, "steps/action": numbers.ravel()}
        examples.append(serialised({**content, "steps/language_instruction": words}))
    (theirs / "ours-train.tfrecord-00000-of-00001").write_bytes(framed(examples))
    data = imported(tmp_path / "back", "rlds", theirs, "exchange.rotation=axis_angle", "exchange.gripper=[1,0]")
    assert np.array_equal(data.observation(torch.tensor([0]))[0][0].numpy(), recordings[0].image[0])
    assert_they_succeed(env, data, recordings)


def test_from_maniskills_recorder(recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`RecordEpisode` itself records our environment; its file is imported and replayed."""
    env, recordings = recorded
    scene = env.scenes[0]
    monkeypatch.setattr(scene, "_obs_mode", "rgb+segmentation")
    recorder = RecordEpisode(scene, str(tmp_path), trajectory_name="run", save_video=False, record_env_state=False)
    for episode, recording in zip(EPISODES, recordings):
        recorder.reset(options={"episode_id": [episode]})
        for action in recording.action:
            recorder.step(action)
    recorder.flush_trajectory()
    recorder._h5_file.close()
    words = ["exchange.instruction=put it on the plate"]
    data = imported(tmp_path / "back", "maniskill", tmp_path / "run.h5", *words)
    pictures, _ = data.observation(torch.arange(len(data)))
    truth = np.stack([image for recording in recordings for image in recording.image])
    assert np.abs(pictures.numpy().astype(int) - truth).mean() < 1
    assert_they_succeed(env, data, recordings)


def test_from_an_actor(recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planner as an actor stands still once it is done; that is cut. What is stored replays."""
    env, _ = recorded
    monkeypatch.setattr("vlapost.envs.vector.make_env", lambda cfg: env)
    monkeypatch.setattr(env, "close", lambda: None)
    imported(tmp_path / "out", "actor", Path("planner"), "exchange.episodes=1")
    (stored,) = episodes(tmp_path / "out", config.load("base", ["demos.filter=none"]).demos)
    cfg = config.load("base", WORDS)
    assert stored.success[-6:].all() and len(stored.action) < setup_of(cfg.env).task.steps
    assert stored.episode_id in [episode_of(cfg, attempt) for attempt in range(5)]
    assert bool(replay(env, stored.episode_id, torch.from_numpy(stored.action)).success)
    assert stored.instruction == env.scenes[0].get_language_instruction()[0]
