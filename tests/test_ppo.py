"""PPO's arithmetic against numbers computed by hand (in the comments), and against torchrl on random cases."""

import math
from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.nn import functional as F
from torchrl.modules import ProbabilisticActor
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value.functional import generalized_advantage_estimate

from vlapost.algorithms.base import reduced_mean_std, token_cross_entropy
from vlapost.algorithms.ppo import PPO, clipped_surrogate, clipped_value_loss, gae
from vlapost.contracts import DemoBatch, Observation

REWARD = torch.tensor([[0.0], [0.1], [1.0]], dtype=torch.float64)
NEVER = torch.zeros(3, 1, dtype=torch.bool)
VALUE = torch.tensor([[0.5], [0.6], [0.7]], dtype=torch.float64)


def test_gae_time_limit_is_an_end():
    # delta_2 = 1 - 0.7 = 0.3                       A_2 = 0.3
    # delta_1 = 0.1 + 0.9 * 0.7 - 0.6 = 0.13        A_1 = 0.13 + 0.72 * 0.3   = 0.346
    # delta_0 = 0   + 0.9 * 0.6 - 0.5 = 0.04        A_0 = 0.04 + 0.72 * 0.346 = 0.28912
    end = torch.tensor([[False], [False], [True]])
    advantage, return_ = gae(REWARD, VALUE, torch.tensor([7.0], dtype=torch.float64), end, gamma=0.9, lam=0.8)
    assert advantage.squeeze().tolist() == pytest.approx([0.28912, 0.346, 0.3], abs=1e-12)
    assert return_.squeeze().tolist() == pytest.approx([0.78912, 0.946, 1.0], abs=1e-12)


def test_gae_bootstraps_from_the_last_value():
    # delta_2 = 1 + 0.9 * 0.5 - 0.7 = 0.75; A_1 = 0.13 + 0.72 * 0.75 = 0.67; A_0 = 0.04 + 0.72 * 0.67 = 0.5224
    advantage, _ = gae(REWARD, VALUE, torch.tensor([0.5], dtype=torch.float64), NEVER, gamma=0.9, lam=0.8)
    assert advantage.squeeze().tolist() == pytest.approx([0.5224, 0.67, 0.75], abs=1e-12)


def test_gae_starts_anew_after_an_end():
    # the episode ends with step 1: delta_1 = 0.1 - 0.6 = -0.5 = A_1; A_0 = 0.04 + 0.72 * -0.5 = -0.32; A_2 as it was
    end = torch.tensor([[False], [True], [False]])
    advantage, _ = gae(REWARD, VALUE, torch.tensor([0.5], dtype=torch.float64), end, gamma=0.9, lam=0.8)
    assert advantage.squeeze().tolist() == pytest.approx([-0.32, -0.5, 0.75], abs=1e-12)


def test_gae_with_gamma_and_lambda_one_is_the_return_minus_the_value():
    generator = torch.Generator().manual_seed(0)
    reward, value = torch.rand(80, 5, generator=generator), torch.rand(80, 5, generator=generator)
    advantage, return_ = gae(reward, value, torch.zeros(5), torch.zeros(80, 5, dtype=torch.bool), gamma=1.0, lam=1.0)
    to_go = reward.flip(0).cumsum(0).flip(0)
    torch.testing.assert_close(return_, to_go, atol=1e-4, rtol=0)
    torch.testing.assert_close(advantage, to_go - value, atol=1e-4, rtol=0)


def judged(reward: torch.Tensor = REWARD, **rules: float) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's advantage and return of the episode above, which its time limit ends; 0.5 is the value after it."""
    usual = {"gamma": 0.9, "gae_lambda": 0.8, "value_lambda": 0.8}
    flags = {"bootstrap_truncation": False, "normalise_advantage": False}
    module = SimpleNamespace(algorithm=SimpleNamespace(**usual | flags | rules))
    done = torch.tensor([[False], [False], [True]])
    last = torch.tensor([0.5], dtype=torch.float64)
    advantage, return_ = PPO.advantage(module, SimpleNamespace(reward=reward, value=VALUE, last_value=last, done=done))
    return advantage.squeeze(), return_.squeeze()


