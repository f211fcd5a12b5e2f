"""Benchmarks: a failing process of the simulator's ends it, and every storage format gives back what it got."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks import simulator, storage

from test_demos import META, episode, pictures
from vlapost.config import UserError, load


@pytest.mark.sim
def test_a_failing_process_shows_its_reason_and_nothing_hangs() -> None:
    cfg = load("base", ["env.shader=rt"]).env
    with pytest.raises(UserError, match=r"env\.shader is 'rt'"):
        simulator.measure(cfg, (32, 32), 2)


@pytest.mark.parametrize("name", storage.FORMATS)
def test_every_format_gives_back_what_it_was_given(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`measure` compares every picture and action that it reads with what was written."""
    (tmp_path / "data").mkdir()
    for key, value in {"ROOT": tmp_path, "RUNS": 1, "READS": 50, "BLOCK": 2}.items():
        monkeypatch.setattr(storage, key, value)
    lengths = (5, 7, 6)
    episodes = [(replace(episode(k, n), image=()), list(pictures(k, n))) for k, n in enumerate(lengths)]
    found = storage.measure(*storage.FORMATS[name], META, episodes)
    assert found["bytes"] > 24 * 32 * 3 / 2  # noise does not get smaller
    assert min(found.values()) > 0 and list((tmp_path / "data").iterdir()) == []

    def wrong(folder: Path) -> storage.Read:
        read = storage.FORMATS[name][1](folder)
        return lambda e, t: (read(e, t)[0] ^ 1, read(e, t)[1])

    with pytest.raises(AssertionError):
        storage.measure(storage.FORMATS[name][0], wrong, META, episodes)
