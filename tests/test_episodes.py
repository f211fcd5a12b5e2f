import math
from dataclasses import replace
from pathlib import Path

import gymnasium
import pytest
import torch

import vlapost.envs.scene  # noqa: F401, which registers the environments
from vlapost.assets.pack import WORLD
from vlapost.config import UserError
from vlapost.envs import episodes
from vlapost.envs.episodes import (
    Order,
    chosen,
    decode,
    digits_of,
    draw,
    encode,
    held_out,
    make_held_out,
    reserved,
    solved,
)
from vlapost.envs.places import RING, SQUARE, Places
from vlapost.envs.setups import ARM_OFFSETS, TEMPLATES, declare, find_setup
from vlapost.policies import tiny_tokenizer

PREFIX = "PutOnPlateInScene25"
MAIN = PREFIX + "Main-v3"
ALL = [(env_id, obj_set) for env_id, sets in declare("v2").items() for obj_set in sets]


@pytest.mark.parametrize(
    ("obj_set", "total"), [("few", 200_704), ("train", 802_816), ("test", 141_120), ("all", 1_646_400)]
)
def test_number_of_episodes(obj_set, total):
    assert find_setup(MAIN, obj_set).total == total


def test_positions_are_the_784_pairs_of_the_grid():
    positions = find_setup(MAIN, "train").places.table.flatten(1)
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
    with pytest.raises(UserError, match="Episode 141120 does not exist; this setup has episodes 0 to 141119"):
        decode(setup, torch.tensor([id_, setup.total]))
    setup = find_setup(MAIN, "test", "paper")  # takes ids modulo their number
    spec = decode(setup, torch.tensor([id_, id_ + setup.total]))
    assert spec.object.tolist() == [19, 19]
    assert spec.receptacle.tolist() == [0, 0]
    assert spec.table.tolist() == [18, 18]
    assert spec.yaw.tolist() == pytest.approx([math.pi / 4] * 2)
    torch.testing.assert_close(spec.places[0], setup.places.table[100])
    digits = {"object": 3, "table": 2, "place": 100, "yaw": 1}
    assert encode(setup, {name: torch.tensor([digit]) for name, digit in digits.items()}).item() == id_


def test_the_first_pair_of_points():
    spec = decode(find_setup(MAIN, "train"), torch.tensor([0]))
    # point (0, 0); the first admissible receptacle point is (0, 3): 0.09 m away, (0, 2) would be 0.06 m
    torch.testing.assert_close(spec.places, torch.tensor([[[-0.235, -0.075], [-0.235, 0.015]]]))


@pytest.mark.parametrize(("env_id", "obj_set"), [name for name in ALL if name[0].startswith(PREFIX)])
def test_held_out_list_is_the_committed_one_and_balanced(env_id, obj_set):
    setup, ids = find_setup(env_id, obj_set), held_out(env_id, obj_set)
    assert torch.equal(ids, make_held_out(setup, solved(env_id, obj_set)))
    assert len(ids.unique()) == 1024 and ids.min() >= 0 and ids.max() < setup.total
    for prefix in (200, 333, 1024):
        spec = decode(setup, ids[:prefix])
        drawn = [(spec.object, setup.objects), (spec.receptacle, setup.receptacles), (spec.table, setup.tables)]
        if setup.textures:
            drawn.append((spec.texture, setup.textures))
        if len(setup.templates) > 1:
            drawn.append((spec.template, setup.templates))
        for values, pool in drawn:
            counts = torch.bincount(values - pool.start, minlength=len(pool))
            assert counts.max() - counts.min() <= 4
        yaws = torch.unique(spec.yaw, return_counts=True)[1]
        assert yaws.max() - yaws.min() <= 5
        repeats = torch.unique(spec.places, dim=0, return_counts=True)[1].max()
        assert repeats <= math.ceil(prefix / len(setup.places.table))


def test_a_start_that_is_solved_exchanges_its_place_with_a_later_one():
    setup = find_setup(MAIN, "train")
    plain = make_held_out(setup)
    listed = make_held_out(setup, plain[[3, 1023]].tolist())
    assert (listed != plain).nonzero().flatten().tolist() == [1, 3, 4, 1023]
    before, after = digits_of(setup, plain), digits_of(setup, listed)
    assert after["place"][[3, 4]].tolist() == before["place"][[4, 3]].tolist()
    assert after["place"][[1023, 1]].tolist() == before["place"][[1, 1023]].tolist()
    for name in ("object", "table", "yaw"):
        assert torch.equal(after[name], before[name])