def test_the_critic_can_learn_other_returns_than_the_advantages_are_made_of():
    # lambda 0: delta of each step, 0.04, 0.13, 0.3; lambda 1 for the critic: 0.81 + 0.09, 0.9 + 0.1, 1
    advantage, return_ = judged(gae_lambda=0.0, value_lambda=1.0)
    assert advantage.tolist() == pytest.approx([0.04, 0.13, 0.3], abs=1e-12)
    assert return_.tolist() == pytest.approx([0.9, 1.0, 1.0], abs=1e-12)


def test_the_value_after_the_time_limit_counts_if_asked_for():
    # the numbers of test_gae_time_limit_is_an_end and of test_gae_bootstraps_from_the_last_value
    assert judged()[0].tolist() == pytest.approx([0.28912, 0.346, 0.3], abs=1e-12)
    advantage, return_ = judged(bootstrap_truncation=True)
    assert advantage.tolist() == pytest.approx([0.5224, 0.67, 0.75], abs=1e-12)
    assert return_.tolist() == pytest.approx([1.0224, 1.27, 1.45], abs=1e-12)


def test_advantages_have_mean_zero_and_deviation_one():
    # 0.28912, 0.346, 0.3: mean 0.311707; from it -0.022587, 0.034293, -0.011707; mean square 0.000607739
    advantage, return_ = judged(normalise_advantage=True)
    deviation = math.sqrt(0.000607739) + 1e-5
    expected = [-0.022587 / deviation, 0.034293 / deviation, -0.011707 / deviation]
    assert advantage.tolist() == pytest.approx(expected, rel=1e-3)
    assert return_.tolist() == pytest.approx([0.78912, 0.946, 1.0], abs=1e-6)


def test_advantages_without_spread_are_zero():
    # gamma 0, and every reward 0.5 above the value: all advantages are 0.5
    advantage, _ = judged(VALUE + 0.5, gamma=0.0, normalise_advantage=True)
    assert advantage.tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)


def test_a_reward_that_is_no_number_spoils_all_advantages():
    """So that every update of its iteration is skipped, and the third ends the run (tests/test_train.py)."""
    advantage, _ = judged(torch.tensor([[0.0], [math.nan], [1.0]], dtype=torch.float64), normalise_advantage=True)
    assert advantage.isnan().all()


def test_imitation_has_its_weight_and_gives_every_weight_a_gradient():
    adapter, critic = (nn.Parameter(torch.zeros(7, 256)) for _ in range(2))
    policy = SimpleNamespace(
        action_logits=lambda observation, tokens: adapter.expand(2, -1, -1),
        adapter_parameters=lambda: [adapter],
        critic_parameters=lambda: [critic],
    )
    rules = SimpleNamespace(soft_targets=0.0, imitation_coef=0.25)
    module = SimpleNamespace(policy=policy, algorithm=rules, log=lambda *a, **k: None)
    module.no_gradient = lambda: PPO.no_gradient(module)  # type: ignore[arg-type]
    batch = DemoBatch(Observation(torch.zeros(2, 2, 2, 3), ("do", "do")), torch.zeros(2, 7, dtype=torch.int64))
    loss = PPO._imitate(module, batch)
    assert loss.item() == pytest.approx(0.25 * math.log(256), rel=1e-6)
    loss.backward()
    # the derivative by the logit of the right one of 256 equals, mean over seven tokens: (1 / 256 - 1) / 7
    assert adapter.grad is not None
    assert adapter.grad[:, 0].tolist() == pytest.approx([0.25 * (1 / 256 - 1) / 7] * 7, rel=1e-5)
    assert critic.grad is not None
    assert not critic.grad.any()


def test_gae_keeps_episodes_apart():
    generator = torch.Generator().manual_seed(0)
    reward, value, chance = torch.rand(3, 10, 3, generator=generator)
    last, done = torch.rand(3, generator=generator), chance < 0.2
    together, _ = gae(reward, value, last, done, 0.99, 0.95)
    for e in range(3):
        own = slice(e, e + 1)
        alone, _ = gae(reward[:, own], value[:, own], last[own], done[:, own], 0.99, 0.95)
        assert torch.equal(alone[:, 0], together[:, e])


