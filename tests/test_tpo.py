"""TPO: hand-computed losses and pairs; a whole trajectory in minibatches has the gradient of the full loss."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from benchmarks.measure import peak_bytes

from vlapost.algorithms.tpo import TPO, match, preference_loss, preference_weight
from vlapost.config import load
from vlapost.contracts import Metrics, Observation, PolicyEvaluation, Rollout, RolloutBatch
from vlapost.experience.buffer import paired, seeded


def test_preference_loss_and_its_derivative():
    # beta 0.5, margins 2 and -4: -log sigmoid(1), -log sigmoid(-2)
    margin = torch.tensor([2.0, -4.0], dtype=torch.float64)
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2
    assert preference_loss(margin, 0.5).item() == pytest.approx(expected, abs=1e-12)
    weight = [0.5 / (1 + math.exp(1)), 0.5 / (1 + math.exp(-2))]
    assert preference_weight(margin, 0.5).tolist() == pytest.approx(weight, abs=1e-12)


def test_against_torch_on_random_cases():
    """The loss is a binary cross-entropy with the margin as its logit; autograd gives the weight."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        beta = float(torch.rand((), generator=generator)) + 0.01
        margin = (torch.randn(5, dtype=torch.float64, generator=generator) * 20).requires_grad_()
        reference = F.binary_cross_entropy_with_logits(beta * margin, torch.ones_like(margin))
        assert preference_loss(margin, beta).item() == pytest.approx(reference.item(), abs=1e-6)
        (slope,) = torch.autograd.grad(reference * 5, margin)
        np.testing.assert_allclose(-slope.numpy(), preference_weight(margin.detach(), beta).numpy(), atol=1e-6)


def test_best_is_matched_with_worst_and_ties_are_left_out():
    groups = [[0.0, 1.2, 0.2, 0.1], [0.0, 0.0, 1.2, 0.0], [0.2, 0.2, 0.2, 0.2]]
    assert match(torch.tensor(groups).flatten(), 4).tolist() == [[1, 0], [2, 3], [6, 7]]
    # an odd group leaves its middle out
    assert match(torch.tensor([0.1, 0.0, 1.0]), 3).tolist() == [[2, 1]]


