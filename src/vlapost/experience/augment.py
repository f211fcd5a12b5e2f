"""Image augmentation of the warm-up recipe (paper Appendix B.1): random crop of 90 % area and colour jitter."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CROP_AREA = 0.9
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.2, 0.2, 0.2, 0.05

# YIQ: hue is a rotation of the chroma plane.
_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def augment(image: Tensor, generator: torch.Generator) -> Tensor:
    """One random crop and jitter per image; `[B, H, W, 3]` uint8 in and out."""
    B, H, W, _ = image.shape
    x = image.permute(0, 3, 1, 2).float() / 255

    side = CROP_AREA**0.5
    shift = (torch.rand(B, 2, generator=generator) * 2 - 1) * (1 - side)
    theta = torch.zeros(B, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, [B, 3, H, W], align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)

    u = torch.rand(B, 4, generator=generator) * 2 - 1
    brightness = (u[:, 0] * BRIGHTNESS).view(B, 1, 1, 1)
    contrast = (1 + u[:, 1] * CONTRAST).view(B, 1, 1, 1)
    x = (x + brightness - x.mean((1, 2, 3), keepdim=True)) * contrast + x.mean((1, 2, 3), keepdim=True)
    angle, saturation = u[:, 3] * HUE * 2 * torch.pi, 1 + u[:, 2] * SATURATION
    cos, sin = angle.cos() * saturation, angle.sin() * saturation
    turn = torch.zeros(B, 3, 3)
    turn[:, 0, 0] = 1
    turn[:, 1, 1], turn[:, 1, 2], turn[:, 2, 1], turn[:, 2, 2] = cos, -sin, sin, cos
    matrix = torch.linalg.inv(_TO_YIQ) @ turn @ _TO_YIQ
    x = torch.einsum("bij,bjhw->bihw", matrix, x)
    return (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