def test_clipped_surrogate():
    # ratios 1.5, 0.5, 1.1 and advantages 1, -1, 2: min(1.5, 1.2) = 1.2, min(-0.5, -0.8) = -0.8, 2.2
    ratio = torch.tensor([1.5, 0.5, 1.1], dtype=torch.float64)
    out = clipped_surrogate(ratio.log()[:, None], torch.zeros(3, 1), torch.tensor([1.0, -1.0, 2.0]), 0.2, "action")
    assert out.loss.item() == pytest.approx(-(1.2 - 0.8 + 2.2) / 3, abs=1e-12)
    assert out.clip_fraction.item() == pytest.approx(2 / 3)
    kl = ((0.5 - math.log(1.5)) + (-0.5 - math.log(0.5)) + (0.1 - math.log(1.1))) / 3
    assert out.kl.item() == pytest.approx(kl, abs=1e-12)
    assert out.ratio.item() == pytest.approx((1.5 + 0.5 + 1.1) / 3)


def test_clipped_samples_have_no_gradient():
    # ratio 1.5 with A > 0 and ratio 0.5 with A < 0 lie beyond the clip; ratio 0.5 with A > 0 is pulled back
    logprob = torch.tensor([[1.5], [0.5], [0.5]]).log().requires_grad_()
    clipped_surrogate(logprob, torch.zeros(3, 1), torch.tensor([1.0, -1.0, 1.0]), 0.2, "action").loss.backward()
    assert logprob.grad is not None
    assert logprob.grad.squeeze(1).tolist() == pytest.approx([0.0, 0.0, -0.5 / 3])


def test_ratio_per_action_or_per_dimension():
    # tokens with ratios 1.5 and 0.5: the action's is 0.75, which the clip pulls to 0.8 where A < 0;
    # per dimension: A = 2: min(3, 2.4) = 2.4 and min(1, 1.6) = 1, A = -2: min(-3, -2.4) = -3 and min(-1, -1.6) = -1.6
    logprob = torch.tensor([[1.5, 0.5], [1.5, 0.5]], dtype=torch.float64).log()
    old, advantage = torch.zeros(2, 2), torch.tensor([2.0, -2.0])
    action = clipped_surrogate(logprob, old, advantage, 0.2, "action")
    dimension = clipped_surrogate(logprob, old, advantage, 0.2, "dimension")
    assert action.loss.item() == pytest.approx(-(2 * 0.75 - 2 * 0.8) / 2, abs=1e-12)
    assert dimension.loss.item() == pytest.approx(-(2.4 + 1.0 - 3.0 - 1.6) / 2, abs=1e-12)
    assert action.clip_fraction.item() == dimension.clip_fraction.item() == 1.0


def test_clipped_value_loss():
    # 1: V = 1.0, old 0.5 -> near 0.7, R = 0.6: max(0.5 * 0.4^2, 0.5 * 0.1^2) = 0.08
    # 2: V = old = 20, R = 0, delta = 10: 10 * (20 - 5) = 150
    value, old, return_ = torch.tensor([1.0, 20.0]), torch.tensor([0.5, 20.0]), torch.tensor([0.6, 0.0])
    assert clipped_value_loss(value, old, return_, 0.2, 10.0).item() == pytest.approx((0.08 + 150) / 2, rel=1e-6)


def test_token_cross_entropy():
    # uniform logits: log 256; a logit of log 3 on the right token against 255 zeros: log((255 + 3) / 3)
    logits, tokens = torch.zeros(1, 7, 256), torch.arange(7).view(1, 7)
    assert token_cross_entropy(logits, tokens).item() == pytest.approx(math.log(256), rel=1e-6)
    logits[0, torch.arange(7), torch.arange(7)] = math.log(3)
    assert token_cross_entropy(logits, tokens).item() == pytest.approx(math.log(258 / 3), rel=1e-6)


def test_soft_targets_are_a_normal_distribution_around_the_bin():
    # width 1, token 100: weights 1, exp(-1/2) twice, exp(-2) twice, ...; logits log 3 at the bin's right neighbour
    weights = [math.exp(-0.5 * (b - 100) ** 2) for b in range(256)]
    logits = torch.zeros(1, 1, 256)
    logits[0, 0, 101] = math.log(3)
    expected = math.log(258) - weights[101] / sum(weights) * math.log(3)
    assert token_cross_entropy(logits, torch.tensor([[100]]), 1.0).item() == pytest.approx(expected, rel=1e-5)


def test_reduced_mean_std_is_the_population_form():
    mean, std = reduced_mean_std(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert mean.item() == pytest.approx(3.0)
    assert std.item() == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 4))


