"""Demonstrations from elsewhere: conventions by hand, each format, folders of several sources, and what is refused."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.test_demos import episode

from vlapost import cli, collect_demos, config, export_demos, import_demos, stages
from vlapost import pretrain as pretrain_command
from vlapost.build import build_actor, demo_feed
from vlapost.config import UserError
from vlapost.contracts import Actor, Metrics, Observation, Step
from vlapost.exchange import lerobot, maniskill, npz, rlds
from vlapost.exchange.folder import claim, forget, imported, read_sources, shares
from vlapost.exchange.rollouts import HOPELESS, length, roll_out
from vlapost.exchange.shards import episodes
from vlapost.exchange.tfrecord import parse, records
from vlapost.exchange.trajectory import Trajectory, to_ours
from vlapost.experience.demos import DemoDataset
from vlapost.experience.shards import (
    VERSION,
    DemoMeta,
    ShardFile,
    encode_image,
    encode_labels,
    list_shards,
    write_shard,
)
from vlapost.policies.load import load_policy

RLDS = Path(__file__).parent / "fixtures/rlds/tiny_bridge/1.0.0"  # written by tensorflow_datasets, see make.py there
SIZE = (24, 32)  # of imported pictures
SMALL = "env.image_size=[24,32]"


def declared(*words: str) -> config.ExchangeConfig:
    return config.load("base", [f"exchange.{word}" for word in words]).exchange


# ---- conventions


def about(axis: int, angle: float) -> NDArray[np.float64]:
    """The matrix of a turn about x, y or z."""
    c, s = np.cos(angle), np.sin(angle)
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def ours(action: NDArray[np.floating]) -> NDArray[np.float64]:
    """The rotation of an action as the controller reads it: R = Rx Ry Rz."""
    return about(0, action[3]) @ about(1, action[4]) @ about(2, action[5])


def converted(numbers: Sequence[float], *words: str) -> NDArray[np.float32]:
    return to_ours(np.array([numbers], np.float32), declared(*words), "a test")[0]


def test_our_own_conventions_change_nothing() -> None:
    numbers = [0.01, -0.02, 0.03, 0.3, -0.2, 0.1, -1]
    np.testing.assert_allclose(converted(numbers), numbers, atol=1e-7)


def test_extrinsic_angles_and_axis_angles_become_intrinsic_ones() -> None:
    a, b, c = 0.7, -0.4, 0.5
    extrinsic = converted([0, 0, 0, a, b, c, 1], "rotation=xyz")
    np.testing.assert_allclose(ours(extrinsic), about(2, c) @ about(1, b) @ about(0, a), atol=1e-6)
    assert abs(extrinsic[3] - a) > 0.05  # another set of numbers
    one_axis = converted([0, 0, 0, 0, 0.6, 0, 1], "rotation=axis_angle")
    np.testing.assert_allclose(ours(one_axis), about(1, 0.6), atol=1e-6)
    x, y, z = 0.4, -0.3, 0.6
    skew = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    general = converted([0, 0, 0, x, y, z, 1], "rotation=axis_angle")
    np.testing.assert_allclose(ours(general), torch.matrix_exp(skew).numpy(), atol=1e-6)


def test_units_and_another_base_frame() -> None:
    """Centimetres and degrees of a robot whose x axis is our y axis."""
    words = ("metres=0.01", "radians=0.017453292", "turn=90")
    action = converted([2, 0, 5, 30, 0, 0, 1], *words)
    np.testing.assert_allclose(action[:3], [0, 0.02, 0.05], atol=1e-7)
    np.testing.assert_allclose(ours(action), about(1, np.pi / 6), atol=1e-6)


def test_grippers_are_open_or_closed() -> None:
    action = np.zeros((4, 7))
    action[:, 6] = [1, 0.6, 0.4, 0]
    assert to_ours(action, declared("gripper=[1,0]"), "it")[:, 6].tolist() == [1, 1, -1, -1]
    assert to_ours(action, declared("gripper=[0,1]"), "it")[:, 6].tolist() == [-1, -1, 1, 1]
    action[0, 6] = -1
    with pytest.raises(
        UserError, match=r"gripper values of it go from -1 to 0.6, but exchange.gripper says 1 for open"
    ):
        to_ours(action, declared("gripper=[1,0]"), "it")


@pytest.mark.parametrize("word", ["rotation=zyx", "gripper=[1]", "gripper=[1,1]", "metres=0", "episodes=-1"])
def test_declarations_that_make_no_sense(word: str) -> None:
    with pytest.raises(UserError, match=f"exchange.{word.split('=')[0]} is"):
        declared(word)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"action": np.zeros((3, 6))}, "An action of it has 6 numbers; 7 are needed"),
        ({"action": np.full((3, 7), np.nan)}, "An action of it is not a finite number"),
        ({"action": np.zeros((2, 7))}, "it holds 3 pictures for 2 actions"),
        ({"action": np.zeros((0, 7))}, "it holds no step"),
        ({"success": np.zeros(2, bool)}, "it holds 3 pictures for 3 actions"),
        ({"image": [np.zeros((8, 8, 3), np.uint8)] * 2 + [np.zeros((8, 9, 3), np.uint8)]}, "sizes 8x8 and 8x9; one"),
        ({"image": [np.zeros((8, 8), np.uint8)] * 3}, "are not .height, width, 3. of uint8"),
        ({"image": [np.zeros((8, 8, 3))] * 3}, "are not .height, width, 3. of uint8"),
    ],
)
def test_what_no_source_may_give(change: dict, match: str) -> None:
    good = {"where": "it", "image": [np.zeros((8, 8, 3), np.uint8)] * 3, "action": np.zeros((3, 7)), "instruction": ""}
    Trajectory(**good)
    with pytest.raises(UserError, match=match):
        Trajectory(**{**good, **change})


# ---- RLDS


def action(number: int) -> NDArray[np.float32]:
    """What tiny_bridge holds."""
    values = np.random.default_rng(number).normal(0, 0.03, (4 + number, 7)).astype(np.float32)
    values[:, 6] = np.arange(4 + number) < 2
    return values


def picture(number: int, step: int) -> NDArray[np.int64]:
    """What tiny_bridge holds, before JPEG."""
    columns = np.stack([np.arange(32) * 8, np.full(32, 50 * number + 6 * step), np.zeros(32, int)], axis=-1)
    return np.broadcast_to(columns, (24, 32, 3))


@pytest.mark.parametrize(("split", "numbers"), [("train", [0, 1, 2]), ("val", [3, 4])])
def test_a_data_set_of_tensorflow_is_read(split: str, numbers: list[int]) -> None:
    found = list(rlds.read(RLDS, 0, declared(f"split={split}")))
    assert len(found) == len(numbers)
    for number, trajectory in zip(numbers, found):
        np.testing.assert_array_equal(trajectory.action, action(number))
        assert trajectory.instruction == f"Put thing {number} on plate." and trajectory.success is None
        for step, image in enumerate(trajectory.image):
            assert np.abs(image.astype(int) - picture(number, step)).mean() < 3, (number, step)
    later = list(rlds.read(RLDS, 1, declared(f"split={split}")))
    assert [t.where for t in later] == [t.where for t in found[1:]]


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number % 128 + 128]) + varint(number // 128)


def sub(number: int, data: bytes) -> bytes:
    """A length-delimited field of a protobuf message."""
    return varint(8 * number + 2) + varint(len(data)) + data


def serialised(features: dict[str, Sequence[bytes] | NDArray[np.floating] | list[int]]) -> bytes:
    """A tf.train.Example, byte by byte (protobuf.dev, encoding)."""
    entries = b""
    for name, values in features.items():
        if isinstance(values, np.ndarray):
            feature = sub(2, sub(1, values.astype("<f4").tobytes()))
        elif isinstance(values[0], bytes):
            feature = sub(1, b"".join(sub(1, value) for value in values if isinstance(value, bytes)))
        else:
            feature = sub(3, sub(1, b"".join(varint(value) for value in values if isinstance(value, int))))
        entries += sub(1, sub(1, name.encode()) + sub(2, feature))
    return sub(1, entries)


def masked(data: bytes) -> bytes:
    """CRC-32C bit by bit (RFC 3720, appendix B.4), masked as TFRecord stores it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)


