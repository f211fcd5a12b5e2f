"""Every setting reaches what it sets: temperatures, coefficients, rates, seeds, lists. Parts are tested elsewhere."""

import math
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vlapost import build, config, evaluate
from vlapost.algorithms.base import adamw, token_cross_entropy
from vlapost.algorithms.grpo import GRPO
from vlapost.algorithms.ppo import PPO
from vlapost.algorithms.pretrain import cell_labels, cells, standardise
from vlapost.algorithms.sft import SFT
from vlapost.algorithms.tpo import TPO
from vlapost.contracts import DemoBatch, Metrics, Observation, PolicyEvaluation, PolicyOutput, RolloutBatch, Step
from vlapost.envs import episodes
from vlapost.envs.overlay import table_picture
from vlapost.evaluation.actors import PolicyActor
from vlapost.evaluation.episodes import run_episodes
from vlapost.experience.buffer import DemoBatches, seeded
from vlapost.experience.collect import Stopwatch
from vlapost.experience.datamodule import ExperienceModule
from vlapost.policies.value_head import critic_input
from vlapost.train import build_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")  # there is no trainer
SEVEN = torch.zeros(2, 7)


class Judge(nn.Module):
    """A policy whose learner's numbers are given: ratios of actions 1.5 and 0.5, entropy 2, values 0.3 and 0.9."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.critic = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.temperatures: list[float] = []

    def evaluate(self, observation: Observation, tokens: Tensor, temperature: float = 1.0) -> PolicyEvaluation:
        self.temperatures.append(temperature)
        logprob = SEVEN.clone()
        logprob[:, 0] = torch.tensor([1.5, 0.5]).log()
        return PolicyEvaluation(logprob + self.weight, torch.full((2, 7), 2.0), torch.tensor([0.3, 0.9]))

    def action_logits(self, observation: Observation, tokens: Tensor) -> Tensor:
        return torch.randn(2, 7, 256, generator=seeded(3))

    def remember(self) -> None:
        """TPO's start of an update."""

    def reference(self) -> Any:
        return nullcontext()

    def adapter_parameters(self) -> list[nn.Parameter]:
        return [self.weight]

    def critic_parameters(self) -> list[nn.Parameter]:
        return [self.critic]


PICTURES = Observation(torch.zeros(2, 2, 2, 3, dtype=torch.uint8), ("do", "do"))
STEPS = RolloutBatch(
    PICTURES, SEVEN.long(), SEVEN, value=torch.tensor([0.2, 0.4]),
    advantage=torch.tensor([1.0, -1.0]), return_=torch.tensor([1.0, 0.5]),
)  # fmt: skip


def module(name: str, *words: str) -> Any:
    cfg = config.load(name, ["algorithm.clip=0.2", *words])
    kind = {"ppo": PPO, "grpo": GRPO, "tpo": TPO}[name]
    return kind(Judge(), cfg.algorithm, cfg.experience, cfg.optim, 10)  # type: ignore[arg-type]


# ---- losses

# of ratios 1.5 and 0.5 with advantages 1 and -1, clipped to 1.2 and 0.8: -mean(1.2, -0.8)
SURROGATE = -(1.2 - 0.8) / 2


def test_ppos_loss_is_the_sum_of_its_parts() -> None:
    # values 0.3 and 0.9, before 0.2 and 0.4, clipped within 0.2 of those: 0.3, 0.6; returns 1 and 0.5; the larger
    # Huber losses (delta 10: squares): 0.5 * 0.7^2, 0.5 * 0.4^2
    value = (0.5 * 0.7**2 + 0.5 * 0.4**2) / 2
    words = ["algorithm.policy_coef=7", "algorithm.value_coef=0.1", "algorithm.entropy_coef=0.01"]
    loss = module("ppo", *words, "algorithm.value_clip=0.2").training_step(STEPS, 0)
    assert loss.item() == pytest.approx(7 * SURROGATE + 0.1 * value - 0.01 * 2, abs=1e-6)


def test_grpos_loss_is_the_sum_of_its_parts() -> None:
    loss = module("grpo", "algorithm.policy_coef=7", "algorithm.entropy_coef=0.01").training_step(STEPS, 0)
    assert loss.item() == pytest.approx(7 * SURROGATE - 0.01 * 2, abs=1e-6)


@pytest.mark.parametrize("name", ["ppo", "grpo"])
@pytest.mark.parametrize(("limit", "stopped"), [(0.0, False), (1e-3, True), (10.0, False)])
def test_too_large_a_kl_ends_the_updates_of_an_iteration(name: str, limit: float, stopped: bool) -> None:
    rule = module(name, f"algorithm.target_kl={limit}")
    rule.all_gather = lambda kl: kl  # one process
    rule.training_step(STEPS, 0)
    assert rule.stopped is stopped


