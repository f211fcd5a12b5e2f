"""Reading and writing of checkpoint files, with one clear sentence for every way they can be broken."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlapost.config import UserError
from vlapost.disk import flush, flush_entry


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; a checkpoint folder in OpenVLA's layout must contain it.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); copy or create the file again.") from None


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


def read_model(folder: Path, device: torch.device | str) -> dict[str, Tensor]:
    """All tensors of a model stored as model.safetensors or as shards with model.safetensors.index.json.

    Raises:
        UserError: a file is missing or truncated; the sentence names it.
    """
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return read_tensors(folder / "model.safetensors", device)
    shards = sorted(set(read_json(index)["weight_map"].values()))
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        tensors.update(read_tensors(folder / shard, device))
    return tensors


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write one safetensors file.

    Raises:
        OSError: with the system's number (ENOSPC on a full disk) and `path`; safetensors itself hides them in a text.
    """
    try:
        save_file(tensors, path, metadata={"format": "pt"})
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


def restore(folder: Path) -> None:
    """Give a folder its old content back if its replacement was interrupted when neither had the name."""
    old = _beside(folder, "old")
    if old.is_dir() and not folder.exists():
        with suppress(FileNotFoundError):  # another process was faster
            old.rename(folder)


def _beside(folder: Path, word: str) -> Path:
    return folder.with_name(f".{folder.name}.{word}")
