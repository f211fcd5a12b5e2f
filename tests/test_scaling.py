"""The grid of SFT: its cells and what they share, what is drawn. What a stage does is tested with the recipe."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from rich.console import Console
from rich.table import Table

from vlapost import config, scaling
from vlapost.config import UserError
from vlapost.evaluation import log
from vlapost.evaluation.episodes import EpisodeResult
from vlapost.evaluation.report import over_seeds
from vlapost.evaluation.summary import METRICS, rate, write_json
from vlapost.experience import shards

SETS = {"few": "training setup", "test": "unseen objects and tables"}


@pytest.fixture
def grid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Runs the command; returns the products of its stages below lightning_logs, and the words of its trainings."""

    def plan(*words: str) -> tuple[list[str], list[list[str]]]:
        products: list[str] = []
        trained: list[list[str]] = []

        def perform(folder: Path, stages: list) -> None:
            products.extend(str(product.relative_to(tmp_path / "lightning_logs")) for _, product, _ in stages)

        def training(*words: str) -> None:
            trained.append(list(words))

        monkeypatch.setattr(scaling, "ROOT", tmp_path)
        monkeypatch.setattr(scaling, "perform", perform)
        monkeypatch.setattr(scaling, "training", training)
        monkeypatch.setattr(scaling, "draw", lambda *what: None)
        scaling.run(list(words))
        return products, trained

    return plan


def test_every_cell_learns_from_the_first_of_one_collection(grid) -> None:
    products, trained = grid("sizes=[1000,140]", "seeds=[0,3]", "optim.lr=5e-4", "demos.path=data/many")
    cells = ["140-seed0", "140-seed3", "1000-seed0", "1000-seed3"]
    expected = ["sft-scaling/140-seed0/sft/adapter"]  # what needs the demonstrations first
    for cell in cells:
        expected.append(f"sft-scaling/{cell}/sft/adapter")
        expected += [f"sft-scaling/{cell}/evaluation/{set_}/report.json" for set_ in ("few", "test")]
    assert products == expected
    settings = [config.load(words[0], words[1:]) for words in trained]
    assert [(c.demos.episodes, c.seed) for c in settings] == [(140, 0), (140, 3), (1000, 0), (1000, 3)]
    assert [c.run for c in settings] == [f"sft-scaling/{cell}" for cell in cells]
    # 15 iterations at 140; 15 * (1000 / 140) ^ 0.62 = 50.8; eight looks at the held-out loss, the last at the very end
    assert [(c.trainer.iterations, c.trainer.eval_every) for c in settings] == [(16, 2)] * 2 + [(56, 7)] * 2
    same = [config.to_yaml(c).splitlines() for c in settings]
    differing = {line.split(":")[0].strip() for one in same for line in set(one) ^ set(same[0])}
    assert differing == {"run", "seed", "episodes", "iterations", "eval_every"}
    assert {c.demos.path for c in settings} == {"data/many"} and {c.optim.lr for c in settings} == {5e-4}
    assert {c.demos.seed for c in settings} == {100}  # the same collection, whatever the seed of the training


def test_the_default_grid_and_larger_ones(grid, tmp_path: Path) -> None:
    products, trained = grid()
    assert len(trained) == 8 * 3 and len(products) == 1 + 8 * 3 * 3
    for product in products[1:4]:
        (tmp_path / "lightning_logs" / product).mkdir(parents=True)
    more, _ = grid("sizes=[140,32000]", "seeds=[0]")  # the same run goes on; its finished cell needs no demonstrations
    assert more[0] == "sft-scaling/32000-seed0/sft/adapter" and more[1:4] == products[1:4]
    with pytest.raises(UserError, match=r"other settings.*optim\.lr"):
        grid("sizes=[64000]", "seeds=[7]", "optim.lr=1")  # in a cell of its own, but in the same chart


