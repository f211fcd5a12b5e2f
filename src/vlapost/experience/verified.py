"""Opening the shards of a folder. Each is read in full, to be found whole, once and not at every opening.

`verified.json` in a folder of shards holds, for each shard whose digest was right, the size and the time of the last
change that it had then. Any write changes that time, and so does copying; what has changed is read in full again. Only
decay of the disk itself goes unnoticed: delete verified.json to have everything read again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from types import TracebackType

from vlapost.config import UserError
from vlapost.disk import write_text
from vlapost.experience.shards import (
    DamagedShardError,
    DemoMeta,
    Shard,
    ShardFile,
    is_whole,
    list_shards,
    open_shard,
)

NAME = "verified.json"
RECENT = 2.0  # seconds; a file changed so lately could change again without its time telling


class Verified:
    """Used in a `with` block, at whose end what was learned is kept (where the folder can be written to)."""

    def __init__(self, folder: Path):
        self.path = folder / NAME
        self.known: dict[str, list[int]] = {}
        self.new = False

    def __enter__(self) -> Verified:
        with suppress(OSError, ValueError, TypeError):  # absent or damaged: nothing is known
            self.known = dict(json.loads(self.path.read_text()))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.new:
            with suppress(OSError):
                write_text(self.path, json.dumps(self.known))

    def is_whole(self, file: ShardFile) -> bool:
        """Whether the content has the digest that the name tells, or has not changed since it had."""
        state = os.stat(file.path)
        mark = [state.st_size, state.st_ctime_ns]
        if self.known.get(file.path.name) == mark:
            return True
        whole = is_whole(file)
        if whole and time.time_ns() - state.st_ctime_ns > RECENT * 1e9:
            self.known[file.path.name], self.new = mark, True
        return whole


def open_shards(
    folder: Path, files: Iterable[ShardFile], skip_corrupt: bool
) -> Iterator[tuple[ShardFile, Shard | None]]:
    """Open shards of a folder one after another; with `skip_corrupt` a damaged one is None.

    Raises:
        UserError: a shard is damaged, or was written by another version.
    """
    with Verified(folder) as verified:
        for file in files:
            try:
                yield file, open_shard(file, verified.is_whole)
            except DamagedShardError:
                if not skip_corrupt:
                    raise
                yield file, None


def in_order(
    folder: Path, skip_corrupt: bool, skipped: Callable[[ShardFile], object] = lambda file: None
) -> Iterator[Shard]:
    """The shards of a folder as all read them who take the first of its demonstrations: none of them is missing.

    skipped: hears of each damaged one that `skip_corrupt` leaves out.

    Raises:
        UserError: a shard is damaged or missing, or was collected with other settings than the first.
    """
    meta, expected = None, 0
    for file, shard in open_shards(folder, list_shards(folder), skip_corrupt):
        if file.begin != expected:
            known = meta or (shard.meta if shard else None)
            imports = known is not None and not known.grounded
            ours = "run 'make demos' again for more demonstrations than lie before it, or ask for fewer"
            again = "delete the folder and import again" if imports else ours
            raise UserError(f"{folder} lacks the shard of attempts {expected} to {file.begin - 1}; {again}.")
        expected = file.end
        if shard is None:
            skipped(file)
            continue
        meta = meta or shard.meta
        check_meta(shard, meta)
        yield shard


def check_meta(shard: Shard, meta: DemoMeta) -> None:
    """Refuse a shard that was collected with other settings.

    Raises:
        UserError: it was.
    """
    if meta.grounded and not shard.meta.grounded:
        raise UserError(
            f"{shard.file.path} holds imported demonstrations, the planner's are wanted; use another folder "
            "(demos.path=...), or put sources.json back if it was lost."
        )
    for item in fields(DemoMeta):
        there, wanted = getattr(shard.meta, item.name), getattr(meta, item.name)
        if there != wanted:
            raise UserError(
                f"{shard.file.path} was collected with {item.name}={there}, not {wanted}; "
                "use another folder (demos.path=...) or the same settings."
            )
