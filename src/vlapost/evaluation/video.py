"""Episodes as mp4 files."""

from __future__ import annotations

import os
from pathlib import Path

import imageio.v3 as iio
import numpy as np

FRAMES_PER_SECOND = 10  # twice real time: the policy acts five times a second


def write_video(path: Path, frames_THWC: np.ndarray, fps: int = FRAMES_PER_SECOND) -> None:
    """Write frames `[T, H, W, 3]` uint8 RGB as H.264; the file appears under its name when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"partial-{path.name}")
    iio.imwrite(partial, frames_THWC, plugin="FFMPEG", fps=fps, codec="libx264", macro_block_size=2)
    os.replace(partial, path)