def framed(data: Iterable[bytes]) -> bytes:
    heads = ((struct.pack("<Q", len(record)), record) for record in data)
    return b"".join(head + masked(head) + record + masked(record) for head, record in heads)


def test_records_written_bit_by_bit_are_read(tmp_path: Path) -> None:
    assert masked(b"123456789") == struct.pack("<I", ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) % 2**32)
    floats = np.array([0.5, -2.0], np.float32)
    example = serialised({"a/b": [b"x", b"yz" * 200], "c": floats, "d": [3, 300]})
    (tmp_path / "r").write_bytes(framed([example, b"second"]))
    one, two = records(tmp_path / "r")
    assert parse(one, "r") == {"a/b": [b"x", b"yz" * 200], "c": [0.5, -2.0], "d": [3, 300]} and two == b"second"


def example_of(steps: int, **changes: object) -> bytes:
    image = [cv2.imencode(".png", np.full((24, 32, 3), t, np.uint8))[1].tobytes() for t in range(steps)]
    content = {
        "steps/observation/image": image,
        "steps/action": np.tile(np.array([0.01, 0, 0, 0, 0, 0, 1], np.float32), steps),
        "steps/language_instruction": [b"put thing on plate"] * steps,
    }
    content |= changes  # type: ignore[arg-type]
    return serialised({name: values for name, values in content.items() if values is not None})


def test_what_is_refused_of_rlds(tmp_path: Path) -> None:
    copy, name = tmp_path / "copy", "tiny_bridge-train.tfrecord-00000-of-00002"
    file, info, features = copy / name, copy / "dataset_info.json", copy / "features.json"
    shutil.copytree(RLDS, copy)

    def refused(match: str, *words: str) -> None:
        with pytest.raises(UserError, match=match) as error:
            list(rlds.read(copy, 0, declared(*words)))
        assert str(error.value).count("\n") == 0
        shutil.rmtree(copy)
        shutil.copytree(RLDS, copy)

    info.unlink()
    refused("dataset_info.json is missing; SOURCE must be a version folder of TensorFlow Datasets")
    features.unlink()
    refused("features.json is missing")
    file.unlink()
    refused(f"{name} is missing; get the whole split, 2 files")
    refused("exchange.split is 'test', but .* has: train, val", "split=test")
    refused("exchange.camera is 'wrist', but .* has: image", "camera=wrist")
    for cut in (-1, -5, 20, 5):
        file.write_bytes(file.read_bytes()[:cut])
        refused(f"{name} ends within its record {2 if cut < 0 else 1}, so it is truncated")
    for place in (0, 9, 500, -1):
        data = bytearray(file.read_bytes())
        data[place] ^= 4
        file.write_bytes(data)
        refused(f"{name} is damaged: the checksum of its record {1 if place >= 0 else 2} is wrong")
    file.write_bytes(framed([example_of(3)]))
    refused(f"{name} holds 1 records, dataset_info.json says 2")
    file.write_bytes(framed([example_of(3, **{"steps/action": None})] * 2))
    refused("has no steps/action; it has: steps/language_instruction, steps/observation/image")
    file.write_bytes(framed([example_of(3, **{"steps/action": np.zeros(18, np.float32)})] * 2))
    refused("holds 18 numbers in steps/action for 3 pictures")
    file.write_bytes(framed([example_of(1, **{"steps/observation/image": [b"no picture"]})] * 2))
    refused("A picture of record 1 of .* cannot be decoded")
    mixed = [cv2.imencode(".png", np.zeros((24, 32 + t, 3), np.uint8))[1].tobytes() for t in range(3)]
    file.write_bytes(framed([example_of(3, **{"steps/observation/image": mixed})] * 2))
    refused("mixes pictures of the sizes 24x32 and 24x33 and 24x34")
    features.write_text(features.read_text().replace('"7"', '"8"'))
    refused(r"features.json gives steps/action \[8\] as an action; 7 numbers are needed: translation, rotation")
    features.write_text(features.read_text().replace('"encoding": "none"', '"encoding": "zlib"'))
    refused("steps/action of .* has the encoding zlib; only plain numbers are read")
    features.write_text(features.read_text().replace('"action"', '"world_vector"'))
    refused("features.json has no steps/action; it has: .*steps/world_vector")
    info.write_text(info.read_text().replace('"tfrecord"', '"array_record"'))
    refused("is stored as array_record; only tfrecord is read")


