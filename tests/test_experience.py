"""The seam between sampling and learning: laziness, order, seeds, shapes, augmentation."""

import threading
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from vlapost.config import UserError, load
from vlapost.contracts import DemoBatch, Metrics, Observation, PolicyEvaluation, PolicyOutput, Rollout, Step
from vlapost.experience.augment import augment, jitter, recolour, repaint
from vlapost.experience.buffer import DemoBatches, Minibatches, rejudge, seeded, shuffled
from vlapost.experience.collect import Stopwatch, collect, gumbel_noise
from vlapost.experience.datamodule import ExperienceModule, explained_variance, to_go
from vlapost.experience.sizes import check_batches

T, E = 4, 3


def rollout_of(value: float = 0.0) -> Rollout:
    """Sample (t, e) carries the number 10 t + e in every field."""
    number = torch.arange(T).view(T, 1) * 10.0 + torch.arange(E)
    flags = torch.zeros(E, dtype=torch.bool)
    return Rollout(
        image=number.view(T, E, 1, 1, 1).expand(T, E, 2, 2, 3).to(torch.uint8),
        instruction=(("a", "b", "c"),) * T,
        action_tokens=number.long().view(T, E, 1).expand(T, E, 7),
        logprob=number.unsqueeze(-1).expand(T, E, 7),
        value=number,
        reward=number + value,
        done=torch.zeros(T, E, dtype=torch.bool),
        last_value=torch.zeros(E),
        metrics=Metrics(flags, flags, flags, flags),
    )


def minibatches(passes: int = 1, collect_fn=rollout_of) -> Minibatches:
    def advantage(r: Rollout):
        return r.reward * 2, r.reward * 3

    cut = partial(shuffled, advantage=advantage, batch_size=4, passes=passes)
    return Minibatches(collect_fn, cut, passes * T * E // 4, seeded(0), Stopwatch())


def test_every_sample_once_per_pass_with_its_own_fields():
    batches = list(minibatches(passes=2))
    assert len(batches) == len(minibatches(passes=2)) == 6
    numbers = torch.cat([b.logprob[:, 0] for b in batches])
    assert (
        sorted(numbers[:12].tolist()) == sorted(numbers[12:].tolist()) == sorted(rollout_of().value.flatten().tolist())
    )
    assert numbers[:12].tolist() != numbers[12:].tolist()
    for b in batches:
        number = b.logprob[:, 0]
        assert torch.equal(b.action_tokens[:, 0].float(), number)
        assert torch.equal(b.observation.image[:, 0, 0, 0].float(), number)
        assert torch.equal(b.value, number)
        assert torch.equal(b.advantage, 2 * number)
        assert torch.equal(b.return_, 3 * number)
        assert list(b.observation.instruction) == ["abc"[int(n) % 10] for n in number]


def test_lightning_collects_once_per_iteration_and_never_with_stale_weights():
    """The contract that on-policy learning needs of Lightning: see the module docstring of experience/buffer.py."""
    seen: list[float] = []

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def configure_optimizers(self):
            return torch.optim.SGD([self.weight], lr=1.0)

        def training_step(self, batch, batch_idx):
            return -self.weight  # one step adds one to the weight

    class Data(L.LightningDataModule):
        def train_dataloader(self):
            return minibatches(collect_fn=lambda: (seen.append(float(module.weight.detach())), rollout_of())[1])

    module = Module()
    trainer = L.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, reload_dataloaders_every_n_epochs=1, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=Data())
    assert seen == [0.0, 3.0, 6.0]  # three minibatches each, all applied before the next rollout


def demo_batches(iteration: int, rank: int, world: int, size: int = 10, steps: int = 2) -> list[list[int]]:
    def make(index, generator):
        return index

    batches = DemoBatches(make, size, steps, 3, iteration, rank, world, 7, Stopwatch())  # type: ignore[type-var]
    return [batch.tolist() for batch in batches]


def test_demonstrations_are_seen_once_before_any_is_seen_twice():
    walk = [i for iteration in range(5) for i in sum(demo_batches(iteration, 0, 1), [])]
    assert sorted(walk[:10]) == sorted(walk[10:20]) == sorted(walk[20:30]) == list(range(10))
    assert walk[:10] != walk[10:20]