@pytest.mark.parametrize("name", ["ppo", "grpo", "tpo"])
def test_the_learner_judges_at_the_temperature_of_the_rollouts(name: str) -> None:
    rule = module(name, "experience.temperature=0.6", "optim.batch_size=2", "optim.accumulate=1")
    rule.training_step(STEPS, 0)
    if name == "tpo":
        rule.weigh(STEPS, 1)
    assert set(rule.policy.temperatures) == {0.6}


@pytest.mark.parametrize("width", [0.0, 2.0])
def test_soft_targets_reach_the_loss(width: float) -> None:
    cfg = config.load("sft", [f"algorithm.soft_targets={width}"])
    batch = DemoBatch(PICTURES, torch.full((2, 7), 100))
    loss = SFT(Judge(), cfg.algorithm, cfg.optim, 10).training_step(batch, 0)  # type: ignore[arg-type]
    logits = Judge().action_logits(PICTURES, batch.action_tokens)
    assert loss.item() == pytest.approx(token_cross_entropy(logits, batch.action_tokens, width).item())
    plain = F.cross_entropy(logits.flatten(0, 1), batch.action_tokens.flatten())
    assert (loss.item() == pytest.approx(plain.item())) is (width == 0)

    mixed = module("ppo", "experience.schedule=[rollout,demos]", f"algorithm.soft_targets={width}")
    assert mixed.training_step(batch, 0).item() == pytest.approx(loss.item())


# ---- optimiser and trainer


def test_rates_rise_and_fall_with_every_step() -> None:
    # four steps of warm-up: 1/5 to 4/5; times half a cosine over ten steps
    optim = config.load("base", ["optim.lr=1", "optim.warmup_steps=4", "optim.schedule=cosine"]).optim
    made = adamw([{"params": [nn.Parameter(torch.zeros(1))]}], optim, 10)
    assert made["lr_scheduler"]["interval"] == "step"
    rates = []
    for _ in range(11):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    half = [0.5 * (1 + math.cos(math.pi * k / 10)) for k in range(11)]
    assert rates == pytest.approx([min(1, (k + 1) / 5) * h for k, h in enumerate(half)], abs=1e-9)
    assert rates[10] == pytest.approx(0, abs=1e-9)


def test_adapter_and_critic_have_their_own_rates() -> None:
    made = module("ppo", "optim.lr=0.1", "optim.value_lr=0.5", "optim.warmup_steps=0").configure_optimizers()
    assert {group["name"]: group["initial_lr"] for group in made["optimizer"].param_groups} == {
        "adapter": 0.1,
        "critic": 0.5,
    }


def test_the_schedule_ends_with_the_last_step() -> None:
    # 16 scenes twice, 80 steps: 2,560 samples, 32 minibatches, 16 updates; five of demonstrations, three updates
    words = ["optim.accumulate=2", "experience.schedule=[rollout,demos]", "experience.demo_steps=5"]
    assert build.total_steps(config.load("ppo", [*words, "trainer.iterations=3"])) == 16 + 3 + 16


def test_the_trainer_accumulates_and_clips(tmp_path: Any) -> None:
    words = ["trainer.accelerator=cpu", "trainer.devices=1", "optim.accumulate=4", "optim.grad_clip=0.7"]
    trainer = build_trainer(config.load("ppo", [*words, "trainer.iterations=9"]), tmp_path / "run", 5)
    assert (trainer.accumulate_grad_batches, trainer.gradient_clip_val, trainer.max_epochs) == (4, 0.7, 5)


def test_a_base_is_not_moved_to_the_cpu_after_training() -> None:
    """Lightning does so at the end, in every process; a tensor of device meta could not even be."""
    rule = module("ppo").to("meta")
    assert rule.cpu() is rule


# ---- rollouts


class Scenes:
    """Two scenes of three steps; grasped by both, held by one, successful once in one, at the end in none."""

    num_envs, steps = 2, 3

    def reset(self, ids: Tensor) -> Observation:
        self.t = 0
        return PICTURES

    def step(self, action: Tensor, look: bool = True) -> Step:
        self.t += 1
        no, one, both = (torch.tensor(flags) for flags in ([False, False], [True, False], [True, True]))
        return Step(PICTURES, torch.tensor([0.5, 0.25]), Metrics(no, one, both, one), self.t == 3)

    def gripper_pose(self) -> Tensor:
        return torch.tensor([[0.0, 0, 0, 1, 0, 0, 0]]).expand(2, 7)