def test_actions_of_open_x_that_have_parts(tmp_path: Path) -> None:
    """As Bridge in Open-X: translation, rotation and an open gripper, beside what ends an episode."""
    copy, numbers = tmp_path / "copy", np.arange(18, dtype=np.float32) / 100
    shutil.copytree(RLDS, copy)
    tree = json.loads((copy / "features.json").read_text())
    step = tree["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    widths = {"open_gripper": [], "rotation_delta": ["3"], "terminate_episode": [], "world_vector": ["3"]}
    parts = {key: {"tensor": {"shape": {"dimensions": shape}, "encoding": "none"}} for key, shape in widths.items()}
    step["action"] = {"featuresDict": {"features": parts}}
    (copy / "features.json").write_text(json.dumps(tree))
    of_steps = {"steps/action": None, "steps/action/open_gripper": [1, 1, 0]}
    of_steps |= {"steps/action/world_vector": numbers[:9], "steps/action/rotation_delta": numbers[9:]}
    for index, count in ((0, 2), (1, 1)):
        file = copy / f"tiny_bridge-train.tfrecord-0000{index}-of-00002"
        file.write_bytes(framed([example_of(3, **of_steps)] * count))
    words = "action=[world_vector,rotation_delta,open_gripper]"
    found = list(rlds.read(copy, 0, declared(words)))
    assert len(found) == 3
    expected = [[0.00, 0.01, 0.02, 0.09, 0.10, 0.11, 1], [0.03, 0.04, 0.05, 0.12, 0.13, 0.14, 1]]
    np.testing.assert_allclose(found[2].action[:2], expected, atol=1e-7)
    np.testing.assert_allclose(found[2].action[2], [0.06, 0.07, 0.08, 0.15, 0.16, 0.17, 0], atol=1e-7)
    every = "open_gripper, rotation_delta, terminate_episode, world_vector"
    for word, match in (
        ("action=[]", f"has no steps/action; name three of its parts in exchange.action: {every}"),
        ("action=[velocity]", f"has no steps/action/velocity; name three of its parts in exchange.action: {every}"),
        (
            "action=[world_vector,open_gripper]",
            r"gives steps/action/world_vector \[3\], steps/action/open_gripper \[1\]",
        ),
    ):
        with pytest.raises(UserError, match=match):
            list(rlds.read(copy, 0, declared(word)))
    (copy / "tiny_bridge-train.tfrecord-00000-of-00002").write_bytes(
        framed([example_of(3, **of_steps | {"steps/action/open_gripper": [1, 0]})] * 2)
    )
    with pytest.raises(UserError, match="holds 2 numbers in steps/action/open_gripper for 3 pictures"):
        list(rlds.read(copy, 0, declared(words)))


def test_features_without_values_are_not_there(tmp_path: Path) -> None:
    """A feature whose list is of no kind is what TensorFlow writes for a missing one."""
    nameless = sub(1, sub(1, sub(1, b"c") + sub(2, b"")))
    assert parse(serialised({"a": [b"x"]}) + nameless, "it") == {"a": [b"x"]}
    with pytest.raises(UserError, match=r"record 3 is no tf\.train\.Example"):
        parse(b"\xff" * 8, "record 3")


def test_splits_without_records_may_stand_beside_others(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(RLDS, copy)
    info = json.loads((copy / "dataset_info.json").read_text())
    info["splits"].append({"name": "empty"})
    (copy / "dataset_info.json").write_text(json.dumps(info))
    assert len(list(rlds.read(copy, 0, declared()))) == 3
    assert list(rlds.read(copy, 0, declared("split=empty"))) == []
    for name in ("../tiny_bridge", "x/../../y", str(RLDS / "tiny_bridge")):
        (copy / "dataset_info.json").write_text(json.dumps(info | {"name": name}))
        with pytest.raises(UserError, match=f"names the files '{name}-train', which leads out of the data set"):
            list(rlds.read(copy, 0, declared()))
    for key in ("splits", "name"):
        (copy / "dataset_info.json").write_text(json.dumps({k: v for k, v in info.items() if k != key}))
        with pytest.raises(UserError, match=f"dataset_info.json has no '{key}'; it has: "):
            list(rlds.read(copy, 0, declared()))


def test_several_instructions_are_none(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(RLDS, copy)
    several = {"steps/language_instruction": [b"one", b"two", b"two"]}
    first, second = example_of(3, **several), example_of(3)
    (copy / "tiny_bridge-train.tfrecord-00000-of-00002").write_bytes(framed([first, second]))
    assert [t.instruction for t in rlds.read(copy, 0, declared())][:2] == ["", "put thing on plate"]


# ---- npz and ManiSkill


def write_npz(folder: Path, number: int, **changes: object) -> Path:
    """Episode `number` of 3 + number steps; the pictures are of one grey each."""
    steps = 3 + number
    folder.mkdir(exist_ok=True)
    moves = np.random.default_rng(number).normal(0, 0.02, (steps, 7)).astype(np.float32)
    moves[:, 6] = 1
    content = {
        "image": np.full((steps, 48, 64, 3), 10 * number, np.uint8)
        + np.arange(steps, dtype=np.uint8)[:, None, None, None],
        "action": moves,
        "instruction": f"Put  thing {number}\non plate.",
        "success": True,
        **changes,
    }
    path = folder / f"{number:04d}.npz"
    np.savez(path, **{key: value for key, value in content.items() if value is not None})  # type: ignore[arg-type]
    return path


def test_npz_episodes(tmp_path: Path) -> None:
    write_npz(tmp_path, 0)
    write_npz(tmp_path, 1, success=None)
    write_npz(tmp_path, 2, success=np.arange(5) > 2)
    zero, one, two = npz.read(tmp_path, 0, declared())
    assert zero.success is not None and zero.success.tolist() == [False, False, True]
    assert one.success is None and one.action.shape == (4, 7) and one.image[2][0, 0].tolist() == [12] * 3
    assert two.success is not None and two.success.tolist() == [False, False, False, True, True]


def test_what_is_refused_of_npz(tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match) as error:
            list(npz.read(tmp_path, 0, declared()))
        assert str(error.value).count("\n") == 0

    refused("holds no .npz files; SOURCE must be a folder of them")
    path = write_npz(tmp_path, 0, action=None)
    refused("0000.npz has no 'action'; it has: image, instruction, success")
    write_npz(tmp_path, 0, instruction=np.array(["a", None], object))
    refused("0000.npz is damaged or holds Python objects")
    for key in ("action", "image"):
        write_npz(tmp_path, 0, **{key: np.zeros(())})
        refused(rf"The '{key}' of .*0000.npz is a single value")
    write_npz(tmp_path, 0, action=np.zeros((0, 7)), image=np.zeros((0, 4, 4, 3), np.uint8))
    refused("0000.npz holds no step")
    write_npz(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:-200])
    refused("0000.npz is damaged")


def write_h5(path: Path, pictures: bool = True, width: int = 7) -> None:
    """Two trajectories in RecordEpisode's layout; the second one failed."""
    with h5py.File(path, "w") as file:
        for number, steps in enumerate((3, 4)):
            group = file.create_group(f"traj_{number}")
            group["actions"] = np.full((steps, width), 0.1 * number, np.float32)
            group["success"] = np.arange(steps) == (steps - 1 if number == 0 else 0)
            if pictures:
                group["obs/sensor_data/base_camera/rgb"] = np.zeros((steps + 1, 8, 8, 3), np.uint8)
    entries = [{"episode_id": 0, "reset_kwargs": {"options": {"episode_id": [77]}}}, {"episode_id": 1}]
    path.with_suffix(".json").write_text(json.dumps({"episodes": entries}))


def test_maniskill_trajectories(tmp_path: Path) -> None:
    write_h5(tmp_path / "a.h5")
    one, two = maniskill.read(tmp_path / "a.h5", 0, declared())
    assert (one.episode_id, two.episode_id) == (77, -1) and len(one.image) == 3 and two.instruction == ""
    assert one.success is not None and one.success[-1] and two.success is not None and not two.success[-1]


def test_what_is_refused_of_maniskill(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"

    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match) as error:
            list(maniskill.read(path, 0, declared()))
        assert str(error.value).count("\n") == 0
        write_h5(path)

    refused("a.h5 is not there or no .h5 file")
    path.with_suffix(".json").unlink()
    refused("a.json is missing; SOURCE must be the .h5 file")
    path.write_bytes(path.read_bytes()[:1000])
    refused("a.h5 is damaged")
    write_h5(path, pictures=False)
    refused("traj_0 of .* holds no pictures; add them with: python -m mani_skill.trajectory.replay_trajectory")
    write_h5(path, width=8)
    refused("An action of traj_0 of .* has 8 numbers; 7 are needed")
    path.with_suffix(".json").write_text('{"episodes": [{"episode_id": 5}]}')
    refused("has no traj_5, which its .json file lists")
    for text, match in {
        "{}": "a.json has no 'episodes'; it has: nothing",
        "[]": "a.json is no JSON object with keys",
        '{"episodes": 3}': "The episodes of .*a.json are no list",
        '{"episodes": [{"seed": 1}]}': "An episode of the .json file of .* has no 'episode_id'; it has: seed",
    }.items():
        path.with_suffix(".json").write_text(text)
        refused(match)
    with h5py.File(path, "a") as file:
        del file["traj_0/actions"]
    refused("traj_0 of .* has no actions")
    path.with_suffix(".json").write_text('{"episodes": [{"episode_id": 0, "reset_kwargs": null}]}')
    (only,) = maniskill.read(path, 0, declared())
    assert only.episode_id == -1


@pytest.mark.parametrize("what", ["group", "link", "picture", "soft", "external", "virtual"])
def test_a_file_that_leads_to_others_is_refused(tmp_path: Path, what: str) -> None:
    """Each would bring numbers of another file of this machine in."""
    path, other = tmp_path / "a.h5", tmp_path / "other.h5"
    write_h5(path)
    write_h5(other)
    (tmp_path / "raw").write_bytes(bytes(84))
    with h5py.File(path, "a") as file:
        link = h5py.ExternalLink(str(other), "/traj_0/actions")
        if what == "group":
            del file["traj_0"]
            file["traj_0"] = h5py.ExternalLink(str(other), "/traj_0")
        elif what == "picture":
            del file["traj_0/obs/sensor_data/base_camera"]
            file["traj_0/obs/sensor_data/base_camera"] = h5py.ExternalLink(
                str(other), "/traj_0/obs/sensor_data/base_camera"
            )
        else:
            del file["traj_0/actions"]
        if what == "link":
            file["traj_0/actions"] = link
        elif what == "soft":
            file["elsewhere"] = link
            file["traj_0/actions"] = h5py.SoftLink("/elsewhere")
        elif what == "external":
            file.create_dataset("traj_0/actions", (3, 7), "f4", external=[(str(tmp_path / "raw"), 0, 84)])
        elif what == "virtual":
            layout = h5py.VirtualLayout((3, 7), "f4")
            layout[:] = h5py.VirtualSource(str(other), "traj_0/actions", (3, 7))
            file.create_virtual_dataset("traj_0/actions", layout)
    why = "is kept in other files" if what in ("external", "virtual") else "is a link"
    with pytest.raises(UserError, match=f"in traj_0 of .*a.h5 {why}; get a file that holds everything itself"):
        list(maniskill.read(path, 0, declared()))


# ---- folders of several sources


def planner_folder(folder: Path) -> Path:
    """Two of the planner's demonstrations of five steps, one attempt between them failed."""
    meta = DemoMeta(VERSION, "PutOnPlateInScene25Main-v3", "train", "procedural", (24, 32), "minimal", 500, 0, 0.0)
    folder.mkdir()
    write_shard(folder, meta, 0, 3, [episode(0), episode(2)], [])
    return folder


def import_all(folder: Path, *words: str) -> str:
    with cli.console.capture() as shown:
        import_demos.run([f"demos.path={folder}", SMALL, *words])
    return shown.get()


def test_an_import_that_has_stored_nothing_yet_is_not_taken_for_an_empty_folder(tmp_path: Path) -> None:
    """Killed before its first shard: the planner must not fill the folder."""
    write_npz(tmp_path / "theirs", 0)
    claim(tmp_path, "npz", str(tmp_path / "theirs"), {}, 0)
    with pytest.raises(UserError, match=r"import of .*theirs into .* was interrupted before anything was stored"):
        imported(tmp_path, 140, SIZE, False)
    (entry,) = read_sources(tmp_path)
    forget(tmp_path, entry)  # it gave nothing: the folder is as any other
    assert imported(tmp_path, 140, SIZE, False) is None


def test_episodes_of_which_a_filter_keeps_nothing(tmp_path: Path) -> None:
    """They are left out; if there are no others, training says so."""
    for number, move in enumerate((0.001, 0.5)):
        write_npz(tmp_path / "theirs", number, action=np.array([[move, 0, 0, 0, 0, 0, 1]] * (3 + number)))
    into = tmp_path / "into"
    import_all(into, "from=npz", f"source={tmp_path / 'theirs'}", "exchange.metres=0.1")
    demos = config.load("base", ["demos.filter=drop"]).demos
    assert [len(e.action) for e in episodes(into, demos)] == [4]
    assert len(DemoDataset(into, "drop", 0.01, 0.06)) == 4
    with pytest.raises(UserError, match=r"No step of the 1 demonstrations in .*into is left by demos.filter=drop"):
        DemoDataset(into, "drop", 0.01, 0.06, 1)


def test_an_import_writes_the_ranges_of_its_actions(tmp_path: Path) -> None:
    for number in range(2):
        write_npz(tmp_path / "given", number)
    import_all(tmp_path / "theirs", "from=npz", f"source={tmp_path / 'given'}", "demos.filter=none")
    entry = json.loads((tmp_path / "theirs/dataset_statistics.json").read_text())["theirs"]
    actions = DemoDataset(tmp_path / "theirs", "none", 0.01, 0.06).actions.double().numpy()
    np.testing.assert_allclose(entry["action"]["q99"], np.quantile(actions, 0.99, axis=0))
    assert (entry["num_trajectories"], entry["num_transitions"]) == (2, len(actions))


def test_two_sources_in_one_folder(tmp_path: Path) -> None:
    """As the study's warm-up set: some of the planner's, then some of another policy's."""
    theirs, mixed = tmp_path / "theirs", tmp_path / "mixed"
    ours = planner_folder(tmp_path / "ours")
    for number in range(4):
        write_npz(theirs, number, success=number not in (1, 3))
    import_all(mixed, "from=vlapost", f"source={ours}", "exchange.episodes=1", "demos.filter=none")
    words = ("from=npz", f"source={theirs}")
    import_all(mixed, *words)
    given = [(source.format, share.episodes, dict(share.left_out)) for source, share in shares(mixed)]
    assert given == [("vlapost", 1, {}), ("npz", 2, {"not successful": 2})]
    data = DemoDataset(mixed, "none", 0.01, 0.06)
    assert data.episodes == 3 and not data.meta.grounded and data.meta.image_size == (24, 32)
    first = DemoDataset(ours, "none", 0.01, 0.06, 1)
    torch.testing.assert_close(data.actions[:5], first.actions, atol=1e-7, rtol=0)
    assert torch.equal(data.observation(torch.arange(5))[0], first.observation(torch.arange(5))[0])
    images, sentences = data.observation(torch.tensor([5, 8, 12]))
    assert sentences == ("Put thing 0 on plate", "Put thing 2 on plate", "Put thing 2 on plate")
    assert images.shape == (3, 24, 32, 3) and images[:, 5, 5, 0].tolist() == [0, 20, 24]
    with np.load(theirs / "0002.npz") as file:
        np.testing.assert_allclose(data.actions[8:].numpy(), file["action"], atol=1e-6)
    before = sorted(path.name for path in mixed.iterdir())
    assert "Imported in" in import_all(mixed, *words)  # it is there; nothing is added
    assert sorted(path.name for path in mixed.iterdir()) == before
    with pytest.raises(UserError, match=r"is in .*mixed already, with another episodes; delete that folder"):
        import_all(mixed, *words, "exchange.episodes=1")
    with pytest.raises(UserError, match=r"is in .*mixed already, with another metres and gripper"):
        import_all(mixed, *words, "exchange.metres=0.01", "exchange.gripper=[1,0]")
    with pytest.raises(UserError, match=r"have 24x32 pixels, env.image_size is \[32, 32\]"):
        import_all(mixed, *words, "env.image_size=[32,32]")


def test_an_import_goes_on_once_its_source_has_more(tmp_path: Path) -> None:
    theirs, folder = tmp_path / "theirs", tmp_path / "folder"
    words = ("from=npz", f"source={theirs}", "exchange.episodes=3")
    write_npz(theirs, 0)
    said = import_all(folder, *words)
    assert "gave 1 of exchange.episodes=3" in " ".join(said.split())
    write_npz(theirs, 1)
    assert "gave 2 of exchange.episodes=3" in " ".join(import_all(folder, *words).split())
    other = ("from=npz", f"source={write_npz(tmp_path / 'other', 0).parent}")
    import_all(folder, *other)
    write_npz(theirs, 2)
    import_all(folder, *words)  # another import stands behind it
    assert [share.episodes for _, share in shares(folder)] == [2, 1]
    alone = tmp_path / "alone"
    for number in range(3, 5):
        import_all(alone, *words)
        write_npz(theirs, number)
    assert [share.episodes for _, share in shares(alone)] == [3]
    write_npz(tmp_path / "other", 1)
    import_all(folder, *other)  # all that were there were wanted
    assert [share.episodes for _, share in shares(folder)] == [2, 1]


def test_an_import_that_stopped_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_demos, "SHARD", 2)
    theirs = tmp_path / "theirs"
    for number in range(5):
        write_npz(theirs, number)
    words = ("from=npz", f"source={theirs}")
    import_all(tmp_path / "whole", *words)
    write_npz(theirs, 3, action=None)
    with pytest.raises(UserError, match=r"0003.npz has no 'action'"):
        import_all(tmp_path / "stopped", *words)
    assert [source.finished for source in read_sources(tmp_path / "stopped")] == [False]
    assert DemoDataset(tmp_path / "stopped", "none", 0.01, 0.06).episodes == 3
    write_npz(theirs, 3)
    import_all(tmp_path / "stopped", *words)
    whole, stopped = (DemoDataset(tmp_path / name, "none", 0.01, 0.06) for name in ("whole", "stopped"))
    assert whole.episodes == stopped.episodes == 5 and torch.equal(whole.actions, stopped.actions)
    assert [source.finished for source in read_sources(tmp_path / "stopped")] == [True]


def test_what_gives_nothing_leaves_nothing(tmp_path: Path) -> None:
    theirs, folder = tmp_path / "theirs", tmp_path / "folder"
    write_npz(theirs, 0, success=False)
    write_npz(theirs, 1, instruction=" ")
    words = ("from=npz", f"source={theirs}")
    with pytest.raises(UserError, match=r"gave no episode to learn from \(1 not successful, 1 no single instruction\)"):
        import_all(folder, *words)
    assert read_sources(folder) == [] and not list(folder.glob("shard-*"))
    import_all(folder, *words, "exchange.instruction='put it there'")  # of the one that succeeded
    data = DemoDataset(folder, "none", 0.01, 0.06)
    assert data.episodes == 1 and data.observation(torch.tensor([0]))[1] == ("put it there",)


def test_pictures_of_one_import_have_one_size(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    write_npz(theirs, 0)
    write_npz(theirs, 1, image=np.zeros((4, 40, 64, 3), np.uint8))
    with pytest.raises(UserError, match=r"0001.npz have 40x64 pixels, those before it 48x64"):
        import_all(tmp_path / "folder", "from=npz", f"source={theirs}")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["from=hdf5", "source=a"], "FROM is 'hdf5' .* FROM must be lerobot, rlds, maniskill, npz, vlapost or actor"),
        (["from=npz"], "SOURCE is ''"),
        (["from=actor", "source=planner"], "exchange.episodes is 0, but an actor has no end"),
        (["from=npz", "source=a", "exchange.meter=1"], "did you mean 'exchange.metres'"),
    ],
)
def test_commands_that_make_no_sense(tmp_path: Path, words: list[str], match: str) -> None:
    with pytest.raises(UserError, match=match):
        import_all(tmp_path, *words)


