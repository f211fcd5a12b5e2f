"""The procedural asset pack: every body, picture and the robot, drawn by the code in this folder."""

from __future__ import annotations

from pathlib import Path

VERSION = 1


def generate(root: Path) -> None:
    """Write the whole pack (without its manifest) into the empty folder `root`; always the same bytes."""
    raise NotImplementedError