def test_two_processes_share_the_walk_of_one():
    alone = sum(demo_batches(0, 0, 1, steps=4), [])
    ranks = [demo_batches(0, rank, 2, steps=2) for rank in (0, 1)]
    together = [i for pair in zip(*ranks) for batch in pair for i in batch]
    assert together == alone


def test_the_next_demonstrations_are_read_while_one_learns():
    """Each minibatch is asked for by itself, one ahead and no more; a mistake in reading reaches the learner."""
    read = [threading.Event() for _ in range(4)]

    def make(index, generator):
        number = next(k for k, event in enumerate(read) if not event.is_set())
        if number == 3:
            raise ValueError("damaged")
        read[number].set()
        return index

    watch = Stopwatch()
    batches = iter(DemoBatches(make, 10, 5, 3, 0, 0, 1, 7, watch))  # type: ignore[type-var]
    next(batches)
    assert read[1].wait(30) and not read[2].is_set()
    next(batches)
    assert read[2].wait(30)
    next(batches)
    with pytest.raises(ValueError, match="damaged"):
        next(batches)
    assert watch.seconds["loading"] < 30
    before = set(threading.enumerate())
    fresh = iter(DemoBatches(lambda index, generator: index, 10, 5, 3, 0, 0, 1, 7, watch))  # type: ignore[type-var]
    next(fresh)
    fresh.close()  # an iteration that is given up leaves no thread behind
    assert set(threading.enumerate()) <= before


def test_gumbel_noise_draws_from_the_softmax():
    logits = torch.full((256,), -30.0)
    logits[:3] = torch.tensor([0.0, 1.0, 2.0])
    draws = (logits + gumbel_noise(4000, seeded(1))).argmax(-1).flatten()
    share = torch.bincount(draws, minlength=3)[:3] / len(draws)
    torch.testing.assert_close(share, logits[:3].softmax(0), atol=0.01, rtol=0)


class CountingEnv:
    """Reward 1 for an action equal to the step's number, else 0; three steps per episode."""

    num_envs, steps = 2, 3

    def reset(self, ids):
        self.t, self.ids = 0, ids
        return self._see()

    def _see(self):
        return Observation(torch.full((2, 2, 2, 3), self.t, dtype=torch.uint8), tuple(f"do {int(i)}" for i in self.ids))

    def step(self, action):
        reward = (action[:, 0] == self.t).float()
        self.t += 1
        flags = torch.tensor([self.t == 3] * 2)
        return Step(self._see(), reward, Metrics(flags, flags, flags, flags), self.t == 3)


class Echo:
    """Acts with the number it sees; its log-probability and value are functions of it."""

    blocks = 0

    def fixed_weights(self):
        self.blocks += 1
        return nullcontext()

    def see(self, observation):
        return replace(observation, patches=observation.image[..., 0].float())

    def act(self, observation, noise, temperature):
        seen = observation.image[:, 0, 0, 0].long()
        tokens = seen.view(-1, 1).expand(-1, 7)
        return PolicyOutput(tokens, -tokens.float(), seen.float() / 2)

    def decode(self, tokens):
        return tokens.float()

    def value(self, observation):
        return observation.image[:, 0, 0, 0].float() / 2


def test_collect_lines_up_observation_action_and_reward():
    policy = Echo()
    r = collect(CountingEnv(), policy, torch.arange(4), seeded(0), 1.0, Stopwatch())  # type: ignore[arg-type]
    assert policy.blocks == 1  # weights are fixed for both rounds together
    assert r.image.shape == (3, 4, 2, 2, 3)
    assert torch.equal(r.reward, torch.ones(3, 4))
    assert torch.equal(r.action_tokens[:, :, 0], torch.arange(3).view(3, 1).expand(3, 4))
    assert torch.equal(r.logprob, -torch.arange(3.0).view(3, 1, 1).expand(3, 4, 7))
    assert r.last_value.tolist() == [1.5] * 4
    assert r.instruction == (("do 0", "do 1", "do 2", "do 3"),) * 3
    assert r.done.tolist() == [[False] * 4, [False] * 4, [True] * 4]
    assert len(r.metrics.success) == 4
    assert r.metrics.success.all()
    assert r.patches is not None
    assert torch.equal(r.patches, r.image[..., 0].float())  # two rounds of two scenes, joined like the pictures


