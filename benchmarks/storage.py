"""Our shards beside other ways to store the same demonstrations: `make benchmark-storage`.

The first demonstrations of demos.path (collected if they are not there) are written in each format from decoded
pictures and read back one random step at a time, picture and action, by one process and by two at once, from warm
caches; every reader's pictures are compared with what was written. Medians of five. Prints a table and writes
lightning_logs/benchmark/storage.json.

    ours           Arrow IPC, lossless WebP, SHA-256 per shard
    hdf5           h5py, a group per demonstration, the same WebP bytes (of which HDF5 can keep no checksum)
    hdf5 raw gzip  h5py, pixels in a gzip chunk per frame, as robomimic stores them, Fletcher-32 per chunk
    parquet        the same WebP bytes, a row group per demonstration, CRC-32 per page
    tar            the same WebP bytes, a file per frame and one of numbers, as WebDataset stores them
"""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from rich.table import Table

from benchmarks.measure import all_here, at_once, machine
from vlapost import cli, collect_demos, config
from vlapost.config import ROOT
from vlapost.evaluation.summary import write_json
from vlapost.exchange.shards import take
from vlapost.experience import shards
from vlapost.experience.demos import DemoDataset
from vlapost.experience.shards import DemoEpisode, DemoMeta, Shard
from vlapost.experience.verified import in_order
from vlapost.experience.writer import DemoWriter

EPISODES, READS, RUNS, BLOCK = 100, 1000, 5, 20
NUMBERS = ("action", "gripper_pose", "object_position", "receptacle_position", "qpos", "success")
Pictures = NDArray[np.uint8]
Episode = tuple[DemoEpisode, list[Pictures]]  # without encoded pictures, and the pictures
Read = Callable[[int, int], tuple[Pictures, NDArray[np.float32]]]  # demonstration and step -> picture and action


def run(words: list[str]) -> None:
    """Measure, print, write."""
    cfg = config.load(*cli.parse(words, "base"))
    collect_demos.collect(cfg).close()
    folder = ROOT / cfg.demos.path
    parts = [(shard, first, last) for shard in in_order(folder, False) for first, last in shard.spans()]
    meta, episodes = parts[0][0].meta, [load(*part) for part in islice(parts, EPISODES)]
    frames = sum(len(pictures) for _, pictures in episodes)
    table = Table(title=f"{len(episodes)} demonstrations, {frames} steps of {meta.image_size[1]}x{meta.image_size[0]}")
    for column in ("format", "bytes a step", "steps/s written", "steps/s read", "by two", "ms to open"):
        table.add_column(column, justify="left" if column == "format" else "right")
    found = {}
    for name in FORMATS:
        with tempfile.TemporaryDirectory(dir=ROOT / "data") as folder:
            one = measure(name, Path(folder), meta, episodes)
            one["read_by_two_per_s"] = by_two(name, Path(folder, "0"), episodes)
        found[name] = one
        table.add_row(
            name,
            *(f"{one[key]:.0f}" for key in ("bytes", "written_per_s", "read_per_s", "read_by_two_per_s")),
            f"{one['open_ms']:.1f}",
        )
    cli.console.print(table)
    path = ROOT / "lightning_logs/benchmark/storage.json"
    about = {
        "machine": machine(),
        "image_size": list(meta.image_size),
        "demonstrations": len(episodes),
        "steps": frames,
    }
    write_json(path, {**about, "reads": READS, "runs": RUNS, "formats": found})
    cli.console.print(f"Written to {path}", soft_wrap=True)


def load(shard: Shard, first: int, last: int) -> Episode:
    """A stored demonstration: the steps that have a picture."""
    rows = first + np.flatnonzero(shard.rows.column("image").is_valid().to_numpy(False)[first:last])
    episode = take(shard, rows)
    numbers: dict[str, Any] = {name: getattr(episode, name).astype(np.float32) for name in NUMBERS}
    return replace(episode, image=(), **numbers), [shards.decode_image(data) for data in episode.image if data]


