"""Evaluation: counting, intervals, padding, noise, resuming. The policy and the scenes here are arithmetic."""

import json
import math
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from vlapost import config
from vlapost.config import Config, UserError
from vlapost.contracts import Actor, Metrics, Observation, PolicyEvaluation, PolicyOutput, Step
from vlapost.evaluation import log, parallel, summary
from vlapost.evaluation.actors import EpisodeNoise, FunctionActor, PolicyActor, RandomActor
from vlapost.evaluation.episodes import EpisodeResult, position_and_turn, run_episodes
from vlapost.evaluation.parallel import Job
from vlapost.evaluation.video import write_video

STEPS = 4


class CountingEnv:
    """Episode k succeeds at step k (counted from 1) and only there; rewards are 0.25 per step; grasped if k is odd."""

    def __init__(self, num_envs: int, trace: Path | None = None) -> None:
        self.num_envs = num_envs
        self.trace = trace
        self.looks = 0

    def reset(self, episode_ids: Tensor) -> Observation:
        assert len(episode_ids) == self.num_envs
        self.ids, self.time = episode_ids, 0
        self.actions: list[Tensor] = []
        if self.trace is not None:
            with self.trace.open("a") as file:
                file.write(" ".join(str(episode) for episode in episode_ids.tolist()) + "\n")
        return self._observe()

    def step(self, action: Tensor, look: bool = True) -> Step:
        assert action.shape == (self.num_envs, 7)
        self.time += 1
        self.looks += look
        self.actions.append(action)
        metrics = Metrics(self.ids == self.time, self.ids <= self.time, self.ids % 2 == 1, self.ids < 0)
        return Step(self._observe(), torch.full((self.num_envs,), 0.25), metrics, self.time == STEPS)

    def gripper_pose(self) -> Tensor:
        return torch.tensor([0.1, 0.2, 0.3, 1.0, 0.0, 0.0, 0.0]).expand(self.num_envs, 7)

    def close(self) -> None:
        pass

    def _observe(self) -> Observation:
        image = torch.full((self.num_envs, 16, 16, 3), self.time, dtype=torch.uint8)
        return Observation(image, tuple(f"put {episode} on plate" for episode in self.ids.tolist()))


class NoisePolicy:
    """The action is the noisiest bin; greedy takes bin 0."""

    def see(self, observation: Observation) -> Observation:
        return observation

    def fixed_weights(self) -> nullcontext[None]:
        return nullcontext()

    def act(
        self, observation: Observation, noise: Tensor | None, temperature: float = 1.0, top_k: int = 0
    ) -> PolicyOutput:
        tokens = torch.zeros(len(observation), 7, dtype=torch.int64) if noise is None else noise.argmax(-1)
        return PolicyOutput(tokens, torch.zeros(len(observation)), torch.zeros(len(observation)))

    def evaluate(self, observation: Observation, action_tokens: Tensor) -> PolicyEvaluation:
        raise NotImplementedError

    def value(self, observation: Observation) -> Tensor:
        return torch.zeros(len(observation))

    def decode(self, action_tokens: Tensor) -> Tensor:
        return action_tokens.float()

    def encode(self, action: Tensor) -> Tensor:
        return action.long()


GREEDY = PolicyActor(NoisePolicy(), 0.0, 0)


def result(episode: int, success: bool = True) -> EpisodeResult:
    return EpisodeResult(episode, f"put {episode} on plate", success, True, True, False, 3, 1.2)


# ---- episodes


def test_metrics_are_those_of_the_last_step_and_padding_is_dropped() -> None:
    results = run_episodes(GREEDY, CountingEnv(2), [4, 2, 9], seed=0)
    assert [r.episode_id for r in results] == [4, 2, 9]
    assert [r.success_end for r in results] == [True, False, False]
    assert [r.success_once for r in results] == [True, True, False]
    assert [r.first_success_step for r in results] == [4, 2, None]
    assert [r.grasp for r in results] == [False, False, True]
    assert [r.return_ for r in results] == [1.0, 1.0, 1.0]
    assert results[2].instruction == "put 9 on plate"