def test_patch_features_travel_with_their_sample():
    rollout = rollout_of()
    with_patches = replace(rollout, patches=rollout.reward.view(T, E, 1, 1).expand(T, E, 2, 5))
    for batch in minibatches(collect_fn=lambda: with_patches):
        assert batch.observation.patches is not None
        assert torch.equal(batch.observation.patches[:, 1, 4], batch.logprob[:, 0])


def test_repaint_changes_tables_and_colours_but_not_what_is_where():
    image = torch.zeros(200, 4, 4, 3, dtype=torch.uint8)
    labels = torch.zeros(200, 4, 4, dtype=torch.uint8)
    labels[:, 1, 1], labels[:, 2, 2], labels[:, 3, 3] = 1, 2, 3
    image[labels == 0] = torch.tensor([10, 20, 30], dtype=torch.uint8)
    image[labels == 1] = torch.tensor([60, 60, 60], dtype=torch.uint8)
    image[labels == 2] = torch.tensor([100, 0, 0], dtype=torch.uint8)
    image[labels == 3] = torch.tensor([0, 120, 0], dtype=torch.uint8)
    tables = torch.full((1, 4, 4, 3), 200, dtype=torch.uint8)
    new = repaint(image, labels, tables, seeded(1))
    assert torch.equal(new, repaint(image, labels, tables, seeded(1)))
    assert int(image[labels == 0][:, 0].max()) == 10  # the argument is left alone
    background = new[labels == 0].view(200, -1, 3).float()
    assert torch.equal(background, background[:, :1].expand_as(background))  # one colour stays one colour
    assert 0.6 < (background[:, 0].mean(1) > 60).float().mean() < 0.8  # 70 % stand on the other table
    robot = new[labels == 1].float()
    assert robot.min() >= 60 * 0.65**2 - 1
    assert robot.max() <= 60 * 1.35**2 + 1
    for kind, channel in ((2, 0), (3, 1)):  # one channel is lit: it moves in about a third of the pictures
        colours = new[labels == kind]
        assert ((colours > 0).sum(1) == 1).all()
        assert 0.2 < (colours[:, channel] == 0).float().mean() < 0.45
    white = repaint(torch.full_like(image, 255), labels, tables + 55, seeded(2))
    assert white.min() >= 255 * 0.65**2 - 1  # what is too bright is cut at 255, not wrapped


def test_augment_is_seeded_mild_and_keeps_the_form():
    image = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=seeded(3))
    smooth = image.float().mean((1, 2), keepdim=True).expand(4, 32, 32, 3).to(torch.uint8)
    one, two, other = (augment(smooth, seeded(s)) for s in (1, 1, 2))
    assert one.shape == image.shape
    assert one.dtype == torch.uint8
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert (one.float() - smooth.float()).abs().mean() < 60


def test_augment_crops_nine_tenths(monkeypatch: pytest.MonkeyPatch):
    """Red says the column, green the row, 4 per pixel; colours stay as they are."""
    for name in ("BRIGHTNESS", "CONTRAST", "SATURATION", "HUE"):
        monkeypatch.setattr(f"vlapost.experience.augment.{name}", 0.0)
    place = 4 * torch.arange(64)
    column, row = place.expand(64, 64), place.unsqueeze(1).expand(64, 64)
    picture = torch.stack([column, row, torch.zeros_like(row)], -1).to(torch.uint8).expand(50, -1, -1, -1)
    new = augment(picture, seeded(1)).float()
    for first, last in ((new[:, 0, 0, 0], new[:, 0, -1, 0]), (new[:, 0, 0, 1], new[:, -1, 0, 1])):
        assert (last - first - 252 * 0.9**0.5).abs().max() <= 1.5
        assert first.min() < 3 and first.max() > 10  # anywhere within the picture: 0 to 252 (1 - 0.9^0.5) = 12.9
    assert not torch.equal(new[:, 0, 0, 0], new[:, 0, 0, 1])


