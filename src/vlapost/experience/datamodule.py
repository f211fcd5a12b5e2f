"""The LightningDataModule that alternates online rollouts and replayed demonstrations.

It holds the simulator, the stored demonstrations, and the numbers a person wants to see about both (`stats`). It asks
`current_epoch` which source is due, and nothing else of the Trainer. The policy, and how a rollout becomes minibatches,
are handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor

from vlapost.config import Config
from vlapost.contracts import DemoBatch, EpisodeBatch, GroundedBatch, Policy, Rollout, VectorEnv
from vlapost.experience.buffer import Cut, DemoBatches, Minibatches, rejudge, seeded
from vlapost.experience.collect import Stopwatch, collect
from vlapost.experience.sizes import episodes, samples


@dataclass(frozen=True)
class DemoFeed:
    """Stored demonstrations as minibatches.

    size: number of samples to learn from. held_out: number of those that follow, to look at only.
    make: (indices `[B]`, generator) -> batch; without a generator nothing is augmented.
    """

    size: int
    make: Callable[[Tensor, torch.Generator | None], DemoBatch | GroundedBatch]
    held_out: int = 0


class Simulation(Protocol):
    """What a run needs of the simulator: scenes, training starts, and held-out episodes run to their end."""

    steps: int  # control steps of an episode

    def make(self) -> VectorEnv:
        """Build the scenes of this process."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` training episode ids, never held out."""

    def evaluate(self, env: VectorEnv, ids: list[int], record: int) -> Iterator[tuple[dict[str, Tensor], list[Tensor]]]:
        """Run held-out episodes `ids`; yields metrics `[B]` and the frames `[T, H, W, 3]` of the first `record`."""