def test_the_first_episodes_are_filmed_from_reset_to_end() -> None:
    results = run_episodes(GREEDY, CountingEnv(2), [5, 6, 7, 8], seed=0, record=3)
    assert [r.frames is not None for r in results] == [True, True, True, False]
    assert results[2].frames is not None and results[2].frames.shape == (STEPS + 1, 16, 16, 3)
    assert results[2].frames[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("actor", [PolicyActor(NoisePolicy(), 0.6, 0), RandomActor()])
@pytest.mark.parametrize("groups", [[[11], [12], [13]], [[13, 11], [12, 12]], [[12, 13, 11]]])
def test_sampling_does_not_depend_on_who_shares_the_batch(groups: list[list[int]], actor: Actor) -> None:
    actions = {}
    for group in groups:
        env = CountingEnv(len(group))
        run_episodes(actor, env, group, seed=5)
        actions |= {episode: torch.stack(env.actions)[:, e] for e, episode in enumerate(group)}
    alone = CountingEnv(1)
    run_episodes(actor, alone, [12], seed=5)
    assert torch.equal(actions[12], torch.stack(alone.actions)[:, 0])
    assert not torch.equal(actions[12], actions[13])
    run_episodes(actor, alone, [12], seed=6)
    assert not torch.equal(actions[12], torch.stack(alone.actions)[:, 0])


def test_a_function_can_act_and_every_step_is_kept() -> None:
    env = CountingEnv(2)
    first, second = run_episodes(FunctionActor(lambda o: torch.full((len(o), 7), 0.5)), env, [3, 9], seed=0)
    assert torch.stack(env.actions).unique().tolist() == [0.5]
    assert first.steps == {"success": "0010", "grasp": "1111", "consecutive_grasp": "0000"}
    assert second.steps["success"] == "0000"
    assert first.gripper == [[0.1, 0.2, 0.3, 1.571]] * STEPS  # the y axis of an unturned body points along y


@pytest.mark.parametrize("actor, record, looks", [(RandomActor(), 0, 0), (RandomActor(), 1, 4), (GREEDY, 0, 4)])
def test_pictures_are_drawn_for_those_who_look(actor: Actor, record: int, looks: int) -> None:
    env = CountingEnv(2)
    run_episodes(actor, env, [1, 2], seed=0, record=record)
    assert env.looks == looks


def test_turn_about_z_by_hand() -> None:
    half = math.pi / 12  # turned by 30 degrees about z
    turned = position_and_turn(torch.tensor([[1.0, 2.0, 3.0, math.cos(half), 0.0, 0.0, math.sin(half)]]))
    torch.testing.assert_close(turned, torch.tensor([[1.0, 2.0, 3.0, 2 * math.pi / 3]]))


def test_random_actions_stay_within_their_limits() -> None:
    actor = RandomActor()
    actor.start(CountingEnv(1), [5], seed=0)
    actions = torch.cat([actor.act(Observation(torch.zeros(1, 1, 1, 3), ("",))) for _ in range(200)])
    assert actions[:, 0].abs().max() <= 0.03 and actions[:, 0].std() > 0.015
    assert (actions[:, 6] > 0).float().mean() == pytest.approx(0.5, abs=0.15)


def test_noise_is_gumbel_and_follows_the_seed() -> None:
    noise = torch.cat([EpisodeNoise(0, [k]).draw() for k in range(100)])
    assert noise.shape == (100, 7, 256)
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)  # Euler's constant
    assert float(noise.var()) == pytest.approx(np.pi**2 / 6, abs=0.03)
    assert not torch.equal(EpisodeNoise(0, [1]).draw(), EpisodeNoise(1, [1]).draw())


# ---- counting


def test_wilson_interval_by_hand() -> None:
    # 8 of 10, z = 1.959964: centre (0.8 + z2/20) / (1 + z2/10) = 0.716740, half width
    # z * sqrt(0.8 * 0.2 / 10 + z2 / 400) / (1 + z2/10) = 0.226578
    interval = summary.rate([True] * 8 + [False] * 2)
    assert interval["mean"] == 0.8 and interval["n"] == 10
    assert interval["low"] == pytest.approx(0.490162, abs=1e-5)
    assert interval["high"] == pytest.approx(0.943318, abs=1e-5)


def test_summary_counts_each_measure() -> None:
    s = summary.summarise([result(1), result(2, success=False)])
    assert (s["success_end"]["mean"], s["success_once"]["mean"], s["consecutive_grasp"]["mean"]) == (0.5, 1.0, 0.0)
    assert s["return"] == pytest.approx(1.2)


# ---- the log