def test_brightness_then_contrast_about_each_channels_mean():
    # 0.5 and 0.9, brighter by 0.2: 0.7 and 1 (cut); mean 0.85, twice as far from it: 0.55 and 1 (cut)
    # 0.0 and 0.2: 0.2 and 0.4; mean 0.3: 0.1 and 0.5; a channel of one value has no contrast: 0.1 + 0.2
    x = torch.tensor([[[[0.5, 0.9]], [[0.0, 0.2]], [[0.1, 0.1]]]])
    found = jitter(x, torch.tensor(0.2).view(1, 1, 1, 1), torch.tensor(2.0).view(1, 1, 1, 1))
    torch.testing.assert_close(found, torch.tensor([[[[0.55, 1.0]], [[0.1, 0.5]], [[0.3, 0.3]]]]))


def test_hue_turns_about_grey_and_saturation_leads_to_it():
    # luma of red is 0.299, of green 0.587: half a turn puts a colour on the other side of its grey, 2 luma - colour
    red, green = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    x = torch.stack([red, red, green, red]).view(4, 3, 1, 1)
    found = recolour(x, torch.tensor([torch.pi, 0, torch.pi, torch.pi / 2]), torch.tensor([1, 0.5, 0, 1]))
    expected = [[-0.402, 0.598, 0.598], [0.6495, 0.1495, 0.1495], [0.587] * 3]
    torch.testing.assert_close(found[:3, :, 0, 0], torch.tensor(expected), atol=1e-3, rtol=0)
    # a quarter turn of red's chroma (0.596, 0.211) is (-0.211, 0.596); back by the inverse as published (NTSC)
    turned = 0.299 + torch.tensor([[0.956, 0.619], [-0.272, -0.647], [-1.106, 1.703]]) @ torch.tensor([-0.211, 0.596])
    torch.testing.assert_close(found[3, :, 0, 0], turned, atol=2e-3, rtol=0)


def test_explained_variance():
    target = torch.tensor([[0.0, 2.0], [4.0, 6.0]])  # variance 20 / 3
    assert explained_variance(target + 5, target) == 1  # an offset is no variance
    assert explained_variance(torch.ones(2, 2), target) == 0
    left = torch.tensor([[1.0, -1.0], [1.0, -1.0]])  # variance 4 / 3
    assert explained_variance(target - left, target) == pytest.approx(0.8)
    assert explained_variance(target, torch.zeros(2, 2)) == 0


@pytest.mark.parametrize(("bootstrap", "target"), [("false", [1.75, 1.5, 1.0]), ("true", [1.9375, 1.875, 1.75])])
def test_the_critic_is_compared_with_what_it_is_taught(bootstrap: str, target: list[float]):
    # rewards 1, gamma 0.5, the value after the last step is 1.5: 1 + 0.75, 1 + 0.875, 1 + 0.9375; values are 0, 0.5, 1
    words = ["algorithm.gamma=0.5", f"algorithm.bootstrap_truncation={bootstrap}", "env.num_envs=2"]
    cfg = load("ppo", [*words, "experience.rounds=1"])
    simulation = SimpleNamespace(steps=3, draw=lambda count, generator: torch.arange(count))
    data = ExperienceModule(cfg, Echo(), lambda r: r, simulation, None, torch.arange(3))  # type: ignore[arg-type]
    data.env = CountingEnv()  # type: ignore[assignment]
    data.trainer = SimpleNamespace(current_epoch=0, global_rank=0, world_size=1)  # type: ignore[assignment]
    data._rollout(seeded(0))
    value = torch.tensor([0.0, 0.5, 1.0]).repeat(2)
    expected = explained_variance(value, torch.tensor(target).repeat(2))
    assert data.stats["explained_variance"] == pytest.approx(expected, abs=1e-6)


def test_discounted_reward_to_go():
    # 1 + 0.5 * (2 + 0.5 * 4) = 3, 2 + 0.5 * 4 = 4, 4
    reward, done = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[False], [False], [True]])
    assert to_go(reward, done, torch.tensor([8.0]), 0.5).flatten().tolist() == [3.0, 4.0, 4.0]
    # an end after the first step; the last one is cut, and 8 would follow
    assert to_go(reward, done.flip(0), torch.tensor([8.0]), 0.5).flatten().tolist() == [1.0, 6.0, 8.0]


@pytest.mark.parametrize("override", ["optim.batch_size=7", "optim.accumulate=3"])
def test_batches_that_do_not_fit_are_refused(override):
    with pytest.raises(UserError, match="must divide it"):
        check_batches(load("ppo", [override]), steps=80)


