"""Making sure that what is renamed into place is really on the disk."""

from __future__ import annotations

import os
from pathlib import Path


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