class Linear(torch.nn.Module):
    """A policy of one matrix: logits of a picture's numbers, no images to encode."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.nn.Parameter(torch.randn(12, 8, dtype=torch.float64, generator=generator) * 0.3)
        self.largest = 0

    def evaluate(self, observation, action_tokens, temperature=1.0):
        self.largest = max(self.largest, len(observation))
        x = observation.image.flatten(1).double() / 255
        logprob = (x @ self.weight / temperature).log_softmax(-1)[:, None].expand(-1, 7, -1)
        chosen = logprob.gather(2, action_tokens[..., None])[..., 0]
        return PolicyEvaluation(chosen, chosen, chosen[:, 0])

    def remember(self):
        self.start = self.weight.detach().clone()

    def reference(self):
        return self.Reference(self)

    class Reference:
        def __init__(self, policy):
            self.policy, self.now = policy, policy.weight.data

        def __enter__(self):
            self.policy.weight.data = self.policy.start

        def __exit__(self, *error):
            self.policy.weight.data = self.now


def rollout(T: int, return_E: list[float]) -> Rollout:
    E, generator = len(return_E), torch.Generator().manual_seed(2)
    reward = torch.zeros(T, E)
    reward[-1] = torch.tensor(return_E)
    flags = torch.zeros(E, dtype=torch.bool)
    return Rollout(
        image=torch.randint(0, 256, (T, E, 2, 2, 3), dtype=torch.uint8, generator=generator),
        instruction=(("do",) * E,) * T,
        action_tokens=torch.randint(0, 8, (T, E, 7), generator=generator),
        logprob=torch.zeros(T, E, 7),
        value=torch.zeros(T, E),
        reward=reward,
        done=reward != reward,
        last_value=torch.zeros(E),
        metrics=Metrics(flags, flags, flags, flags),
    )


class Wide(Linear):
    """The same, by way of 64 KB per sample that are kept for the backward pass."""

    def evaluate(self, observation, action_tokens, temperature=1.0):
        x = observation.image.flatten(1).double() / 255
        wide = (x @ self.weight).repeat(1, 1000).tanh().view(-1, 1000, 8)
        logprob = wide.mean(1).log_softmax(-1)[:, None].expand(-1, 7, -1)
        chosen = logprob.gather(2, action_tokens[..., None])[..., 0]
        return PolicyEvaluation(chosen, chosen, chosen[:, 0])


def learner(batch_size: int, accumulate: int, kind: type[Linear] = Linear) -> tuple[TPO, Linear]:
    sizes = [f"optim.batch_size={batch_size}", f"optim.accumulate={accumulate}", "experience.same_start=4"]
    cfg = load("tpo", [*sizes, "algorithm.beta=0.3"])
    policy = kind()
    module = TPO(policy, cfg.algorithm, cfg.experience, cfg.optim, 10)  # type: ignore[arg-type]
    module.log = module.log_dict = lambda *a, **k: None  # type: ignore[method-assign,assignment]
    with torch.no_grad():  # has learned something since it started
        policy.weight += torch.randn(12, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 0.2
    return module, policy


def minibatches(module: TPO, r: Rollout, accumulate: int) -> list[RolloutBatch]:
    return list(paired(r, seeded(0), module.pairs, module.weigh, module.optim.batch_size, accumulate, passes=1))


@pytest.mark.parametrize("T", [10, 40])
def test_minibatches_of_whole_trajectories_have_the_gradient_of_the_full_loss(T: int):
    returns = [0.0, 1.2, 0.1, 0.2, 0.0, 0.0, 1.2, 0.2]  # four pairs
    batch_size, accumulate = 8, T  # 8 T samples: all four pairs are one update
    module, policy = learner(batch_size, accumulate)
    r = rollout(T, returns)
    for batch in minibatches(module, r, accumulate):
        (module.training_step(batch, 0) / accumulate).backward()
    assert policy.weight.grad is not None
    assert policy.largest == batch_size  # however long the episodes are
    in_parts = policy.weight.grad.clone()

    def total(e: int) -> torch.Tensor:
        return policy.evaluate(Observation(r.image[:, e], ("do",) * T), r.action_tokens[:, e]).logprob.sum()

    with policy.reference(), torch.no_grad():
        start = [total(e) for e in range(8)]
    pairs = ((1, 0), (3, 2), (6, 5), (7, 4))
    margins = [total(better) - start[better] - total(worse) + start[worse] for better, worse in pairs]
    policy.weight.grad = None
    preference_loss(torch.stack(margins), 0.3).backward()
    torch.testing.assert_close(in_parts, policy.weight.grad, atol=1e-6, rtol=0)


def test_an_update_needs_the_memory_of_a_minibatch_however_long_the_episodes_are():
    def peak(T: int) -> int:
        module, _ = learner(8, T, Wide)  # all four pairs are one update

        def update() -> None:
            for batch in minibatches(module, r, T):
                (module.training_step(batch, 0) / T).backward()

        r = rollout(T, [0.0, 1.2, 0.1, 0.2, 0.0, 0.0, 1.2, 0.2])
        return peak_bytes(update, "cpu")

    short, long = peak(5), peak(20)
    assert short > 8 * 64_000  # a minibatch's share is most of it
    assert long < 1.2 * short


def test_missing_pairs_are_counted_and_leave_no_trace():
    module, policy = learner(8, 5)  # 40 samples: two pairs of 2 x 10 steps are one update
    batches = minibatches(module, rollout(10, [0.0, 1.2, 0.2, 0.2, 0.0, 0.0, 0.0, 0.0]), 5)
    assert module.measures["pairs"] == 1
    assert module.measures["tied_pairs"] == 3
    assert len(batches) == 10  # as many as if every episode had a partner
    assert [len(b) for b in batches] == [8, 8, 4, 1, 1, 1, 1, 1, 1, 1]
    for b in batches[3:]:
        module.training_step(b, 0).backward()
    assert policy.weight.grad is not None
    assert not policy.weight.grad.any()


def test_no_pair_at_all():
    module, _ = learner(8, 5)
    batches = minibatches(module, rollout(10, [0.0] * 8), 5)
    assert [len(b) for b in batches] == [1] * 10
    assert not torch.cat([b.advantage for b in batches]).any()
    assert module.measures == {"pairs": 0.0, "tied_pairs": 4.0}


def test_the_margin_is_asked_again_before_every_update():
    module, policy = learner(10, 2)  # 20 samples: one pair is one update
    r = rollout(10, [0.0, 1.2, 0.1, 0.2])
    seen = []
    for k, batch in enumerate(paired(r, seeded(0), module.pairs, module.weigh, 10, 2, passes=1)):
        seen.append(float(batch.advantage.abs().max()))
        if k == 1:
            with torch.no_grad():
                policy.weight.zero_()
    fresh, _ = learner(10, 2)
    still = [float(b.advantage.abs().max()) for b in minibatches(fresh, r, 2)]
    assert seen[:2] == still[:2]
    assert seen[2] != still[2]


def test_measures():
    module, policy = learner(8, 5)
    r = rollout(10, [0.0, 1.2, 0.1, 0.2])
    minibatches(module, r, 5)  # one update of both pairs

    def gain(e: int) -> float:
        samples = Observation(r.image[:, e], ("do",) * 10), r.action_tokens[:, e]
        now = policy.evaluate(*samples).logprob.sum()
        with policy.reference():
            return float((now - policy.evaluate(*samples).logprob.sum()).detach())

    margins = torch.tensor([gain(1) - gain(0), gain(3) - gain(2)])
    assert module.measures["margin"] == pytest.approx(float(margins.mean()), rel=1e-5)
    assert module.measures["preference_accuracy"] == float((margins > 0).float().mean())
    assert module.measures["preference_loss"] == pytest.approx(float(preference_loss(margins, 0.3)), rel=1e-5)


def test_sizes_that_do_not_fit_are_named():
    from vlapost.config import UserError
    from vlapost.experience.sizes import check_batches

    for words, part in (
        (["experience.same_start=1"], "same_start is 1"),
        (["experience.same_start=5"], "same_start is 5"),
        (["optim.accumulate=1"], "multiple of 160"),
    ):
        with pytest.raises(UserError, match=part):
            check_batches(load("tpo", words), 80)
    check_batches(load("tpo"), 80)
    check_batches(load("grpo"), 80)
    check_batches(load("grpo", ["algorithm.advantage=valid", "experience.same_start=64"]), 80)