def test_no_listed_start_is_known_to_be_solved():
    assert sum(len(solved(env_id, obj_set)) for env_id, obj_set in ALL) > 9
    for env_id, obj_set in ALL:
        assert set(held_out(env_id, obj_set).tolist()).isdisjoint(solved(env_id, obj_set))


def test_a_list_that_has_not_been_made_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(episodes, "held_out_file", lambda env_id, obj_set: tmp_path / f"{obj_set}.json")
    with pytest.raises(UserError, match=r"few\.json is missing, .* vlapost\.envs\.episodes writes"):
        episodes.held_out("PutOnPlateInScene25Main-v3", "few")


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
        low, high = main.places.table.flatten(1)[:, column].aminmax()
        near, far = world.places.table.flatten(1)[:, column].aminmax()
        assert near.item() == pytest.approx(low.item() - 0.01, abs=1e-6)
        assert far.item() == pytest.approx(high.item() + 0.01, abs=1e-6)
    distance = (world.places.table[:, 0] - world.places.table[:, 1]).norm(dim=1)
    assert distance.min().item() == pytest.approx(0.0707107, abs=1e-6)  # five steps each way
    ids = held_out("PutOnReceptacleInWorld-v1", "train")
    assert torch.equal(ids, make_held_out(world))
    assert len(ids.unique()) == 1024


# env_id, obj_set -> number of episodes: of the authors' code (spec of the study), and with its defects mended
TOTALS = {
    ("Main-v3", "train"): (802_816, 802_816),
    ("Main-v3", "test"): (141_120, 141_120),
    ("Single-v1", "train"): (3_136, 3_136),
    ("MainCarrot-v3", "train"): (50_176, 50_176),
    ("MainImage-v3", "train"): (50_176, 50_176),
    ("Carrot-v1", "train"): (802_816, 802_816),
    ("VisionImage-v1", "test"): (250_880, 250_880),
    ("VisionTexture03-v1", "test"): (12_845_056, 12_845_056),
    ("VisionTexture05-v1", "test"): (12_845_056, 12_845_056),
    ("VisionWhole03-v1", "test"): (12_845_056, 12_845_056),
    ("VisionWhole05-v1", "test"): (12_845_056, 12_845_056),
    ("Carrot-v1", "test"): (451_584, 451_584),
    ("Plate-v1", "test"): (12_845_056, 12_845_056),
    ("Instruct-v1", "test"): (12_845_056, 12_845_056),
    ("MultiCarrot-v1", "train"): (32_317_440, 16 * 15 * 16 * 1896 * 4),  # 208 triples less: exactly 15 cm apart
    ("MultiCarrot-v1", "test"): (9_695_232, 9 * 8 * 16 * 1896 * 4),
    ("MultiPlate-v1", "train"): (45_244_416, 16 * 16 * 16 * 1896 * 4),  # 16 tables for 21
    ("MultiPlate-v1", "test"): (678_666_240, 16 * 16 * 15 * 16 * 1896 * 4),
    ("Position-v1", "test"): (643_072, 643_072),
    ("EEPose-v1", "test"): (11_540_480_000, 11_540_480_000),
    ("PositionChangeTo-v1", "test"): (2_154_496, 16 * 16 * 1896 * 4),
}


@pytest.mark.parametrize("name", TOTALS, ids="-".join)
def test_number_of_episodes_of_every_setup(name):
    env_id, obj_set = PREFIX + name[0], name[1]
    assert (find_setup(env_id, obj_set, "paper").total, find_setup(env_id, obj_set).total) == TOTALS[name]


def test_seventeen_environments():
    ids = {PREFIX + env_id for env_id, _ in TOTALS}
    assert len(ids) == 17 and all(gymnasium.spec(env_id).max_episode_steps == 80 for env_id in ids)


