"""GRPO's advantages against numbers computed by hand (in the comments) and against scipy."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import zscore

from vlapost.algorithms.grpo import GRPO, group_advantage, valid_reward_advantage, whole_reward_advantage


def rewards(*episodes: list[float]) -> torch.Tensor:
    """`[T, E]` from one list per episode."""
    return torch.tensor(episodes, dtype=torch.float64).T


def test_group_advantage():
    # first group: returns 0.2, 0, 0, 0.2: mean 0.1, deviation 0.1; second: 1.2 and three times 0: mean 0.3,
    # deviation sqrt((0.81 + 3 * 0.09) / 4) = sqrt(0.27)
    reward = rewards([0.1, 0.1], [0, 0], [0, 0], [0, 0.2], [0.2, 1.0], [0, 0], [0, 0], [0, 0])
    advantage, flat = group_advantage(reward, 4)
    s = math.sqrt(0.27) + 1e-5
    expected = [1, -1, -1, 1, 0.9 / s, -0.3 / s, -0.3 / s, -0.3 / s]
    for step in advantage:  # the same at every step
        assert step.tolist() == pytest.approx(expected, rel=2e-4)
    assert flat.tolist() == [False, False]


def test_groups_without_spread_teach_nothing_and_are_counted():
    reward = rewards([0, 0], [0, 0], [0.2, 1.0], [1.0, 0.2], [0, 0], [0, 0.1])
    advantage, flat = group_advantage(reward, 2)
    assert flat.tolist() == [True, True, False]
    assert torch.equal(advantage[:, :4], torch.zeros(2, 4, dtype=torch.float64))
    assert advantage[0, 4:].tolist() == pytest.approx([-1, 1], rel=1e-3)


def test_no_episode_is_paid_less_than_one_that_does_nothing():
    # success, grasp alone, nothing: the study's first form pays a grasp less than nothing, the groups do not
    reward = rewards([0.1, 0.1, 1.0], [0.1, 0.1, 0.0], [0, 0, 0], [0, 0, 0])
    grouped, _ = group_advantage(reward, 4)
    assert grouped[0, 0] > grouped[0, 1] > grouped[0, 2]
    valid = valid_reward_advantage(reward)
    assert valid[0, 1] < valid[0, 2] == 0


def test_valid_reward_advantage():
    # rewards that are not zero: 0.1, 1.0, 0.1: mean 0.4, deviation sqrt((0.09 + 0.36 + 0.09) / 3) = sqrt(0.18)
    reward = rewards([0.1, 0.0, 1.0], [0.0, 0.1, 0.0])
    a, b = -0.3 / (math.sqrt(0.18) + 1e-5), 0.6 / (math.sqrt(0.18) + 1e-5)
    expected = [[a + b, a], [b, a], [b, 0.0]]
    torch.testing.assert_close(valid_reward_advantage(reward), torch.tensor(expected, dtype=torch.float64))


def test_valid_reward_advantage_without_any_reward():
    assert torch.equal(valid_reward_advantage(torch.zeros(5, 4)), torch.zeros(5, 4))


def test_whole_reward_advantage():
    # 0, 1, 0, 0: mean 1/4, deviation sqrt(3)/4; normalised sqrt(3) for the 1, -1/sqrt(3) for a zero
    advantage = whole_reward_advantage(rewards([0.0, 1.0], [0.0, 0.0]))
    high, low = math.sqrt(3), -1 / math.sqrt(3)
    expected = torch.tensor([[low + high, 2 * low], [high, low]], dtype=torch.float64)
    torch.testing.assert_close(advantage, expected, rtol=1e-4, atol=1e-4)


def test_each_setting_has_its_form():
    reward = rewards([0.1, 0.0, 1.0], [0.0, 0.1, 0.0])
    forms = {
        "group": group_advantage(reward, 2)[0],
        "valid": valid_reward_advantage(reward),
        "whole": whole_reward_advantage(reward),
    }
    for name, expected in forms.items():
        module = SimpleNamespace(algorithm=SimpleNamespace(advantage=name), group_size=2)
        advantage, to_come = GRPO.advantage(module, SimpleNamespace(reward=reward))
        assert torch.equal(advantage, expected)
        torch.testing.assert_close(to_come, rewards([1.1, 1.0, 1.0], [0.1, 0.1, 0.0]))


def test_against_scipy_on_random_cases():
    random = np.random.default_rng(0)
    for _ in range(200):
        T, size, groups = random.integers(1, 12), random.integers(2, 9), random.integers(1, 5)
        reward = random.choice([0.0, 0.1, -0.1, 1.0], p=[0.6, 0.2, 0.1, 0.1], size=(T, groups * size))
        advantage, flat = group_advantage(torch.from_numpy(reward), int(size))
        total = reward.sum(0).reshape(groups, size)
        spread = total.std(1, keepdims=True)
        reference = np.where(spread > 1e-5, (total - total.mean(1, keepdims=True)) / (spread + 1e-5), 0)
        np.testing.assert_allclose(advantage[0].numpy(), reference.ravel(), atol=1e-6)
        assert flat.tolist() == (spread[:, 0] < 1e-5).tolist()
        if reward.std() > 0:
            normalised = zscore(reward, axis=None) * reward.std() / (reward.std() + 1e-5)
            to_come = np.flip(np.flip(normalised, 0).cumsum(0), 0)
            np.testing.assert_allclose(whole_reward_advantage(torch.from_numpy(reward)).numpy(), to_come, atol=1e-6)
        paid = reward != 0
        if paid.any() and (spread := reward[paid].std()) > 0:
            normalised = np.zeros_like(reward)
            normalised[paid] = zscore(reward[paid]) * spread / (spread + 1e-5)
            to_come = np.flip(np.flip(normalised, 0).cumsum(0), 0)
            np.testing.assert_allclose(valid_reward_advantage(torch.from_numpy(reward)).numpy(), to_come, atol=1e-6)