class Player:
    """Writes down with which noise and temperature it is asked."""

    def __init__(self) -> None:
        self.noise: list[Tensor] = []
        self.asked: list[tuple[float, int]] = []

    def fixed_weights(self) -> Any:
        return nullcontext()

    def see(self, observation: Observation) -> Observation:
        return observation

    def act(self, observation: Any, noise: Tensor, temperature: float = 1.0, top_k: int = 0) -> PolicyOutput:
        self.noise.append(noise)
        self.asked.append((temperature, top_k))
        return PolicyOutput(SEVEN.long(), SEVEN, torch.zeros(2))

    def evaluate(self, observation: Observation, tokens: Tensor, temperature: float = 1.0) -> PolicyEvaluation:
        self.asked.append((temperature, 0))
        empty = torch.zeros(len(observation), 7)
        return PolicyEvaluation(empty, empty, torch.zeros(len(observation)))

    def decode(self, tokens: Tensor) -> Tensor:
        return tokens.float()

    def value(self, observation: Observation) -> Tensor:
        return torch.zeros(2)


def experience(words: list[str], rank: int = 0, world: int = 1, epoch: int = 0) -> ExperienceModule:
    cfg = config.load("ppo", ["env.num_envs=2", "experience.rounds=1", "optim.batch_size=2", *words])
    simulation = SimpleNamespace(steps=3, draw=lambda count, generator: torch.arange(count))
    held_out = torch.arange(100, 200)
    data = ExperienceModule(cfg, Player(), lambda r, g: iter([]), simulation, None, held_out)  # type: ignore[arg-type]
    data.env = Scenes()  # type: ignore[assignment]
    data.trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank, world_size=world)  # type: ignore[assignment]
    return data


def test_rollouts_sample_and_are_judged_at_the_temperature_that_is_set() -> None:
    data = experience(["experience.temperature=0.6", "experience.rejudge=true"])
    data._rollout(seeded(0))
    assert set(data.policy.asked) == {(0.6, 0)} and len(data.policy.asked) == 3 + 3  # type: ignore[attr-defined]


def test_every_step_of_a_rollout_has_noise_of_its_own() -> None:
    data = experience([])
    data._rollout(seeded(0))
    first, second, third = data.policy.noise  # type: ignore[attr-defined]
    assert not torch.equal(first, second) and not torch.equal(second, third) and not torch.equal(first[0], first[1])


def test_every_process_and_iteration_has_random_numbers_of_its_own() -> None:
    loaders = [experience([], rank, 2, epoch).train_dataloader() for rank in (0, 1) for epoch in (0, 1)]
    assert len({loader.generator.initial_seed() for loader in loaders}) == 4  # type: ignore[union-attr]


def test_the_curves_of_rollouts_are_named_after_what_they_show() -> None:
    data = experience([])
    data._rollout(seeded(0))
    shares = {"success_end": 0.0, "success_once": 0.5, "grasp": 1.0, "consecutive_grasp": 0.5, "return": 1.125}
    assert {name: data.stats[name] for name in shares} == shares
    assert data.env_steps == 6


def test_training_never_starts_from_a_held_out_episode() -> None:
    scenes = build.PlaceOnPlate(config.load("ppo", ["env.obj_set=few"]), None)  # type: ignore[arg-type]
    drawn = scenes.draw(20_000, seeded(0))
    assert len(scenes.held_out) * len(drawn) > 50 * scenes.setup.total  # chance would meet the list fifty times
    assert not torch.isin(drawn, scenes.held_out).any() and not torch.isin(drawn, scenes.reserved).any()


def test_validation_takes_the_end_of_the_list_and_evaluation_its_beginning() -> None:
    lists = []
    for rank in (0, 1):
        (source,) = experience(["trainer.eval_episodes=6"], rank, 2).val_dataloader()
        lists.append(source.ids)  # type: ignore[union-attr]
    assert lists == [[194, 196, 198], [195, 197, 199]]
    cfg = config.load("base", ["evaluation.episodes=5"])
    known = episodes.held_out(cfg.env.id, cfg.env.obj_set, cfg.env.protocol).tolist()
    assert evaluate.ids_of(cfg) == known[:5]


# ---- demonstrations


def test_minibatches_of_demonstrations_draw_from_their_process_and_iteration() -> None:
    def first(iteration: int, rank: int) -> float:
        batches = DemoBatches(lambda i, g: torch.rand((), generator=g), 8, 1, 2, iteration, rank, 2, 0, Stopwatch())
        return float(next(iter(batches)))

    assert len({first(iteration, rank) for iteration in (0, 1) for rank in (0, 1)}) == 4