def test_a_distance_of_exactly_the_limit_is_never_further():
    # points (0, 0) and (0, 1) are one step of 0.1 m apart, (0, 2) two; in binary 0.3 - 0.2 < 0.1
    line = Places((((0, 0),), ((0, 1), (0, 2))), ((0, 1, 0.1),), (1.0, 1.0), spacing=0.1)
    assert line.table.shape == (1, 2, 2)
    torch.testing.assert_close(line.table[0, 1] - line.table[0, 0], torch.tensor([0.0, 0.2]))


def test_the_ring_lies_one_step_outside_the_square():
    assert len(RING) == 28 and not set(RING) & set(SQUARE)
    table = find_setup(PREFIX + "Position-v1", "test").places.table
    x, y = table[..., 0], table[..., 1]
    on_edge = ((x + 0.265).abs() < 1e-6) | ((x + 0.055).abs() < 1e-6) | ((y.abs() - 0.105).abs() < 1e-6)
    assert len(table) == 628 and on_edge.all()


def test_a_second_body_is_never_the_first_and_every_pair_occurs():
    for name, obj_set, first, second in (
        ("MultiCarrot-v1", "train", "object", "other_object"),
        ("MultiCarrot-v1", "test", "object", "other_object"),
        ("MultiPlate-v1", "train", "receptacle", "other_receptacle"),
        ("MultiPlate-v1", "test", "receptacle", "other_receptacle"),
    ):
        setup = find_setup(PREFIX + name, obj_set)
        grid = torch.cartesian_prod(torch.arange(setup.radix[first]), torch.arange(setup.radix[second]))
        grid = grid.reshape(-1, 2)
        spec = decode(setup, encode(setup, {first: grid[:, 0], second: grid[:, 1]}))
        pairs = torch.stack([getattr(spec, first), getattr(spec, second)], 1)
        assert (pairs[:, 0] != pairs[:, 1]).all()
        assert len(pairs.unique(dim=0)) == setup.radix[first] * setup.radix[second]
        apart = (setup.places.table[:, 2] - setup.places.table[:, 0]).norm(dim=1)
        assert apart.min() > (0.15 if second == "other_object" else 0.07)


def test_in_an_eighth_of_unseen_pairs_the_authors_code_leaves_one_object_at_the_third_place():
    setup = find_setup(PREFIX + "MultiCarrot-v1", "test", "paper")
    grid = torch.cartesian_prod(torch.arange(9), torch.arange(8))
    spec = decode(setup, encode(setup, {"object": grid[:, 0], "other_object": grid[:, 1]}))
    alone = spec.object == spec.other_object
    assert alone.float().mean().item() == 1 / 8
    places = setup.places.table[0]
    torch.testing.assert_close(spec.places[alone][:, 0], places[2].expand(9, 2))
    torch.testing.assert_close(spec.places[~alone][:, 0], places[0].expand(63, 2))
    assert (spec.places[alone][:, 2, 0] > 0.3).all()  # its double is out of sight


def test_training_never_starts_from_a_held_out_episode_of_any_set_like_it():
    few, train = find_setup(MAIN, "few"), find_setup(MAIN, "train")
    spec = decode(train, held_out(PREFIX + "Carrot-v1", "train"))
    shared = [i for i in range(1024) if int(spec.object[i]) in few.objects]
    assert len(shared) == 256
    digits = {name: digit[shared] for name, digit in digits_of(train, held_out(MAIN, "train")).items()}
    digits["object"] = digits["object"] - few.objects.start
    assert torch.isin(encode(few, digits), reserved(MAIN, "few")).all()
    assert torch.isin(held_out(MAIN, "few"), reserved(MAIN, "few")).all()
    alone = reserved(PREFIX + "EEPose-v1", "test")  # starts like no other, in one protocol as in the other
    both = [held_out(PREFIX + "EEPose-v1", "test", protocol) for protocol in ("v2", "paper")]
    assert torch.equal(alone, torch.cat(both).unique()) and len(alone) > 1200
    assert torch.isin(held_out(PREFIX + "Carrot-v1", "train"), reserved(MAIN, "train", "paper")).all()


