"""Our own demonstrations, episode by episode: what is exported, and a source that others are mixed with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vlapost.config import ExchangeConfig, UserError
from vlapost.exchange.trajectory import Trajectory
from vlapost.experience.shards import DemoEpisode, DemoMeta, Shard, decode_image, list_shards, open_shard


def read(source: Path, first: int, declared: ExchangeConfig) -> Iterator[Trajectory]:
    """Every stored step of the demonstrations of a folder, from number `first` on."""
    for number, episode in enumerate(episodes(source)):
        if number >= first:
            yield Trajectory(
                where=f"demonstration {number} of {source}",
                image=[decode_image(data) for data in episode.image],
                action=episode.action,
                instruction=episode.instruction,
                success=episode.success,
                episode_id=episode.episode_id,
            )


def meta_of(folder: Path) -> DemoMeta:
    """The settings that the shards of a folder share.

    Raises:
        UserError: there are none.
    """
    files = list_shards(folder)
    if not files:
        raise UserError(f"{folder} holds no demonstrations; run 'make demos', or name another folder.")
    return open_shard(files[0]).meta


def episodes(folder: Path) -> Iterator[DemoEpisode]:
    """The demonstrations of a folder in their order, unfiltered.

    Raises:
        UserError: there are none, or a shard is damaged.
    """
    meta_of(folder)
    for file in list_shards(folder):
        shard = open_shard(file)
        steps = shard.rows.column("step").to_numpy()
        starts = np.append(np.flatnonzero(steps == 0), len(steps))
        for begin, end in zip(starts.tolist(), starts[1:].tolist()):
            yield _episode(shard, begin, end)


def _episode(shard: Shard, begin: int, end: int) -> DemoEpisode:
    rows = shard.rows
    return DemoEpisode(
        candidate=rows.column("candidate")[begin].as_py(),
        episode_id=rows.column("episode_id")[begin].as_py(),
        instruction=rows.column("instruction")[begin].as_py(),
        image=tuple(rows.column("image").slice(begin, end - begin).to_pylist()),
        segmentation=tuple(rows.column("segmentation").slice(begin, end - begin).to_pylist()),
        success=rows.column("success").slice(begin, end - begin).to_numpy(zero_copy_only=False),
        action=shard.floats("action")[begin:end],
        gripper_pose=shard.floats("gripper_pose")[begin:end],
        object_position=shard.floats("object_position")[begin:end],
        receptacle_position=shard.floats("receptacle_position")[begin:end],
        qpos=shard.floats("qpos")[begin:end],
    )
