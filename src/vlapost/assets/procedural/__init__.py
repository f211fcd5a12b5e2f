"""The procedural asset pack: every body, picture and the robot, drawn by the code in this folder."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from vlapost.assets.procedural.body import fit, write_collision, write_visual
from vlapost.assets.procedural.catalogue import OBJECTS, RECEPTACLES, Entry
from vlapost.assets.procedural.looks import LOOKS
from vlapost.assets.procedural.robot import write_robot
from vlapost.assets.procedural.tables import photograph
from vlapost.assets.procedural.textures import TEXTURES

VERSION = 4  # part of the pack's folder name; raised whenever a file of the pack changes


def generate(root: Path) -> None:
    """Write the whole pack (without its manifest) into the empty folder `root`; the same bytes every time."""
    _write_bodies(root / "objects", OBJECTS, prism=False)
    _write_bodies(root / "receptacles", RECEPTACLES, prism=True)
    _write_tables(root)
    write_robot(root / "robots" / "widowx250s")


def _write_bodies(folder: Path, entries: tuple[Entry, ...], prism: bool) -> None:
    database = {}
    for entry in entries:
        place = folder / entry.id
        place.mkdir(parents=True)
        parts = fit(entry.draw(), entry.low, entry.high)
        write_visual(parts, place / "textured.glb")
        write_collision(parts, place / "collision.obj", prism)
        database[entry.id] = {
            "name": entry.name,
            "bbox": {"min": entry.low, "max": entry.high},
            "density": entry.density,
        }
    (folder / "model_db.json").write_text(json.dumps(database, indent=1) + "\n")


def _write_tables(root: Path) -> None:
    (root / "tables").mkdir()
    (root / "textures").mkdir()
    database = {}
    for index, ((id_, look), texture) in enumerate(zip(LOOKS.items(), TEXTURES)):
        file = f"{index + 1:03d}.png"
        Image.fromarray(photograph(look(), seed=index)).save(root / "tables" / f"{id_}.png", compress_level=3)
        Image.fromarray(texture()).save(root / "textures" / file, compress_level=3)
        # the benchmark never blends the first texture
        database[f"{id_}.png"] = {"name": id_.split("_")[1], "texture": file, "mix": float(index > 0)}
    (root / "tables" / "model_db.json").write_text(json.dumps(database, indent=1) + "\n")
