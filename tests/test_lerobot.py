"""LeRobotDataset v3.0: what is written, by pyarrow and by the real package; what is read, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.helpers import random_episode, random_pictures

from vlapost import config, export_demos
from vlapost.config import UserError
from vlapost.envs.scene import CONTROL_FREQ
from vlapost.exchange import lerobot, lerobot_writer
from vlapost.exchange.folder import imported_meta
from vlapost.exchange.lerobot_writer import LeRobotWriter
from vlapost.exchange.trajectory import Trajectory
from vlapost.experience.shards import VERSION, DemoEpisode, DemoMeta, write_shard

META = DemoMeta(VERSION, "PutOnPlateInScene25Main-v3", "train", "procedural", (24, 32), "minimal", 500, 0, 0.0)
DECLARED = config.load("base").exchange
SENTENCES = ("put carrot on plate", "put spoon on tray")
LENGTHS = (5, 3, 4)
PYTHON = os.environ.get("LEROBOT_PYTHON")


def pictures(number: int) -> np.ndarray:
    return random_pictures(number, LENGTHS[number])


def episode(number: int) -> DemoEpisode:
    gripper = [1, -1, 1, -1, 1][: LENGTHS[number]]
    return random_episode(number, SENTENCES[number % 2], gripper, np.random.default_rng(100 + number))


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three episodes of two tasks, written by the command; each in a file of its own, and listed in two goes."""
    (tmp_path / "demos").mkdir()
    write_shard(tmp_path / "demos", META, 0, 3, [episode(0), episode(1), episode(2)], [])
    monkeypatch.setattr(lerobot_writer, "FILE_MB", 0.001)
    monkeypatch.setattr(lerobot_writer, "ROWS", 2)
    words = ["demos.episodes=3", "demos.filter=none"]
    export_demos.run([f"demos.path={tmp_path / 'demos'}", f"out={tmp_path / 'out'}", *words])
    return tmp_path / "out"