class Stored:
    """Five demonstrations with one step, two, ... five."""

    actions = torch.zeros(15, 7)
    episode = torch.repeat_interleave(torch.arange(5), torch.arange(1, 6))

    def __len__(self) -> int:
        return 15

    def observation(self, index: Tensor) -> tuple[Tensor, tuple[str, ...]]:
        picture = torch.arange(64, dtype=torch.uint8).view(1, 8, 8, 1)
        return picture.expand(len(index), 8, 8, 3), ("do",) * len(index)


def test_held_out_demonstrations_are_not_learned_from_and_not_augmented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "open_demos", lambda c: Stored())
    policy: Any = SimpleNamespace(encode=lambda a: a.long(), actions=SimpleNamespace(lost=lambda a: ""))
    feed = build.demo_feed(
        config.load("sft", ["demos.episodes=3", "demos.held_out=2", "experience.augment=true"]), policy
    )
    assert (feed.size, feed.held_out) == (1 + 2 + 3, 4 + 5)
    index = torch.arange(2)
    raw, _ = Stored().observation(index)
    assert torch.equal(feed.make(index, None).observation.image, raw)
    assert not torch.equal(feed.make(index, seeded(0)).observation.image, raw)


# ---- evaluation


def test_an_evaluation_decodes_as_it_says() -> None:
    player = Player()
    actor = PolicyActor(player, 0.6, 50)  # type: ignore[arg-type]
    (one, two) = run_episodes(actor, Scenes(), [1, 2], seed=0)  # type: ignore[arg-type]
    assert player.asked == [(0.6, 50)] * 3
    assert not torch.equal(player.noise[0], player.noise[1])  # nor does the noise of an episode repeat
    assert (one.success_end, one.success_once, one.grasp, one.consecutive_grasp) == (False, True, True, True)
    assert (two.success_end, two.success_once, two.grasp, two.consecutive_grasp) == (False, False, True, False)


def test_an_evaluation_is_built_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "build_policy", lambda c, device: Player())
    words = ["evaluation.temperature=0.7", "evaluation.top_k=9", "trainer.accelerator=cpu"]
    actor: Any = build.build_actor(config.load("base", words))
    assert (actor.temperature, actor.top_k) == (0.7, 9)

    found: list[Any] = []
    monkeypatch.setattr(build, "run_episodes", lambda actor, *rest: found.append(actor) or [])
    scenes = build.PlaceOnPlate(config.load("ppo", words), Player())  # type: ignore[arg-type]
    list(scenes.evaluate(Scenes(), [1, 2], 0))  # type: ignore[arg-type]
    assert [(actor.temperature, actor.top_k) for actor in found] == [(0.7, 9)]


# ---- what is read


def test_each_critic_reads_its_own_part() -> None:
    hidden = torch.arange(2 * 7 * 3).view(2, 7, 3)
    assert critic_input("h0", hidden, None).tolist() == [[0, 1, 2], [21, 22, 23]]
    assert critic_input("hn", hidden, None).tolist() == [[18, 19, 20], [39, 40, 41]]
    assert critic_input("all", hidden, None).tolist() == [list(range(21)), list(range(21, 42))]
    state = torch.ones(2, 5)
    assert torch.equal(critic_input("state", hidden, state), state)


def test_a_red_table_is_red(tmp_path: Any) -> None:
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "table.png")
    assert table_picture(tmp_path / "table.png", 4, 4)[0, 0].tolist() == [255, 0, 0]


def test_what_a_patch_says_of_its_cells_lies_where_they_are() -> None:
    """A grid of 2 x 3 patches with 2 x 2 cells each; the head's number for a class of a cell is where the cell lies."""
    row, column = torch.arange(4).view(4, 1), torch.arange(6).view(1, 6)
    where = (10 * row + column).float()
    said = where.unfold(0, 2, 2).unfold(1, 2, 2).reshape(6, 4)  # patch by patch
    found = cells(torch.stack([said, said + 100], 1).flatten(1)[None], (2, 3), 2)
    assert torch.equal(found[0], torch.stack([where, where + 100]))
    pixels = torch.zeros(1, 8, 12, dtype=torch.uint8)
    pixels[0, 2, 10] = 3  # the middle of the first row's third cell
    assert cell_labels(pixels).tolist() == [[[0, 0, 3], [0, 0, 0]]]


def test_positions_are_told_in_units_of_five_centimetres() -> None:
    place = torch.tensor([[0.355, 0.03, 0.04, 0.305, -0.02, 0.04, 0.305, 0.03, 0.09]])
    torch.testing.assert_close(standardise(place), torch.tensor([[1.0, 0, 0, 0, -1, 0, 0, 0, 1]]))
