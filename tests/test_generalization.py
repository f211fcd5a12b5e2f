"""The report over all setups: arithmetic by hand, and the command with the real simulator."""

import importlib
import json
import shutil
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from vlapost import config, evaluate, generalization, recipe
from vlapost.assets.pack import edition
from vlapost.config import UserError
from vlapost.envs.setups import EVALUATED, TASKS
from vlapost.evaluation import charts, log
from vlapost.evaluation.episodes import EpisodeResult
from vlapost.evaluation.report import compare, published, scores, write_report
from vlapost.evaluation.video import write_strip

ENV = {"assets": "procedural", "protocol": "v2", "image_size": [128, 128]}


def episodes(*successes: int) -> list[EpisodeResult]:
    """Episodes 0, 1, ... with that success at the end."""
    end = [bool(s) for s in successes]
    return [EpisodeResult(i, "", s, True, s, False, None, 0.0, gripper=[[0.3, 0, 0.1, 1.5]]) for i, s in enumerate(end)]


def test_drops_and_means_by_hand() -> None:
    results = {
        "ind": [episodes(*[1] * 8, 0, 0)],  # 0.8
        "table": [episodes(*[1] * 4, *[0] * 6)],  # 0.4: drop -0.5
        "noise-w": [episodes(*[1] * 6, *[0] * 4)],  # 0.6: drop -0.25
    }
    found = scores(results, {"vision": ["table", "noise-w", "noise-s"], "execution": ["position"]})
    assert found["setups"]["table"]["success_end"]["mean"] == 0.4
    assert found["setups"]["table"]["success_once"]["mean"] == 1.0
    assert found["setups"]["table"]["relative_drop"]["mean"] == pytest.approx(-0.5)
    assert found["setups"]["noise-w"]["relative_drop"]["mean"] == pytest.approx(-0.25)
    assert "relative_drop" not in found["setups"]["ind"]
    assert found["groups"]["vision"]["success_end"]["mean"] == pytest.approx(0.5)
    assert "execution" not in found["groups"]  # none of its setups was run
    for value in (found["setups"]["table"]["relative_drop"], found["groups"]["vision"]["success_end"]):
        assert value["low"] < value["mean"] < value["high"]
    end = found["setups"]["table"]["success_end"]
    assert 0 <= end["boot_low"] < 0.4 < end["boot_high"] <= 1 and end["low"] < 0.4 < end["high"]


def test_bootstrap_of_a_rate_agrees_with_its_standard_error() -> None:
    rng = np.random.default_rng(0)
    results = {"ind": [episodes(*(rng.random(400) < 0.3).astype(int))]}
    end = scores(results, {})["setups"]["ind"]["success_end"]
    error = np.sqrt(end["mean"] * (1 - end["mean"]) / 400)
    assert (end["boot_high"] - end["boot_low"]) / (2 * 1.96 * error) == pytest.approx(1, abs=0.1)


def test_setups_on_the_same_starts_are_not_more_starts() -> None:
    """Outcomes that agree start by start: their mean is known no better than one of them, and they do not differ."""
    outcome = episodes(*(np.random.default_rng(1).random(100) < 0.5).astype(int))
    results = {name: [outcome] for name in ("ind", "table", "noise-w", "noise-s")}
    found = scores(results, {"vision": ["table", "noise-w", "noise-s"]})
    mean, one = found["groups"]["vision"]["success_end"], found["setups"]["ind"]["success_end"]
    assert (mean["low"], mean["high"]) == pytest.approx((one["boot_low"], one["boot_high"]))
    assert found["setups"]["table"]["relative_drop"] == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_more_seeds_on_the_same_episodes_are_not_more_episodes() -> None:
    once = episodes(1, 1, 0, 0, 1, 0, 1, 1, 0, 1)
    one, three = ({"ind": [once] * n, "table": [episodes(*[0] * 9, 1)] * n} for n in (1, 3))
    first, again = (scores(results, {})["setups"]["ind"]["success_end"] for results in (one, three))
    assert again["n"] == first["n"] == 10 and again["mean"] == first["mean"] == 0.6
    assert again["seed_std"] == 0 and "seed_std" not in first
    assert compare(one, {"ind": [episodes(*[0] * 10)]}) == compare(three, {"ind": [episodes(*[0] * 10)] * 2})
    # episode 0 succeeds with one seed of two, episode 1 with both
    mixed = {"ind": [episodes(1, 1, 0), episodes(0, 1, 0)]}
    found = scores(mixed, {})["setups"]["ind"]["success_end"]
    assert found["mean"] == pytest.approx(0.5) and found["n"] == 3
    assert found["seed_std"] == pytest.approx(1 / 6)  # means 2/3 and 1/3