def test_the_files_are_the_formats(exported: Path) -> None:
    info = json.loads((exported / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["fps"] == CONTROL_FREQ
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 12, 2)
    assert info["splits"] == {"train": "0:3"} and info["features"]["action"]["shape"] == [7]
    paths = sorted((exported / "data").glob("*/*.parquet"))
    assert [str(p.relative_to(exported)) for p in paths] == [f"data/chunk-000/file-00{i}.parquet" for i in range(3)]
    data = pa.concat_tables([pq.read_table(path) for path in paths])
    assert data.column_names == list(info["features"])
    assert data["index"].to_pylist() == list(range(12))
    assert data["episode_index"].to_pylist() == [0] * 5 + [1] * 3 + [2] * 4
    assert data["frame_index"].to_pylist() == [0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3]
    assert data["task_index"].to_pylist() == [0] * 5 + [1] * 3 + [0] * 4
    np.testing.assert_allclose(data["timestamp"].to_pylist()[:5], [0, 0.2, 0.4, 0.6, 0.8], atol=1e-7)
    assert data["next.success"].to_pylist() == [False] * 4 + [True] + [False] * 2 + [True] + [False] * 3 + [True]
    assert data["observation.state"].to_pylist()[5] == episode(1).qpos[0].tolist()
    rows = pq.read_table(exported / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [(r["dataset_from_index"], r["dataset_to_index"], r["length"]) for r in rows] == [
        (0, 5, 5), (5, 8, 3), (8, 12, 4),
    ]  # fmt: skip
    assert [(r["tasks"], r["data/file_index"]) for r in rows] == [
        ([SENTENCES[0]], 0), ([SENTENCES[1]], 1), ([SENTENCES[0]], 2),
    ]  # fmt: skip
    np.testing.assert_allclose(rows[1]["stats/action/mean"], episode(1).action.mean(0), rtol=1e-5)
    tasks = pq.read_table(exported / "meta/tasks.parquet")
    assert tasks["task"].to_pylist() == list(SENTENCES) and tasks["task_index"].to_pylist() == [0, 1]
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]


def test_statistics_are_those_of_all_steps_and_pixels(exported: Path) -> None:
    stats = json.loads((exported / "meta/stats.json").read_text())
    actions = np.concatenate([episode(i).action for i in range(3)]).astype(float)
    pixels = np.concatenate([pictures(i) for i in range(3)]).reshape(-1, 3) / 255
    for name, values, of in (
        ("action", stats["action"], actions),
        ("picture", {k: np.ravel(v) for k, v in stats["observation.images.camera"].items()}, pixels),
    ):
        np.testing.assert_allclose(values["mean"], of.mean(0), rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(values["std"], of.std(0), rtol=1e-6, err_msg=name)
        np.testing.assert_array_equal(values["min"], of.min(0), err_msg=name)
        np.testing.assert_array_equal(values["max"], of.max(0), err_msg=name)
        np.testing.assert_allclose(values["q90"], np.quantile(of, 0.9, axis=0), atol=1 / 255, err_msg=name)
        assert values["count"] == [12], name
    assert np.shape(stats["observation.images.camera"]["q01"]) == (3, 1, 1)
    assert stats["next.success"]["mean"] == [0.25]


def test_what_is_exported_is_imported(exported: Path) -> None:
    found = list(lerobot.read(exported, 0, DECLARED))
    assert len(found) == 3
    for number, trajectory in enumerate(found):
        truth = episode(number)
        np.testing.assert_array_equal(np.stack(trajectory.image), pictures(number))
        np.testing.assert_array_equal(trajectory.action, truth.action)
        assert (trajectory.instruction, trajectory.episode_id) == (truth.instruction, truth.episode_id)
        assert trajectory.success is not None and trajectory.success.tolist() == truth.success.tolist()
    assert [t.episode_id for t in lerobot.read(exported, 2, DECLARED)] == [1002]


def test_imported_demonstrations_are_exported_without_joints(tmp_path: Path) -> None:
    writer = LeRobotWriter(tmp_path, imported_meta((24, 32)))
    writer.add(episode(0))
    writer.finish()
    assert "observation.state" not in pq.read_schema(tmp_path / "data/chunk-000/file-000.parquet").names
    assert len(next(lerobot.read(tmp_path, 0, DECLARED)).action) == 5


def test_exports_are_filtered_as_training_is(tmp_path: Path) -> None:
    """Steps 0 and 1 are merged: the picture is that before both, success that after both."""
    steps = episode(0)
    moves = np.zeros((5, 7), np.float32)
    moves[:, 0], moves[:, 6] = [0.006, 0.006, 0.02, 0.004, 0.004], 1
    (tmp_path / "demos").mkdir()
    whole = replace(steps, action=moves, success=np.array([False, True, False, False, True]))
    write_shard(tmp_path / "demos", META, 0, 1, [whole], [])
    export_demos.run([f"demos.path={tmp_path / 'demos'}", "demos.episodes=1", f"out={tmp_path / 'out'}"])
    (found,) = lerobot.read(tmp_path / "out", 0, DECLARED)
    np.testing.assert_allclose(found.action[:, 0], [0.012, 0.02, 0.008], atol=1e-7)
    np.testing.assert_array_equal(np.stack(found.image), pictures(0)[[0, 2, 3]])
    assert found.success is not None and found.success.tolist() == [True, False, True]
    rows = pq.read_table(tmp_path / "out/data/chunk-000/file-000.parquet")
    assert rows["observation.state"].to_pylist() == steps.qpos[[0, 2, 3]].tolist()


def test_exports_are_whole_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "demos").mkdir()
    write_shard(tmp_path / "demos", META, 0, 1, [episode(0)], [])
    words = [f"demos.path={tmp_path / 'demos'}", f"out={tmp_path / 'out'}"]
    with pytest.raises(UserError, match=r"holds 1 demonstrations, 140 are wanted; set demos.episodes=1"):
        export_demos.run(words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demos"]
    export_demos.run([*words, "demos.episodes=1"])
    with pytest.raises(UserError, match="is there already"):
        export_demos.run([*words, "demos.episodes=1"])
    with pytest.raises(UserError, match="OUT=exports/demos"):
        export_demos.run(["demos.episodes=1"])
    with pytest.raises(UserError, match="nowhere holds no demonstrations"):
        export_demos.run([f"demos.path={tmp_path / 'nowhere'}", f"out={tmp_path / 'other'}"])


def as_videos(folder: Path) -> None:
    """The same data set with its pictures in one video, as LeRobot records by default."""
    info = json.loads((folder / "meta/info.json").read_text())
    camera = lerobot_writer.CAMERA
    info["features"][camera]["dtype"] = "video"
    info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    (folder / "meta/info.json").write_text(json.dumps(info))
    for path in (folder / "data").glob("*/*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns([camera]), path)
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    for name, values in {
        "chunk_index": [0, 0, 0], "file_index": [0, 0, 0],
        "from_timestamp": [0.0, 1.0, 1.6], "to_timestamp": [1.0, 1.6, 2.4],
    }.items():  # fmt: skip
        table = table.append_column(f"videos/{camera}/{name}", pa.array(values))
    pq.write_table(table, path)
    film = folder / f"videos/{camera}/chunk-000/file-000.mp4"
    film.parent.mkdir(parents=True)
    shades = np.concatenate([shade(number) for number in range(3)])
    iio.imwrite(film, shades, plugin="FFMPEG", fps=5, codec="libx264", macro_block_size=8)


def shade(number: int) -> np.ndarray:
    """Even grey pictures, a different grey for each step, which a video keeps."""
    levels = 20 + 70 * number + 10 * np.arange(LENGTHS[number])
    return np.broadcast_to(levels[:, None, None, None], (LENGTHS[number], 24, 32, 3)).astype(np.uint8)


def test_pictures_of_videos_are_those_of_their_steps(exported: Path) -> None:
    as_videos(exported)
    for first in (0, 1):
        for number, trajectory in enumerate(lerobot.read(exported, first, DECLARED), first):
            image = np.stack(trajectory.image).astype(int)
            assert np.abs(image - shade(number)).max() <= 4, number
    film = next((exported / "videos").rglob("*.mp4"))
    iio.imwrite(film, shade(0), plugin="FFMPEG", fps=5, codec="libx264", macro_block_size=8)
    with pytest.raises(UserError, match=r"file-000.mp4 ends 3 pictures too early"):
        list(lerobot.read(exported, 0, DECLARED))


def test_a_video_is_closed_when_another_is_opened(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each open one is a process of ffmpeg; nothing here relies on when Python frees what is no longer used."""
    as_videos(exported)
    film, open_ = next((exported / "videos").rglob("*.mp4")), iio.imiter
    other, damaged = film.with_name("other.mp4"), film.with_name("damaged.mp4")
    shutil.copy(film, other)
    damaged.write_bytes(film.read_bytes()[:500])
    opened: list[Generator] = []
    monkeypatch.setattr(lerobot.iio, "imiter", lambda *a, **k: opened.append(open_(*a, **k)) or opened[-1])
    with closing(lerobot.Film()) as reader:
        reader.pictures(film, 0, 2)
        reader.pictures(other, 0, 2)
        reader.pictures(other, 2, 2)  # goes on
        assert [g.gi_frame is None for g in opened] == [True, False]
        reader.pictures(other, 1, 2)  # begins again
        assert [g.gi_frame is None for g in opened] == [True, True, False]
        with pytest.raises(UserError, match=r"damaged.mp4 is damaged"):
            reader.pictures(damaged, 0, 2)
    assert [g.gi_frame is None for g in opened] == [True] * 4
    opened.clear()
    run = lerobot.read(exported, 0, DECLARED)
    next(run)
    run.close()
    assert [g.gi_frame is None for g in opened] == [True]


def edit_info(folder: Path, **changes: object) -> None:
    path = folder / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_is_refused(exported: Path, tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match) as error:
            list(lerobot.read(copy, 0, DECLARED))
        assert str(error.value).count("\n") == 0
        shutil.rmtree(copy)
        shutil.copytree(exported, copy)

    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    (copy / "meta/info.json").unlink()
    refused(r"meta/info.json is missing; SOURCE must be the folder of a LeRobotDataset")
    (copy / "meta/info.json").write_text("{")
    refused("info.json is not JSON")
    edit_info(copy, codebase_version="v2.1")
    refused("is a LeRobotDataset of version v2.1; only v3.0 is read: convert it")
    features = json.loads((copy / "meta/info.json").read_text())["features"]
    edit_info(copy, features={k: v for k, v in features.items() if k != "action"})
    refused("has no feature 'action'")
    edit_info(copy, features={**features, "action": {**features["action"], "shape": [14]}})
    refused(r"has the shape \[14\]; \[7\] is needed")
    edit_info(copy, features={**features, "observation.images.wrist": features[lerobot_writer.CAMERA]})
    refused("has several cameras: observation.images.camera, observation.images.wrist; choose one with")
    info = json.loads((copy / "meta/info.json").read_text())
    for key in ("features", "data_path"):
        (copy / "meta/info.json").write_text(json.dumps({k: v for k, v in info.items() if k != key}))
        refused(f"info.json has no '{key}'; it has: codebase_version")
    edit_info(copy, features={**features, "action": {"dtype": "float32"}})
    refused("'action' in .*info.json has no 'shape'; it has: dtype")
    edit_info(copy, data_path="data/{episode_chunk}.parquet")
    refused("The file of episode 0 of .* cannot be named by 'data/{episode_chunk}.parquet'")
    for elsewhere in ("/tmp/file.parquet", "../file.parquet"):
        edit_info(copy, data_path=elsewhere)
        refused("leads out of the data set")
    data = copy / "data/chunk-000/file-001.parquet"
    data.unlink()
    refused("file-001.parquet is missing")
    data.write_bytes(data.read_bytes()[:-100])
    refused("file-001.parquet is damaged")
    pq.write_table(pq.read_table(data).slice(1), data)
    refused("holds 2 of the 3 steps of episode 1")
    pq.write_table(pq.read_table(data).drop_columns(["action"]), data)
    refused("has no column 'action'")
    episodes = copy / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(episodes).drop_columns(["length"]), episodes)
    refused("file-000.parquet has no column 'length'")
    episodes.write_bytes(episodes.read_bytes()[:-100])
    refused("file-000.parquet is damaged")
    shutil.rmtree(copy / "meta/episodes")
    refused("has no meta/episodes")


def equal_but_for_video(found: Trajectory, number: int, name: str) -> None:
    truth = episode(number)
    np.testing.assert_array_equal(found.action, truth.action)
    assert found.instruction == truth.instruction
    if name == "images":
        np.testing.assert_array_equal(np.stack(found.image), pictures(number))
    else:
        assert np.abs(np.stack(found.image)[:, ::4, ::4].astype(int) - shade(number)).max() <= 6


@pytest.mark.skipif(not PYTHON, reason="make check-lerobot runs this with the real lerobot package")
def test_the_real_package_opens_it_trains_on_it_and_writes_what_we_read(exported: Path, tmp_path: Path) -> None:
    """In lerobot's own environment; see lerobot_check.py for what is asserted there."""
    for number in range(3):
        truth = episode(number)
        np.savez(
            tmp_path / f"truth{number}.npz",
            image=pictures(number), shade=shade(number), action=truth.action, state=truth.qpos, task=truth.instruction,
        )  # fmt: skip
    script = Path(__file__).with_name("lerobot_check.py")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache"), "PYTHONPATH": ""}
    subprocess.run([str(PYTHON), str(script), str(exported), str(tmp_path)], check=True, env=environment)
    for name in ("images", "videos"):  # what LeRobotDataset.create, add_frame and save_episode wrote
        found = list(lerobot.read(tmp_path / name, 0, DECLARED))
        assert len(found) == 3
        for number, trajectory in enumerate(found):
            equal_but_for_video(trajectory, number, name)
