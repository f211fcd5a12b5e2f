"""The procedural asset pack: every body, picture and the robot, drawn by the code in this folder."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from rich.progress import track

from vlapost.assets.procedural import tasks, world
from vlapost.assets.procedural.body import fit, write_collision, write_visual
from vlapost.assets.procedural.catalogue import OBJECTS, RECEPTACLES, Entry
from vlapost.assets.procedural.looks import LOOKS
from vlapost.assets.procedural.robot import write_robot
from vlapost.assets.procedural.shapes import Picture
from vlapost.assets.procedural.tables import Look, photograph
from vlapost.assets.procedural.textures import TEXTURES


def generate(root: Path) -> None:
    """Write the benchmark's pack (without its manifest) into the empty folder `root`; the same bytes every time."""
    _write_pack(root, OBJECTS, RECEPTACLES, LOOKS)


def generate_tasks(root: Path) -> None:
    """The same for the pack of the five tasks."""
    _write_pack(root, tasks.OBJECTS, tasks.RECEPTACLES, tasks.LOOKS)


def _write_pack(
    root: Path, objects: Sequence[Entry], receptacles: Sequence[Entry], looks: dict[str, Callable[[], Look]]
) -> None:
    for folder, entries in (("objects", objects), ("receptacles", receptacles)):
        database = {}
        for entry in entries:
            database[entry.id] = _write_body(root / folder, entry)
        _write_json(root / folder / "model_db.json", database)
    database = {}
    for index, ((id_, look), texture) in enumerate(zip(looks.items(), TEXTURES)):
        # the benchmark never blends the first texture
        database[f"{id_}.png"] = _write_table(root, id_, look(), texture(), index, mix=float(index > 0))
    _write_json(root / "tables" / "model_db.json", database)
    write_robot(root / "robots" / "widowx250s")


def generate_world(root: Path, counts: dict[str, int]) -> None:
    """Write a pack (without its manifest) of so many random objects, receptacles and tables into `root`."""
    jobs = [(folder, index) for folder, count in counts.items() for index in range(count)]
    databases: dict[str, dict[str, dict]] = {folder: {} for folder in counts}
    ignore_interrupt = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends this process, and the pool with it
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), signal.signal, ignore_interrupt) as pool:
        results = pool.map(partial(_write_random, root), *zip(*jobs), chunksize=4)
        for (name, entry), (folder, _) in zip(track(results, "drawing the world", total=len(jobs)), jobs):
            databases[folder][name] = entry
    for folder, database in databases.items():
        _write_json(root / folder / "model_db.json", database)
    write_robot(root / "robots" / "widowx250s")


def _write_random(root: Path, folder: str, index: int) -> tuple[str, dict]:
    """Draw number `index` of a kind; returns its entry in the database."""
    cv2.setNumThreads(1)
    if folder == "tables":
        look = world.table(index)
        texture = np.asarray(cv2.resize(look.top, (640, 480), interpolation=cv2.INTER_AREA), np.uint8)
        name = f"{index:03d}_table"
        return f"{name}.png", _write_table(root, name, look, texture, index, mix=1.0)
    body = world.object_(index) if folder == "objects" else world.receptacle(index)
    return body.id, _write_body(root / folder, body)


def _write_body(folder: Path, body: Entry) -> dict:
    """Write the two files of a body into a new folder of its own below `folder`; returns its database entry."""
    place = folder / body.id
    place.mkdir(parents=True)
    parts = fit(body.draw(), body.low, body.high)
    write_visual(parts, place / "textured.glb")
    write_collision(parts, place / "collision.obj", prism=folder.name == "receptacles")
    return {"name": body.name, "bbox": {"min": body.low, "max": body.high}, "density": body.density}


def _write_table(root: Path, id_: str, look: Look, texture: Picture, index: int, mix: float) -> dict:
    """Write table picture and texture number `index`; returns the table's entry in the database."""
    file = f"{index + 1:03d}.png"
    for folder, name, picture in (("tables", f"{id_}.png", photograph(look, seed=index)), ("textures", file, texture)):
        (root / folder).mkdir(exist_ok=True)
        Image.fromarray(picture).save(root / folder / name, compress_level=3)
    return {"name": id_.split("_")[1], "texture": file, "mix": mix}


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