def test_imports_and_the_planners_demonstrations_stay_apart(tmp_path: Path) -> None:
    ours, theirs, folder = planner_folder(tmp_path / "ours"), tmp_path / "theirs", tmp_path / "folder"
    write_npz(theirs, 0)
    with pytest.raises(UserError, match="ours holds the planner's demonstrations of PutOnPlateInScene25Main-v3"):
        import_all(ours, "from=npz", f"source={theirs}")
    import_all(folder, "from=npz", f"source={theirs}")
    wanted = [f"demos.path={folder}", "demos.episodes=1", SMALL]
    collect_demos.collect(config.load("base", wanted)).close()  # all is there, nothing is simulated
    with pytest.raises(UserError, match="holds 1 imported demonstrations, 2 are wanted; import more"):
        collect_demos.collect(config.load("base", [*wanted, "demos.episodes=2"]))
    with pytest.raises(UserError, match=r"have 24x32 pixels, env.image_size is \[128, 128\]; give the same, or import"):
        collect_demos.collect(config.load("base", wanted[:2]))
    with pytest.raises(UserError, match=r"have 24x32 pixels, env.image_size is \[128, 128\]"):
        stages.plan("ppo", ["run=never", *wanted[:2]]).begin()  # before anything is claimed or evaluated
    assert not (config.ROOT / "lightning_logs/never").exists()
    with pytest.raises(UserError, match="imported demonstrations, without the positions and labels that pretraining"):
        cfg = config.load("pretrain", [f"demos.path={folder}", "demos.episodes=1"])
        pretrain_command.pretrain(cfg, tmp_path / "untrained", tmp_path / "seeing", frozen=False)


