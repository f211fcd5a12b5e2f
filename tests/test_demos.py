"""Demonstrations: the action filter against hand-computed cases, and their storage against damage."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from tests.helpers import random_episode
from tests.helpers import random_pictures as pictures

from vlapost import config
from vlapost.collect_demos import seed_of
from vlapost.config import UserError
from vlapost.experience.action_filter import filter_actions, steps_to_draw
from vlapost.experience.demos import DemoDataset
from vlapost.experience.shards import (
    VERSION,
    DemoEpisode,
    DemoMeta,
    Failure,
    list_shards,
)
from vlapost.experience.writer import DemoWriter

META = DemoMeta(VERSION, "PutOnPlateInScene25Main-v3", "train", "procedural", (24, 32), "minimal", 500, 0, 0.0)


def move(x: float = 0.0, yaw: float = 0.0, gripper: float = 1.0) -> list[float]:
    return [x, 0, 0, 0, 0, yaw, gripper]


def test_merge_accumulates_small_steps_and_keeps_toggles_alone() -> None:
    actions = np.array(
        [
            move(0.004),  # 0: small
            move(0.004),  # 1: 0.008 together, still small
            move(0.004),  # 2: 0.012 together, emitted with the image of step 0
            move(0.02),  # 3: large on its own
            move(0.003),  # 4: small, flushed by the toggle behind it
            move(0.0, gripper=-1.0),  # 5: toggle, alone although it does not move
            move(0.006, gripper=-1.0),  # 6: behind a toggle, alone although small
            move(0.006, gripper=-1.0),  # 7
            move(0.006, gripper=-1.0),  # 8: 0.012 with step 7
            move(0.002),  # 9: toggle
            move(0.0),  # 10: behind a toggle
            move(0.001),  # 11: the end is kept, whatever its size
        ]
    )
    starts, merged = filter_actions(actions, "merge", 0.01, 0.06)
    assert starts.tolist() == [0, 3, 4, 5, 6, 7, 9, 10, 11]
    np.testing.assert_allclose(merged[:, 0], [0.012, 0.02, 0.003, 0.0, 0.006, 0.012, 0.002, 0, 0.001], atol=1e-7)
    assert merged[:, 6].tolist() == [1, 1, 1, -1, -1, -1, 1, 1, 1]


def test_merge_loses_no_motion() -> None:
    rng = np.random.default_rng(0)
    actions = np.hstack([rng.normal(0, 0.006, (40, 3)), rng.normal(0, 0.03, (40, 3)), np.ones((40, 1))])
    _, merged = filter_actions(actions, "merge", 0.01, 0.06)
    assert len(merged) < 30

    def target(commands: NDArray[np.floating]) -> tuple[NDArray[np.floating], Rotation]:
        """What the controller's virtual target becomes, from the identity."""
        position, rotation = np.zeros(3), Rotation.identity()
        for command in commands:
            position = position + command[:3]
            rotation = Rotation.from_euler("XYZ", command[3:6]) * rotation
        return position, rotation

    (p1, r1), (p2, r2) = target(actions), target(merged)
    np.testing.assert_allclose(p1, p2, atol=1e-6)
    assert (r1 * r2.inv()).magnitude() < 1e-6


def test_drop_is_the_papers_rule() -> None:
    actions = np.array(
        [
            move(0.0),  # dropped
            move(0.011),  # kept: over 0.01 m
            move(0.009, yaw=0.05),  # dropped: under both
            move(0.0, yaw=-0.07),  # kept: over 0.06 rad
            move(0.0, gripper=-1.0),  # kept: toggle
            move(0.0, gripper=-1.0),  # dropped
        ]
    )
    starts, kept = filter_actions(actions, "drop", 0.01, 0.06)
    assert starts.tolist() == [1, 3, 4]
    np.testing.assert_array_equal(kept, actions[[1, 3, 4]].astype(np.float32))
    starts, kept = filter_actions(actions, "none", 0.01, 0.06)
    assert starts.tolist() == list(range(6)) and len(kept) == 6