def measure(name: str, folder: Path, meta: DemoMeta, episodes: list[Episode]) -> dict[str, float]:
    """Write into folders "0", "1", ... of `folder` and read.

    Returns:
        Bytes of a step, steps written and read per second, milliseconds to open.
    """
    write, open_ = FORMATS[name]
    writing, opening, reading = [], [], []
    chosen = choice(episodes)
    frames = sum(len(pictures) for _, pictures in episodes)
    for run in range(RUNS):
        to = folder / str(run)
        to.mkdir()
        start = perf_counter()
        write(to, meta, episodes)
        writing.append(perf_counter() - start)
        size = sum(file.stat().st_size for file in to.iterdir())
        start = perf_counter()
        read = open_(to)
        opening.append(perf_counter() - start)
        reading.append(_seconds(read, chosen))
        for e, t in chosen[:50]:
            picture, action = read(e, t)
            np.testing.assert_array_equal(picture, episodes[e][1][t])
            np.testing.assert_array_equal(action, episodes[e][0].action[t])
    return {
        "bytes": size / frames,
        "written_per_s": frames / median(writing),
        "read_per_s": READS / median(reading),
        "open_ms": 1000 * median(opening),
    }


def by_two(name: str, folder: Path, episodes: list[Episode]) -> float:
    """Steps read per second, by two processes at once, of what `measure` wrote into a folder."""
    chosen = choice(episodes)
    found = at_once(_read_beside, [(name, folder, chosen), (name, folder, chosen[::-1])])
    return 2 * READS / median(max(seconds) for seconds in zip(*found))


def choice(episodes: list[Episode]) -> list[tuple[int, int]]:
    """`READS` random demonstrations, each with one of its steps."""
    order = Random(0)
    return [(e, order.randrange(len(episodes[e][1]))) for e in order.choices(range(len(episodes)), k=READS)]


def _seconds(read: Read, chosen: list[tuple[int, int]]) -> float:
    """Reading these demonstrations and steps takes."""
    start = perf_counter()
    for e, t in chosen:
        read(e, t)
    return perf_counter() - start


def _read_beside(name: str, folder: Path, chosen: list[tuple[int, int]]) -> list[float]:
    """The same `RUNS` times, in one of several processes."""
    read, found = FORMATS[name][1](folder), []
    for _ in range(RUNS):
        all_here()
        found.append(_seconds(read, chosen))
    return found


# ---- formats


def write_ours(folder: Path, meta: DemoMeta, episodes: list[Episode]) -> None:
    writer = DemoWriter(folder, meta, BLOCK)
    for begin in range(0, len(episodes), BLOCK):
        part = episodes[begin : begin + BLOCK]
        coded = [
            DemoEpisode(**{**vars(e), "candidate": begin + k, "image": tuple(map(shards.encode_image, pictures))})
            for k, (e, pictures) in enumerate(part)
        ]
        writer.write(begin, begin + len(part), coded, [])
    writer.close()


def open_ours(folder: Path) -> Read:
    data = DemoDataset(folder, "none", 0.01, 0.06)
    starts = torch.searchsorted(data.episode, torch.arange(data.episodes))

    def read(e: int, t: int) -> tuple[Pictures, NDArray[np.float32]]:
        index = starts[e] + t
        return data.observation(index[None])[0][0].numpy(), data.actions[index].numpy()

    return read


def write_hdf5(folder: Path, meta: DemoMeta, episodes: list[Episode], raw: bool = False) -> None:
    with h5py.File(folder / "data.h5", "w") as file:
        for number, (episode, pictures) in enumerate(episodes):
            group = file.create_group(str(number))
            group.attrs["instruction"] = episode.instruction
            for name in NUMBERS:
                group.create_dataset(name, data=getattr(episode, name), fletcher32=True)
            _bytes(group, "segmentation", episode.segmentation)
            if raw:
                shape = (1, *pictures[0].shape)
                group.create_dataset(
                    "image", data=np.stack(pictures), chunks=shape, compression="gzip", fletcher32=True
                )
            else:
                _bytes(group, "image", [shards.encode_image(picture) for picture in pictures])