def test_the_first_of_a_folder_are_those_of_training(tmp_path: Path) -> None:
    """Exports and imports refuse, or leave out, what training does."""
    meta = DemoMeta(VERSION, "PutOnPlateInScene25Main-v3", "train", "procedural", (24, 32), "minimal", 500, 0, 0.0)
    folder, tries = tmp_path / "ours", iter(range(100))
    folder.mkdir()
    for begin in (0, 2, 4):
        write_shard(folder, meta, begin, begin + 2, [episode(begin), episode(begin + 1)], [])
    middle = list_shards(folder)[1].path
    sound = middle.read_bytes()

    def sent(*words: str) -> Path:
        out = tmp_path / f"out{next(tries)}"
        with cli.console.capture() as said:
            export_demos.run([f"out={out}", f"demos.path={folder}", "demos.episodes=3", *words])
        assert said.get().count("is damaged; its demonstrations are left out") == ("demos.skip_corrupt=true" in words)
        return out

    def fetched(*words: str) -> Path:
        out = tmp_path / f"in{next(tries)}"
        said = import_all(out, "from=vlapost", f"source={folder}", "exchange.episodes=3", *words)
        assert said.count("is damaged; its demonstrations are left out") == ("demos.skip_corrupt=true" in words)
        return out

    def refused(match: str) -> None:
        for command in (sent, fetched):
            with pytest.raises(UserError, match=match):
                command()

    middle.unlink()
    refused("lacks the shard of attempts 2 to 3; run 'make demos' again")
    middle.write_bytes(sound[:-1])
    refused(f"{middle.name} is damaged; delete it")
    trained = DemoDataset(folder, "merge", 0.01, 0.06, 3, skip_corrupt=True)
    for data in (
        [t.action for t in lerobot.read(sent("demos.skip_corrupt=true"), 0, declared())],
        [DemoDataset(fetched("demos.skip_corrupt=true"), "none", 0, 0).actions.numpy()],
    ):
        np.testing.assert_allclose(np.concatenate(data), trained.actions.numpy(), atol=1e-7)
    middle.unlink()
    write_shard(folder, replace(meta, sim_freq=200), 2, 4, [episode(2)], [])
    refused("was collected with sim_freq=200, not 500")