def test_one_seed_is_compared_with_one_of_several() -> None:
    """A mean of three outcomes is seldom 0 or 1: one outcome would nearly always count as better or worse than it."""
    rng = np.random.default_rng(0)
    one, *three = (episodes(*(rng.random(200) < 0.9).astype(int)) for _ in range(4))
    found = compare({"ind": [one]}, {"ind": three})
    assert found == compare({"ind": [one]}, {"ind": three[:1]}) and found["ind"]["p"] > 0.05
    both = compare({"ind": three}, {"ind": [three[0], one[:150]]})["ind"]  # equal but for the second seed of 150
    assert (both["n"], both["better"] + both["worse"]) == (
        200, sum(a.success_end != b.success_end for a, b in zip(three[1], one[:150]))
    )  # fmt: skip


def test_the_first_seed_is_compared_with_the_first(tmp_path: Path) -> None:
    paths = [tmp_path / f"ind-seed{n}/episodes.jsonl" for n in (0, 2, 10)]
    assert generalization.in_order([tmp_path / "ind-seed0-old/episodes.jsonl", *reversed(paths)]) == paths


def test_a_drop_from_less_than_one_episode() -> None:
    once, never = episodes(1, *[0] * 9), episodes(*[0] * 10)
    found = scores({"ind": [once, never, never], "table": [never, once, never]}, {})["setups"]["table"]
    assert found["relative_drop"]["mean"] == 0


def test_an_interval_that_cannot_be_bootstrapped_is_left_out() -> None:
    found = scores({"ind": [episodes(1, 1, 1)], "table": [episodes(1, 1, 1)]}, {"vision": ["table"]})
    assert found["setups"]["table"]["relative_drop"] == {"mean": 0.0}
    assert found["groups"]["vision"]["success_end"] == {"mean": 1.0}
    assert found["setups"]["table"]["success_end"]["low"] == pytest.approx(0.438, abs=1e-3)  # Wilson's


def test_two_policies_on_the_same_episodes() -> None:
    ours, theirs = {"ind": [episodes(1, 1, 1, 1, 1, 0, 1, 0)]}, {"ind": [episodes(0, 0, 0, 0, 0, 0, 1, 1)]}
    found = compare(ours, theirs)["ind"]
    assert (found["better"], found["worse"], found["n"]) == (5, 1, 8)
    assert (found["ours"], found["theirs"], found["difference"]) == pytest.approx((0.75, 0.25, 0.5))
    # six discordant pairs, five one way: 2 * (C(6,5) + C(6,6)) / 2**6
    assert found["p"] == pytest.approx(2 * 7 / 64)
    assert compare(ours, ours)["ind"]["p"] == 1.0
    assert compare(ours, {"table": [episodes(1)]}) == {}
    both = compare(ours | {"table": ours["ind"]}, theirs | {"table": ours["ind"]})  # no difference in the second setup
    assert (both["ind"]["q"], both["table"]["q"]) == pytest.approx((2 * 2 * 7 / 64, 1.0))