def test_success_cannot_last_longer_than_an_episode():
    check_batches(load("ppo", ["experience.success_steps=80"]), steps=80)
    with pytest.raises(UserError, match="success_steps is 81, more than the 80 steps of an episode"):
        check_batches(load("ppo", ["experience.success_steps=81"]), steps=80)


def test_schedule_alternates_and_counts_only_its_own_iterations():
    from vlapost.experience.datamodule import DemoFeed, ExperienceModule

    cfg = load("ppo", ["experience.schedule=[rollout,demos,demos]"])
    data = ExperienceModule(cfg, None, lambda r: r, SimpleNamespace(steps=80), None, torch.arange(3))  # type: ignore[arg-type]
    data.demos = DemoFeed(10, lambda index, generator: DemoBatch(None, index))  # type: ignore[arg-type]
    kinds = []
    for epoch in range(6):
        data.trainer = SimpleNamespace(current_epoch=epoch, global_rank=0, world_size=1)  # type: ignore[assignment]
        loader = data.train_dataloader()
        kinds.append(loader.iteration if isinstance(loader, DemoBatches) else "rollout")
    assert kinds == ["rollout", 0, 1, "rollout", 2, 3]


@pytest.mark.parametrize("same", [1, 4, 16])
def test_starts_are_shared_by_neighbours_and_divided_among_processes(same: int):
    cfg = load("ppo", ["env.num_envs=4", "experience.rounds=2", f"experience.same_start={same}"])

    def starts(rank: int, epoch: int) -> list[int]:
        data = ExperienceModule.__new__(ExperienceModule)
        data.config = cfg
        data.simulation = SimpleNamespace(draw=lambda n, g: torch.randint(0, 10**9, (n,), generator=g))  # type: ignore[assignment]
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2, current_epoch=epoch)  # type: ignore[assignment]
        return data._starts().tolist()

    both = starts(0, 0) + starts(1, 0)
    assert len(both) == 16
    groups = [both[k : k + same] for k in range(0, 16, same)]
    assert all(len(set(group)) == 1 for group in groups)
    assert len(set(both)) == 16 // same
    assert both == starts(0, 0) + starts(1, 0)
    assert not set(both) & set(starts(0, 1))


def test_rejudged_rollouts_hold_the_learners_numbers():
    """Each sample keeps its place, whatever the size of the minibatches; the last one may be smaller."""

    class Judge:
        def evaluate(self, observation, tokens, temperature):
            sizes.append(len(observation))
            assert temperature == 0.7
            number = tokens.float() + observation.image[:, 0, 0, :1].float()
            words = torch.tensor([float("abc".index(word)) for word in observation.instruction])
            return PolicyEvaluation(number, number, words)

    sizes: list[int] = []
    rollout = rollout_of()
    judged = rejudge(rollout, Judge(), 5, 0.7)  # type: ignore[arg-type]
    expected = rollout.action_tokens.float() + rollout.image[:, :, 0, 0, :1].float()
    assert torch.equal(judged.logprob, expected)
    assert torch.equal(judged.value, torch.arange(float(E)).expand(T, E))
    assert sizes == [5, 5, 2]
    assert torch.equal(judged.reward, rollout.reward)


class Countdown:
    """Two scenes of at most four steps; episode n succeeds at its n-th step, loses that and has it again from n + 2 on.

    The picture is 10 n + the step. Episode 20 + n does as n, and never grasps what it succeeds with.
    """

    num_envs, steps = 2, 4

    def reset(self, ids):
        self.ids, self.age = ids.clone(), torch.zeros(2, dtype=torch.int64)
        return self.see()

    def restart(self, which, ids):
        self.ids[which], self.age[which] = ids, 0
        return self.see()

    def see(self):
        number = (10 * self.ids + self.age).to(torch.uint8)
        return Observation(number.view(2, 1, 1, 1).expand(2, 2, 2, 3), tuple(f"do {int(i)}" for i in self.ids))

    def step(self, action):
        self.age += 1
        number = self.ids % 20
        now = (self.age == number) | (self.age > number + 1)
        grasp = now & (self.ids < 20)
        return Step(self.see(), grasp.float(), Metrics(now, now, grasp, grasp), bool((self.age >= 4).all()))


