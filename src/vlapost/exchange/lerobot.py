"""LeRobotDataset v3.0 folders, read with pyarrow alone; pictures in the parquet files or in videos.

meta/info.json, meta/tasks.parquet, meta/episodes/chunk-000/file-000.parquet
data/chunk-000/file-000.parquet, videos/<camera>/chunk-000/file-000.mp4
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vlapost.config import ExchangeConfig, UserError
from vlapost.contracts import ACTION_DIM
from vlapost.exchange.trajectory import UNKNOWN, Trajectory, choose, decode, need, read_json, single

WHAT = "the folder of a LeRobotDataset v3.0, with meta/info.json"
OURS = "meta/vlapost.json"  # what the format has no place for: written by the export, not needed by the import
SUCCESS = "next.success"


def read(source: Path, first: int, declared: ExchangeConfig) -> Iterator[Trajectory]:
    """The episodes of a data set, from number `first` on.

    Raises:
        UserError: another version; files, an action of 7 numbers or a camera are missing; a file is damaged.
    """
    path = source / "meta/info.json"
    info = read_json(path, WHAT)
    features = _features(info, source)
    kinds = {key: need(feature, "dtype", f"'{key}' in {path}") for key, feature in features.items()}
    cameras = [key for key, kind in kinds.items() if kind in ("image", "video")]
    camera = choose(cameras, declared.camera, source)
    names = ["episode_index", "index", "task_index", "action"]
    names += [SUCCESS] if SUCCESS in features else []
    names += [camera] if kinds[camera] == "image" else []
    tasks, starts = _tasks(source / "meta/tasks.parquet"), _starts(source)
    data, data_path = DataFiles(source, names), need(info, "data_path", path)
    with closing(Film()) as film:
        for episode in _episodes(source)[first:]:
            number = episode["episode_index"]
            where = f"episode {number} of {source}"
            rows = data.rows(source / _path(data_path, episode, "data", where), number, episode["length"])
            if camera in names:
                image = [decode(cell["bytes"] or b"", where) for cell in rows[camera].to_pylist()]
            else:
                video = source / _path(need(info, "video_path", path), episode, f"videos/{camera}", where, camera)
                seconds = need(episode, f"videos/{camera}/from_timestamp", where)
                image = film.pictures(video, round(seconds * need(info, "fps", path)), len(rows))
            yield Trajectory(
                where=where,
                image=image,
                action=np.array(rows["action"].to_pylist(), np.float32),
                instruction=single(tasks.get(i, "") for i in set(rows["task_index"].to_pylist())),
                success=np.array(rows[SUCCESS].to_pylist(), bool).reshape(-1) if SUCCESS in names else None,
                episode_id=starts[number] if number < len(starts) else UNKNOWN,
            )


def _features(info: dict[str, Any], source: Path) -> dict[str, dict[str, Any]]:
    version = str(info.get("codebase_version"))
    if version != "v3" and not version.startswith("v3."):
        raise UserError(
            f"{source} is a LeRobotDataset of version {version}; only v3.0 is read: convert it with "
            "python -m lerobot.datasets.v30.convert_dataset_v21_to_v30."
        )
    features = need(info, "features", source / "meta/info.json")
    if not isinstance(features, dict) or "action" not in features:
        names = ", ".join(features) if isinstance(features, dict) else ""
        raise UserError(f"{source} has no feature 'action'; it has: {names or 'none'}.")
    if (shape := need(features["action"], "shape", f"'action' in {source / 'meta/info.json'}")) != [ACTION_DIM]:
        raise UserError(
            f"An action of {source} has the shape {shape}; [{ACTION_DIM}] is needed: translation, rotation and gripper."
        )
    return features


def _tasks(path: Path) -> dict[int, str]:
    """Task numbers and sentences; the sentences are the index of a pandas table, whatever its name."""
    sentences = next((name for name in _columns(path) if name != "task_index"), "task")
    table = _table(path, ["task_index", sentences])
    return dict(zip(table["task_index"].to_pylist(), table[sentences].to_pylist()))


def _starts(source: Path) -> list[int]:
    """Our episode ids, where this data set is an export of ours."""
    path = source / OURS
    return need(read_json(path, WHAT), "episode_id", path) if path.is_file() else []


def _episodes(source: Path) -> list[dict[str, Any]]:
    """The rows of meta/episodes in the order of the episodes, without their statistics."""
    paths = sorted((source / "meta/episodes").glob("*/*.parquet"))
    if not paths:
        raise UserError(f"{source} has no meta/episodes/chunk-000/file-000.parquet; SOURCE must be {WHAT}.")
    rows: list[dict[str, Any]] = []
    for path in paths:
        names = [n for n in _columns(path) if not n.startswith("stats/")]
        rows += _table(path, list(dict.fromkeys(["episode_index", "length", *names]))).to_pylist()
    return sorted(rows, key=lambda row: row["episode_index"])


def _path(pattern: Any, episode: dict[str, Any], kind: str, where: str, video_key: str = "") -> Path:
    numbers = {name: need(episode, f"{kind}/{name}", where) for name in ("chunk_index", "file_index")}
    try:
        path = Path(str(pattern).format(video_key=video_key, **numbers))
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{path} leads out of the data set")
        return path
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"The file of {where} cannot be named by '{pattern}' ({error}); get the data set again."
        ) from None


def _columns(path: Path) -> list[str]:
    """The names of a parquet file's columns.

    Raises:
        UserError: it is not there, or damaged (as one that was never closed is).
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; get the data set again.")
    try:
        return pq.read_schema(path).names
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); get the data set again.") from None


