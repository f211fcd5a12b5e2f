"""Image augmentation.

`augment`: that of the warm-up recipe (paper Appendix B.1), random crop of 90 % area and colour jitter.
`repaint`: that of pretraining, where the simulator says what each pixel shows: other tables, other colours.
"""

from __future__ import annotations

import numpy as np
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
    x = jitter(x, brightness, contrast)
    x = recolour(x, u[:, 3] * HUE * 2 * torch.pi, 1 + u[:, 2] * SATURATION)
    return (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def jitter(x: Tensor, brightness: Tensor, contrast: Tensor) -> Tensor:
    """Brightness added, then contrast about each channel's mean, each cut to 0..1 (TensorFlow's two operations).

    x: `[B, 3, H, W]` in 0..1. brightness, contrast: `[B, 1, 1, 1]`.
    """
    x = (x + brightness).clamp(0, 1)
    mean = x.mean((2, 3), keepdim=True)
    return ((x - mean) * contrast + mean).clamp(0, 1)


def recolour(x: Tensor, angle: Tensor, saturation: Tensor) -> Tensor:
    """Colours turned in the chroma plane and made stronger or weaker; brightness stays, and nothing is cut.

    x: `[B, 3, H, W]`. angle (radians), saturation (1: as it was): `[B]`.
    """
    cos, sin = angle.cos() * saturation, angle.sin() * saturation
    turn = torch.zeros(len(x), 3, 3)
    turn[:, 0, 0] = 1
    turn[:, 1, 1], turn[:, 1, 2], turn[:, 2, 1], turn[:, 2, 2] = cos, -sin, sin, cos
    matrix = torch.linalg.inv(_TO_YIQ) @ turn @ _TO_YIQ
    return torch.einsum("bij,bjhw->bihw", matrix, x)


NEW_TABLE = 0.7  # share of pictures that get another table
SWAPPED = 0.5  # share of bodies whose red, green and blue are dealt anew
GAIN = 0.35  # largest change of a channel's brightness


def repaint(image: Tensor, labels: Tensor, tables: Tensor, generator: torch.Generator) -> Tensor:
    """Another table behind the bodies, and other colours for background, robot, object and receptacle.

    Colour words of the instruction are then right in about half of the pictures: what is taught is to see.

    Args:
        image: `[B, H, W, 3]` uint8. labels: `[B, H, W]` uint8, 0 background, 1 robot, 2 object, 3 receptacle.
        tables: `[K, H, W, 3]` uint8, pictures to draw from.

    Returns:
        `[B, H, W, 3]` uint8, new.
    """
    B = len(image)
    new_table = (torch.rand(B, generator=generator) < NEW_TABLE).tolist()
    table = torch.randint(len(tables), (B,), generator=generator).tolist()
    gain = (1 + GAIN * (2 * torch.rand(B, 4, 3, generator=generator) - 1)).numpy()
    gain *= (1 + GAIN * (2 * torch.rand(B, 1, 1, generator=generator) - 1)).numpy()  # the light of the whole picture
    swapped = torch.rand(B, 4, generator=generator) < SWAPPED
    order = torch.rand(B, 4, 3, generator=generator).argsort(-1).numpy()
    order[~(swapped & torch.tensor([False, False, True, True])).numpy()] = (0, 1, 2)
    result = image.numpy().copy()
    for b, (picture, label) in enumerate(zip(result, labels.numpy())):
        if new_table[b]:
            np.copyto(picture, tables[table[b]].numpy(), where=(label == 0)[..., None])
        for kind in range(4):
            inside = label == kind
            colours = picture[inside][:, order[b, kind]] * gain[b, kind]
            picture[inside] = colours.clip(0, 255)
    return torch.from_numpy(result)
