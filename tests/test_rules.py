import math
from types import SimpleNamespace

import pytest
import torch

from vlapost.contracts import Metrics
from vlapost.envs import rules
from vlapost.envs.bodies import are_moving
from vlapost.envs.tasks import INTO, NEAR, ON, STACKED

PLATE_HALF = torch.tensor([[0.055, 0.055, 0.003]])
OBJECT_HALF = torch.tensor([[0.030, 0.015, 0.020]])
UP, DOWN = [0.0, 1.0, 0.0], [0.0, -1.0, 0.0]


def sensed(
    offset=(0.0, 0.0, 0.02), contact=1.0, left=(0.0, 0.0, 0.0), right=(0.0, 0.0, 0.0), speed=0.0, spin=0.0
) -> rules.Sensed:
    """An object at `offset` from its receptacle; the left finger opens to +y, the right one to -y."""
    place = torch.tensor([[0.1, -0.2, 0.87]])
    return rules.Sensed(
        object_position=place + torch.tensor([offset]),
        receptacle_position=place,
        contact_force=torch.tensor([[0.0, 0.0, contact]]),
        velocity=torch.tensor([[0.0, 0.0, speed]]),
        spin=torch.tensor([[spin, 0.0, 0.0]]),
        left_force=torch.tensor([left]),
        right_force=torch.tensor([right]),
        left_opening=torch.tensor([UP]),
        right_opening=torch.tensor([DOWN]),
    )


def test_half_extents_of_a_box_turned_by_45_degrees():
    c = math.cos(math.pi / 4)
    turn = torch.tensor([[[c, -c, 0.0], [c, c, 0.0], [0.0, 0.0, 1.0]]])
    half = rules.half_extents(turn, torch.tensor([[0.10, 0.04, 0.02]]))
    # (0.05 + 0.02) / sqrt(2)
    torch.testing.assert_close(half, torch.tensor([[0.0494975, 0.0494975, 0.01]]))


def test_only_scenes_that_still_moved_settle_for_longer():
    early, late = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]])
    assert rules.settled(torch.tensor([False, True]), early, late).tolist() == [[1, 2], [7, 8]]


@pytest.mark.parametrize(
    ("offset", "contact", "expected"),
    [
        ((0.0, 0.0, 0.020), 1.0, True),
        ((0.0649, 0.0, 0.020), 1.0, True),  # reach: 0.055 + 0.01, the largest half extent, not the diagonal
        ((0.0651, 0.0, 0.020), 1.0, False),
        ((0.050, 0.050, 0.020), 1.0, False),  # 0.0707 from the centre
        ((0.0, 0.0, 0.072), 1.0, True),  # 0.003 + 0.020 + 0.05 = 0.073
        ((0.0, 0.0, 0.074), 1.0, False),
        ((0.0, 0.0, -0.001), 1.0, False),
        ((0.0, 0.0, 0.020), 0.031, True),
        ((0.0, 0.0, 0.020), 0.029, False),
    ],
)
def test_on_target(offset, contact, expected):
    state = sensed(offset=offset, contact=contact)
    rule = rules.Rule()
    near = rules.reach(rule, PLATE_HALF, 2 * PLATE_HALF)
    assert rules.is_on_target(rule, state, near, OBJECT_HALF, PLATE_HALF).item() is expected


CUBE_HALF = torch.full((1, 3), 0.02)


def placed(rule: rules.Rule, object_half: torch.Tensor, receptacle_half: torch.Tensor, **state) -> bool:
    near = rules.reach(rule, receptacle_half, 2 * receptacle_half)
    return rules.is_on_target(rule, sensed(**state), near, object_half, receptacle_half).item()


@pytest.mark.parametrize(
    ("offset", "contact", "expected"),
    [
        ((0.0571, 0.0571, 0.020), 1.0, True),  # 0.0808: half the diagonal, 0.0778, and 0.003
        ((0.0572, 0.0572, 0.020), 1.0, False),
        ((0.0, 0.0, 0.0429), 1.0, True),  # 0.003 + 0.020 + 0.02 = 0.043
        ((0.0, 0.0, 0.0431), 1.0, False),
        ((0.0, 0.0, 0.020), 0.051, True),
        ((0.0, 0.0, 0.020), 0.049, False),
    ],
)
def test_on_target_as_simplerenv_has_it(offset, contact, expected):
    assert placed(ON, OBJECT_HALF, PLATE_HALF, offset=offset, contact=contact) is expected


def test_the_basket_is_higher():
    gap_at = (0.0, 0.0, 0.003 + 0.020 + 0.059), (0.0, 0.0, 0.003 + 0.020 + 0.061)
    assert [placed(INTO, OBJECT_HALF, PLATE_HALF, offset=offset) for offset in gap_at] == [True, False]


def test_without_a_contact_threshold_nothing_need_touch():
    assert placed(NEAR, OBJECT_HALF, PLATE_HALF, contact=0.0)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({}, True),
        ({"offset": (0.0, 0.0332, 0.04)}, True),  # 0.02 sqrt(2) + 0.005 = 0.03328
        ({"offset": (0.0, 0.0333, 0.04)}, False),
        ({"offset": (0.0, 0.0, 0.0351)}, True),
        ({"offset": (0.0, 0.0, 0.0349)}, False),  # sunk in by more than 5 mm
        ({"offset": (0.0, 0.0, 0.0451)}, False),
        ({"speed": 0.011}, False),
        ({"spin": 0.51}, False),
        ({"left": (0.0, 0.6, 0.0)}, True),  # one finger touches
        ({"left": (0.0, 0.6, 0.0), "right": (0.0, -0.6, 0.0)}, False),  # still held
    ],
)
def test_stacked_means_still_and_let_go(state, expected):
    state = {"offset": (0.0, 0.0, 0.04), "contact": 0.0} | state
    assert placed(STACKED, CUBE_HALF, CUBE_HALF, **state) is expected


