"""Iterables that Lightning draws minibatches from. Sized, and lazy: a rollout is made when training asks for it.

Lightning prefetches from an iterable without `__len__`, and calls an eager `__iter__` several times; both would
collect with stale weights. Each class here therefore has `__len__`, and its `__iter__` is a generator function.
Random numbers depend only on (seed, iteration, process), so a resumed run draws what an uninterrupted one would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Generic, TypeVar

import torch
from torch import Tensor

from vlapost.contracts import Observation, Rollout, RolloutBatch
from vlapost.experience.collect import Stopwatch

Batch = TypeVar("Batch")


def seeded(*numbers: int) -> torch.Generator:
    """A generator whose state is a function of the numbers alone."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


class Minibatches:
    """One iteration on policy: collect, judge, then `passes` times through the shuffled samples."""

    def __init__(
        self,
        collect: Callable[[], Rollout],
        advantage: Callable[[Rollout], tuple[Tensor, Tensor]],
        samples: int,
        batch_size: int,
        passes: int,
        generator: torch.Generator,
    ):
        self.collect, self.advantage = collect, advantage
        self.batch_size, self.passes, self.generator = batch_size, passes, generator
        self.count = samples // batch_size

    def __len__(self) -> int:
        return self.passes * self.count

    def __iter__(self) -> Iterator[RolloutBatch]:
        rollout = self.collect()
        advantage, return_ = self.advantage(rollout)
        E = rollout.reward.shape[1]
        image, tokens, logprob, value, advantage, return_ = (
            x.flatten(0, 1)
            for x in (
                rollout.image, rollout.action_tokens, rollout.logprob, rollout.value, advantage, return_,
            )
        )  # fmt: skip
        patches = None if rollout.patches is None else rollout.patches.flatten(0, 1)
        for _ in range(self.passes):
            for index in torch.randperm(len(image), generator=self.generator).split(self.batch_size):
                sentences = tuple(rollout.instruction[int(i) % E] for i in index)
                i = index.to(image.device)
                observation = Observation(image[i], sentences, None if patches is None else patches[i])
                yield RolloutBatch(observation, tokens[i], logprob[i], value[i], advantage[i], return_[i])


class DemoBatches(Generic[Batch]):
    """A block of demonstration minibatches: a fixed walk through reshuffled passes over all samples.

    Minibatch k of iteration i on process r takes the places behind all that earlier iterations and lower processes
    took, so every sample is seen once before any is seen twice, however the walk is cut.
    """

    def __init__(
        self,
        make: Callable[[Tensor, torch.Generator], Batch],
        size: int,
        steps: int,
        batch_size: int,
        iteration: int,
        rank: int,
        world: int,
        seed: int,
        watch: Stopwatch,
    ):
        self.make, self.size, self.steps, self.batch_size = make, size, steps, batch_size
        self.iteration, self.rank, self.world, self.seed = iteration, rank, world, seed
        self.watch = watch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        generator = seeded(self.seed, self.iteration, self.rank)
        for step in range(self.steps):
            with self.watch("loading"):
                place = ((self.iteration * self.steps + step) * self.world + self.rank) * self.batch_size
                batch = self.make(self.walk(place), generator)
            yield batch

    def walk(self, place: int) -> Tensor:
        """Indices of the `batch_size` samples from `place` on."""
        need, parts = self.batch_size, []
        while need:
            lap, offset = divmod(place, self.size)
            part = _permutation(self.size, self.seed, lap)[offset : offset + need]
            parts.append(part)
            place, need = place + len(part), need - len(part)
        return torch.cat(parts)


@lru_cache(maxsize=2)
def _permutation(size: int, seed: int, lap: int) -> Tensor:
    return torch.randperm(size, generator=seeded(seed, lap))