def test_who_names_no_episode_gets_none_that_is_held_out():
    setup, named = find_setup(PREFIX + "Single-v1", "train"), (PREFIX + "Single-v1", "train", "v2")
    drawn = chosen(setup, named, None, 4000, torch.Generator().manual_seed(0))
    assert len(drawn) == 4000 and not torch.isin(drawn, reserved(*named)).any() and len(drawn.unique()) > 1500
    carrots = find_setup("WidowXCarrotOnPlate-v1", "test"), ("WidowXCarrotOnPlate-v1", "test", "v2")
    everything = chosen(*carrots, None, 500, torch.Generator().manual_seed(0))  # what is held out whole
    assert len(everything.unique()) > 20
    assert chosen(setup, named, [7, 9], 2, torch.Generator()).tolist() == [7, 9]
    with pytest.raises(UserError, match=r"holds 3 ids; give one for each of 2 scenes"):
        chosen(setup, named, [7, 9, 11], 2, torch.Generator())


def test_an_order_of_episodes_has_each_once_but_those_left_out():
    order = Order(3136, torch.tensor([5, 7]), seed=1)
    last, first = order[3133], order[0]  # asked for in any order
    everything = [order[k] for k in range(3134)]
    assert sorted(everything) == [id_ for id_ in range(3136) if id_ not in (5, 7)]
    assert (everything[0], everything[-1]) == (first, last) and everything != sorted(everything)
    with pytest.raises(IndexError):
        order[3134]
    other = Order(3136, torch.tensor([5, 7]), seed=2)
    assert [other[k] for k in range(9)] != everything[:9] and Order(3136, torch.tensor([5, 7]), 1)[3133] == last
    assert len({Order(10**11, torch.tensor([]), 0)[k] for k in range(2000)}) == 2000


def test_protocols_differ_in_tables_and_yaws():
    for protocol, tables, yaw in (("v2", 16, 0.0), ("paper", 21, -math.pi / 8)):
        assert len(find_setup(PREFIX + "MultiPlate-v1", "test", protocol).tables) == tables
        assert find_setup(PREFIX + "Position-v1", "test", protocol).yaws[0] == yaw


def test_arm_offsets():
    assert len(ARM_OFFSETS) == 14_375
    setup = find_setup(PREFIX + "EEPose-v1", "test")
    spec = decode(setup, encode(setup, {"arm_offset": torch.tensor([0, 14_374])}))
    torch.testing.assert_close(spec.arm_offset[0], torch.tensor([-0.15, -0.15, -0.08, -0.15, -0.15, -0.6]))
    torch.testing.assert_close(spec.arm_offset[1], torch.tensor([0.15, 0.15, 0.08, 0.15, 0.15, 0.6]))
    assert (torch.tensor(ARM_OFFSETS)[:, 1:3].sum(1).abs() <= 0.25 + 1e-6).all()


def test_the_papers_sample_is_three_times_64_uniform_draws():
    name = PREFIX + "Carrot-v1"
    sample = held_out(name, "test", "paper")
    assert len(sample) == 192 and torch.equal(sample, held_out(name, "test", "paper"))
    first = torch.randint(451_584, (64,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample[:64], first)


def test_unknown_names_are_user_errors():
    with pytest.raises(UserError, match=r"env\.id is 'Nope'"):
        find_setup("Nope", "train")
    with pytest.raises(UserError, match="few, train, test, all"):
        find_setup(MAIN, "training")
    with pytest.raises(UserError, match="v2, paper"):
        find_setup(MAIN, "train", "v1")


def test_instruction():
    assert TEMPLATES[0].format(object="carrot", receptacle="plate") == "put carrot on plate"
    assert TEMPLATES[13].format(object="carrot", receptacle="plate") == "Move carrot so it’s on plate."
    assert len(TEMPLATES) == len(set(TEMPLATES)) == 17
    assert [number for number, text in enumerate(TEMPLATES) if text[0].isupper()] == [1, 4, 7, 9, 12, 13, 14]
    known = tiny_tokenizer.TEMPLATES.strip().splitlines()  # written down there for themselves
    assert [text.format(object="C", receptacle="P").lower() for text in TEMPLATES] == [text.lower() for text in known]


def test_too_few_starts_for_a_list():
    setup = find_setup(MAIN, "few")
    with pytest.raises(UserError, match=r"too few different starts .* of 1024 episodes; declare it with held_out=N"):
        make_held_out(replace(setup, objects=range(1), tables=range(1), yaws=setup.yaws[:1]))
