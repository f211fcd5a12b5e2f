"""Our own demonstrations, episode by episode: what is exported, and a source that others are mixed with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlapost.config import DemosConfig, UserError
from vlapost.exchange.trajectory import Trajectory
from vlapost.experience.action_filter import filter_actions
from vlapost.experience.shards import DemoEpisode, DemoMeta, Shard, decode_image, list_shards, open_shard


def read(source: Path, first: int, demos: DemosConfig) -> Iterator[Trajectory]:
    """The demonstrations of a folder from number `first` on, with the steps that `demos.filter` keeps."""
    for number, episode in enumerate(episodes(source, demos)):
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


def meta_of(folder: Path) -> DemoMeta:
    """The settings that the shards of a folder share.

    Raises:
        UserError: there are none.
    """
    files = list_shards(folder)
    if not files:
        raise UserError(f"{folder} holds no demonstrations; run 'make demos', or name another folder.")
    return open_shard(files[0]).meta


def episodes(folder: Path, demos: DemosConfig) -> Iterator[DemoEpisode]:
    """The demonstrations of a folder in their order, as training reads them: filtered by `demos.filter`.

    Raises:
        UserError: there are none, a shard is damaged, or pictures of kept steps are not stored.
    """
    meta_of(folder)
    for file in list_shards(folder):
        shard = open_shard(file)
        steps = shard.rows.column("step").to_numpy()
        starts = np.append(np.flatnonzero(steps == 0), len(steps))
        for begin, end in zip(starts.tolist(), starts[1:].tolist()):
            yield _episode(shard, begin, end, demos)


def _episode(shard: Shard, begin: int, end: int, demos: DemosConfig) -> DemoEpisode:
    rows = shard.rows.slice(begin, end - begin)
    actions = shard.floats("action")[begin:end]
    kept, filtered = filter_actions(actions, demos.filter, demos.min_translation, demos.min_rotation)
    last = np.append(kept[1:], end - begin) - 1  # the step that ends with what a kept action has done
    image = rows.column("image").take(kept).to_pylist()
    if None in image:
        raise UserError(
            f"{shard.file.path} has no picture of some steps that demos.filter={demos.filter} keeps; take the filter "
            "and the thresholds it was collected with."
        )
    return DemoEpisode(
        candidate=rows.column("candidate")[0].as_py(),
        episode_id=rows.column("episode_id")[0].as_py(),
        instruction=rows.column("instruction")[0].as_py(),
        image=tuple(image),
        segmentation=tuple(rows.column("segmentation").take(kept).to_pylist()),
        success=rows.column("success").to_numpy(zero_copy_only=False)[last],
        action=filtered,
        gripper_pose=shard.floats("gripper_pose")[begin + kept],
        object_position=shard.floats("object_position")[begin + kept],
        receptacle_position=shard.floats("receptacle_position")[begin + kept],
        qpos=shard.floats("qpos")[begin + kept],
    )
