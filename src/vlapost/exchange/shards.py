"""Our own demonstrations, episode by episode: what is exported, and a source that others are mixed with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlapost.config import DemosConfig, UserError
from vlapost.exchange.trajectory import Trajectory
from vlapost.experience.demos import filtered_steps
from vlapost.experience.shards import DemoEpisode, DemoMeta, Shard, ShardFile, decode_image
from vlapost.experience.verified import in_order


def read(
    source: Path, first: int, demos: DemosConfig, skipped: Callable[[ShardFile], object] = lambda file: None
) -> Iterator[Trajectory]:
    """The demonstrations of a folder from number `first` on, with the steps that `demos.filter` keeps."""
    for number, episode in enumerate(episodes(source, demos, skipped)):
        if number >= first:
            yield Trajectory(
                where=f"demonstration {number} of {source}",
                image=pictures(episode),
                action=episode.action,
                instruction=episode.instruction,
                success=episode.success,
                episode_id=episode.episode_id,
            )


def pictures(episode: DemoEpisode) -> list[NDArray[np.uint8]]:
    """The pictures `[H, W, 3]` of an episode in which no step is without one, as `episodes` gives them."""
    return [decode_image(data) for data in episode.image if data is not None]


def meta_of(folder: Path, skip_corrupt: bool) -> DemoMeta:
    """The settings that the shards of a folder share.

    Raises:
        UserError: there are none, or the first is damaged.
    """
    for shard in in_order(folder, skip_corrupt):
        return shard.meta
    raise nothing(folder)


def episodes(
    folder: Path, demos: DemosConfig, skipped: Callable[[ShardFile], object] = lambda file: None
) -> Iterator[DemoEpisode]:
    """The demonstrations of a folder as training reads them: in their order, filtered by `demos.filter`.

    One of which the filter keeps no step is not among them.

    skipped: hears of each damaged shard that `demos.skip_corrupt` leaves out.

    Raises:
        UserError: there are none; a shard is damaged or missing, or does not belong to the others; pictures of kept
            steps are not stored.
    """
    shard = None
    for shard in in_order(folder, demos.skip_corrupt, skipped):
        for begin, end in shard.spans():
            if episode := _filtered(shard, begin, end, demos):
                yield episode
    if shard is None:
        raise nothing(folder)


def nothing(folder: Path) -> UserError:
    """What to say of a folder without demonstrations."""
    return UserError(f"{folder} holds no demonstrations; run 'make demos', or name another folder.")


def take(shard: Shard, rows: NDArray[np.int64]) -> DemoEpisode:
    """Some steps of one demonstration, `rows` `[K]` of its shard, as they are stored."""
    column = {name: shard.rows.column(name) for name in ("candidate", "episode_id", "instruction")}
    return DemoEpisode(
        **{name: values[int(rows[0])].as_py() for name, values in column.items()},
        image=tuple(shard.rows.column("image").take(rows).to_pylist()),
        segmentation=tuple(shard.rows.column("segmentation").take(rows).to_pylist()),
        action=shard.floats("action")[rows],
        gripper_pose=shard.floats("gripper_pose")[rows],
        object_position=shard.floats("object_position")[rows],
        receptacle_position=shard.floats("receptacle_position")[rows],
        qpos=shard.floats("qpos")[rows],
        success=shard.rows.column("success").take(rows).to_numpy(zero_copy_only=False),
    )


def _filtered(shard: Shard, begin: int, end: int, demos: DemosConfig) -> DemoEpisode | None:
    kept, filtered = filtered_steps(shard, begin, end, demos.filter, demos.min_translation, demos.min_rotation)
    if not len(kept):
        return None
    last = np.append(kept[1:], end - begin) - 1  # the step that ends with what a kept action has done
    success = shard.rows.column("success").take(begin + last).to_numpy(zero_copy_only=False)
    return replace(take(shard, begin + kept), action=filtered, success=success)
