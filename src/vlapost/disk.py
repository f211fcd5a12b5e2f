"""Files that are whole or not there, and those that one process holds."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO

from vlapost.config import UserError


def write_text(path: Path, text: str) -> None:
    """Write a small text file; it appears under its name when it is complete."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
        flush_entry(partial)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file meanwhile; it gets its name `path` when the block is done. Makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"partial-{os.getpid()}-{path.name}")
    yield partial
    os.replace(partial, path)


def hold(path: Path, otherwise: str) -> IO[str]:
    """Open and lock a file, which it makes; no other process gets it until it is closed.

    Raises:
        UserError: another one has it; `otherwise` is the sentence.
    """
    lock = open(path, "w")  # noqa: SIM115  (the caller closes it)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise UserError(otherwise) from None
    return lock


@contextmanager
def alone(folder: Path, first: bool = True) -> Iterator[None]:
    """Hold the folder, which is made, while the block runs (the first process of a run does it for all).

    Raises:
        UserError: another command is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    others = f"Another command is at work in {folder}; wait for it, or stop it."
    with hold(folder / ".lock", others) if first else nullcontext():
        yield


def flush(path: Path) -> None:
    """Wait until a file, or a folder with all its content, is on the disk."""
    if path.is_dir():
        for content in path.iterdir():
            flush(content)
    flush_entry(path)


def flush_entry(path: Path) -> None:
    """Wait until one file, or the list of names in one folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
