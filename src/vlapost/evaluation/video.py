"""Episodes as mp4 files and as strips of pictures."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import Image

from vlapost.disk import whole

FRAMES_PER_SECOND = 10  # twice real time: the policy acts five times a second

STRIP = 8  # pictures of a strip, evenly spread from the first to the last


def write_video(path: Path, frames_THWC: np.ndarray, fps: int = FRAMES_PER_SECOND) -> None:
    """Write frames `[T, H, W, 3]` uint8 RGB as H.264; the file appears under its name when it is complete."""
    with whole(path) as partial:
        iio.imwrite(partial, frames_THWC, plugin="FFMPEG", fps=fps, codec="libx264", macro_block_size=2)


def write_strip(path: Path, frames_THWC: np.ndarray) -> None:
    """Write some of the frames `[T, H, W, 3]` uint8 side by side (paper Fig. 9)."""
    chosen = np.linspace(0, len(frames_THWC) - 1, STRIP).round().astype(int)
    with whole(path) as partial:
        Image.fromarray(np.concatenate(list(frames_THWC[chosen]), axis=1)).save(partial)
