"""The grid of SFT: its cells and what they share, what is drawn. What a stage does is tested with the recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlapost import config, scaling
from vlapost.config import UserError
from vlapost.evaluation.summary import METRICS, pool, rate, write_json

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
    expected = ["sft-scaling/demos-1000.json"]
    for cell in cells:
        expected.append(f"sft-scaling/{cell}/sft/adapter")
        expected += [f"sft-scaling/evaluation/{cell}-{set_}/report.json" for set_ in ("few", "test")]
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


def test_the_default_grid_and_larger_ones(grid) -> None:
    products, trained = grid()
    assert "sft-scaling/demos-16000.json" in products and len(trained) == 8 * 3
    more, _ = grid("sizes=[140,32000]", "seeds=[0]")  # the same run goes on
    assert more[0] == "sft-scaling/demos-32000.json" and more[1] in products
    with pytest.raises(UserError, match=r"other settings.*optim\.lr"):
        grid("sizes=[140]", "seeds=[0]", "optim.lr=1")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["sizes=[]"], "a number each"), (["sizes=[0]"], "1 or more"), (["seeds=[x]"], "seeds"),
        (["sizes=[140"], r"sizes=\[140"),
        (["demos.parts=2"], "demos.parts is 2, but only 'make demos' collects in parts"), (["ppo"], "'ppo'"),
        (["curve=nowhere.json"], "nowhere.json is no curve"), (["sise=[1]"], "sise"),
        (["env.id=PutOnReceptacleInWorld-v1", "env.obj_set=train"], "'test'"),
        (["trainer.devices=3", "trainer.eval_episodes=2"], "trainer.eval_episodes of sft is 2; 3 processes"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(grid, words: list[str], part: str) -> None:
    with pytest.raises(UserError, match=part):
        grid(*words)


def test_finished_cells_are_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The stages themselves are replaced by ones that leave their product, the second time by none."""
    done: list[str] = []

    def leaves(product: Path):
        return lambda: (done.append(product.name), product.mkdir(parents=True))

    monkeypatch.setattr(scaling, "ROOT", tmp_path)
    monkeypatch.setattr(scaling, "draw", lambda *what: None)
    perform = scaling.perform
    monkeypatch.setattr(
        scaling, "perform", lambda folder, stages: perform(folder, [(t, p, leaves(p)) for t, p, _ in stages])
    )
    scaling.run(["sizes=[140]", "seeds=[0]"])
    assert len(done) == 4
    scaling.run(["sizes=[140]", "seeds=[0,1]"])
    assert len(done) == 4 + 3


def test_every_score_finds_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    grid = scaling.Grid([140, 1000], [0, 1])
    counts = {(140, 0): 2, (140, 1): 4, (1000, 0): 6, (1000, 1): 7}
    for (size, seed), count in counts.items():
        for set_, less in (("few", 0), ("test", 1)):
            scores = {m: rate([True] * (count - less) + [False] * (10 - count + less)) for m in METRICS}
            scores["grasp"] = rate([True] * 9 + [False])
            write_json(scaling.report(tmp_path, scaling.label(size, seed), set_), scores)
    losses = {"140-seed0": [2.0, 1.5, 1.6], "140-seed1": [1.7], "1000-seed0": [1.0], "1000-seed1": []}
    monkeypatch.setattr(scaling, "series", lambda folder, tags: {tags[0]: losses[folder.parent.name]})
    curve = {set_: {"0": scores, "51200": scores} for set_ in SETS}
    scaling.draw(tmp_path, grid, SETS, curve)
    found = json.loads((tmp_path / "scaling.json").read_text())
    few, unseen = found["success"]["few"], found["success"]["test"]
    assert few["140"]["success_end"]["mean"] == 0.3 and few["140"]["success_end"]["n"] == 20
    assert few["1000"]["success_end"]["seeds"] == {"0": 0.6, "1": 0.7}
    assert unseen["1000"]["success_end"]["mean"] == 0.55 and unseen["140"]["grasp"]["mean"] == 0.9
    assert found["held_out_loss"]["140"] == {"0": [2.0, 1.5, 1.6], "1": [1.7]}
    for name in ("scaling.png", "rl.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    view = scaling.table(grid, SETS, found_with_numbers(found), {140: found["held_out_loss"]["140"], 1000: {}})
    # the means of 1.5 and 1.7, and of 1.6 and 1.7
    assert [list(column.cells) for column in view.columns[1:3]] == [["1.600", ""], ["1.650", ""]]


def found_with_numbers(found: dict) -> dict:
    return {set_: {int(size): scores for size, scores in sizes.items()} for set_, sizes in found["success"].items()}


def test_pooled_rates_are_those_of_all_episodes() -> None:
    assert pool([rate([True] * 3 + [False] * 7), rate([True] * 5)]) == rate([True] * 8 + [False] * 7)


@pytest.mark.parametrize(
    "content",
    [[], {}, {"rl": []}, {"rl": {"few": [], "test": {}}}, {"rl": {"few": {"0": {"grasp": 1}}, "test": {}}}, 3],
)
def test_what_is_no_curve_is_said_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: object
) -> None:
    monkeypatch.setattr(scaling, "ROOT", tmp_path)
    (tmp_path / "curve.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"curve=curve.json is no curve.json"):
        scaling.learning_curve_of("curve.json", SETS)


def test_a_curve_of_other_objects_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(scaling, "ROOT", tmp_path)
    write_json(tmp_path / "curve.json", {"rl": {"train": {}, "test": {}}})
    with pytest.raises(UserError, match="of the object sets train, test, the grid of few, test"):
        scaling.learning_curve_of("curve.json", SETS)
