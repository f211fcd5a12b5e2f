"""Asset packs: one folder layout for the paper's files and for those generated here.

    manifest.json                     {"files": [{"path", "sha256", "bytes"}, ...]}
    objects/model_db.json             25 bodies to grasp, in order of their index:
    objects/<id>/collision.obj          {id: {"name", "bbox": {"min", "max"}, "density"}}
    objects/<id>/textured.{obj,dae,glb}
    receptacles/...                   17 bodies to put them on, in the same form
    tables/model_db.json              21 table pictures: {file: {"name", "texture", "mix"}}
    tables/<id>.png                   what the overlay puts behind robot, object and receptacle
    textures/<nnn>.png                texture blended over the picture in the texture variants
    robots/widowx250s/wx250s.{urdf,srdf}

Which bodies are for training and which for testing is a property of the benchmark, not of a pack (paper §4.1).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
import warnings
from dataclasses import dataclass
from functools import cache
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from vlapost.config import ROOT, UserError
from vlapost.disk import flush, flush_entry

# folder -> (how many there are, how many of them, counted from the first, are for training)
COUNTS = {"objects": (25, 16), "receptacles": (17, 1), "tables": (21, 16)}
WORLD = {"objects": 192, "receptacles": 48, "tables": 192}  # of the pretraining world, all for training
TASKS = {"objects": 5, "receptacles": 6, "tables": 2}  # of SimplerEnv's tasks and StackCube, all for training
GENERATED = ("procedural", "world", "tasks")
VERSION = 5  # of all three; raised whenever a file of one of them changes
VISUALS = ("textured.obj", "textured.dae", "textured.glb")
ROBOT = "robots/widowx250s/wx250s"

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Model:
    """A body of the benchmark: something to grasp, or something to put it on.

    index: position in the benchmark's list. split: "train" or "test". name: as the instruction calls it.
    bbox_min, bbox_max: corners of its box, metres, body frame (z up when it lies as the benchmark places it).
    density: kg/m3. collision: OBJ file, each piece convex. visual: what is drawn.
    """

    index: int
    id: str
    name: str
    split: str
    bbox_min: Point
    bbox_max: Point
    density: float
    collision: Path
    visual: Path


@dataclass(frozen=True)
class Table:
    """A table picture of 640x480 pixels and the texture of the same size it is paired with.

    mix: 1 where the texture variants of the benchmark blend the texture over the picture, 0 where they never do.
    """

    index: int
    id: str
    split: str
    image: Path
    texture: Path
    mix: float


@dataclass(frozen=True)
class Pack:
    """An opened asset pack; every path in it exists."""

    name: str
    root: Path
    objects: tuple[Model, ...]
    receptacles: tuple[Model, ...]
    tables: tuple[Table, ...]
    robot_urdf: Path
    robot_srdf: Path


def edition(name: str) -> str:
    """Name of a pack with its version, where it has one: what was made with another edition does not fit this one."""
    return f"{name}-{VERSION}" if name in GENERATED else name


def exact_edition(name: str) -> str:
    """The same, and of the paper's pack with a digest of its manifest, where the pack is at hand."""
    manifest = Path(os.environ.get("VLAPOST_ASSETS", "nowhere")).expanduser() / "manifest.json"
    return f"{name}-{sha256(manifest)[:8]}" if name == "paper" and manifest.is_file() else edition(name)


def open_pack(name: str) -> Pack:
    """The asset pack of a name: one drawn here, on first use, or "paper" (the folder in $VLAPOST_ASSETS).

    Every file is compared with its checksum, once per process. Visual meshes that the paper's pack lacks are replaced
    by the collision shape, with one warning that lists them.

    Raises:
        UserError: unknown name, $VLAPOST_ASSETS unset or not an asset pack, a file missing or corrupt.
    """
    if name in GENERATED:
        return _open(name, _generated_root(name))
    if name == "paper":
        folder = os.environ.get("VLAPOST_ASSETS")
        if not folder:
            raise UserError(
                "env.assets is 'paper' but VLAPOST_ASSETS is not set; set it to the folder of the paper's asset pack."
            )
        return _open(name, Path(folder).expanduser().absolute())
    raise UserError(f"env.assets is '{name}'; it must be procedural, paper, world or tasks.")


def verify(pack: Pack) -> int:
    """Compare every file with the checksum in the manifest; returns how many were compared.

    Raises:
        UserError: the first file that is missing or differs, and what to do about it.
    """
    remedy = _remedy(pack.name, pack.root)
    files = _read_json(pack.root / "manifest.json")["files"]
    for entry in files:
        path = pack.root / entry["path"]
        if not path.is_file():
            raise UserError(f"{path} is missing from the asset pack; {remedy}.")
        if sha256(path) != entry["sha256"]:
            raise UserError(f"{path} is corrupt (its checksum is not the manifest's); {remedy}.")
    return len(files)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_manifest(root: Path) -> None:
    """Write `manifest.json`: path, checksum and size of every other file below `root`, sorted by path."""
    manifest = root / "manifest.json"
    files = sorted(path for path in root.rglob("*") if path.is_file() and path != manifest)
    entries = [
        {"path": path.relative_to(root).as_posix(), "sha256": sha256(path), "bytes": path.stat().st_size}
        for path in files
    ]
    manifest.write_text(json.dumps({"files": entries}, indent=1) + "\n")


