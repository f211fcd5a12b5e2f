"""The greenscreen: robot and bodies as rendered, everything else from the episode's table picture.

Pixels carry the segmentation id of what they show. A lookup table turns ids into labels, and labels say what to keep.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import torch
from torch import Tensor

BACKGROUND, ROBOT, OBJECT, RECEPTACLE, OTHER = range(5)
MAX_ID = 256  # bodies and links of a scene, more than there ever are


@cache
def table_picture(path: Path, height: int, width: int) -> Tensor:
    """`[H, W, 3]` uint8 RGB: a table picture at the camera's size (bilinear), read once per process and size."""
    picture = cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    if picture.shape[:2] != (height, width):
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(picture)


def lookup_table(robot: list[int], object_: int, receptacle: int, other: int | None = None) -> Tensor:
    """`[256]` uint8: label of each segmentation id of one scene."""
    table = torch.full((MAX_ID,), BACKGROUND, dtype=torch.uint8)
    table[robot] = ROBOT
    table[object_] = OBJECT
    table[receptacle] = RECEPTACLE
    if other is not None:
        table[other] = OTHER
    return table


def label(segmentation: Tensor, tables: Tensor) -> Tensor:
    """Labels `[E, H, W]` uint8 of segmentation ids `[E, H, W]`, by the scenes' lookup tables `[E, 256]`."""
    scenes = torch.arange(len(tables), device=tables.device).view(-1, 1, 1)
    return tables[scenes, segmentation.long()]


def composite(rendered: Tensor, labels: Tensor, pictures: Tensor) -> Tensor:
    """`[E, H, W, 3]` uint8: `rendered` where there is a label, `pictures` elsewhere (all of the same shape)."""
    if rendered.is_cuda:
        return torch.where((labels != BACKGROUND).unsqueeze(-1), rendered, pictures)
    image = pictures.clone()
    for source, mask, target in zip(rendered.contiguous().numpy(), labels.numpy(), image.numpy()):
        cv2.copyTo(source, mask, target)  # writes into `image`; 20 times as fast as torch.where on one thread
    return image
