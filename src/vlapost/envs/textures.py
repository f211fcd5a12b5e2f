"""Textures blended over the picture: the dynamic textures and dynamic noise of the vision setups (paper §4.1).

A layer is a picture that shows the texture where it may be seen. Boxes are (top, left, height, width) in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlapost.envs.overlay import BACKGROUND

Box = tuple[int, int, int, int]
SMALLEST = 0.5  # share of the texture's height and width that a random crop shows, at least


def layers(
    textures: Sequence[Tensor], labels: Tensor, everything: bool, keys: Sequence[tuple[int, int]] | None
) -> tuple[Tensor, Tensor]:
    """The textures `[H, W, 3]` of E scenes as layers, and where they are shown.

    Args:
        labels: `[E, H, W]` of what is kept. everything: shown over the whole picture, not over the bodies alone.
        keys: of each scene the episode and the control step, which choose a random crop. None repeats the authors'
            code: no chance, the size of the largest box of all scenes, and over everything twice the size.

    Returns:
        `[E, H, W, 3]` float32 and `[E, H, W]` bool.
    """
    height, width = labels.shape[1:]
    whole = (0, 0, height, width)
    unlimited = everything and keys is not None  # the only case that does not ask where the bodies are
    boxes = [whole if unlimited else foreground_box(part) for part in labels]
    if keys is not None:
        crops = [random_crop(np.random.default_rng(key), height, width) for key in keys]
        found = [layer(*given) for given in zip(textures, crops, boxes)]
    elif everything:
        found = [doubled_layer(*given) for given in zip(textures, boxes)]
    else:
        found = [layer(texture, whole, box) for texture, box in zip(textures, common_size(boxes))]
    shown = torch.ones_like(labels, dtype=torch.bool) if everything else labels != BACKGROUND
    return torch.stack(found), shown


def foreground_box(labels: Tensor) -> Box:
    """The box around robot and bodies in labels `[H, W]`; of one pixel if there is none."""
    rows, columns = (labels != BACKGROUND).nonzero(as_tuple=True)
    if not len(rows):
        return 0, 0, 1, 1
    (top, bottom), (left, right) = rows.aminmax(), columns.aminmax()
    return int(top), int(left), int(bottom - top) + 1, int(right - left) + 1


def random_crop(rng: np.random.Generator, height: int, width: int) -> Box:
    """A crop of random size and place of a texture of that size; its sides keep their proportion."""
    share = rng.uniform(SMALLEST, 1)
    h, w = round(share * height), round(share * width)
    return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w


def layer(texture: Tensor, crop: Box, box: Box) -> Tensor:
    """`[H, W, 3]` float32: a crop of a texture `[H, W, 3]` uint8, resized to a box that may end outside the picture."""
    top, left, height, width = crop
    shown = _resize(texture[top : top + height, left : left + width], box[2], box[3])
    top, left, height, width = box
    picture = torch.zeros(texture.shape, device=texture.device)
    room = picture[top : top + height, left : left + width]
    room.copy_(shown[: room.shape[0], : room.shape[1]])
    return picture


def doubled_layer(texture: Tensor, box: Box) -> Tensor:
    """`[H, W, 3]` float32: the part of the texture at twice its size that begins at the middle of a box."""
    height, width = texture.shape[:2]
    top = min(max(box[0] + (box[2] - 1) // 2, 1), height - 1)
    left = min(max(box[1] + (box[3] - 1) // 2, 1), width - 1)
    return _resize(texture, 2 * height, 2 * width)[top : top + height, left : left + width]


def common_size(boxes: Sequence[Box]) -> list[Box]:
    """The boxes with the height and the width of the largest of them."""
    height, width = max(box[2] for box in boxes), max(box[3] for box in boxes)
    return [(top, left, height, width) for top, left, _, _ in boxes]


def blend(image: Tensor, layers: Tensor, shown: Tensor, ratio: float) -> Tensor:
    """`[E, H, W, 3]` uint8: `ratio` of the layers `[E, H, W, 3]` over the image where `shown` `[E, H, W]` is true."""
    mixed = ((1 - ratio) * image + ratio * layers).clamp(0, 255).to(torch.uint8)
    return torch.where(shown.unsqueeze(-1), mixed, image)


def _resize(picture: Tensor, height: int, width: int) -> Tensor:
    """`[height, width, 3]` float32 of `[h, w, 3]`, bilinear."""
    planes = picture.permute(2, 0, 1).unsqueeze(0).float()
    return F.interpolate(planes, (height, width), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
