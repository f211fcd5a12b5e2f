"""What a collector appends demonstrations with, alone or beside others."""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from sys import maxsize

from vlapost.config import UserError
from vlapost.disk import hold
from vlapost.experience.collect import Stopwatch
from vlapost.experience.shards import DemoEpisode, DemoMeta, Failure, Shard, ShardFile, list_shards, write_shard
from vlapost.experience.verified import check_meta, open_shards

CAUTION = 0.99  # a part goes a little further, as it only knows its own rate of success


class DemoWriter:
    """Appends shards to a folder. Several processes may, each with a part of the attempts that is its own.

    Attempts are dealt out in blocks: block b, attempts b * `block` to (b + 1) * `block` - 1, belongs to part b mod
    `parts`, and no shard reaches beyond its block. A part reads no shards but its own, and need not see the others.

    Args:
        part, parts: which part of how many this writer is.
        skip_corrupt: take a damaged shard for one without successes.
        look: is shown every shard of this part that is there.

    Attributes:
        episodes, attempts, failures: what the shards of this part hold.
        skipped: its damaged shards.
        watch: seconds by stage since then; the collector adds its own.

    Raises:
        UserError: another process writes this part, a shard is damaged, or the shards there have other settings.
    """

    def __init__(
        self,
        folder: Path,
        meta: DemoMeta,
        block: int = 20,
        part: int = 0,
        parts: int = 1,
        skip_corrupt: bool = False,
        look: Callable[[Shard], object] = lambda shard: None,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.meta, self.block, self.part, self.parts = folder, meta, block, part, parts
        suffix = f"-{part}-of-{parts}" if parts > 1 else ""
        self._temporary = f".shard{suffix}.tmp"
        which = f"part {part} of {parts} " if parts > 1 else ""
        others = f"Another process collects {which}into {folder}; wait or change demos.path."
        self._lock = hold(folder / f".lock{suffix}", others) if os.access(folder, os.W_OK) else None
        if self.writable:
            (folder / self._temporary).unlink(missing_ok=True)
        self.episodes = self.attempts = 0
        self.failures: Counter[str] = Counter()
        self.watch = Stopwatch()
        self.skipped: list[ShardFile] = []
        self._own: list[tuple[int, int, int]] = []  # begin, end, successes
        files = list_shards(folder)
        self._taken = [(file.begin, file.end) for file in files]
        own = (file for file in files if file.begin // block % parts == part)
        for file, shard in open_shards(folder, own, skip_corrupt):
            if shard is None:
                self.skipped.append(file)
                self._count(file.begin, file.end, 0, ())
            else:
                check_meta(shard, meta)
                look(shard)
                self._count(file.begin, file.end, len(shard.spans()), shard.failures)

    def gaps(self) -> Iterator[tuple[int, int]]:
        """Attempts `begin` to `end` (exclusive) of this part that no shard holds, in order and without end."""
        for number in count(self.part, self.parts):
            begin, last = number * self.block, (number + 1) * self.block
            first = max(0, bisect_right(self._taken, (begin, maxsize)) - 1)
            near = [*self._taken[first : bisect_left(self._taken, (last, 0))], (last, last)]
            free = []
            for other, end in near:
                if begin < other:
                    free.append((begin, other))
                begin = max(begin, end)
            yield from free

    @property
    def writable(self) -> bool:
        """Whether shards may be added; a folder that may only be read can still hold enough."""
        return self._lock is not None

    @property
    def end(self) -> int:
        """The first attempt behind all shards of the folder."""
        return self._taken[-1][1] if self._taken else 0

    def expected(self, begin: int) -> float:
        """Successes of the attempts before `begin`: those of this part are counted, those of others estimated."""
        before = [(end - start, successes) for start, end, successes in self._own if end <= begin]
        attempts, successes = (sum(numbers) for numbers in zip(*before)) if before else (0, 0)
        rate = self.episodes / self.attempts if self.attempts else 1.0
        return successes + CAUTION * rate * (begin - attempts)

    def is_enough(self, wanted: int) -> bool:
        """Whether the attempts before the first gap give `wanted` demonstrations."""
        return self.expected(next(self.gaps())[0]) >= wanted

    def write(self, begin: int, end: int, episodes: Sequence[DemoEpisode], failures: Sequence[Failure]) -> None:
        """Store candidates `begin` to `end` (exclusive) as one shard: the successes in order, and the failures.

        Raises:
            UserError: another process has stored some of them meanwhile.
        """
        for file in list_shards(self.folder):
            if file.begin < end and begin < file.end:
                raise UserError(
                    f"Attempts {begin} to {end - 1} are in {file.path} already; all processes that collect into one "
                    "folder need the same demos.parts and demos.shard_attempts, and a demos.part each."
                )
        with self.watch("writing"):
            write_shard(self.folder, self.meta, begin, end, episodes, failures, self._temporary)
        insort(self._taken, (begin, end))
        self._count(begin, end, len(episodes), failures)

    def close(self) -> None:
        """Let another process write."""
        if self._lock is not None:
            self._lock.close()

    def _count(self, begin: int, end: int, successes: int, failures: Sequence[Failure]) -> None:
        self._own.append((begin, end, successes))
        self.episodes += successes
        self.attempts += end - begin
        self.failures.update(failure.cause for failure in failures)