def test_gae_against_torchrl():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        T, E = (int(torch.randint(1, n, (), generator=generator)) for n in (30, 6))
        gamma, lam = torch.rand(2, generator=generator).tolist()
        reward, value = torch.randn(2, T, E, dtype=torch.float64, generator=generator)
        last = torch.randn(E, dtype=torch.float64, generator=generator)
        done = torch.rand(T, E, generator=generator) < 0.2
        advantage, return_ = gae(reward, value, last, done, gamma, lam)
        following = torch.cat([value[1:], last[None]])
        columns = (x.T.unsqueeze(-1) for x in (value, following, reward))  # [E, T, 1]
        end = done.T.unsqueeze(-1)
        reference = generalized_advantage_estimate(gamma, lam, *columns, done=end, terminated=end)
        for ours, theirs in zip((advantage, return_), reference):
            torch.testing.assert_close(ours, theirs.squeeze(-1).T, atol=1e-6, rtol=0)


ACTOR = ProbabilisticActor(
    TensorDictModule(nn.Identity(), ["observation"], ["logits"]),
    in_keys=["logits"],
    distribution_class=torch.distributions.Categorical,
    return_log_prob=True,
)


@pytest.mark.parametrize(("per", "tokens"), [("action", 1), ("dimension", 7)])
def test_clipped_surrogate_against_torchrl(per: str, tokens: int):
    """Ratios per dimension are those of as many samples with the same advantage, summed over an action."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        clip = 0.05 + float(torch.rand((), generator=generator)) / 2
        logits = torch.randn(9 * tokens, 5, dtype=torch.float64, generator=generator)
        action = torch.randint(0, 5, (9 * tokens,), generator=generator)
        new = logits.log_softmax(-1).gather(1, action[:, None])[:, 0]
        old = new + 0.3 * torch.randn(9 * tokens, dtype=torch.float64, generator=generator)
        advantage = torch.randn(9, dtype=torch.float64, generator=generator)
        loss = ClipPPOLoss(ACTOR, None, clip_epsilon=clip, entropy_bonus=False, critic_coeff=None)
        sample = {
            "observation": logits,
            "action": action,
            "action_log_prob": old,
            "advantage": advantage.repeat_interleave(tokens)[:, None],
        }
        theirs = loss(TensorDict(sample, batch_size=[9 * tokens]))
        ours = clipped_surrogate(new.view(9, tokens), old.view(9, tokens), advantage, clip, per)
        assert ours.loss.item() == pytest.approx(tokens * theirs["loss_objective"].item(), abs=1e-6)
        assert ours.clip_fraction.item() == pytest.approx(theirs["clip_fraction"].item(), abs=1e-6)


def test_clipped_value_loss_against_torchrl():
    """Its smooth L1 is the Huber loss of delta 1."""
    generator = torch.Generator().manual_seed(0)
    critic = TensorDictModule(nn.Identity(), ["observed"], ["state_value"])
    for _ in range(200):
        clip = 0.05 + float(torch.rand((), generator=generator))
        value, old, return_ = 2 * torch.randn(3, 9, 1, dtype=torch.float64, generator=generator)
        loss = ClipPPOLoss(
            ACTOR, critic, clip_epsilon=0.2, entropy_bonus=False, critic_coeff=1.0,
            clip_value=clip, loss_critic_type="smooth_l1",
        )  # fmt: skip
        sample = {
            "observation": torch.zeros(9, 5, dtype=torch.float64),
            "action": torch.zeros(9, dtype=torch.int64),
            "action_log_prob": torch.zeros(9, dtype=torch.float64),
            "advantage": torch.zeros(9, 1, dtype=torch.float64),
            "observed": value,
            "state_value": old,
            "value_target": return_,
        }
        theirs = loss(TensorDict(sample, batch_size=[9]))["loss_critic"].item()
        ours = clipped_value_loss(value[:, 0], old[:, 0], return_[:, 0], clip, 1.0).item()
        assert ours == pytest.approx(theirs, abs=1e-6)
        free = clipped_value_loss(value[:, 0], old[:, 0], return_[:, 0], math.inf, clip).item()
        assert free == pytest.approx(F.huber_loss(value, return_, delta=clip).item(), abs=1e-6)