def _table(path: Path, names: list[str]) -> pa.Table:
    """Columns of a parquet file.

    Raises:
        UserError: it is not there, damaged, or lacks one.
    """
    there = _columns(path)
    if missing := [name for name in names if name not in there]:
        raise UserError(f"{path} has no column '{missing[0]}'; it has: {', '.join(there)}.")
    try:
        return pq.read_table(path, columns=names)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); get the data set again.") from None


class DataFiles:
    """The rows of episodes; one file of many episodes is held at a time."""

    def __init__(self, source: Path, names: list[str]) -> None:
        self.source, self.names = source, names
        self.path: Path | None = None

    def rows(self, path: Path, episode: int, length: int) -> pa.Table:
        """The steps of an episode, in order."""
        if path != self.path:
            self.path, self.table = path, _table(path, self.names)
        rows = self.table.filter(pc.equal(self.table["episode_index"], episode)).sort_by("index")
        if len(rows) != length:
            raise UserError(f"{path} holds {len(rows)} of the {length} steps of episode {episode}; get it again.")
        return rows


class Film:
    """The pictures of episodes, one behind the other in a video; it is decoded once from its begin to its end."""

    path: Path | None = None
    position = 0  # of the next picture
    frames: Generator[NDArray[np.uint8], None, None] | None = None

    def pictures(self, path: Path, begin: int, count: int) -> list[NDArray[np.uint8]]:
        """`count` pictures from number `begin` on."""
        if not path.is_file():
            raise UserError(f"{path} is missing; get the data set again.")
        if self.frames is None or path != self.path or begin < self.position:
            self.close()
            self.path, self.position = path, 0
            self.frames = iio.imiter(path, plugin="FFMPEG")  # type: ignore[assignment]
        assert self.frames is not None
        try:
            pictures = list(islice(self.frames, begin - self.position, begin - self.position + count))
        except (OSError, RuntimeError) as error:
            raise UserError(f"{path} is damaged ({str(error).splitlines()[0]}); get the data set again.") from None
        self.position = begin + count
        if len(pictures) < count:
            raise UserError(f"{path} ends {count - len(pictures)} pictures too early; get the data set again.")
        return pictures

    def close(self) -> None:
        """End the process that decodes."""
        if self.frames is not None:
            self.frames.close()
