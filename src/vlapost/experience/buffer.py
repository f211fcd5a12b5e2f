"""Iterables that Lightning draws minibatches from. Sized, and lazy: a rollout is made when training asks for it.

Lightning prefetches from an iterable without `__len__`, and calls an eager `__iter__` several times; both would
collect with stale weights. Each class here therefore has `__len__`, and its `__iter__` is a generator function.
`shuffled` and `paired` cut a rollout into minibatches, `paired` with a look at the weights before every update.
Random numbers depend only on (seed, iteration, process), so a resumed run draws what an uninterrupted one would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from typing import Generic, TypeVar

import torch
from torch import Tensor

from vlapost.contracts import Observation, Policy, Rollout, RolloutBatch
from vlapost.experience.collect import Stopwatch

Batch = TypeVar("Batch")
Cut = Callable[[Rollout, torch.Generator], Iterator[RolloutBatch]]


def seeded(*numbers: int) -> torch.Generator:
    """A generator whose state is a function of the numbers alone."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


class Minibatches:
    """One iteration on policy: collect when asked for the first minibatch, then cut the rollout into `count`.

    `watch` counts what advantages and the making of minibatches take.
    """

    def __init__(
        self, collect: Callable[[], Rollout], cut: Cut, count: int, generator: torch.Generator, watch: Stopwatch
    ):
        self.collect, self.cut, self.count, self.generator = collect, cut, count, generator
        self.watch = watch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[RolloutBatch]:
        minibatches = self.cut(self.collect(), self.generator)
        for _ in range(self.count):
            with self.watch("preparing"):
                batch = next(minibatches)
            yield batch


def flatten(rollout: Rollout, advantage_TE: Tensor, return_TE: Tensor) -> RolloutBatch:
    """All samples of a rollout; that of step t and episode e is at `t * E + e`."""
    image, tokens, logprob, value, advantage, return_ = (
        x.flatten(0, 1)
        for x in (rollout.image, rollout.action_tokens, rollout.logprob, rollout.value, advantage_TE, return_TE)
    )
    patches, state = (None if x is None else x.flatten(0, 1) for x in (rollout.patches, rollout.state))
    instruction = tuple(sentence for at_t in rollout.instruction for sentence in at_t)
    observation = Observation(image, instruction, patches, state)
    return RolloutBatch(observation, tokens, logprob, value, advantage, return_)


@torch.no_grad()
def rejudge(rollout: Rollout, policy: Policy, batch_size: int, temperature: float) -> Rollout:
    """The rollout with log-probabilities and values of the learner's forward, `batch_size` samples at a time.

    Decoding token by token adds up the same numbers in another order. In bfloat16 that can differ by more than a step
    of the learner changes, and ratios would not start at 1.
    """
    samples = flatten(rollout, rollout.reward, rollout.reward)
    parts = [samples.take(index) for index in torch.arange(len(samples)).split(batch_size)]
    judged = [policy.evaluate(part.observation, part.action_tokens, temperature) for part in parts]
    logprob = torch.cat([j.logprob for j in judged]).view_as(rollout.logprob)
    return replace(rollout, logprob=logprob, value=torch.cat([j.value for j in judged]).view_as(rollout.value))


def shuffled(
    rollout: Rollout,
    generator: torch.Generator,
    advantage: Callable[[Rollout], tuple[Tensor, Tensor]],
    batch_size: int,
    passes: int,
) -> Iterator[RolloutBatch]:
    """Judge every step, then go `passes` times through the shuffled samples."""
    samples = flatten(rollout, *advantage(rollout))
    for _ in range(passes):
        for index in torch.randperm(len(samples), generator=generator).split(batch_size):
            yield samples.take(index)


def paired(
    rollout: Rollout,
    generator: torch.Generator,
    pairs: Callable[[Rollout], Tensor],
    weigh: Callable[[RolloutBatch, int], Tensor],
    batch_size: int,
    accumulate: int,
    passes: int,
) -> Iterator[RolloutBatch]:
    """Pairs of whole episodes, as many at a time as one update takes; `weigh` is asked before each update.

    The number of minibatches is that of a rollout in which every episode has found its partner. Where pairs are
    missing, what is left of an update are single samples of no weight: all processes must take equally many steps.
    """
    T, E = rollout.reward.shape
    nothing = torch.zeros_like(rollout.reward)
    samples, found = flatten(rollout, nothing, nothing), pairs(rollout).cpu()
    size = batch_size * accumulate
    for _ in range(passes):
        order = found[torch.randperm(len(found), generator=generator)]
        for chosen in order.split(size // (2 * T)) if len(order) else ():
            update = samples.take((torch.arange(T) * E + chosen.unsqueeze(-1)).flatten())
            update = replace(update, advantage=weigh(update, len(chosen)))
            for index in torch.arange(len(update)).split(batch_size):
                yield update.take(index)
            for _ in range(accumulate - -(-len(update) // batch_size)):
                yield samples.take(torch.tensor([0]))
        done = -(-len(order) * 2 * T // size) * accumulate
        for _ in range(T * E // batch_size - done):
            yield samples.take(torch.tensor([0]))


class DemoBatches(Generic[Batch]):
    """A block of demonstration minibatches: a fixed walk through reshuffled passes over all samples.

    While one is learned from, the next is read in a thread of its own; `watch` counts what the learner waits.

    Minibatch k of iteration i on process r takes the places behind all that earlier iterations and lower processes
    took, so every sample is seen once before any is seen twice, however the walk is cut.
    """

    def __init__(
        self,
        make: Callable[[Tensor, torch.Generator | None], Batch],
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

        def read(step: int) -> Batch:
            place = ((self.iteration * self.steps + step) * self.world + self.rank) * self.batch_size
            return self.make(self.walk(place), generator)

        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(read, 0)
            for step in range(1, self.steps + 1):
                with self.watch("loading"):
                    batch = coming.result()
                if step < self.steps:
                    coming = reader.submit(read, step)
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