def test_other_numbers_of_processes_see_as_many_samples(grid) -> None:
    _, trained = grid("sizes=[140]", "seeds=[0]", "trainer.devices=1")
    (one,) = (config.load(words[0], words[1:]).trainer for words in trained)
    assert (one.iterations, one.eval_every) == (32, 4)  # 16 of two


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["sizes=[]"], "a number each"), (["sizes=[0]"], "1 or more"), (["seeds=[x]"], "seeds"),
        (["sizes=[140"], r"sizes=\[140"),
        (["demos.parts=2"], "demos.parts is 2, but only 'make demos' collects in parts"), (["ppo"], "'ppo'"),
        (["curve=nowhere.json"], "nowhere.json is no curve"), (["sise=[1]"], "sise"),
        (["env.id=PutOnReceptacleInWorld-v1", "env.obj_set=train"], "'test'"),
        (["seed=5"], r"seeds=\[...\]"), (["demos.episodes=500"], r"give sizes=\[...\]"),
        (["env.obj_set=all"], "unseen objects in it"), (["env.obj_set=test"], "unseen objects in it"),
        (["evaluation.episodes=1500"], "evaluation.episodes is 1500; only 1024 episodes"),
        (["env.protocol=paper"], "only 192 episodes"), (["evaluation.actor=planner"], "evaluates the policy it trains"),
        (["trainer.devices=3", "trainer.eval_episodes=2"], "trainer.eval_episodes of sft is 2; 3 processes"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(grid, words: list[str], part: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=part):
        grid(*words)
    assert not list(tmp_path.iterdir())  # nothing is claimed that could not be evaluated


def test_finished_cells_are_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The stages themselves are replaced by ones that leave their product, the second time by none."""
    done: list[str] = []

    def leaves(title: str, product: Path):
        return lambda: (done.append(title), title != "demonstrations" and product.mkdir(parents=True))

    monkeypatch.setattr(scaling, "ROOT", tmp_path)
    monkeypatch.setattr(scaling, "draw", lambda *what: None)
    perform = scaling.perform
    monkeypatch.setattr(
        scaling, "perform", lambda folder, stages: perform(folder, [(t, p, leaves(t, p)) for t, p, _ in stages])
    )
    scaling.run(["sizes=[140]", "seeds=[0]"])
    first = ["demonstrations", "SFT 140-seed0", "evaluate 140-seed0, few", "evaluate 140-seed0, test"]
    assert done == first
    scaling.run(["sizes=[140]", "seeds=[0]"])
    assert done == first  # not even the demonstrations are looked at
    scaling.run(["sizes=[140]", "seeds=[0,1]"])
    assert len(done) == 4 + 4


def test_every_score_finds_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of all finished cells, however many seeds each size has."""
    counts = {(140, 0): 2, (140, 1): 4, (1000, 0): 6}
    for (size, seed), count in counts.items():
        for set_, less in (("few", 0), ("test", 1)):
            evaluated(scaling.report(tmp_path, scaling.label(size, seed), set_), [i < count - less for i in range(10)])
        (tmp_path / scaling.label(size, seed) / "config.yaml").write_text("trainer: {iterations: 16, eval_every: 2}")
    evaluated(scaling.report(tmp_path, "4000-seed0", "few"), [True])  # not on unseen ones yet
    (tmp_path / "140-seed0-old").mkdir()  # no cell
    losses = {"140-seed0": [2.0, 1.5, 1.6], "140-seed1": [1.7] * 8, "1000-seed0": []}
    monkeypatch.setattr(scaling, "series", lambda folder, tags: {tags[0]: losses[folder.parent.name]})
    scores = {m: rate([True, False]) for m in METRICS}
    scaling.draw(tmp_path, SETS, {set_: {"0": scores, "51200": scores} for set_ in SETS})
    found = json.loads((tmp_path / "scaling.json").read_text())
    few, unseen = found["success"]["few"], found["success"]["test"]
    assert list(few) == ["140", "1000"]
    assert few["140"]["success_end"]["mean"] == pytest.approx(0.3)
    assert few["140"]["success_end"]["seeds"] == {"0": 0.2, "1": 0.4}
    assert few["1000"]["success_end"] == {**few["1000"]["success_end"], **rate([True] * 6 + [False] * 4)}
    assert unseen["140"]["success_end"]["mean"] == pytest.approx(0.2) and unseen["140"]["grasp"]["mean"] == 0.9
    assert found["learning"]["140"] == {
        "0": {"planned": 16, "iterations": 6, "held_out_loss": [2.0, 1.5, 1.6]},  # ended early
        "1": {"planned": 16, "iterations": 16, "held_out_loss": [1.7] * 8},
    }
    for name in ("scaling.png", "rl.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    learning = {int(size): cells for size, cells in found["learning"].items()}
    group = scaling.tables(
        SETS, {s: {int(n): one for n, one in of.items()} for s, of in found["success"].items()}, learning
    )
    # the means of 1.5 and 1.7, and of 1.6 and 1.7
    columns = [["140", "1000"], ["2", "1"], ["11", "16"], ["1.600", ""], ["1.650", ""]]
    training, few_table, _ = cast(list[Table], group.renderables)
    assert [list(column.cells) for column in training.columns] == columns
    assert list(few_table.columns[1].cells) == ["90.0%", "90.0%"]
    console = Console(width=80)
    with console.capture() as shown:
        console.print(group)
    assert "success at the end, 95 %" in shown.get() and "…" not in shown.get()  # of a terminal's usual width


def evaluated(report: Path, success: list[bool]) -> None:
    """What an evaluation leaves; the object is grasped in the first nine."""
    write_json(report, {})
    ends = enumerate(success)
    results = [EpisodeResult(i, "", end, end, i < 9, False, None, 0.0, gripper=[[0.3, 0, 0.1, 1.0]]) for i, end in ends]
    log.append(report.with_name("episodes.jsonl"), results, {})


def test_the_interval_is_of_episodes_not_of_their_repetitions() -> None:
    """Ten trainings that agree tell no more about 20 episodes than one; those that differ episode by episode do."""

    def results(*success: bool) -> list[EpisodeResult]:
        return [EpisodeResult(i, "", s, s, s, s, None, 0.0, gripper=[]) for i, s in enumerate(success)]

    half = results(*[True] * 10, *[False] * 10)
    one, ten = over_seeds({0: half})["success_end"], over_seeds(dict.fromkeys(range(10), half))["success_end"]
    assert one == {**one, **rate([True] * 10 + [False] * 10)}
    assert {**one, "seeds": None} == {**ten, "seeds": None}
    other = over_seeds({0: results(True, False, True, False), 3: results(True, True, True, True)})["success_end"]
    assert other["mean"] == 0.75 and other["seeds"] == {0: 0.5, 3: 1.0} and 0.5 <= other["low"] < 0.75 < other["high"]


def test_what_cells_have_learned_from_must_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = [f"shard-{k:08}-{k + 20:08}-{'0' * 16}.arrow" for k in (0, 20, 40)]
    writer = SimpleNamespace(close=lambda: None, skipped=[])
    monkeypatch.setattr(scaling.collect_demos, "collect", lambda cfg: writer)
    cfg = config.load("sft_scaling", [f"demos.path={tmp_path}"])
    for name in names[:2]:
        (tmp_path / name).touch()
    scaling.collect(cfg, tmp_path / "shards.json")
    (tmp_path / names[2]).touch()  # more are welcome
    scaling.collect(cfg, tmp_path / "shards.json")
    assert json.loads((tmp_path / "shards.json").read_text())["shards"] == names
    writer.skipped = [file for file in shards.list_shards(tmp_path) if file.begin == 20]
    with pytest.raises(UserError, match=f"{names[1]} any more, or it is damaged, and the run 'sft-scaling'"):
        scaling.collect(cfg, tmp_path / "shards.json")


@pytest.mark.parametrize(
    "content",
    [
        [], {}, {"rl": []}, {"rl": {"few": [], "test": {}}}, {"rl": {"few": {"0": {"grasp": 1}}, "test": {}}}, 3,
        {"about": {}, "rl": {"train": {}, "test": {}}},
        {"rl": {"few": {"0": {"success_end": {"mean": 1}}}, "test": {}}},
    ],
)  # fmt: skip
def test_what_is_no_curve_is_said_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: object
) -> None:
    cfg = config.load("sft_scaling", [])
    if isinstance(content, dict):
        content = {"about": scaling.about(cfg), **content}
    monkeypatch.setattr(scaling, "ROOT", tmp_path)
    (tmp_path / "curve.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"curve=curve.json is no curve.json"):
        scaling.learning_curve_of("curve.json", cfg, SETS)


def test_a_curve_measured_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cfg = config.load("sft_scaling", [])
    rl = {set_: {"0": {"success_end": rate([True, False])}} for set_ in SETS}
    monkeypatch.setattr(scaling, "ROOT", tmp_path)
    write_json(tmp_path / "curve.json", {"rl": rl, "about": scaling.about(cfg)})
    assert scaling.learning_curve_of("curve.json", cfg, SETS) == rl
    for word, named in (("evaluation.temperature=1", "decoding"), ("env.shader=default", "env")):
        with pytest.raises(UserError, match=f"measured with another {named} than this grid"):
            scaling.learning_curve_of("curve.json", config.load("sft_scaling", [word]), SETS)
