"""Demonstrations on disk: one Arrow IPC file per shard, one row per control step.

    data/demos/shard-00000000-00000024-5f0c2ad9e81b7734.arrow
               candidates 0..23 ^         ^ first 16 hex digits of the file's SHA-256

Candidates are the numbered attempts of a collection; a shard holds those of its range that succeeded, in order, and in
its schema metadata the settings of the collection and the failures of its range. A shard is written to a temporary
name, flushed and renamed, so a file under its final name is whole; its digest is checked before anything is read from
it (`verified.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlapost.config import UserError

VERSION = 6  # 6: no start comes twice
NAME = re.compile(r"shard-(\d{8})-(\d{8})-([0-9a-f]{16})\.arrow")
SCHEMA = pa.schema(
    [
        ("candidate", pa.int64()),
        ("episode_id", pa.int64()),
        ("step", pa.int32()),
        ("instruction", pa.string()),
        ("image", pa.binary()),  # lossless WebP, RGB; null, as its labels, where no filter keeps the step
        ("segmentation", pa.binary()),  # PNG of labels: 0 background, 1 robot, 2 object, 3 receptacle
        ("action", pa.list_(pa.float32(), 7)),
        ("gripper_pose", pa.list_(pa.float32(), 7)),
        ("object_position", pa.list_(pa.float32(), 3)),
        ("receptacle_position", pa.list_(pa.float32(), 3)),
        ("qpos", pa.list_(pa.float32(), 8)),
        ("success", pa.bool_()),
    ]
)


class DamagedShardError(UserError):
    """A shard that is not as it was written."""


@dataclass(frozen=True)
class DemoMeta:
    """The settings every shard of a folder shares; an action replays only under the settings it was made with."""

    version: int
    env_id: str
    obj_set: str
    assets: str
    image_size: tuple[int, int]
    shader: str
    sim_freq: int
    seed: int
    disturbed: float
    protocol: str = "v2"
    views: int = 0  # above 0: no demonstrations, but so many pictures of each start, with actions that are zeros
    grounded: bool = True  # False: imported, so labels are empty and positions not numbers


@dataclass(frozen=True)
class DemoEpisode:
    """One successful demonstration of T steps. Step t is recorded before `action[t]` is applied.

    candidate: number of the attempt. episode_id: the environment's start state.
    image: T lossless WebP pictures. segmentation: T PNG pictures of uint8 labels. Both are None where none was drawn.
    action: `[T, 7]` float32, unfiltered. gripper_pose: `[T, 7]` position (m) and wxyz quaternion of the end effector,
    object_position, receptacle_position: `[T, 3]` (m), all in the robot base frame. qpos: `[T, 8]` (rad; fingers m).
    success: `[T]` bool, after the step.
    """

    candidate: int
    episode_id: int
    instruction: str
    image: tuple[bytes | None, ...]
    segmentation: tuple[bytes | None, ...]
    action: NDArray[np.float32]
    gripper_pose: NDArray[np.float32]
    object_position: NDArray[np.float32]
    receptacle_position: NDArray[np.float32]
    qpos: NDArray[np.float32]
    success: NDArray[np.bool_]


@dataclass(frozen=True)
class Failure:
    """An attempt that is not in the set, and why."""

    candidate: int
    episode_id: int
    cause: str


@dataclass(frozen=True)
class ShardFile:
    """A finished shard as its name tells: candidates `begin` to `end` (exclusive)."""

    path: Path
    begin: int
    end: int
    digest: str


@dataclass(frozen=True)
class Shard:
    """An opened shard; `rows` is memory-mapped and read only where it is touched."""

    file: ShardFile
    meta: DemoMeta
    failures: tuple[Failure, ...]
    rows: pa.RecordBatch

    def floats(self, column: str) -> NDArray[np.float32]:
        """A vector column as `[rows, width]`, without a copy."""
        values = self.rows.column(column)
        return values.flatten().to_numpy().reshape(len(self.rows), values.type.list_size)

    def spans(self) -> list[tuple[int, int]]:
        """The first row of each demonstration, and the one behind its last."""
        starts = [*np.flatnonzero(self.rows.column("step").to_numpy() == 0).tolist(), len(self.rows)]
        return list(zip(starts, starts[1:]))


def encode_image(image: NDArray[np.uint8]) -> bytes:
    """`[H, W, 3]` RGB to lossless WebP. OpenCV's encoder is 13 times slower at 12 % smaller files."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", lossless=True, method=0, quality=50)
    return buffer.getvalue()


