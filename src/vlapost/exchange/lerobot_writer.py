"""Demonstrations as a LeRobotDataset v3.0, which the `lerobot` package opens and trains on.

For each step the picture (PNG in the parquet files, so nothing is lost), the joints as `observation.state`, the action
as our controller takes it, and `next.success`. Written with pyarrow alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vlapost.exchange.lerobot import OURS, SUCCESS
from vlapost.exchange.shards import pictures
from vlapost.exchange.statistics import Statistics
from vlapost.experience.shards import DemoEpisode, DemoMeta

FPS = 5  # control steps per second
FILE_MB, FILES_PER_CHUNK = 100, 1000  # the format's defaults
ROWS = 1000  # of the list of episodes, written together
FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
CAMERA, STATE = "observation.images.camera", "observation.state"
JOINTS = ["waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "left_finger", "right_finger"]
ACTION = ["x", "y", "z", "rotation_x", "rotation_y", "rotation_z", "gripper"]
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


class LeRobotWriter:
    """Writes a new folder, episode by episode; it is a data set once `finish` has been called.

    Args:
        folder: empty.
        meta: of the demonstrations. Imported ones have no joints, so no `observation.state`.
    """

    def __init__(self, folder: Path, meta: DemoMeta) -> None:
        self.folder, self.meta = folder, meta
        height, width = meta.image_size
        self.features: dict[str, dict[str, Any]] = {
            CAMERA: {"dtype": "image", "shape": [height, width, 3], "names": ["height", "width", "channels"]},
            STATE: {"dtype": "float32", "shape": [len(JOINTS)], "names": JOINTS},
            "action": {"dtype": "float32", "shape": [len(ACTION)], "names": ACTION},
            SUCCESS: {"dtype": "bool", "shape": [1], "names": None},
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        }
        if not meta.grounded:
            del self.features[STATE]
        for name in ("frame_index", "episode_index", "index", "task_index"):
            self.features[name] = {"dtype": "int64", "shape": [1], "names": None}
        self.schema = pa.schema([(name, _type(feature)) for name, feature in self.features.items()])
        self.tasks: dict[str, int] = {}
        self.rows: list[dict[str, Any]] = []  # of the episodes that are not in the list's file yet
        self.listing: pq.ParquetWriter | None = None
        self.episode_ids: list[int] = []
        self.statistics = Statistics()
        self.frames = self.bytes = 0
        self.file = -1
        self.writer: pq.ParquetWriter | None = None

    def add(self, episode: DemoEpisode) -> None:
        """Append an episode."""
        number, length = len(self.episode_ids), len(episode.image)
        task = self.tasks.setdefault(episode.instruction, len(self.tasks))
        images = pictures(episode)
        encoded = [bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1]) for picture in images]
        steps = np.arange(length)
        values: dict[str, NDArray[Any]] = {
            STATE: episode.qpos,
            "action": episode.action,
            SUCCESS: episode.success,
            "timestamp": (steps / FPS).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(length, number),
            "index": self.frames + steps,
            "task_index": np.full(length, task),
        }
        values = {name: values[name] for name in self.schema.names if name != CAMERA}
        cells = [{"bytes": data, "path": f"frame-{step:06d}.png"} for step, data in enumerate(encoded)]
        columns = [pa.array(cells, PICTURE)]
        columns += [_column(values[field.name], field.type) for field in self.schema if field.name != CAMERA]
        self._write(pa.Table.from_arrays(columns, schema=self.schema), sum(map(len, encoded)))
        own = Statistics()
        own.add(values, {CAMERA: images})
        self.statistics.add(values, {CAMERA: images})
        chunk, file = divmod(self.file, FILES_PER_CHUNK)
        self.rows.append(
            {
                "episode_index": number,
                "tasks": [episode.instruction],
                "length": length,
                "data/chunk_index": chunk,
                "data/file_index": file,
                "dataset_from_index": self.frames,
                "dataset_to_index": self.frames + length,
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
                **{f"stats/{name}/{key}": v for name, entry in own.result().items() for key, v in entry.items()},
            }
        )
        self.episode_ids.append(episode.episode_id)
        self.frames += length
        if len(self.rows) == ROWS:
            self._list()

    def finish(self) -> None:
        """Close the data and write what describes it."""
        assert self.writer is not None, "a data set has at least one episode"
        self.writer.close()
        if self.rows:
            self._list()
        assert self.listing is not None
        self.listing.close()
        pq.write_table(_tasks(self.tasks), self.folder / "meta/tasks.parquet")
        info = {
            "codebase_version": "v3.0",
            "robot_type": "widowx",
            "total_episodes": len(self.episode_ids),
            "total_frames": self.frames,
            "total_tasks": len(self.tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": FILE_MB,
            "video_files_size_in_mb": 200,
            "fps": FPS,
            "splits": {"train": f"0:{len(self.episode_ids)}"},
            "data_path": f"data/{FILE}.parquet",
            "video_path": None,
            "features": self.features,
        }
        self._json("meta/info.json", info)
        self._json("meta/stats.json", self.statistics.result())
        self._json(OURS, {"collection": asdict(self.meta), "episode_id": self.episode_ids})

    def _write(self, table: pa.Table, size: int) -> None:
        """A row group per episode; a new file where the last one would become too large."""
        self.bytes += size
        if self.writer is None or self.bytes > FILE_MB * 2**20:
            if self.writer is not None:
                self.writer.close()
            self.file, self.bytes = self.file + 1, size
            chunk, file = divmod(self.file, FILES_PER_CHUNK)
            path = self.folder / f"data/{FILE.format(chunk_index=chunk, file_index=file)}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            self.writer = pq.ParquetWriter(path, self.schema)
        self.writer.write_table(table)

    def _list(self) -> None:
        """Append the rows to the list of episodes: one takes 25 kB as long as it is kept here."""
        path = self.folder / f"meta/episodes/{FILE.format(chunk_index=0, file_index=0)}.parquet"
        table = pa.Table.from_pylist(self.rows, self.listing.schema if self.listing else None)
        if self.listing is None:
            path.parent.mkdir(parents=True)
            self.listing = pq.ParquetWriter(path, table.schema)
        self.listing.write_table(table)
        self.rows.clear()

    def _json(self, name: str, content: dict[str, Any]) -> None:
        (self.folder / name).write_text(json.dumps(content, indent=4, ensure_ascii=False), encoding="utf-8")


def _type(feature: dict[str, Any]) -> pa.DataType:
    if feature["dtype"] == "image":
        return PICTURE
    plain = {"float32": pa.float32(), "int64": pa.int64(), "bool": pa.bool_()}[feature["dtype"]]
    return plain if feature["shape"] == [1] else pa.list_(plain, feature["shape"][0])


def _column(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(values, kind)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), kind.value_type)
    return pa.FixedSizeListArray.from_arrays(flat, kind.list_size)


def _tasks(tasks: dict[str, int]) -> pa.Table:
    """Numbers and sentences as pandas stores a table whose index is the sentences."""
    column = {"field_name": "task", "name": "task", "numpy_type": "object", "pandas_type": "unicode", "metadata": None}
    number = {"field_name": "task_index", "name": "task_index", "numpy_type": "int64", "pandas_type": "int64"}
    notes = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [{**number, "metadata": None}, column],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    table = pa.table({"task_index": pa.array(tasks.values(), pa.int64()), "task": pa.array(tasks, pa.string())})
    return table.replace_schema_metadata({"pandas": json.dumps(notes)})
