"""Benchmarks: a failing process of the simulator's ends it, and every storage format gives back what it got."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks import reading, simulator, storage
from benchmarks.measure import at_once

from test_demos import META, episode, pictures
from vlapost.config import UserError, load
from vlapost.experience.shards import write_shard


@pytest.mark.sim
def test_a_failing_process_shows_its_reason_and_nothing_hangs() -> None:
    cfg = load("base", ["env.obj_set=trian"]).env
    with pytest.raises(UserError, match=r"env\.obj_set is 'trian'"):
        simulator.measure(cfg, (32, 32), 2)


@pytest.mark.sim
def test_the_simulator_is_measured_as_it_is_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulator, "STEPS", 1)
    monkeypatch.setattr(simulator, "at_once", lambda function, jobs: [function(*job) for job in jobs])
    monkeypatch.setattr(simulator, "all_here", lambda: None)
    found = simulator.measure(load("ppo").env, (32, 32), 1)
    assert found["image"] == "32x32" and 0 < found["slowest"] <= found["steps_per_s"] <= found["fastest"]


@pytest.mark.parametrize("name", storage.FORMATS)
def test_every_format_gives_back_what_it_was_given(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`measure` compares every picture and action that it reads with what was written."""
    for key, value in {"RUNS": 1, "READS": 50, "BLOCK": 2}.items():
        monkeypatch.setattr(storage, key, value)
    episodes = demonstrations(5, 7, 6)
    found = storage.measure(name, tmp_path, META, episodes)
    assert found["bytes"] > 24 * 32 * 3 / 2  # noise does not get smaller
    assert min(found.values()) > 0
    write, open_ = storage.FORMATS[name]

    def wrong(folder: Path) -> storage.Read:
        read = open_(folder)
        return lambda e, t: (read(e, t)[0] ^ 1, read(e, t)[1])

    monkeypatch.setitem(storage.FORMATS, name, (write, wrong))
    (tmp_path / "wrong").mkdir()
    with pytest.raises(AssertionError):
        storage.measure(name, tmp_path / "wrong", META, episodes)


def test_two_processes_read_what_was_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for key, value in {"RUNS": 1, "READS": 20}.items():
        monkeypatch.setattr(storage, key, value)
    storage.measure("ours", tmp_path, META, demonstrations(5))
    assert storage.by_two("ours", tmp_path / "0", demonstrations(5)) > 0


def demonstrations(*lengths: int) -> list[storage.Episode]:
    """Pictures of noise beside their demonstrations."""
    return [(replace(episode(k, n), image=()), list(pictures(k, n))) for k, n in enumerate(lengths)]


def test_reading_by_two_processes_at_once(tmp_path: Path) -> None:
    """Their rates add up; memory is counted after every round."""
    write_shard(tmp_path, META, 0, 3, [episode(0), episode(1), episode(2)], [])
    words = [f"demos.path={tmp_path}", "demos.episodes=3", "demos.filter=none"]
    (one,) = at_once(reading.read, [(load("base", words), 0)])
    assert one["samples"] == 15 and len(one["rates"]) == len(one["gib_rounds"]) == reading.ROUNDS
    found = reading.measure(load("base", words), 2)
    assert found["samples"] == 15 and found["gib_before"] < found["gib_open"] < found["gib_before"] + 0.5
