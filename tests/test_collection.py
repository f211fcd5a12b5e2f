"""Collections at scale: parts that know nothing of each other, kills, damage, memory. The attempts are stand-ins."""

from __future__ import annotations

import multiprocessing as mp
import os
import random
import signal
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from test_demos import META, episode, pictures
from vlapost import attempts, collect_demos, config, curve, pretrain, recipe, stages, train
from vlapost.config import UserError
from vlapost.envs.episodes import reserved
from vlapost.experience import verified
from vlapost.experience.collect import Stopwatch
from vlapost.experience.demos import DemoDataset
from vlapost.experience.shards import DamagedShardError, DemoEpisode, Failure, encode_image, list_shards, open_shard
from vlapost.experience.writer import DemoWriter

episode = cache(episode)


def outcome(candidate: int) -> DemoEpisode | Failure:
    """Two thirds succeed, now and then several in a row do not."""
    if random.Random(candidate).random() < 1 / 3:
        return Failure(candidate, 1000 + candidate, "dropped")
    return episode(candidate, 3 + candidate % 4)


def candidates(folder: Path) -> list[int]:
    """Of all demonstrations in a folder, in their order; every shard is read in full."""
    rows = [open_shard(file).rows for file in list_shards(folder)]
    return [c for part in rows for c in part.column("candidate").to_numpy()[part.column("step").to_numpy() == 0]]


# ---- parts