def encode_labels(labels: NDArray[np.uint8]) -> bytes:
    """`[H, W]` uint8 to PNG."""
    return bytes(cv2.imencode(".png", labels)[1])


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """WebP to `[H, W, 3]` RGB."""
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)  # type: ignore[return-value]


def decode_labels(data: bytes) -> NDArray[np.uint8]:
    """PNG to `[H, W]`."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)  # type: ignore[return-value]


def write_shard(
    folder: Path,
    meta: DemoMeta,
    begin: int,
    end: int,
    episodes: Sequence[DemoEpisode],
    failures: Sequence[Failure],
    temporary: str = ".shard.tmp",
) -> ShardFile:
    """Write candidates `begin` to `end` (exclusive): their successes, in order, and their failures.

    temporary: the name of the unfinished file; processes that write into one folder have one each.
    """
    notes = {"meta": json.dumps(asdict(meta)), "failures": json.dumps([asdict(f) for f in failures])}
    schema = SCHEMA.with_metadata(notes)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(_rows(episodes, schema))
    data = sink.getvalue()
    digest = hashlib.sha256(data).hexdigest()[:16]
    file = ShardFile(folder / f"shard-{begin:08d}-{end:08d}-{digest}.arrow", begin, end, digest)
    with open(folder / temporary, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    os.replace(folder / temporary, file.path)
    return file


def list_shards(folder: Path) -> list[ShardFile]:
    """The finished shards of a folder in order of their candidates; other files are ignored.

    Raises:
        UserError: two shards hold the same candidates.
    """
    matches = [(path, NAME.fullmatch(path.name)) for path in folder.glob("shard-*.arrow")]
    files = [ShardFile(path, int(m[1]), int(m[2]), m[3]) for path, m in matches if m]
    files.sort(key=lambda file: file.begin)
    for one, two in zip(files, files[1:]):
        if two.begin < one.end:
            raise UserError(f"{one.path} and {two.path} hold the same attempts; delete one of them.")
    return files


def is_whole(file: ShardFile) -> bool:
    """Whether the file's content has the digest that its name tells."""
    digest = hashlib.sha256()
    with open(file.path, "rb") as source:
        while block := source.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:16] == file.digest


def open_shard(file: ShardFile, check: Callable[[ShardFile], bool] = is_whole) -> Shard:
    """Map a shard into memory once `check` has found it whole.

    Raises:
        DamagedShardError: it is not.
        UserError: it was written by another version.
    """
    if not check(file):
        raise DamagedShardError(
            f"{file.path} is damaged; delete it and run 'make demos' again to collect it anew (of an import delete the "
            "folder and import again), or leave its demonstrations out with demos.skip_corrupt=true."
        )
    with pa.memory_map(str(file.path)) as source:  # the mapping outlives the file handle
        reader = pa.ipc.open_file(source)
        notes = {key.decode(): json.loads(value) for key, value in reader.schema.metadata.items()}
        rows = reader.get_batch(0)
    if notes["meta"]["version"] != VERSION:
        raise UserError(
            f"{file.path} has format version {notes['meta']['version']}, this program reads {VERSION}; "
            "collect, or import, again into another folder with demos.path=..."
        )
    meta = DemoMeta(**{**notes["meta"], "image_size": tuple(notes["meta"]["image_size"])})
    return Shard(file, meta, tuple(Failure(**f) for f in notes["failures"]), rows)


def _rows(episodes: Sequence[DemoEpisode], schema: pa.Schema) -> pa.RecordBatch:
    lengths = [len(episode.image) for episode in episodes]
    columns: dict[str, pa.Array] = {
        "candidate": pa.array(np.repeat(np.array([e.candidate for e in episodes], np.int64), lengths)),
        "episode_id": pa.array(np.repeat(np.array([e.episode_id for e in episodes], np.int64), lengths)),
        "step": pa.array(np.concatenate([np.arange(n, dtype=np.int32) for n in lengths] or [np.zeros(0, np.int32)])),
        "instruction": pa.array([e.instruction for e, n in zip(episodes, lengths) for _ in range(n)], pa.string()),
        "image": pa.array([data for e in episodes for data in e.image], pa.binary()),
        "segmentation": pa.array([data for e in episodes for data in e.segmentation], pa.binary()),
        "success": pa.array([bool(flag) for e in episodes for flag in e.success], pa.bool_()),
    }
    for name in ("action", "gripper_pose", "object_position", "receptacle_position", "qpos"):
        width = schema.field(name).type.list_size
        values = [np.asarray(getattr(e, name), np.float32).reshape(-1) for e in episodes]
        flat = np.concatenate(values or [np.zeros(0, np.float32)])
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(flat), width)
    return pa.RecordBatch.from_arrays([columns[field.name] for field in schema], schema=schema)