def test_a_damaged_shard_of_an_import_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_demos, "SHARD", 2)
    theirs, folder, skip = tmp_path / "theirs", tmp_path / "folder", "demos.skip_corrupt=true"
    for number in range(6):
        write_npz(theirs, number)
    import_all(folder, "from=npz", f"source={theirs}")
    middle = list_shards(folder)[1]
    middle.path.write_bytes(middle.path.read_bytes()[:-1])

    def collected(episodes: int, *words: str) -> tuple[int, list[ShardFile]]:
        words = (f"demos.path={folder}", f"demos.episodes={episodes}", SMALL, *words)
        with closing(collect_demos.collect(config.load("base", words))) as writer:
            return writer.episodes, writer.skipped

    more = ("from=npz", f"source={theirs}", "exchange.split=again")
    for command in (lambda: collected(4), lambda: import_all(folder, *more)):
        with pytest.raises(UserError, match=f"{middle.path.name} is damaged"):
            command()
    assert collected(4, skip) == (4, [middle])
    with pytest.raises(UserError, match="holds 4 imported demonstrations, 5 are wanted"):
        collected(5, skip)
    import_all(folder, *more, skip)
    given = [(share.episodes, dict(share.left_out)) for _, share in shares(folder, skip_corrupt=True)]
    assert given == [(4, {"in a damaged shard": 2}), (6, {})] and collected(10, skip) == (10, [middle])
    list_shards(folder)[3].path.unlink()
    with pytest.raises(UserError, match="lacks the shard of attempts 6 to 7; delete the folder and import again"):
        collected(4, skip)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "sources.json is damaged"),
        ("3", "sources.json is damaged"),
        ('{"format": 1}', "sources.json is damaged"),
        ('[{"format": "npz"}]', "sources.json is damaged"),
        ("[]", "sources.json (is missing or names nothing|does not say whose)"),
        (None, "sources.json (is missing or names nothing|back if it was lost)"),
    ],
)
def test_folders_whose_sources_are_lost(tmp_path: Path, text: str | None, match: str) -> None:
    write_npz(tmp_path / "theirs", 0)
    words = ("from=npz", f"source={tmp_path / 'theirs'}")
    import_all(tmp_path / "folder", *words)
    sources = tmp_path / "folder/sources.json"
    sources.unlink()
    if text is not None:
        sources.write_text(text)
    cfg = config.load("base", [f"demos.path={tmp_path / 'folder'}", "demos.episodes=1", SMALL])
    for command in (lambda: import_all(tmp_path / "folder", *words), lambda: collect_demos.collect(cfg)):
        with pytest.raises(UserError, match=match) as error:
            command()
        assert str(error.value).count("\n") == 0
    assert (sources.read_text() if sources.exists() else None) == text and len(list_shards(sources.parent)) == 1