def test_log_returns_what_was_appended_with_labels_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    log.append(path, [result(1), result(2)], {1: {"object": "carrot", "seed": 3}})
    assert log.read(path) == {1: result(1), 2: result(2)}
    assert json.loads(path.read_text().splitlines()[0])["object"] == "carrot"


def test_a_line_cut_off_by_a_kill_is_dropped_and_the_log_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    log.append(path, [result(1), result(2)], {})
    path.write_text(path.read_text()[:-20])
    cut = path.read_bytes()
    assert log.read(path) == {1: result(1)} and path.read_bytes() == cut  # somebody may be writing it
    log.mend(path)
    log.append(path, [result(2)], {})
    assert log.read(path) == {1: result(1), 2: result(2)}


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    path.write_text("{}\n")
    with pytest.raises(UserError, match=r"Line 1 of .*episodes\.jsonl"):
        log.read(path)
    path.unlink()
    log.append(path, [result(1), result(2)], {})
    path.write_bytes(path.read_bytes()[:-20] + b"\xff" + path.read_bytes()[-19:])  # within a string or a number
    with pytest.raises(UserError, match=r"Line 2 of .*delete that line, and the episode is run again"):
        log.read(path)


# ---- processes


def settings(workers: int, num_envs: int = 2, videos: int = 0) -> Config:
    sizes = [f"evaluation.workers={workers}", f"env.num_envs={num_envs}", f"evaluation.videos={videos}"]
    return config.load("base", [*sizes, "evaluation.temperature=0.6"])


def actor(c: Config) -> PolicyActor:
    return PolicyActor(NoisePolicy(), c.evaluation.temperature, 0)


def build(c: Config, num_envs: int) -> CountingEnv:
    return CountingEnv(num_envs, Path(c.run))


class WritingEnv(CountingEnv):
    """Writes down the actions of every episode."""

    def step(self, action: Tensor, look: bool = True) -> Step:
        step = super().step(action, look)
        if step.truncated and self.trace is not None:
            with self.trace.open("a") as file:
                taken = torch.stack(self.actions, 1).tolist()
                file.write(json.dumps({"ids": self.ids.tolist(), "actions": taken}) + "\n")
        return step

    def reset(self, episode_ids: Tensor) -> Observation:
        trace, self.trace = self.trace, None
        observation = super().reset(episode_ids)
        self.trace = trace
        return observation


def build_writing_actions(c: Config, num_envs: int) -> CountingEnv:
    return WritingEnv(num_envs, Path(c.run))


def build_without_driver(c: Config, num_envs: int) -> CountingEnv:
    raise UserError("No driver; run make setup.")