def test_published_numbers() -> None:
    named = set(published("success_end"))
    assert len(named) == 16 + 3 and named <= {*EVALUATED, "vision", "semantics", "execution"}
    for group in ("vision", "semantics", "execution"):  # the means of the columns, as far as three digits go
        members = [published("success_end")[name] for name in named & {*EVALUATED} if EVALUATED[name].group == group]
        assert np.mean(members, axis=0) == pytest.approx(published("success_end")[group], abs=1e-3)
    assert published("success_end")["reposition"] == (0.286, 0.745)
    drop = published("success_end")["robot-pose"][1] / published("success_end")["ind"][1] - 1
    assert drop == pytest.approx(-0.150, abs=5e-4)
    assert published("success_once", "RLinf")["execution"][1] == 0.8542


def test_report_files(tmp_path: Path) -> None:
    titles = {name: setup.title for name, setup in EVALUATED.items()}
    results = {name: [episodes(1, 0, 1, i % 2)] for i, name in enumerate(EVALUATED)}
    about = {
        "title": "Test",
        "episodes": 4,
        "seeds": 1,
        "actor": "random",
        "spent": {"seconds": 130, "episodes": 64},
        "config": {"env": ENV},
    }
    (tmp_path / "strips.png").touch()  # of an earlier report
    write_report(tmp_path, results, titles, {"vision": ["table", "noise-w"]}, about)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"scores.json", "tables.md", "success.png", "radar.png", "trajectories.png"}
    assert json.loads((tmp_path / "scores.json").read_text())["actor"] == "random"
    table = (tmp_path / "tables.md").read_text()
    head = "4 episodes per setup; assets procedural, protocol v2, 128x128; random; 64 episodes in 2 minutes. Percent.\n"
    assert head in table
    assert "| Noise-w | " in table and "90.1 / 85.4 / 70.8 | 94.8 / 91.1 / 85.4" in table
    assert (
        "| mean vision | " in table and "| 64.2 | 76.6 | 82.0 |" in table and "Obj. Rep." not in table
    )  # no group of it was asked for


def test_the_training_setup_alone_is_one_table(tmp_path: Path) -> None:
    about = {"title": "Test", "episodes": 2, "seeds": 1, "actor": "planner", "spent": None, "config": {"env": ENV}}
    write_report(tmp_path, {"ind": [episodes(1, 0)]}, {"ind": "IND"}, {"vision": ["table"], "execution": []}, about)
    table = (tmp_path / "tables.md").read_text()
    assert table.count("| IND | ") == 1 and "## Training" in table and "Vision" not in table


