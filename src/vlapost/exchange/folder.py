"""A folder of imported demonstrations: shards like the planner's, and sources.json, which says whose they are.

Several imports go into one folder, one behind the other. Imported episodes have no labels and no true positions, so
nothing can be pretrained on them, and the planner adds nothing to their folder.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlapost.config import ExchangeConfig, UserError
from vlapost.disk import hold, write_text
from vlapost.exchange.trajectory import Trajectory, sentence, to_ours
from vlapost.experience.shards import (
    VERSION,
    DemoEpisode,
    DemoMeta,
    Failure,
    ShardFile,
    encode_image,
    list_shards,
    write_shard,
)
from vlapost.experience.verified import in_order, open_shards

SOURCES = "sources.json"
DATA = ("split", "seed", "demos.seed")  # settings that, with format and source, say which data are imported
NO_SENTENCE = "no single instruction"
NO_SUCCESS = "not successful"
DAMAGED = "in a damaged shard"


@dataclass(frozen=True)
class Source:
    """One import: `format` and `source` as they were given, the settings that matter, and whether it was finished.

    Its episodes are numbered from `begin` on, those that were left out included.
    """

    format: str
    source: str
    settings: dict[str, Any]
    begin: int
    finished: bool = False


@dataclass
class Share:
    """What a source has given: episodes, those left out by cause, and all actions `[N, 7]` in our conventions."""

    episodes: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    actions: list[NDArray[np.float32]] = field(default_factory=list)


def imported_meta(image_size: tuple[int, int]) -> DemoMeta:
    """What is known of imported episodes: the size of their pictures."""
    return DemoMeta(VERSION, "", "", "", image_size, "", 0, 0, 0.0, "", grounded=False)


def imported(folder: Path, wanted: int, image_size: Sequence[int], skip_corrupt: bool) -> DemoMeta | None:
    """The settings of a folder of imports that holds at least `wanted` demonstrations; None for any other folder.

    Raises:
        UserError: it holds fewer, or pictures of another size; a shard is damaged or missing; an import was begun and
            gave nothing yet.
    """
    if not (folder / SOURCES).is_file():
        return None
    files = list_shards(folder)
    if not files:
        if begun := read_sources(folder):
            raise UserError(
                f"The import of {begun[0].source} into {folder} was interrupted before anything was stored; give its "
                f"command again, or delete {folder / SOURCES}."
            )
        return None
    first = next((shard for _, shard in open_shards(folder, files, skip_corrupt) if shard), None)
    if first is not None:
        if first.meta.grounded:
            return None
        refuse_other_size(folder, first.meta, image_size)
    found = sum(share.episodes for _, share in shares(folder, skip_corrupt))
    if first is None or found < wanted:
        raise UserError(
            f"{folder} holds {found} imported demonstrations, {wanted} are wanted; import more, or lower "
            "demos.episodes and demos.held_out."
        )
    return first.meta


def refuse_other_size(folder: Path, there: DemoMeta, image_size: Sequence[int]) -> None:
    """Make sure that imported pictures are as large as those of the scenes.

    Raises:
        UserError: they are not.
    """
    if there.image_size != tuple(image_size):
        raise UserError(
            f"The pictures in {folder} have {there.image_size[0]}x{there.image_size[1]} pixels, env.image_size "
            f"is {list(image_size)}; give the same, or import into another folder with demos.path=..."
        )


class ImportWriter:
    """Appends imported episodes to a folder, which it makes; one writer at a time.

    Attributes:
        next: number of the next episode, those that were left out included.

    Raises:
        UserError: the planner's demonstrations are there, or pictures of another size; a shard is damaged (without
            `skip_corrupt`) or missing; what is there has no sources.json; another process writes there.
    """

    def __init__(self, folder: Path, image_size: tuple[int, int], skip_corrupt: bool) -> None:
        self.folder, self.meta = folder, imported_meta(image_size)
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = hold(folder / ".lock", f"Another process writes into {folder}; wait or change demos.path.")
        for shard in in_order(folder, skip_corrupt):
            there = shard.meta
            if there.grounded:
                raise UserError(
                    f"{folder} holds the planner's demonstrations of {there.env_id}; import into another folder with "
                    "demos.path=..., and add these to it with FROM=vlapost."
                )
            refuse_other_size(folder, there, image_size)
        files = list_shards(folder)
        if files and not read_sources(folder):
            raise UserError(
                f"{folder / SOURCES} is missing or names nothing, so nobody knows whose the demonstrations there are; "
                "put it back, or delete the folder and import again."
            )
        self.next = files[-1].end if files else 0

    def write(self, episodes: Sequence[DemoEpisode], failures: Sequence[Failure]) -> None:
        """Store the next episodes and those that were left out among them as one shard."""
        end = self.next + len(episodes) + len(failures)
        write_shard(self.folder, self.meta, self.next, end, episodes, failures)
        self.next = end

    def close(self) -> None:
        """Let another process write."""
        self._lock.close()


def claim(folder: Path, format_: str, source: str, settings: dict[str, Any], next_candidate: int) -> Source:
    """The entry of this import in sources.json, a new one if it was never begun.

    Raises:
        UserError: the same data are there with other settings; or it was interrupted and another import followed it.
    """
    sources = read_sources(folder)
    new = Source(format_, source, json.loads(json.dumps(settings)), next_candidate)
    for entry in sources:
        if [entry.format, entry.source, *map(entry.settings.get, DATA)] != [format_, source, *map(settings.get, DATA)]:
            continue
        if entry.settings != new.settings:
            changed = [key for key, value in new.settings.items() if entry.settings.get(key) != value]
            raise UserError(
                f"{source} is in {folder} already, with another {' and '.join(changed)}; delete that folder or import "
                "into another one with demos.path=..."
            )
        if not entry.finished and entry is not sources[-1]:
            raise UserError(
                f"The import of {source} into {folder} was interrupted and another one followed it; "
                "import into another folder with demos.path=..."
            )
        return entry
    _write_sources(folder, [*sources, new])
    return new


def finish(folder: Path, entry: Source) -> None:
    """Note that all that is wanted of a source has been imported."""
    sources = read_sources(folder)
    _write_sources(folder, [replace(other, finished=True) if other == entry else other for other in sources])


def forget(folder: Path, entry: Source) -> None:
    """Take an entry back whose source gave nothing."""
    _write_sources(folder, [other for other in read_sources(folder) if other != entry])


def read_sources(folder: Path) -> list[Source]:
    """All imports into a folder in their order.

    Raises:
        UserError: sources.json is damaged.
    """
    path = folder / SOURCES
    try:
        return [Source(**entry) for entry in json.loads(path.read_text())] if path.is_file() else []
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}); put it back as it was, or delete the folder and import again."
        ) from None


def shares(folder: Path, skip_corrupt: bool = False) -> list[tuple[Source, Share]]:
    """What each import into a folder has given, from the shards themselves; damaged ones count as left out.

    Raises:
        UserError: a shard is damaged (without `skip_corrupt`) or missing, or is of no import that sources.json names.
    """
    found = [(source, Share()) for source in read_sources(folder)]
    begins = [source.begin for source, _ in found]

    def share_of(file: ShardFile) -> Share:
        number = int(np.searchsorted(begins, file.begin, "right")) - 1
        if number < 0:
            raise UserError(
                f"{folder / SOURCES} does not say whose {file.path.name} is; put it back as it was, or delete the "
                "folder and import again."
            )
        return found[number][1]

    def lost(file: ShardFile) -> None:
        share_of(file).left_out[DAMAGED] += file.end - file.begin

    for shard in in_order(folder, skip_corrupt, lost):
        share = share_of(shard.file)
        share.episodes += len(shard.spans())
        share.left_out.update(failure.cause for failure in shard.failures)
        share.actions.append(shard.floats("action"))
    return found


def to_demo(
    trajectory: Trajectory, declared: ExchangeConfig, candidate: int, images: NDArray[np.uint8]
) -> DemoEpisode | Failure:
    """A trajectory as a demonstration with the pictures `[T, H, W, 3]`, or why it is none.

    Raises:
        UserError: its actions are not in the declared conventions.
    """
    action = to_ours(trajectory.action, declared, trajectory.where)
    instruction = sentence(declared.instruction or trajectory.instruction)
    if trajectory.success is not None and not trajectory.success[-1]:
        return Failure(candidate, trajectory.episode_id, NO_SUCCESS)
    if not instruction:
        return Failure(candidate, trajectory.episode_id, NO_SENTENCE)
    steps = len(action)
    unknown = {"gripper_pose": 7, "object_position": 3, "receptacle_position": 3, "qpos": 8}
    return DemoEpisode(
        candidate=candidate,
        episode_id=trajectory.episode_id,
        instruction=instruction,
        image=tuple(encode_image(image) for image in images),
        segmentation=(b"",) * steps,
        action=action,
        success=np.arange(steps) == steps - 1 if trajectory.success is None else trajectory.success,
        **{name: np.full((steps, width), np.nan, np.float32) for name, width in unknown.items()},  # type: ignore[arg-type]
    )


def _write_sources(folder: Path, sources: list[Source]) -> None:
    write_text(folder / SOURCES, json.dumps([asdict(source) for source in sources], indent=1))