class Zeros:
    """A policy of which the actions do not matter; values are what the picture says."""

    def fixed_weights(self):
        return nullcontext()

    def see(self, observation):
        return observation

    def act(self, observation, noise, temperature):
        tokens = torch.zeros(2, 7, dtype=torch.int64)
        return PolicyOutput(tokens, tokens.float(), torch.zeros(2))

    def decode(self, tokens):
        return tokens.float()

    def value(self, observation):
        return observation.image[:, 0, 0, 0].float()


def test_an_episode_that_ends_at_success_makes_room_for_the_next():
    following = iter([9, 3, 1])
    r = collect(
        Countdown(), Zeros(), torch.tensor([2, 1]), seeded(0), 1.0, Stopwatch(),  # type: ignore[arg-type]
        success_steps=1, another=lambda count: torch.tensor([next(following) for _ in range(count)]),
    )  # fmt: skip
    # scene 0: episode 2 ends at step 2, then 3 (cut); scene 1: episode 1 ends at step 1, then 9 (cut)
    assert r.image[:, :, 0, 0, 0].T.tolist() == [[20, 21, 30, 31], [10, 90, 91, 92]]
    assert r.done.T.tolist() == [[False, True, False, False], [True, False, False, False]]
    assert r.reward.T.tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]
    assert [list(sentences) for sentences in zip(*r.instruction)] == [
        ["do 2", "do 2", "do 3", "do 3"],
        ["do 1", "do 9", "do 9", "do 9"],
    ]
    assert r.last_value.tolist() == [32, 93]
    assert r.metrics.success.tolist() == [True, True, False, False]  # two that ended, two that were cut


def test_an_episode_ends_when_success_has_lasted():
    r = collect(
        Countdown(), Zeros(), torch.tensor([0, 1]), seeded(0), 1.0, Stopwatch(),  # type: ignore[arg-type]
        success_steps=2, another=lambda count: torch.full((count,), 1),
    )  # fmt: skip
    # scene 0: success at steps 2 and 3 ends episode 0, then 1, whose first step of success is its own first; scene 1:
    # at steps 1, 3 and 4
    assert r.reward.T.tolist() == [[0, 1, 1, 1], [1, 0, 1, 1]]
    assert r.done.T.tolist() == [[False, False, True, False], [False, False, False, True]]
    assert r.image[:, 0, 0, 0, 0].tolist() == [0, 1, 2, 10]
    assert r.metrics.success.tolist() == [True, True, True]


def test_success_with_what_was_never_grasped_ends_nothing():
    """It is not paid: an episode that ended there would only have lost what could still be earned."""
    r = collect(
        Countdown(), Zeros(), torch.tensor([21, 1]), seeded(0), 1.0, Stopwatch(),  # type: ignore[arg-type]
        another=lambda count: torch.full((count,), 9),
    )  # fmt: skip
    assert r.done.T.tolist() == [[False] * 3 + [True], [True, False, False, False]]
    assert r.reward.T.tolist() == [[0] * 4, [1, 0, 0, 0]]
    assert r.metrics.success.tolist() == [True, True, False]  # as the benchmark counts


@pytest.mark.parametrize(("success_steps", "ends"), [(0, [4]), (1, [1, 2, 3, 4]), (2, [4])])
def test_the_setting_decides_when_training_episodes_end(success_steps, ends):
    """Episode 1 succeeds at steps 1, 3 and 4: with 1 each that begins ends at once, the last where the rollout does."""
    words = [f"experience.success_steps={success_steps}", "experience.rounds=1", "env.num_envs=2"]
    drawn = []

    def draw(count, generator):
        drawn.append(count)
        return torch.ones(count, dtype=torch.int64)

    data = ExperienceModule(load("ppo", words), Zeros(), None, SimpleNamespace(draw=draw), None, torch.arange(0))
    data.env, data.trainer = Countdown(), SimpleNamespace(current_epoch=0, global_rank=0, world_size=1)
    done = data._rollout(seeded(0)).done[:, 0]
    assert (done.nonzero()[:, 0] + 1).tolist() == ends
    assert drawn == [2] * len(ends)  # none for after the last step