def build_and_die(c: Config, num_envs: int) -> CountingEnv:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_finished_episodes_are_not_run_again(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    c = replace(settings(workers=2, videos=1), run=str(trace))
    (first,) = parallel.run_parallel(actor, build, [Job("few", c, [4, 2, 9], tmp_path / "out")])
    assert [r.episode_id for r in first] == [4, 2, 9]
    written = {p.name for p in (tmp_path / "out" / "videos").iterdir()}
    assert written == {"few-0000004-success.mp4", "few-0000004-success.png"}
    assert [r.video for r in first] == ["videos/few-0000004-success.mp4", None, None]
    trace.write_text("")
    (again,) = parallel.run_parallel(actor, build, [Job("few", c, [4, 2, 9, 7], tmp_path / "out")])
    assert trace.read_text().split() == ["7"]
    assert again[:3] == first and again[3].episode_id == 7


def test_several_environments_share_the_processes(tmp_path: Path) -> None:
    traces = [tmp_path / "a", tmp_path / "b"]
    jobs = [
        Job(trace.name, replace(settings(2), run=str(trace)), ids, tmp_path / f"out-{trace.name}")
        for trace, ids in zip(traces, ([1, 2, 3], [7, 8]))
    ]
    found = parallel.run_parallel(actor, build, jobs)
    assert [[r.episode_id for r in results] for results in found] == [[1, 2, 3], [7, 8]]
    assert {*traces[0].read_text().split()} == {"1", "2", "3"} and {*traces[1].read_text().split()} == {"7", "8"}
    assert parallel.run_parallel(actor, build, jobs) == found


def test_each_job_has_its_own_seed(tmp_path: Path) -> None:
    c = replace(settings(1, num_envs=1), run=str(tmp_path / "trace"))
    jobs = [Job(f"seed{seed}", replace(c, seed=seed), [1], tmp_path / f"{seed}") for seed in (0, 1, 0)]
    parallel.run_parallel(actor, build_writing_actions, jobs)
    first, second, third = (tmp_path / "trace").read_text().splitlines()
    assert first == third != second


def test_actions_are_the_same_for_any_number_of_processes(tmp_path: Path) -> None:
    def actions(workers: int, num_envs: int) -> dict[int, str]:
        c = replace(settings(workers, num_envs), run=str(tmp_path / f"trace{workers}"))
        parallel.run_parallel(actor, build_writing_actions, [Job("few", c, [1, 2, 3, 4, 5], tmp_path / f"{workers}")])
        lines = [json.loads(line) for line in (tmp_path / f"trace{workers}").read_text().splitlines()]
        return {id_: str(taken) for line in lines for id_, taken in zip(line["ids"], line["actions"])}

    one, two = actions(1, 3), actions(2, 2)
    assert one == two and len(one) == len(set(one.values())) == 5


def test_a_workers_user_error_arrives_as_its_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No driver; run make setup"):
        parallel.run_parallel(actor, build_without_driver, [Job("few", settings(1), [1], tmp_path)])


def test_workers_take_gpus_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for number in range(3):
        ours, theirs = mp.Pipe()
        ours.close()  # nobody asks for episodes
        parallel._work(number, theirs, actor, build, [(Job("few", settings(1), [1], tmp_path), 1)])
    assert taken == [0, 1, 0]


def test_a_crashed_worker_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exit code -9"):
        parallel.run_parallel(actor, build_and_die, [Job("few", settings(1), [1], tmp_path)])


def test_workers_leave_when_the_parent_is_killed(tmp_path: Path) -> None:
    parent = mp.get_context("spawn").Process(target=_slow_parent, args=(tmp_path,))
    parent.start()
    pid_file = tmp_path / "worker.pid"
    wait_until(pid_file.exists)
    worker = psutil.Process(int(pid_file.read_text()))
    parent.kill()
    parent.join()
    wait_until(lambda: gone(worker))


def gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until(condition: Callable[[], bool]) -> None:
    """Five minutes at most, for a crowded machine."""
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _slow_parent(folder: Path) -> None:
    c = replace(settings(workers=1, num_envs=1), run=str(folder / "worker.pid"))
    parallel.run_parallel(actor, build_slow, [Job("few", c, list(range(10_000)), folder / "out")])


def build_slow(c: Config, num_envs: int) -> CountingEnv:
    partial = Path(c.run + ".partial")
    partial.write_text(str(os.getpid()))
    partial.rename(c.run)
    time.sleep(1)
    return CountingEnv(num_envs)


def test_interrupting_keeps_what_is_finished_and_says_so(tmp_path: Path) -> None:
    program = (
        "import signal, sys; from pathlib import Path; import test_evaluation as t; from vlapost import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a runner in the background ignores it
        f"sys.exit(cli.guard(lambda words: t._slow_parent(Path({str(tmp_path)!r})), []))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    episodes = tmp_path / "out" / "episodes.jsonl"
    wait_until(lambda: episodes.is_file() and episodes.stat().st_size > 0)
    os.killpg(child.pid, signal.SIGINT)  # as the terminal does: parent and workers
    assert child.wait(timeout=300) == 130
    assert child.stderr is not None
    assert child.stderr.read() == "\nInterrupted; the same command continues.\n"
    assert len(log.read(episodes)) > 0


# ---- files


def test_video_can_be_played_and_leaves_no_partial_file(tmp_path: Path) -> None:
    frames = np.zeros((20, 32, 48, 3), np.uint8)
    frames[10:, :, :, 0] = 255
    write_video(tmp_path / "videos" / "a.mp4", frames)
    played = iio.imread(tmp_path / "videos" / "a.mp4", plugin="FFMPEG")
    assert played.shape == (20, 32, 48, 3)
    assert played[5, 16, 24, 0] < 30 and played[15, 16, 24, 0] > 220
    assert [p.name for p in (tmp_path / "videos").iterdir()] == ["a.mp4"]


def test_json_is_complete_or_absent(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        summary.write_json(tmp_path / "report.json", {"a": object()})
    assert not (tmp_path / "report.json").exists()
    summary.write_json(tmp_path / "report.json", {"a": 1})
    assert json.loads((tmp_path / "report.json").read_text()) == {"a": 1}
