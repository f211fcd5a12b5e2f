"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