def _bytes(group: h5py.Group, name: str, values: Any) -> None:
    column = group.create_dataset(name, len(values), h5py.vlen_dtype(np.uint8))
    for row, value in enumerate(values):
        column[row] = np.frombuffer(value, np.uint8)


def open_hdf5(folder: Path, raw: bool = False) -> Read:
    file = h5py.File(folder / "data.h5")

    def read(e: int, t: int) -> tuple[Pictures, NDArray[np.float32]]:
        group = file[str(e)]
        stored = group["image"][t]
        return stored if raw else shards.decode_image(stored), group["action"][t]

    return read


def write_parquet(folder: Path, meta: DemoMeta, episodes: list[Episode]) -> None:
    writer = None
    for episode, pictures in episodes:
        columns: dict[str, Any] = {name: list(getattr(episode, name)) for name in NUMBERS}
        columns |= {"segmentation": episode.segmentation, "image": [shards.encode_image(p) for p in pictures]}
        table = pa.table({**columns, "instruction": [episode.instruction] * len(pictures)})
        writer = writer or pq.ParquetWriter(folder / "data.parquet", table.schema, write_page_checksum=True)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def open_parquet(folder: Path) -> Read:
    file = pq.ParquetFile(folder / "data.parquet", memory_map=True, page_checksum_verification=True)

    def read(e: int, t: int) -> tuple[Pictures, NDArray[np.float32]]:
        group = file.read_row_group(e, columns=["image", "action"])  # there is no smaller piece
        return shards.decode_image(group["image"][t].as_py()), np.array(group["action"][t].as_py(), np.float32)

    return read


def write_tar(folder: Path, meta: DemoMeta, episodes: list[Episode]) -> None:
    with tarfile.open(folder / "data.tar", "w") as file:
        for number, (episode, pictures) in enumerate(episodes):
            for t, picture in enumerate(pictures):
                numbers = {name: np.asarray(getattr(episode, name)[t]).tolist() for name in NUMBERS}
                text = json.dumps({**numbers, "instruction": episode.instruction}).encode()
                labels, image = episode.segmentation[t], shards.encode_image(picture)
                for suffix, data in (("json", text), ("png", labels), ("webp", image)):
                    assert data is not None
                    entry = tarfile.TarInfo(f"{number}/{t}.{suffix}")
                    entry.size = len(data)
                    file.addfile(entry, io.BytesIO(data))


def open_tar(folder: Path) -> Read:
    with tarfile.open(folder / "data.tar") as listed:
        places = {member.name: (member.offset_data, member.size) for member in listed}
    file = open(folder / "data.tar", "rb")  # noqa: SIM115  (as long as it is read from)

    def content(name: str) -> bytes:
        offset, size = places[name]
        file.seek(offset)
        return file.read(size)

    def read(e: int, t: int) -> tuple[Pictures, NDArray[np.float32]]:
        action = np.array(json.loads(content(f"{e}/{t}.json"))["action"], np.float32)
        return shards.decode_image(content(f"{e}/{t}.webp")), action

    return read


FORMATS: dict[str, tuple[Callable[..., None], Callable[[Path], Read]]] = {
    "ours": (write_ours, open_ours),
    "hdf5": (write_hdf5, open_hdf5),
    "hdf5 raw gzip": (lambda *what: write_hdf5(*what, raw=True), lambda folder: open_hdf5(folder, raw=True)),
    "parquet": (write_parquet, open_parquet),
    "tar": (write_tar, open_tar),
}


if __name__ == "__main__":
    cli.main(run)
