"""Camera pictures to the six normalised channels the two image encoders read."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlapost.config import UserError


class Preprocess(nn.Module):
    """Resize (bicubic, antialiased, not clamped, as the study's RL code does), scale to 0..1, normalise twice.

    Args:
        config: content of `preprocessor_config.json`; its `tvf_normalize_params` give mean and standard deviation
            of the DINOv2 and of the SigLIP channels.
        size: height and width in pixels that the encoders expect.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: dict[str, Any], size: tuple[int, int]) -> None:
        super().__init__()
        params = config.get("tvf_normalize_params")
        if not params or len(params) != 2:
            raise UserError("preprocessor_config.json needs two entries in 'tvf_normalize_params'.")
        strategy = config.get("image_resize_strategy", "resize-naive")
        if strategy != "resize-naive":
            raise UserError(
                f"preprocessor_config.json wants '{strategy}' of pictures; only 'resize-naive' is known here."
            )
        self.size = size
        self.register_buffer("mean", _channels(params, "mean"), persistent=False)
        self.register_buffer("std", _channels(params, "std"), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """uint8 RGB `[B, H, W, 3]` to float32 `[B, 6, height, width]`: DINOv2's channels, then SigLIP's."""
        pixels = _resized(image, self.size) / 255.0
        return (torch.cat([pixels, pixels], dim=1) - self.mean) / self.std

    def fit(self, image: Tensor) -> Tensor:
        """uint8 RGB `[B, H, W, 3]` to the encoders' size, rounded to uint8 again: what a rollout keeps."""
        return fit(image, self.size)


def fit(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 RGB `[B, H, W, 3]` to `[B, *size, 3]`, whatever the proportions, rounded to uint8 again."""
    if image.shape[1:3] == size:
        return image
    return _resized(image, size).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    pixels = image.permute(0, 3, 1, 2).float()
    if pixels.shape[-2:] == size:
        return pixels
    return F.interpolate(pixels, size=size, mode="bicubic", align_corners=False, antialias=True)


def _channels(params: list[dict[str, list[float]]], key: str) -> Tensor:
    return torch.tensor([*params[0][key], *params[1][key]], dtype=torch.float32).view(1, 6, 1, 1)