def episode(candidate: int, steps: int = 5) -> DemoEpisode:
    gripper = [1] * (steps - 2) + [-1, 1]
    return random_episode(candidate, f"put thing {candidate} on plate", gripper, np.random.default_rng(candidate))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Attempts 0..5 in two shards; attempt 2 failed."""
    writer = DemoWriter(tmp_path, META, block=3)
    writer.write(0, 3, [episode(0), episode(1)], [Failure(2, 1002, "dropped")])
    writer.write(3, 6, [episode(3), episode(4, steps=7), episode(5)], [])
    writer.close()
    return tmp_path


def test_what_is_written_is_read(folder: Path) -> None:
    data = DemoDataset(folder, "none", 0.01, 0.06)
    assert data.meta == META and data.episodes == 5 and len(data) == 5 + 5 + 5 + 7 + 5
    index = torch.tensor([5 + 5 + 5 + 6, 1])  # last step of attempt 4, second step of attempt 0
    (image, instruction), truth = data.observation(index), data.grounding(index)
    assert instruction == ("put thing 4 on plate", "put thing 0 on plate")
    assert image.dtype == torch.uint8
    expected = np.stack([pictures(4, 7)[6], pictures(0, 5)[1]])
    np.testing.assert_array_equal(image.numpy(), expected)
    np.testing.assert_array_equal(truth.segmentation.numpy(), expected[..., 0] % 4)
    four, zero = episode(4, 7), episode(0)
    np.testing.assert_array_equal(truth.object_position[0].numpy(), four.object_position[6])
    np.testing.assert_array_equal(truth.receptacle_position[1].numpy(), zero.receptacle_position[1])
    np.testing.assert_array_equal(truth.gripper_position[1].numpy(), zero.gripper_pose[1, :3])
    np.testing.assert_array_equal(data.actions[index].numpy(), np.stack([four.action[6], zero.action[1]]))
    assert data.episode[index].tolist() == [3, 0] and data.step[index].tolist() == [6, 1]


def test_fewer_episodes_are_a_subset(folder: Path) -> None:
    whole, part = DemoDataset(folder, "merge", 0.01, 0.06), DemoDataset(folder, "merge", 0.01, 0.06, episodes=3)
    assert part.episodes == 3 and int(part.episode.max()) == 2
    torch.testing.assert_close(part.actions, whole.actions[: len(part)])
    with pytest.raises(UserError, match="holds 5 demonstrations, 6 are wanted"):
        DemoDataset(folder, "merge", 0.01, 0.06, episodes=6)


def test_statistics_are_openvlas(folder: Path) -> None:
    data = DemoDataset(folder, "none", 0.01, 0.06)
    entry = data.statistics()
    assert entry["num_transitions"] == 27 and entry["num_trajectories"] == 5
    action = entry["action"]
    assert action["mask"] == [True] * 6 + [False]
    assert (action["min"][6], action["max"][6]) == (-1.0, 1.0)
    ordered = np.sort(data.actions[:, 0].double().numpy())
    # 1 % of 26 intervals: 0.26 of the way from the smallest to the second smallest value
    assert action["q01"][0] == pytest.approx(ordered[0] + 0.26 * (ordered[1] - ordered[0]))
    assert action["q99"][0] == pytest.approx(ordered[-1] - 0.26 * (ordered[-1] - ordered[-2]))


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_shard_is_named(folder: Path, damage: str) -> None:
    path = list_shards(folder)[1].path
    data = bytearray(path.read_bytes())
    if damage == "truncate":
        data = data[:-1]
    elif damage == "flip":
        data[len(data) // 2] ^= 1
    else:
        data = bytearray()
    path.write_bytes(data)
    for open_it in (lambda: DemoDataset(folder, "merge", 0.01, 0.06), lambda: DemoWriter(folder, META)):
        with pytest.raises(UserError, match=f"{path.name} is damaged; delete it and run 'make demos'"):
            open_it()
    assert DemoDataset(folder, "merge", 0.01, 0.06, episodes=2).episodes == 2  # the first shard is enough


def test_a_deleted_shard_is_asked_for_again(folder: Path) -> None:
    os.remove(list_shards(folder)[0].path)
    with pytest.raises(UserError, match="lacks the shard of attempts 0 to 2"):
        DemoDataset(folder, "merge", 0.01, 0.06)
    writer = DemoWriter(folder, META, block=3)
    assert next(writer.gaps()) == (0, 3) and writer.episodes == 3 and not writer.is_enough(1)
    writer.write(0, 3, [episode(0), episode(1)], [Failure(2, 1002, "dropped")])
    assert next(writer.gaps()) == (6, 9) and writer.failures == {"dropped": 1} and writer.is_enough(5)
    writer.close()
    assert DemoDataset(folder, "merge", 0.01, 0.06).episodes == 5


def test_a_leftover_of_a_killed_writer_is_removed(folder: Path) -> None:
    (folder / ".shard.tmp").write_bytes(b"half a shard")
    assert DemoDataset(folder, "merge", 0.01, 0.06).episodes == 5
    writer = DemoWriter(folder, META)
    assert writer.episodes == 5 and not (folder / ".shard.tmp").exists()
    with pytest.raises(UserError, match="Another process collects"):
        DemoWriter(folder, META)
    writer.close()


def test_steps_that_no_filter_keeps_need_no_picture(tmp_path: Path) -> None:
    whole = episode(0, steps=12)
    whole.action[:, :6] = 0
    whole.action[:10, 0] = [0.02, 0.004, 0.004, 0.004, 0.02, 0.009, 0.03, 0.004, 0.001, 0.02]
    drawn = steps_to_draw(whole.action, 0.01, 0.06)
    # merge keeps 0, 1 (to 3), 4, 5 (with 6), 7 (to 9) and the toggles 10 and 11; drop keeps 0, 4, 6, 9, 10, 11
    assert np.flatnonzero(~drawn).tolist() == [2, 3, 8]
    images, labels = (
        tuple(data if seen else None for data, seen in zip(pictures_, drawn))
        for pictures_ in (whole.image, whole.segmentation)
    )
    writer = DemoWriter(tmp_path, META)
    writer.write(0, 1, [replace(whole, image=images, segmentation=labels)], [])
    writer.close()
    for filter in ("merge", "drop"):
        data = DemoDataset(tmp_path, filter, 0.01, 0.06)
        every = torch.arange(len(data))
        shown, labels_shown = data.observation(every)[0].numpy(), data.grounding(every).segmentation.numpy()
        np.testing.assert_array_equal(shown, pictures(0, 12)[data.step.numpy()])
        np.testing.assert_array_equal(labels_shown, pictures(0, 12)[data.step.numpy()][..., 0] % 4)
    for filter, threshold in (("none", 0.01), ("merge", 0.003)):
        with pytest.raises(UserError, match=r"no picture of some steps.*demos\.frames=all"):
            DemoDataset(tmp_path, filter, threshold, 0.06)


@pytest.mark.sim
def test_a_killed_collection_continues_as_if_it_had_not_been(tmp_path: Path) -> None:
    words = ["demos.episodes=3", "demos.shard_attempts=1", "demos.frames=all", "env.image_size=[32,32]"]
    command = [sys.executable, "-m", "vlapost.collect_demos", *words]
    with subprocess.Popen([*command, "demos.workers=2", f"demos.path={tmp_path / 'killed'}"]) as process:
        while not list_shards(tmp_path / "killed") and process.poll() is None:
            time.sleep(0.05)
        process.kill()
    left = DemoDataset(tmp_path / "killed", "none", 0.01, 0.06)
    assert 1 <= left.episodes <= 3
    subprocess.run([*command, "demos.workers=1", f"demos.path={tmp_path / 'killed'}"], check=True)
    subprocess.run([*command, "demos.workers=1", f"demos.path={tmp_path / 'whole'}"], check=True)
    killed, whole = (DemoDataset(tmp_path / name, "none", 0.01, 0.06) for name in ("killed", "whole"))
    assert killed.episodes == whole.episodes == 3
    torch.testing.assert_close(killed.actions, whole.actions, rtol=0, atol=0)
    every = torch.arange(len(whole))
    torch.testing.assert_close(killed.observation(every)[0], whole.observation(every)[0], rtol=0, atol=0)


def test_settings_must_agree(folder: Path) -> None:
    other = DemoMeta(VERSION, META.env_id, "train", "procedural", (24, 32), "minimal", 200, 0, 0.0)
    with pytest.raises(UserError, match="sim_freq=500, not 200"):
        DemoWriter(folder, other)


def test_disturbances_are_a_function_of_seed_and_attempt() -> None:
    cfg = config.load("base", ["demos.disturbed=0.3", "demos.seed=5"])
    seeds = [seed_of(cfg, candidate) for candidate in range(2000)]
    assert seeds == [seed_of(cfg, candidate) for candidate in range(2000)]
    disturbed = [seed for seed in seeds if seed is not None]
    assert 0.26 < len(disturbed) / 2000 < 0.34
    assert len({tuple(seed) for seed in disturbed}) == len(disturbed)
    assert seed_of(config.load("base"), 0) is None
    assert seed_of(config.load("base", ["demos.views=2"]), 0) is not None