def test_the_reach_over_a_turned_cube_is_that_of_its_own_diagonal():
    upright = torch.tensor([[0.0282843, 0.0282843, 0.02]])  # the box around it, turned by 45 degrees
    assert rules.reach(STACKED, upright, 2 * CUBE_HALF).item() == pytest.approx(0.0332843)
    assert rules.reach(rules.Rule(), upright, 2 * CUBE_HALF).item() == pytest.approx(0.0382843)


def at_angle(degrees: float, sign: float) -> tuple[float, float, float]:
    """A force of 2 N at an angle from the y axis of the given sign."""
    angle = math.radians(degrees)
    return (2 * math.sin(angle), sign * 2 * math.cos(angle), 0.0)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ((0.0, 0.51, 0.0), (0.0, -0.51, 0.0), True),
        ((0.0, 0.49, 0.0), (0.0, -0.51, 0.0), False),
        ((0.0, 0.51, 0.0), (0.0, 0.0, 0.0), False),
        ((0.0, -2.0, 0.0), (0.0, 2.0, 0.0), False),  # pressed from outside
        (at_angle(84, 1), at_angle(84, -1), True),
        (at_angle(86, 1), at_angle(84, -1), False),
    ],
)
def test_grasping(left, right, expected):
    assert rules.is_grasping(sensed(left=left, right=right)).item() is expected


def run(on_target: list[int], grasping: list[int]) -> tuple[list[float], Metrics]:
    progress = rules.start(1)
    rewards = []
    for target, grasp in zip(on_target, grasping):
        before = progress.metrics
        progress = rules.advance(progress, torch.tensor([bool(target)]), torch.tensor([bool(grasp)]))
        rewards.append(round(rules.reward(before, progress.metrics).item(), 6))
    return rewards, progress.metrics


def test_way_is_that_to_the_object_and_the_objects_up_over_and_down():
    """Both are 2 cm high; the object is aside on the table, aside at 5 cm, over the plate, and gone."""
    object_ = torch.tensor([[0.3, 0.4, 0.01], [0.3, 0.4, 0.08], [0.0, 0.0, 0.05], [9.0, 0.0, -9.0]])
    gripper = torch.tensor([[0.3, 0.4, 0.11], [0.3, 0.4, 0.08], [0.0, 0.0, 0.05], [0.0, 0.0, 0.0]])
    receptacle = torch.tensor([[0.3, 0.25, 0.01], [0.3, 0.25, 0.01], [0.0, 0.03, 0.01], [0.0, 0.0, 0.0]])
    half = torch.full((4, 3), 0.01)
    way = rules.way(gripper, object_, receptacle, torch.full((4,), 0.06), half, half)
    aside = 0.15 + (0.05 + 0.02) + 0.05, 0.15 + 0.05  # the lift is measured from the top of the receptacle
    torch.testing.assert_close(way, torch.tensor([0.1 + aside[0], aside[1], 0.03 + 0.02, 0.8]))


def test_reward_of_an_episode():
    #          grasp, lost, held for five steps, put down, pushed off, put back
    grasping = [0, 1, 0, 1, 1, 1, 1, 1, 0, 0, 0]
    on_target = [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1]
    rewards, metrics = run(on_target, grasping)
    assert rewards == [0, 0.1, 0, 0, 0, 0, 0, 0.1, 1.0, -1.0, 1.0]
    assert all(v.item() for v in (metrics.success, metrics.success_once, metrics.grasp, metrics.consecutive_grasp))


def test_success_without_a_grasp_is_success_but_earns_nothing():
    rewards, metrics = run(on_target=[1, 1, 0], grasping=[0, 0, 0])
    assert rewards == [0, 0, 0]
    assert metrics.success_once.item() and not metrics.success.item() and not metrics.grasp.item()


def test_four_held_steps_are_not_continuous():
    _, metrics = run(on_target=[0] * 9, grasping=[1, 1, 1, 1, 0, 1, 1, 1, 1])
    assert metrics.grasp.item() and not metrics.consecutive_grasp.item()


def test_episodes_of_a_batch_are_independent():
    progress = rules.start(2)
    for _ in range(5):
        progress = rules.advance(progress, torch.tensor([False, True]), torch.tensor([True, False]))
    torch.testing.assert_close(rules.potential(progress.metrics), torch.tensor([0.2, 0.0]))
    assert progress.held.tolist() == [5, 0]
    assert progress.metrics.success_once.tolist() == [False, True]


def test_a_scene_moves_by_itself_or_in_protocol_paper_with_the_others() -> None:
    """Above 1 mm/s or 0.01 rad/s, over both bodies of a scene; with the authors' code over all scenes together."""
    still, falling = torch.zeros(3, 3), torch.tensor([[0.0, 0, 0], [0, 0, -0.002], [0, 0, 0]])
    turning = torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 0.02, 0]])
    first = SimpleNamespace(linear_velocity=falling, angular_velocity=still)
    second = SimpleNamespace(linear_velocity=still, angular_velocity=turning)
    assert are_moving([first, second], together=False).tolist() == [False, True, True]
    assert are_moving([first, second], together=True).tolist() == [True] * 3
    barely = SimpleNamespace(linear_velocity=falling / 4, angular_velocity=turning / 4)
    assert not are_moving([barely, barely], together=False).any()