def test_strips_stand_one_below_the_other(tmp_path: Path) -> None:
    for name, colour in (("a", 255), ("b", 0)):
        write_strip(tmp_path / f"{name}.png", np.full((9, 16, 16, 3), [colour, 0, 255 - colour], np.uint8))
    charts.strips(tmp_path / "strips.png", {"A": tmp_path / "a.png", "B": tmp_path / "b.png"})
    height, width, *_ = (picture := iio.imread(tmp_path / "strips.png")).shape
    red, blue = ((picture[..., :3] == colour).all(-1) for colour in ([255, 0, 0], [0, 0, 255]))
    assert red[: height // 2].sum() == red.sum() > 0.5 * width and blue[height // 2 :].sum() == blue.sum() > 0.5 * width


def test_a_report_on_the_tasks_has_no_column_for_what_nobody_published(tmp_path: Path) -> None:
    assert generalization.chosen(config.load("tasks", ["evaluation.actor=planner"])) == list(TASKS)
    titles = {name: task.title for name, task in TASKS.items()}
    results = {name: [episodes(1, 0)] for name in TASKS}
    about = {"title": "Test", "episodes": 2, "seeds": 3, "actor": "planner", "spent": None, "config": {"env": ENV}}
    write_report(tmp_path, results, titles, {"tasks": list(TASKS)}, about)
    table = (tmp_path / "tables.md").read_text()
    how = "2 episodes per setup with each of 3 seeds; assets procedural, protocol v2, 128x128; planner. Percent.\n"
    assert how in table
    about["config"] = {"env": ENV | {"protocol": "paper"}}
    write_report(tmp_path, results, titles, {"tasks": list(TASKS)}, about)
    assert "2 episodes per setup for each of 3 seeds; " in (tmp_path / "tables.md").read_text()
    assert "| setup | grasp | continuous | success at end | ever |\n" in table
    assert "| StackCube | 50.0 | 0.0 | 50.0 [9, 91] | 100.0 |" in table  # Wilson of 1 in 2


@pytest.mark.sim
def test_the_planner_solves_and_chance_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generalization.evaluate, "ROOT", tmp_path)
    setups = "generalization.setups=[ind,robot-pose,reposition]"
    words = [setups, "evaluation.episodes=2", "evaluation.videos=1", "evaluation.workers=1", "env.num_envs=2"]
    generalization.run([*words, "evaluation.actor=planner"])
    (planner,) = (tmp_path / "lightning_logs/base/generalization").iterdir()
    for name in ("ind", "robot-pose", "reposition"):
        done = log.read(planner / f"{name}-seed0/episodes.jsonl")
        assert len(done) == 2 and all(e.success_end and len(e.steps["success"]) == 80 for e in done.values())
        line = json.loads((planner / f"{name}-seed0/episodes.jsonl").read_text().splitlines()[0])
        assert line["setup"] == name and line["seed"] == 0 and line["object"] and line["table"]
        assert (planner / f"{name}-seed0" / str(line["video"])).is_file()
    before = (planner / "ind-seed0/episodes.jsonl").read_text()
    assert not (planner / "report").exists()  # which is for all setups
    spent = json.loads((planner / "spent.json").read_text())
    assert spent["episodes"] == 6 and spent["seconds"] > 0
    told = (planner / "report-some/tables.md").read_text().splitlines()[2]
    assert told.startswith("2 episodes per setup; assets procedural, protocol v2, 128x128; planner; 6 episodes in ")
    (strips := planner / "report-some/strips.png").unlink()  # of every setup there was one
    shutil.rmtree(planner / "reposition-seed0/videos")
    generalization.run([*words, "evaluation.actor=planner"])
    assert (planner / "ind-seed0/episodes.jsonl").read_text() == before
    assert strips.is_file()
    again = json.loads((planner / "spent.json").read_text())
    assert again["episodes"] == 6 and again["seconds"] > spent["seconds"]

    generalization.run([*words, "evaluation.actor=random", f"against={planner}"])
    chance = next(p for p in (tmp_path / "lightning_logs/base/generalization").iterdir() if p != planner)
    found = json.loads((chance / "report-some/comparison.json").read_text())["setups"]["ind"]
    assert (found["better"], found["worse"], found["n"]) == (0, 2, 2)
    assert (chance / "report-some/comparison.png").is_file()

    # the same episodes, to the last digit, in two processes of a scene each instead of one of two
    monkeypatch.setattr(generalization.evaluate, "ROOT", tmp_path / "divided")
    generalization.run([*words, "evaluation.actor=random", "evaluation.workers=2", "env.num_envs=1"])
    (divided,) = (tmp_path / "divided/lightning_logs/base/generalization").iterdir()
    for name in ("ind", "robot-pose", "reposition"):
        one, two = (log.read(place / f"{name}-seed0/episodes.jsonl") for place in (chance, divided))
        assert one == two and len(two) == 2


def test_mistakes_have_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"names 'tabel'; it may hold all, or some of: ind, table"):
        generalization.chosen(config.load("base", ["generalization.setups=[tabel]"]))
    with pytest.raises(UserError, match="is empty"):
        generalization.chosen(config.load("base", ["generalization.setups=[]"]))
    with pytest.raises(UserError, match="holds no report"):
        generalization.run([f"against={tmp_path}", "evaluation.actor=random"])
    with pytest.raises(
        UserError, match=r"3 x 64 episodes; set evaluation\.episodes=64 generalization\.seeds=3, or less"
    ):
        generalization.run(["env.protocol=paper", "evaluation.actor=random"])
    with pytest.raises(UserError, match=r"env\.assets is 'world', which no setup is reported on"):
        generalization.chosen(config.load("base", ["env.assets=world"]))
    assert generalization.chosen(
        config.load("base", ["generalization.seeds=2", "evaluation.temperature=0", "evaluation.actor=random"])
    )
    with pytest.raises(UserError, match="the planner draws nothing; set it to 1"):
        generalization.run(["generalization.seeds=3", "evaluation.actor=planner"])
    with pytest.raises(UserError, match="temperature 0 draws nothing"):
        generalization.run(["generalization.seeds=2", "evaluation.temperature=0"])
    assert generalization.chosen(config.load("base")) == list(EVALUATED)


