import math

import pytest
import torch

from vlapost.assets.pack import WORLD
from vlapost.config import UserError
from vlapost.envs.episodes import decode, draw, encode, find_setup, held_out, instruction, make_held_out

MAIN = "PutOnPlateInScene25Main-v3"


@pytest.mark.parametrize(
    ("obj_set", "total"), [("few", 200_704), ("train", 802_816), ("test", 141_120), ("all", 1_646_400)]
)
def test_number_of_episodes(obj_set, total):
    assert find_setup(MAIN, obj_set).total == total


def test_positions_are_the_784_pairs_of_the_grid():
    positions = find_setup(MAIN, "train").positions
    assert positions.shape == (784, 4)
    assert len(torch.unique(positions, dim=0)) == 784
    distance = (positions[:, :2] - positions[:, 2:]).norm(dim=1)
    assert distance.min().item() == pytest.approx(0.0848528, abs=1e-6)  # two steps in x and two in y
    for column, values in ((0, (-0.235, -0.085)), (1, (-0.075, 0.075))):
        assert positions[:, column].aminmax() == (pytest.approx(values[0]), pytest.approx(values[1]))


def test_mixed_radix_order_by_hand():
    setup = find_setup(MAIN, "test")
    # object 3 of 9, plate, table 2 of 5, position 100 of 784, yaw 1 of 4
    id_ = (((3 * 1 + 0) * 5 + 2) * 784 + 100) * 4 + 1
    spec = decode(setup, torch.tensor([id_, id_ + setup.total]))
    assert spec.object.tolist() == [19, 19]
    assert spec.receptacle.tolist() == [0, 0]
    assert spec.table.tolist() == [18, 18]
    assert spec.yaw.tolist() == pytest.approx([math.pi / 4] * 2)
    torch.testing.assert_close(spec.object_xy[0], setup.positions[100, :2])
    assert encode(setup, torch.tensor([[3, 0, 2, 100, 1]])).item() == id_


def test_the_first_pair_of_points():
    spec = decode(find_setup(MAIN, "train"), torch.tensor([0]))
    # point (0, 0); the first admissible receptacle point is (0, 3): 0.09 m away, (0, 2) would be 0.06 m
    torch.testing.assert_close(spec.object_xy, torch.tensor([[-0.235, -0.075]]))
    torch.testing.assert_close(spec.receptacle_xy, torch.tensor([[-0.235, 0.015]]))


@pytest.mark.parametrize("obj_set", ["few", "train", "test", "all"])
def test_held_out_list_is_the_committed_one_and_balanced(obj_set):
    setup, ids = find_setup(MAIN, obj_set), held_out(MAIN, obj_set)
    assert torch.equal(ids, make_held_out(setup))
    assert len(ids.unique()) == 1024 and ids.min() >= 0 and ids.max() < setup.total
    for prefix in (200, 333, 1024):
        spec = decode(setup, ids[:prefix])
        for values, pool in ((spec.object, setup.objects), (spec.table, setup.tables)):
            counts = torch.bincount(values - pool.start, minlength=len(pool))
            assert counts.max() - counts.min() <= 4
        yaws = torch.unique(spec.yaw, return_counts=True)[1]
        assert yaws.max() - yaws.min() <= 5
        places = torch.cat([spec.object_xy, spec.receptacle_xy], dim=1)
        assert torch.unique(places, dim=0, return_counts=True)[1].max() <= math.ceil(prefix / 784)


def test_draw_is_uniform_reproducible_and_avoids_the_held_out_list():
    setup = find_setup(MAIN, "train")
    exclude = torch.arange(0, setup.total, 2)
    first = draw(setup, 500, torch.Generator().manual_seed(3), exclude)
    again = draw(setup, 500, torch.Generator().manual_seed(3), exclude)
    assert torch.equal(first, again) and (first % 2 == 1).all() and len(first) == 500
    assert decode(setup, first).object.unique().numel() == 16


def test_the_pretraining_world_covers_the_benchmarks_square_with_a_finer_grid():
    world, main = find_setup("PutOnReceptacleInWorld-v1", "train"), find_setup(MAIN, "train")
    assert (len(world.objects), len(world.receptacles), len(world.tables)) == tuple(WORLD.values())
    for column in range(4):
        low, high = main.positions[:, column].aminmax()
        near, far = world.positions[:, column].aminmax()
        assert near.item() == pytest.approx(low.item() - 0.01, abs=1e-6)
        assert far.item() == pytest.approx(high.item() + 0.01, abs=1e-6)
    distance = (world.positions[:, :2] - world.positions[:, 2:]).norm(dim=1)
    assert distance.min().item() == pytest.approx(0.0707107, abs=1e-6)  # five steps each way
    ids = held_out("PutOnReceptacleInWorld-v1", "train")
    assert torch.equal(ids, make_held_out(world))
    assert len(ids.unique()) == 1024


def test_unknown_names_are_user_errors():
    with pytest.raises(UserError, match=r"env\.id is 'Nope'"):
        find_setup("Nope", "train")
    with pytest.raises(UserError, match="few, train, test, all"):
        find_setup(MAIN, "training")


def test_instruction():
    assert instruction("carrot", "plate") == "put carrot on plate"