def test_sft_learns_from_imported_demonstrations(tmp_path: Path, tiny: Path) -> None:
    write_npz(tmp_path / "theirs", 0)
    import_all(tmp_path / "folder", "from=npz", f"source={tmp_path / 'theirs'}")
    words = [f"demos.path={tmp_path / 'folder'}", "demos.episodes=1", f"policy.checkpoint={tiny}", SMALL]
    cfg = config.load("base", words)
    policy = load_policy(cfg.policy, "cpu", torch.float32)
    feed = demo_feed(cfg, policy)
    batch = feed.make(torch.arange(feed.size), None)
    assert batch.observation.instruction[0] == "Put thing 0 on plate"
    evaluation = policy.evaluate(policy.see(batch.observation), batch.action_tokens)
    assert evaluation.logprob.shape == (feed.size, 7) and bool(torch.isfinite(evaluation.logprob).all())


# ---- a policy's own episodes


def test_an_episode_is_cut_when_success_has_held() -> None:
    good, bad = [True], [False]
    assert length(np.array(bad * 3 + good * 6 + bad * 5)) == 9
    assert length(np.array(good * 5 + bad + good * 5)) == 11
    assert length(np.array(bad * 4)) == 4


class Scenes:
    """Two scenes of four steps in which odd episodes succeed at their last one."""

    num_envs, steps = 2, 4

    def reset(self, episode_ids: torch.Tensor) -> Observation:
        self.ids, self.done = episode_ids, 0
        return self.see()

    def see(self) -> Observation:
        image = self.ids.view(2, 1, 1, 1).expand(2, 8, 8, 3).to(torch.uint8) + self.done
        return Observation(image, tuple(f"put thing {i} on plate" for i in self.ids.tolist()))

    def step(self, action: torch.Tensor) -> Step:
        self.done += 1
        success = (self.ids % 2 == 1) & torch.tensor(self.done == 4)
        return Step(self.see(), torch.zeros(2), Metrics(success, success, success, success), self.done == 4)


