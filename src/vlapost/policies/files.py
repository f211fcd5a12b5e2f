"""Reading and writing of checkpoint files, with one clear sentence for every way they can be broken."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlapost.config import UserError
from vlapost.disk import flush, flush_entry

INDEX = "model.safetensors.index.json"


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file, as all of a checkpoint are: keys and values.

    Raises:
        UserError: the file is missing, is not JSON, or is no object with keys.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; the folder is not complete: copy or create it again.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); copy or create the file again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is no JSON object with keys; copy or create the file again.")
    return content


def read_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """All tensors of one safetensors file, on `device`.

    Raises:
        UserError: the file is missing or truncated.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; copy it again or create the folder anew.")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise UserError(f"{path} is not a complete safetensors file ({error}); copy or create it again.") from None


@dataclass(frozen=True)
class Stored:
    """One tensor in a safetensors file, not read yet.

    dtype: as safetensors writes it, for example "BF16".
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        """The tensor in memory of its own, on `device`, in `dtype` (None: as stored).

        The file is opened for this tensor alone: through a mapping that stays open, every page read counts as memory.
        """
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(self.name).to(device, dtype, copy=True)


def stored_tensors(path: Path) -> dict[str, Stored]:
    """Names and shapes of a safetensors file.

    Raises:
        UserError: the file is missing or truncated.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; copy it again or create the folder anew.")
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return {n: Stored(path, n, tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}
    except SafetensorError as error:
        raise UserError(f"{path} is not a complete safetensors file ({error}); copy or create it again.") from None


def stored_model(folder: Path) -> dict[str, Stored]:
    """All tensors of a model stored as model.safetensors or as shards with model.safetensors.index.json.

    Raises:
        UserError: a file is missing or truncated, or there are pickles only; the sentence names the file.
    """
    index = folder / INDEX
    if not index.is_file():
        refuse_pickles(folder, "model.safetensors")
        return stored_tensors(folder / "model.safetensors")
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or any(Path(str(s)).name != s for s in places.values()):
        raise UserError(f"{index} has no 'weight_map' of tensor names to file names in this folder; copy it again.")
    shards = {shard: stored_tensors(folder / shard) for shard in sorted(set(places.values()))}
    lost = sorted(name for name, shard in places.items() if name not in shards[shard])
    if lost:
        raise UserError(f"{folder / places[lost[0]]} lacks '{lost[0]}', which {INDEX} says it holds; copy both again.")
    return {name: stored for shard in shards.values() for name, stored in shard.items()}


def refuse_pickles(folder: Path, wanted: str) -> None:
    """Say so where weights exist only as a pickle.

    Raises:
        UserError: `wanted` is missing and there is a file that only unpickling could read.
    """
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles and not (folder / wanted).is_file():
        raise UserError(
            f"{folder} has {pickles[0]} but no {wanted}; a pickle can run code when it is read, so only safetensors "
            "files are: convert it where you trust it, or get the folder from who made it."
        )


def read_notes(path: Path) -> dict[str, str]:
    """What `write_tensors` has noted in a safetensors file that can be read."""
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def write_tensors(tensors: dict[str, Tensor], path: Path, notes: dict[str, str] | None = None) -> None:
    """Write one safetensors file, with notes about what it holds.

    Raises:
        OSError: with the system's number (ENOSPC on a full disk) and `path`; safetensors itself hides them in a text.
    """
    try:
        save_file(tensors, path, metadata={"format": "pt"} | (notes or {}))
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(path)) from None


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`; it takes the name `folder` (replacing an old one) when the block succeeds.

    Whatever interrupts this, `restore(folder)` finds either the old content or the new.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    restore(folder)
    new, old = _beside(folder, "new"), _beside(folder, "old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        flush(new)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        flush_entry(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def occupied(folder: Path) -> bool:
    """Whether something is there that `new_folder` would replace."""
    return folder.is_file() or (folder.is_dir() and any(folder.iterdir()))


def restore(folder: Path) -> None:
    """Give a folder its old content back if its replacement was interrupted when neither had the name."""
    old = _beside(folder, "old")
    if old.is_dir() and not folder.exists():
        with suppress(FileNotFoundError):  # another process was faster
            old.rename(folder)


def _beside(folder: Path, word: str) -> Path:
    return folder.with_name(f".{folder.name}.{word}")
