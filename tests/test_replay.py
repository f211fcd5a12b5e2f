"""`make replay`: what it refuses. That it counts what succeeds again is tested with the planner."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vlapost import replay
from vlapost.config import Config, UserError


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Two shards of two demonstrations."""
    from test_demos import META, episode
    from vlapost.experience.shards import write_shard

    monkeypatch.setattr(replay, "meta_of", lambda cfg: META)
    for begin in (0, 2):
        write_shard(tmp_path, META, begin, begin + 2, [episode(begin), episode(begin + 1)], [])
    return tmp_path


def die(cfg: Config) -> None:
    """What a worker does when memory runs out (this file imports little, as the worker imports it)."""
    os._exit(1)


def test_a_worker_that_dies_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "start", die)
    with replay.console.capture(), pytest.raises(UserError, match=r"A replaying process died.*demos\.workers=1"):
        replay.run([f"demos.path={folder}", "demos.workers=1"])
    assert not (folder / "replay.json").exists()


def test_the_first_are_those_of_training(folder: Path) -> None:
    from vlapost.config import load
    from vlapost.experience.shards import list_shards

    first = list_shards(folder)[0]
    assert [id_ for id_, _ in replay.stored(load("base"), folder)] == [1000, 1001, 1002, 1003]
    sound = first.path.read_bytes()
    first.path.write_bytes(sound[:-1])
    with replay.console.capture() as said:
        assert [id_ for id_, _ in replay.stored(load("base", ["demos.skip_corrupt=true"]), folder)] == [1002, 1003]
    assert f"{first.path.name} is damaged" in said.get()
    first.path.unlink()
    with pytest.raises(UserError, match="lacks the shard of attempts 0 to 1"):
        list(replay.stored(load("base"), folder))