class Counter(Actor):
    """Says the episode's number and how many actions it has taken since the start."""

    def start(self, env: object, episode_ids: Sequence[int], seed: int) -> None:
        self.ids, self.taken = torch.tensor(list(episode_ids)), 0

    def act(self, observation: Observation) -> torch.Tensor:
        self.taken += 1
        return torch.stack([self.ids.float(), *[torch.full((2,), float(self.taken))] * 6], 1)


def test_an_actors_episodes_are_trajectories() -> None:
    run = roll_out(Counter(), Scenes(), lambda attempt: 10 + attempt, 0, 0)  # type: ignore[arg-type]
    found = [next(run) for _ in range(4)]
    assert [t.episode_id for t in found] == [10, 11, 12, 13]
    assert [bool(t.success[-1]) for t in found if t.success is not None] == [False, True, False, True]
    three = found[3]
    assert three.action[:, 0].tolist() == [13] * 4 and three.action[:, 6].tolist() == [1, 2, 3, 4]
    assert [int(image[0, 0, 0]) for image in three.image] == [13, 14, 15, 16]  # before each action
    assert three.instruction == "put thing 13 on plate"


def test_an_actor_that_never_succeeds_ends() -> None:
    with pytest.raises(UserError, match=f"solved none of its first {HOPELESS} episodes"):
        list(roll_out(Counter(), Scenes(), lambda attempt: 2 * attempt, 0, 0))  # type: ignore[arg-type]


def test_an_actor_may_be_a_class() -> None:
    cfg = config.load("base", [f"evaluation.actor={__name__}:Counter"])
    assert isinstance(build_actor(cfg), Counter)


class Needy(Counter):
    """Cannot be made from its name alone."""

    def __init__(self, model: str) -> None:
        self.model = model


@pytest.mark.parametrize(
    ("name", "match"),
    [
        (f"{__name__}:Needy", "a class that cannot be made without arguments: missing a required argument: 'model'"),
        (f"{__name__}:Scenes", "a class that does not inherit vlapost.contracts.Actor"),
        (f"{__name__}:HOPELESS", "neither a function nor a class"),
        (":Needy", "cannot be imported"),
    ],
)
def test_what_is_no_actor(name: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        build_actor(config.load("base", [f"evaluation.actor={name}"]))


def test_imports_of_an_actor_are_the_same_whatever_does_not_change_its_episodes() -> None:
    def known(*words: str) -> dict:
        return import_demos.settings(config.load("base", words), "actor", "planner")

    same = ["env.num_envs=3", "evaluation.workers=1", "evaluation.videos=0", "evaluation.episodes=5"]
    assert known(*same) == known()
    for word in ("evaluation.temperature=0", "env.obj_set=train", "policy.adapter=x", "seed=1", "demos.seed=1"):
        assert known(word) != known(), word


def test_an_import_of_a_policy_is_one_of_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlapost.evaluate.fingerprint", lambda c: f"weights of {c.policy.adapter}")
    c = config.load("base", ["policy.adapter=mine"])
    assert import_demos.settings(c, "actor", "policy")["weights"] == "weights of mine"
    assert "weights" not in import_demos.settings(c, "actor", "planner")


def test_labels_of_imported_episodes_are_empty(tmp_path: Path) -> None:
    write_npz(tmp_path / "theirs", 0)
    import_all(tmp_path / "folder", "from=npz", f"source={tmp_path / 'theirs'}")
    (stored,) = episodes(tmp_path / "folder", config.load("base").demos)
    assert set(stored.segmentation) == {b""} and np.isnan(stored.object_position).all() and stored.episode_id == -1
    assert stored.image[0] == encode_image(np.zeros((24, 32, 3), np.uint8)) != encode_labels(np.zeros((2, 2), np.uint8))