@pytest.fixture
def collect(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """`collect_demos.collect` with cheap attempts; nothing else of it is replaced."""

    def results(
        pool: object, cfg: config.Config, coming: Iterable[int], spent: object
    ) -> Iterator[DemoEpisode | Failure]:
        return map(outcome, coming)

    monkeypatch.setattr(collect_demos, "results", results)
    monkeypatch.setattr(collect_demos, "meta_of", lambda cfg: META)
    monkeypatch.setattr(collect_demos, "episode_of", lambda cfg, candidate: episode(candidate).episode_id)
    monkeypatch.setattr("vlapost.assets.pack.open_pack", lambda name: None)

    def work(name: str, episodes: int, *words: str) -> Path:
        folder = tmp_path / name
        words = (f"demos.path={folder}", f"demos.episodes={episodes}", "demos.shard_attempts=5", *words)
        collect_demos.collect(config.load("base", words)).close()
        return folder

    return work


def test_the_first_successes_are_the_set(collect) -> None:
    folder = collect("one", 40)
    first = [c for c in range(100) if isinstance(outcome(c), DemoEpisode)][:40]
    assert candidates(folder) == first
    names = [file.path.name for file in list_shards(folder)]
    assert collect("one", 40) == folder and [file.path.name for file in list_shards(folder)] == names
    collect("one", 60)
    assert candidates(folder)[:40] == first and len(candidates(folder)) == 60
    assert {name for name in names} < {file.path.name for file in list_shards(folder)}


def test_a_folder_that_may_only_be_read_is_enough_where_it_has_enough(collect, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(path.name for path in collect("one", 40).iterdir())
    monkeypatch.setattr("vlapost.experience.writer.os.access", lambda path, mode: False)  # tests may run as root
    monkeypatch.setattr("vlapost.experience.writer.hold", lambda *what: pytest.fail("writes"))
    assert sorted(path.name for path in collect("one", 40).iterdir()) == before
    with pytest.raises(UserError, match="holds 40 demonstrations of 41, and you may not write there"):
        collect("one", 41)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_parts_make_together_what_one_process_makes(collect, order: tuple[int, ...]) -> None:
    """In one folder, in whatever order; and in folders of their own that are copied together."""
    one = DemoDataset(collect("one", 100), "none", 0.01, 0.06, episodes=100)
    for part in order:
        shared = collect("shared", 100, f"demos.part={part}", "demos.parts=3")
        alone = collect(f"alone{part}", 100, f"demos.part={part}", "demos.parts=3")
        blocks = {file.begin // 5 % 3 for file in list_shards(alone)}
        assert blocks == {part} and len(candidates(alone)) < 100 / 2  # its share, not everything
    joined = shared.parent / "joined"
    joined.mkdir()
    for file in [file for part in order for file in list_shards(shared.parent / f"alone{part}")]:
        os.link(file.path, joined / file.path.name)
    assert [file.path.name for file in list_shards(joined)] == [file.path.name for file in list_shards(shared)]
    missing = 100 - sum(c < 150 for c in candidates(shared))
    assert missing <= 10  # parts know the rate of success only from their own attempts
    for name in ("shared", "joined"):
        data = DemoDataset(collect(name, 100), "none", 0.01, 0.06, episodes=100)
        torch.testing.assert_close(data.actions, one.actions, rtol=0, atol=0)
        every = torch.arange(len(one))
        assert data.observation(every)[1] == one.observation(every)[1]
        torch.testing.assert_close(data.observation(every)[0], one.observation(every)[0], rtol=0, atol=0)


def test_parts_go_on_from_a_collection_by_one(collect) -> None:
    """Its last shard ends within a block, and its shards may have other sizes."""
    collect("one", 33)
    for part in (1, 0):
        folder = collect("one", 80, f"demos.part={part}", "demos.parts=2", "demos.shard_attempts=7")
    collect("one", 80)
    assert candidates(folder)[:80] == [c for c in range(200) if isinstance(outcome(c), DemoEpisode)][:80]


def test_a_collection_from_before_other_episodes_were_held_out_is_refused(
    collect, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect("all", 12)
    collect("all", 13)
    before = collect_demos.episode_of
    monkeypatch.setattr(collect_demos, "episode_of", lambda cfg, k: 7 if k == 9 else before(cfg, k))
    with pytest.raises(UserError, match=r"Attempt 9 in .*shard-00000005.* starts in episode \d+, where it is 7 today"):
        collect("all", 14)


def test_processes_that_divide_the_attempts_differently_are_told(tmp_path: Path) -> None:
    halves = DemoWriter(tmp_path, META, 5, 1, 2)
    thirds = DemoWriter(tmp_path, META, 5, 1, 3)
    with pytest.raises(UserError, match="part 1 of 2 "):
        DemoWriter(tmp_path, META, 5, 1, 2)
    halves.write(5, 10, [], [])
    with pytest.raises(UserError, match=r"Attempts 5 to 9 are in .*the same demos\.parts"):
        thirds.write(5, 10, [], [])
    assert len(list_shards(tmp_path)) == 1
    with pytest.raises(UserError, match=r"demos\.part is 3; it must be 0 to 2"):
        config.load("base", ["demos.part=3", "demos.parts=3"])


def test_where_the_time_went() -> None:
    """Two workers in 10 s have 20; the main process wrote for one of its ten."""
    seconds = {"wall": 10.0, "planning": 2.0, "simulation": 10.0, "drawing": 4.0, "encoding": 1.0, "writing": 1.0}
    expected = {"planning": 0.1, "simulation": 0.5, "drawing": 0.2, "encoding": 0.05}
    expected |= {"starting, waiting": 0.15, "writing, beside it": 0.1}
    assert collect_demos.shares(seconds, 2) == pytest.approx(expected)
    assert collect_demos.shares({}, 2) == {}


def test_an_attempt_that_breaks_is_a_failure_with_a_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such screw")

    closed = []
    simulator = SimpleNamespace(close=lambda: closed.append(1))
    monkeypatch.setattr(attempts.Worker, "tools", (simulator, SimpleNamespace()))
    monkeypatch.setattr(attempts.Worker, "broken", 0)
    monkeypatch.setattr(attempts, "record", broken)
    found, seconds = attempts.timed_attempt(3, 7, None)
    assert found == Failure(3, 7, "RuntimeError: no such screw") and set(seconds) == {*collect_demos.STAGES}
    assert attempts.Worker.tools is None and closed == [1]  # the next one builds them anew
    for _ in range(attempts.MOST_BROKEN - 2):
        monkeypatch.setattr(attempts.Worker, "tools", (SimpleNamespace(), SimpleNamespace()))
        attempts.timed_attempt(4, 8, None)
    monkeypatch.setattr(attempts.Worker, "tools", (SimpleNamespace(), SimpleNamespace()))
    with pytest.raises(RuntimeError):  # one after the other: it is not the attempt
        attempts.timed_attempt(5, 9, None)


def test_when_every_start_was_tried_the_collection_says_so() -> None:
    cfg = config.load("base", ["env.id=PutOnPlateInScene25Single-v1", "env.obj_set=train"])
    starts = 784 * 4 - len(reserved(cfg.env.id, "train"))
    drawn = [collect_demos.episode_of(cfg, k) for k in range(starts)]
    assert len(set(drawn)) == starts
    with pytest.raises(UserError, match=f"has {starts} starts that are not held out, .*; ask for fewer demos.episodes"):
        collect_demos.episode_of(cfg, starts)
    with ThreadPoolExecutor(1) as pool:  # heard when its turn comes, not when it is handed out
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                collect_demos, "timed_attempt", lambda candidate, *_: (Failure(candidate, 0, "x"), {"planning": 0.5})
            )
            stream = collect_demos.results(pool, cfg, range(starts - 2, starts + 2), watch := Stopwatch())
            assert [next(stream).candidate, next(stream).candidate] == [starts - 2, starts - 1]
        assert watch.seconds == {"planning": 1.0}
        with pytest.raises(UserError, match="starts that are not held out"):
            next(stream)


def test_a_hopeless_collection_ends(collect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_demos, "results", lambda *_: (Failure(c, c, "no plan") for c in range(10**6)))
    with pytest.raises(UserError, match=r"first 100 attempts all failed \(100 no plan\)"):
        collect("one", 3)


@pytest.mark.parametrize("command", [train, recipe, pretrain, curve])
def test_parts_are_for_collecting_alone(command: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Who learns needs all; nothing is written and nothing collected first (the grid's own test: test_scaling)."""
    monkeypatch.setattr(collect_demos, "collect", lambda cfg: pytest.fail("collects"))
    for module, claims in ((train, "claim"), (stages, "claim"), (pretrain, "claim_settings")):
        monkeypatch.setattr(module, claims, lambda *what: pytest.fail("begins"))
    with pytest.raises(
        UserError, match=r"demos\.parts is 3, but only 'make demos' collects in parts; collect them all"
    ):
        command.run(["demos.parts=3", "demos.part=1", f"demos.path={tmp_path}"])


@pytest.mark.parametrize(
    ("word", "match"),
    [
        ("policy.unnorm_key=nobodys", "policy.unnorm_key 'nobodys' is not in"),
        ("policy.adapter=nowhere", "There is no adapter folder .*nowhere"),
        ("policy.checkpoint=models/nowhere", "there is no .*safetensors file; make pretrain"),
    ],
)
def test_nothing_is_collected_for_a_policy_that_is_not_there(
    word: str, match: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(collect_demos, "collect", lambda cfg: pytest.fail("collects"))
    with pytest.raises(UserError, match=match):
        train.run(["run=never", f"demos.path={tmp_path}", word])
    assert not (config.ROOT / "lightning_logs/never").exists()


# ---- kills


def append(folder: Path, wanted: int, ready) -> None:
    """What a killed process does: it makes shards of 300 kB."""
    ready.set()
    writer = DemoWriter(folder, META, 4)
    coming = (candidate for begin, end in writer.gaps() for candidate in range(begin, end))
    padding = bytes(100_000)

    def outcomes() -> Iterator[DemoEpisode | Failure]:
        for made in map(outcome, coming):
            yield made if isinstance(made, Failure) else replace(made, image=tuple(i + padding for i in made.image))

    collect_demos.fill(writer, outcomes(), wanted)


def test_nothing_is_lost_or_doubled_by_thirty_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = mp.get_context("forkserver")  # imports this file once, and forks from a process that has no simulator
    context.set_forkserver_preload(["test_collection"])
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}")
    waits = random.Random(0)
    stored: list[int] = []
    unfinished = 0
    for kill in range(30):
        ready = context.Event()
        process = context.Process(target=append, args=(tmp_path, 10**6, ready))
        process.start()
        assert ready.wait(60)
        while kill % 3 == 2 and not (tmp_path / ".shard.tmp").exists() and process.is_alive():
            pass  # every third is killed while it writes a shard
        while kill % 3 == 1 and len(candidates(tmp_path)) == len(stored) and process.is_alive():
            pass  # and every third after it has stored some
        time.sleep(waits.uniform(0, 0.1 if kill % 3 < 2 else 0.0005))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        unfinished += (tmp_path / ".shard.tmp").exists()
        now = candidates(tmp_path)
        assert now[: len(stored)] == stored  # what was stored stays
        stored = now
    assert stored and unfinished, "no kill came after a shard, or none while one was written"
    wanted = len(stored) + 5
    process = context.Process(target=append, args=(tmp_path, wanted, ready))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert candidates(tmp_path) == [c for c in range(10 * wanted) if isinstance(outcome(c), DemoEpisode)][:wanted]
    data = DemoDataset(tmp_path, "none", 0.01, 0.06)
    first = data.observation(torch.arange(3))[0].numpy()
    np.testing.assert_array_equal(first, pictures(stored[0], len(episode(stored[0], 3 + stored[0] % 4).image))[:3])
    assert not (tmp_path / ".shard.tmp").exists()


# ---- damage


def spoil(data: bytes, rng: np.random.Generator) -> bytes:
    """One of: a flipped bit, some flipped bytes, the end or a piece cut off, zeros, something appended."""
    place, kind = int(rng.integers(len(data))), rng.integers(6)
    some = bytes(rng.integers(1, 256, int(rng.integers(1, 64)), dtype=np.uint8))
    if kind == 0:
        return data[:place] + bytes([data[place] ^ (1 << rng.integers(8))]) + data[place + 1 :]
    if kind == 1:
        old = data[place : place + len(some)]
        return data[:place] + bytes(a ^ b for a, b in zip(old, some)) + data[place + len(old) :]
    if kind == 2:
        return data[:place]
    if kind == 3:
        return data[:place] + data[place + len(some) :]
    if kind == 4:
        return data[: place // 4096 * 4096] + bytes(len(data) - place // 4096 * 4096)
    return data + some


def test_two_hundred_kinds_of_damage_are_found(tmp_path: Path) -> None:
    writer = DemoWriter(tmp_path, META, 4)
    for begin in (0, 4, 8):
        made = [episode(c, 5) for c in range(begin, begin + 3)]
        writer.write(begin, begin + 4, made, [Failure(begin + 3, 0, "dropped")])
    writer.close()
    middle = list_shards(tmp_path)[1]
    sound, rng = middle.path.read_bytes(), np.random.default_rng(0)
    every = torch.arange(30)
    for _ in range(200):
        damaged = spoil(sound, rng)
        assert damaged != sound
        middle.path.write_bytes(damaged)
        with pytest.raises(DamagedShardError, match=f"{middle.path.name} is damaged.*demos.skip_corrupt=true"):
            DemoDataset(tmp_path, "none", 0.01, 0.06)
        data = DemoDataset(tmp_path, "none", 0.01, 0.06, skip_corrupt=True)
        assert data.skipped == [middle] and data.episodes == 6
        assert set(data.observation(every)[1]) == {f"put thing {c} on plate" for c in (0, 1, 2, 8, 9, 10)}
    with pytest.raises(UserError, match="holds 6 demonstrations besides 1 damaged shards, 7 are wanted"):
        DemoDataset(tmp_path, "none", 0.01, 0.06, episodes=7, skip_corrupt=True)
    with pytest.raises(DamagedShardError):
        DemoWriter(tmp_path, META, 4)
    writer = DemoWriter(tmp_path, META, 4, skip_corrupt=True)  # collects others in their place
    assert (writer.skipped, writer.episodes, next(writer.gaps())) == ([middle], 6, (12, 16))
    assert not writer.is_enough(9)
    writer.close()


def test_a_shard_is_read_in_full_once_and_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    DemoWriter(tmp_path, META, 4).write(0, 4, [episode(c) for c in range(4)], [])
    read: list[str] = []
    whole = verified.is_whole
    monkeypatch.setattr(verified, "is_whole", lambda file: bool(read.append(file.path.name)) or whole(file))

    def times() -> int:
        read.clear()
        DemoDataset(tmp_path, "none", 0.01, 0.06)
        return len(read)

    monkeypatch.setattr(verified, "RECENT", 1e6)
    assert (times(), times()) == (1, 1)  # written this moment: it could change again unnoticed
    monkeypatch.setattr(verified, "RECENT", 0.0)
    assert (times(), times()) == (1, 0)
    (file,) = list_shards(tmp_path)
    before, data = os.stat(file.path), bytearray(file.path.read_bytes())
    data[len(data) // 2] ^= 1
    time.sleep(0.02)  # longer than a tick of the file system's clock
    file.path.write_bytes(data)
    os.utime(file.path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a copy that keeps times
    with pytest.raises(DamagedShardError):
        times()
    data[len(data) // 2] ^= 1
    file.path.write_bytes(data)
    for nonsense in ("", "[1]", "[]", '{"x": 1}', '{"a'):
        (tmp_path / verified.NAME).write_text(nonsense)
        assert times() == 1


# ---- memory


def test_pictures_stay_on_the_disk(tmp_path: Path) -> None:
    """120 MB of pictures in 60 shards: what the process holds itself grows by less than a tenth of it."""
    noise = np.random.default_rng(0).integers(0, 256, (116, 116, 3), dtype=np.uint8)
    picture = encode_image(noise)
    assert len(picture) > 38_000
    writer = DemoWriter(tmp_path, META, 10)
    for begin in range(0, 600, 10):
        made = [replace(episode(k, 5), candidate=begin + k, image=(picture,) * 5) for k in range(10)]
        writer.write(begin, begin + 10, made, [])
    writer.close()
    size = sum(file.path.stat().st_size for file in list_shards(tmp_path))
    assert size > 110e6

    def held() -> int:
        """Bytes that are this process's own: not those of mapped files, which the system takes back as it likes."""
        (line,) = (text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith("RssAnon"))
        return int(line.split()[1]) * 1024

    def opened_and_read(repeat: int) -> DemoDataset:
        data = DemoDataset(tmp_path, "none", 0.01, 0.06)
        for index in torch.randperm(len(data), generator=torch.Generator().manual_seed(repeat)).split(32):
            images, _ = data.observation(index)
            assert images.shape[1:] == (116, 116, 3)
        return data

    opened_and_read(0)  # code and buffers that come with first use
    before, in_arrow, handles = held(), pa.total_allocated_bytes(), len(os.listdir("/proc/self/fd"))
    data = opened_and_read(1)
    assert held() - before < size / 10
    assert pa.total_allocated_bytes() - in_arrow < size / 100
    assert len(os.listdir("/proc/self/fd")) == handles  # a mapped file needs none
    assert data.episodes == 600
