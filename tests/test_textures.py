import numpy as np
import torch

from vlapost.envs.overlay import BACKGROUND, OBJECT, OTHER, RECEPTACLE, ROBOT, label, lookup_table
from vlapost.envs.textures import blend, common_size, doubled_layer, foreground_box, layer, random_crop


def picture(values: list[list[int]]) -> torch.Tensor:
    """`[H, W, 3]` uint8 of one channel."""
    return torch.tensor(values, dtype=torch.uint8).unsqueeze(-1).expand(-1, -1, 3).contiguous()


def test_box_of_what_is_kept() -> None:
    labels = torch.zeros(4, 5, dtype=torch.uint8)
    labels[1, 3], labels[2, 1] = ROBOT, OTHER
    assert foreground_box(labels) == (1, 1, 2, 3)
    assert foreground_box(torch.zeros(4, 5, dtype=torch.uint8)) == (0, 0, 1, 1)


def test_a_second_body_has_its_own_label() -> None:
    table = lookup_table([1, 2], 3, 4, 5)
    assert label(torch.tensor([[[0, 1, 3, 4, 5]]]), table[None]).tolist() == [
        [[BACKGROUND, ROBOT, OBJECT, RECEPTACLE, OTHER]]
    ]


def test_the_texture_fills_the_box() -> None:
    texture = picture([[10, 20, 30, 40], [10, 20, 30, 40], [50, 60, 70, 80], [50, 60, 70, 80]])
    shown = layer(texture, (0, 0, 4, 4), (1, 2, 2, 2))[..., 0]
    # each pixel of the box is the mean of 2 x 2 pixels of the texture
    assert shown.tolist() == [[0, 0, 0, 0], [0, 0, 15, 35], [0, 0, 55, 75], [0, 0, 0, 0]]
    shown = layer(texture, (2, 1, 1, 2), (0, 0, 1, 2))[..., 0]
    assert shown[0].tolist() == [60, 70, 0, 0]
    shown = layer(texture, (0, 0, 4, 4), (3, 2, 4, 4))[..., 0]  # the box reaches out of the picture
    assert shown[3].tolist() == [0, 0, 10, 20]


def test_the_doubled_texture_begins_at_the_middle_of_the_box() -> None:
    texture = picture([[0, 40], [80, 120]])
    # twice as large, bilinear: rows and columns at 0, 1/4, 3/4 and 1 of the way
    doubled = torch.tensor([[0, 10, 30, 40], [20, 30, 50, 60], [60, 70, 90, 100], [80, 90, 110, 120]])
    torch.testing.assert_close(doubled_layer(texture, (0, 0, 2, 2))[..., 0], doubled[1:3, 1:3].float())
    torch.testing.assert_close(doubled_layer(texture, (9, 9, 1, 1))[..., 0], doubled[1:3, 1:3].float())


def test_blend_by_hand() -> None:
    image, layers = torch.full((1, 1, 2, 3), 100).byte(), torch.full((1, 1, 2, 3), 201.0)
    mixed = blend(image, layers, torch.tensor([[[True, False]]]), 0.3)
    assert mixed[0, 0, :, 0].tolist() == [130, 100]  # 70 + 60.3


def test_with_the_authors_code_the_largest_box_of_the_batch_decides() -> None:
    assert common_size([(1, 2, 3, 9), (4, 5, 7, 6)]) == [(1, 2, 7, 9), (4, 5, 7, 9)]


def test_random_crops_lie_inside_and_vary() -> None:
    crops = {random_crop(np.random.default_rng([7, step]), 48, 64) for step in range(50)}
    assert len(crops) > 45
    for top, left, height, width in crops:
        assert 24 <= height <= 48 and 32 <= width <= 64 and abs(width / height - 4 / 3) < 0.05
        assert 0 <= top <= 48 - height and 0 <= left <= 64 - width