def test_in_protocol_paper_each_seed_has_its_own_64_episodes(tmp_path: Path) -> None:
    c = config.load("base", ["env.protocol=paper", "evaluation.episodes=64", "evaluation.actor=random"])
    jobs = [generalization.job(c, tmp_path, "object", seed) for seed in range(3)]
    assert [len(job.episode_ids) for job in jobs] == [64] * 3
    assert len({id_ for job in jobs for id_ in job.episode_ids}) == 192
    c = config.load("base", ["evaluation.actor=random"])
    assert (
        generalization.job(c, tmp_path, "table", 0).episode_ids
        == generalization.job(c, tmp_path, "table", 1).episode_ids
    )


def test_only_results_of_the_same_scenes_are_compared(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    env = {"protocol": "v2", "assets": "paper", "image_size": [128, 128], "shader": "minimal", "sim_freq": 500}
    scenes = {"config": {"env": env | {"backend": "cpu"}}, "edition": "procedural-1"}
    (tmp_path / "report" / "scores.json").write_text(json.dumps(scenes))
    with pytest.raises(UserError, match=r"was made with env\.assets=procedural-1; only the same scenes"):
        generalization.load(config.load("base"), tmp_path, ["ind"])
    del scenes["edition"]
    for text in (json.dumps(scenes), json.dumps(scenes)[:9], "3"):
        (tmp_path / "report" / "scores.json").write_text(text)
        with pytest.raises(UserError, match=r"is damaged, or of an earlier version, .* run it again"):
            generalization.load(config.load("base"), tmp_path, ["ind"])
    scenes["edition"] = edition("procedural")
    (tmp_path / "report" / "scores.json").write_text(json.dumps(scenes))
    with pytest.raises(UserError, match="holds no episodes of ind, table; name setups that both have"):
        generalization.load(config.load("base"), tmp_path, ["ind", "table"])


def test_folders_tell_apart_what_may_not_be_counted_together() -> None:
    words = ["env.protocol=paper", "env.assets=paper", "evaluation.temperature=0", "seed=3", "evaluation.top_k=50"]
    words = ["evaluation.episodes=9", *words]
    folders = [generalization.folder(config.load("base", [word])) for word in words]
    assert folders[0] == generalization.folder(config.load("base"))
    assert len(set(folders)) == len(words)


def test_an_actor_that_was_changed_is_another_actor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    c = config.load("base", ["evaluation.actor=my_own_policy:act"])
    nothing = evaluate.identity(c)  # there is no such module yet
    (tmp_path / "my_own_policy.py").write_text("def act(observations): ...\n")
    importlib.invalidate_caches()
    first = evaluate.identity(c)
    (tmp_path / "my_own_policy.py").write_text("def act(observations): return None\n")
    assert len({nothing, first, evaluate.identity(c)}) == 3


def test_your_own_function_can_act() -> None:
    from vlapost.build import build_actor

    actor = build_actor(config.load("base", ["evaluation.actor=os.path:basename"]))
    assert actor.act("a/b") == "b"  # type: ignore[arg-type]
    for name in ("no_such_module:act", "os.path:nothing"):
        with pytest.raises(UserError, match=f"evaluation.actor is '{name}', which cannot be imported"):
            build_actor(config.load("base", [f"evaluation.actor={name}"]))
    with pytest.raises(UserError, match="it must be policy, planner, random or module:function"):
        config.load("base", ["evaluation.actor=chance"])
    with pytest.raises(UserError, match="this command evaluates the policy it trains"):
        recipe.run(["evaluation.actor=planner"])
