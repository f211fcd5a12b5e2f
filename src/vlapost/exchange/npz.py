"""The simplest format: a folder of .npz files, an episode each. It is what any other policy's episodes can be put in.

    numpy.savez_compressed("octo/0001.npz", image=..., action=..., instruction="put carrot on plate", success=True)

image `[T, H, W, 3]` uint8 RGB, seen before each action; action `[T, 7]`; instruction, a string; success, a bool for the
episode or `[T]` after each step, may be left out.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from vlapost.config import ExchangeConfig, UserError
from vlapost.exchange.trajectory import Trajectory


def read(source: Path, first: int, declared: ExchangeConfig) -> Iterator[Trajectory]:
    """The episodes of a folder in the order of their names, from number `first` on.

    Raises:
        UserError: there are no files; one is damaged or lacks something.
    """
    paths = sorted(source.glob("*.npz"))
    if not paths:
        raise UserError(f"{source} holds no .npz files; SOURCE must be a folder of them, an episode each.")
    for path in paths[first:]:
        yield _trajectory(path)


def _trajectory(path: Path) -> Trajectory:
    try:
        with np.load(path, allow_pickle=False) as file:
            there = {key: file[key] for key in file.files}
    except (BadZipFile, zlib.error, ValueError, TypeError, EOFError, OSError) as error:
        raise UserError(f"{path} is damaged or holds Python objects ({error}); write it again.") from None
    missing = [key for key in ("image", "action", "instruction") if key not in there]
    if missing:
        raise UserError(f"{path} has no '{missing[0]}'; it has: {', '.join(there) or 'nothing'}.")
    action = there["action"]
    for key in ("image", "action"):
        if there[key].ndim == 0:
            raise UserError(f"The '{key}' of {path} is a single value; it needs one for each step.")
    success = np.atleast_1d(there["success"]).astype(bool) if "success" in there else None
    if success is not None and len(success) == 1:
        success = np.append(np.zeros(max(0, len(action) - 1), bool), success)
    if there["instruction"].ndim or there["instruction"].dtype.kind != "U":
        raise UserError(f"The 'instruction' of {path} is no single string; write it with instruction=\"put ...\".")
    return Trajectory(str(path), list(there["image"]), action, str(there["instruction"]), success)
