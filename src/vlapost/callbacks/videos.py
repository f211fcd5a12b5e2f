"""Videos of held-out episodes: an mp4 file each, and one animated picture in TensorBoard."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import lightning as L
import torch
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor

from vlapost.evaluation.video import write_video


class Videos(L.Callback):
    """Shows the episodes that the datamodule recorded during validation."""

    def __init__(self, folder: Path):
        self.folder = folder

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write what was recorded, on the first process."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not trainer.is_global_zero or not data.videos:
            return
        for number, frames in enumerate(data.videos):
            write_video(self.folder / f"iteration{trainer.current_epoch:05d}_{number}.mp4", frames.numpy())
        side_by_side = torch.cat(list(data.videos), dim=2)
        writer: Any = trainer.logger.experiment  # type: ignore[union-attr]
        writer._get_file_writer().add_summary(animation("val/episodes", side_by_side), trainer.global_step)
        data.videos = []


def animation(tag: str, frames_THWC: Tensor) -> Summary:
    """Frames `[T, H, W, 3]` uint8 as an animated image summary (no moviepy, which add_video would need)."""
    pictures = [Image.fromarray(frame.numpy()) for frame in frames_THWC]
    buffer = io.BytesIO()
    pictures[0].save(buffer, format="GIF", save_all=True, append_images=pictures[1:], duration=100, loop=0)
    height, width = frames_THWC.shape[1:3]
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=buffer.getvalue())
    return Summary(value=[Summary.Value(tag=tag, image=image)])