class ExperienceModule(L.LightningDataModule):
    """Rollouts and demonstrations, one source per iteration, in the order of `experience.schedule`."""

    def __init__(
        self,
        config: Config,
        policy: Policy,
        cut: Cut | None,
        simulation: Simulation,
        open_demos: Callable[[], DemoFeed],
        held_out: Tensor,
    ):
        super().__init__()
        self.config, self.policy, self.cut = config, policy, cut
        self.simulation, self.open_demos, self.held_out = simulation, open_demos, held_out
        self.env: VectorEnv | None = None
        self.watch = Stopwatch()
        self.env_steps = 0
        self.stats: dict[str, float] = {}
        self.videos: list[Tensor] = []
        self.on_step: Callable[[int], None] = lambda steps: None  # a progress bar may listen

    # ---- what Lightning calls

    def setup(self, stage: str) -> None:
        """Open demonstrations and build scenes, each only where the run uses them."""
        c = self.config
        if "demos" in c.experience.schedule:
            self.demos = self.open_demos()
        if "rollout" in c.experience.schedule or (c.trainer.eval_every and c.trainer.eval_episodes):
            self.env = self.simulation.make()

    def train_dataloader(self) -> Minibatches | DemoBatches[DemoBatch | GroundedBatch]:
        """The source that is due; Lightning asks once per epoch (`reload_dataloaders_every_n_epochs=1`)."""
        c, e = self.config, self.config.experience
        assert self.trainer is not None
        iteration, rank, world = self.trainer.current_epoch, self.trainer.global_rank, self.trainer.world_size
        self.watch.seconds.clear()
        self.stats = {}
        if e.schedule[iteration % len(e.schedule)] == "demos":
            turn, places = divmod(iteration, len(e.schedule))
            done = turn * e.schedule.count("demos") + e.schedule[:places].count("demos")
            return DemoBatches(
                self.demos.make, self.demos.size, e.demo_steps, c.optim.batch_size,
                done, rank, world, c.seed, self.watch,
            )  # fmt: skip
        assert self.cut is not None
        generator = seeded(c.seed, iteration, rank)
        count = e.passes * samples(c, self.simulation.steps) // c.optim.batch_size
        return Minibatches(lambda: self._rollout(generator), self.cut, count, generator, self.watch)

    def val_dataloader(self) -> list[HeldOutEpisodes | HeldOutDemos]:
        """Held-out episodes of this process, and held-out demonstrations if there are any.

        The last ones of the list: who chooses by them leaves the first, which `make evaluate` reports, as they were.
        """
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        ids = self.held_out[len(self.held_out) - self.config.trainer.eval_episodes :].tolist()[rank::world]
        self.videos = []
        record = self.config.trainer.video_episodes if rank == 0 else 0
        sources: list[HeldOutEpisodes | HeldOutDemos] = [HeldOutEpisodes(self, ids, record)] if ids else []
        if self.config.demos.held_out and "demos" in self.config.experience.schedule:
            sources.append(HeldOutDemos(self.demos, self.config.optim.batch_size, rank, world))
        return sources

    def state_dict(self) -> dict[str, Any]:
        """Random numbers follow from (seed, iteration, process); only the counter is state."""
        return {"env_steps": self.env_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the counter."""
        self.env_steps = state_dict["env_steps"]

    def teardown(self, stage: str) -> None:
        """Free the simulator."""
        if self.env is not None:
            self.env.close()
            self.env = None

    # ---- rollouts

    def _starts(self) -> Tensor:
        """Episodes of this process in this iteration; `experience.same_start` neighbours are the same."""
        c = self.config
        assert self.trainer is not None
        own, same = episodes(c), c.experience.same_start
        rank, world = self.trainer.global_rank, self.trainer.world_size
        ids = self.simulation.draw(-(-own * world // same), seeded(c.seed, self.trainer.current_epoch))
        return ids.repeat_interleave(same)[rank * own : (rank + 1) * own]

    def _rollout(self, generator: torch.Generator) -> Rollout:
        c, ids = self.config, self._starts()
        assert self.env is not None and self.trainer is not None
        world = self.trainer.world_size
        another = partial(self.simulation.draw, generator=generator) if c.experience.success_steps else None
        rollout = collect(
            self.env, self.policy, ids, generator, c.experience.temperature, self.watch, self.on_step,
            another, c.experience.success_steps,
        )  # fmt: skip
        if c.experience.rejudge:
            with self.watch("inference"):
                rollout = rejudge(rollout, self.policy, c.optim.batch_size, c.experience.temperature)
        self.env_steps += rollout.reward.numel() * world
        m = rollout.metrics
        self.stats = {
            "success_end": float(m.success.float().mean()),
            "success_once": float(m.success_once.float().mean()),
            "grasp": float(m.grasp.float().mean()),
            "consecutive_grasp": float(m.consecutive_grasp.float().mean()),
            "return": float(rollout.reward.sum()) / len(m.success),
        }
        if c.policy.critic != "none":
            done = rollout.done & (not c.algorithm.bootstrap_truncation)
            target = to_go(rollout.reward, done, rollout.last_value, c.algorithm.gamma)
            self.stats["explained_variance"] = explained_variance(rollout.value, target)
        return rollout


class HeldOutEpisodes:
    """Sized, lazy iterable of finished held-out episodes, `env.num_envs` at a time."""

    def __init__(self, data: ExperienceModule, ids: list[int], record: int):
        self.data, self.ids, self.record = data, ids, record

    def __len__(self) -> int:
        assert self.data.env is not None
        return -(-len(self.ids) // self.data.env.num_envs)

    def __iter__(self) -> Iterator[EpisodeBatch]:
        env = self.data.env
        assert env is not None
        for metrics, frames in self.data.simulation.evaluate(env, self.ids, self.record):
            self.data.videos.extend(frames)
            yield EpisodeBatch(metrics)


class HeldOutDemos:
    """Sized iterable of held-out demonstrations; every `world`-th sample is this process's."""

    def __init__(self, feed: DemoFeed, batch_size: int, rank: int, world: int):
        index = torch.arange(feed.size, feed.size + feed.held_out)[rank::world]
        self.make, self.parts = feed.make, index.split(batch_size)

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[DemoBatch | GroundedBatch]:
        return (self.make(index, None) for index in self.parts)


def to_go(reward_TE: Tensor, done_TE: Tensor, last_value_E: Tensor, gamma: float) -> Tensor:
    """Discounted sum of the rewards from each step to the end of its episode, `[T, E]`; `last_value_E` beyond a cut."""
    result, following = reward_TE.clone(), last_value_E
    for t in reversed(range(len(result))):
        result[t] += gamma * following * ~done_TE[t]
        following = result[t]
    return result


def explained_variance(value: Tensor, target: Tensor) -> float:
    """1 - Var(target - value) / Var(target) of equal shapes; 0 where the target is constant.

    1 is a perfect critic, 0 one as good as a constant, below 0 one that is worse.
    """
    spread = target.var()
    return float(1 - (target - value).var() / spread) if spread > 0 else 0.0