def _generated_root(name: str) -> Path:
    """Folder of a pack that is drawn here, made now if it is not there.

    Processes that start together wait for the one that holds the lock; an interrupted generation leaves only a
    temporary folder, which the next one removes.
    """
    # heavy, and the paper's pack does without it
    from vlapost.assets.procedural import generate, generate_tasks, generate_world

    parent = ROOT / "data" / "assets"
    root = parent / edition(name)
    if root.is_dir():
        return root
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with open(parent / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if root.is_dir():
                return root
            for leftover in parent.glob("tmp-*"):
                shutil.rmtree(leftover)
            print(f"Drawing the assets '{name}' into {root} (once) ...", file=sys.stderr, flush=True)
            temporary = Path(tempfile.mkdtemp(prefix="tmp-", dir=parent))
            if name == "world":
                generate_world(temporary, WORLD)
            elif name == "tasks":
                generate_tasks(temporary)
            else:
                generate(temporary)
            write_manifest(temporary)
            temporary.chmod(0o755)
            flush(temporary)
            temporary.rename(root)
            flush_entry(parent)
    except OSError as error:
        raise UserError(f"Cannot write the assets '{name}' to {parent}: {error.strerror}.") from None
    return root


@cache
def _open(name: str, root: Path) -> Pack:
    pack = _read(name, root)
    verify(pack)
    without_visual = [model.id for model in pack.objects + pack.receptacles if model.visual == model.collision]
    if without_visual and parent_process() is None and "LOCAL_RANK" not in os.environ:  # not once more per worker
        warnings.warn(
            f"The asset pack in {root} has no visual mesh for {', '.join(without_visual)}; "
            "their collision shapes are drawn instead.",
            stacklevel=3,
        )
    return pack


def _read(name: str, root: Path) -> Pack:
    if not (root / "manifest.json").is_file():
        raise UserError(f"{root} is not an asset pack: it holds no manifest.json.")
    pack = Pack(
        name=name,
        root=root,
        objects=_read_models(name, root, "objects"),
        receptacles=_read_models(name, root, "receptacles"),
        tables=_read_tables(name, root),
        robot_urdf=root / f"{ROBOT}.urdf",
        robot_srdf=root / f"{ROBOT}.srdf",
    )
    models = pack.objects + pack.receptacles
    needed = [model.collision for model in models]
    needed += [path for table in pack.tables for path in (table.image, table.texture)]
    for path in (*needed, pack.robot_urdf, pack.robot_srdf):
        if not path.is_file():
            raise UserError(f"{path} is missing from the asset pack in {root}; copy or generate the pack again.")
    return pack


def _read_models(name: str, root: Path, folder: str) -> tuple[Model, ...]:
    database, trained = _read_database(name, root, folder)
    models = []
    for index, (id_, entry) in enumerate(database.items()):
        place = root / folder / id_
        collision = place / "collision.obj"
        models.append(
            Model(
                index=index,
                id=id_,
                name=entry["name"],
                split="train" if index < trained else "test",
                bbox_min=_point(entry["bbox"]["min"]),
                bbox_max=_point(entry["bbox"]["max"]),
                density=float(entry["density"]),
                collision=collision,
                visual=next((place / file for file in VISUALS if (place / file).is_file()), collision),
            )
        )
    return tuple(models)


def _read_tables(name: str, root: Path) -> tuple[Table, ...]:
    database, trained = _read_database(name, root, "tables")
    return tuple(
        Table(
            index=index,
            id=Path(file).stem,
            split="train" if index < trained else "test",
            image=root / "tables" / file,
            texture=root / "textures" / entry["texture"],
            mix=float(entry["mix"]),
        )
        for index, (file, entry) in enumerate(database.items())
    )


def _read_database(name: str, root: Path, folder: str) -> tuple[dict[str, Any], int]:
    """Entries by id, and how many of them are for training."""
    database = _read_json(root / folder / "model_db.json")
    count, trained = COUNTS[folder]
    if name in ("world", "tasks"):
        count = trained = (WORLD if name == "world" else TASKS)[folder]
    if len(database) != count:
        file = root / folder / "model_db.json"
        raise UserError(f"{file} lists {len(database)} entries; the pack '{name}' has {count}; {_remedy(name, root)}.")
    return database, trained


def _remedy(name: str, root: Path) -> str:
    """What to do about a damaged pack."""
    return f"delete {root} and it is generated again" if name in GENERATED else "copy the pack again"


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} is missing from the asset pack; copy or generate the pack again.")
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise UserError(f"{path} is not valid JSON; copy or generate the asset pack again.") from None


def _point(values: list[float]) -> Point:
    x, y, z = values
    return (float(x), float(y), float(z))
