"""The learning curve: which stages there are, and what is drawn. What a stage does is tested with the recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlapost import config, curve, scaling, stages
from vlapost.config import UserError
from vlapost.evaluation.summary import METRICS, rate, write_json


def test_steps_of_an_iteration_are_those_of_all_processes() -> None:
    cfg = config.load("ppo", ["env.num_envs=3", "experience.rounds=2", "trainer.devices=4"])
    assert curve.steps_per_iteration(cfg) == 80 * 3 * 2 * 4
    task = ["env.id=WidowXEggplantInBasket-v1", "env.obj_set=train", "env.assets=tasks"]
    cfg = config.load("ppo", ["env.num_envs=3", "experience.rounds=2", "trainer.devices=4", *task])
    assert curve.steps_per_iteration(cfg) == 120 * 3 * 2 * 4


def test_iterations_of_demonstrations_take_no_steps() -> None:
    cfg = config.load("ppo", ["experience.schedule=[rollout,rollout,demos]"])
    assert [curve.rollouts(cfg, n) for n in range(7)] == [0, 1, 2, 2, 3, 4, 4]


def test_stages_of_a_small_curve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run of 26 iterations with a snapshot every tenth; nothing is trained."""
    products: list[tuple[str, str]] = []
    drawn: list[object] = []

    def perform(folder: Path, planned: list) -> None:
        products.extend((title, product.relative_to(folder).as_posix()) for title, product, _ in planned)

    for module in (stages, scaling):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(curve, "STEPS", 26 * 160 - 5)
    monkeypatch.setattr(curve, "perform", perform)
    monkeypatch.setattr(curve, "draw", lambda *what: drawn.extend(what[2:]))
    words = ["env.num_envs=2", "experience.rounds=1", "trainer.devices=1", "env.obj_set=few", "sft.optim.lr=1e-3"]
    curve.run(words)
    warmup = (tmp_path / "lightning_logs/curve/sft/config.yaml").read_text()
    assert "lr: 0.001" in warmup and "iterations: 15" in warmup  # the length of the curve is not the warm-up's
    points = ["ppo-00000", "ppo-00010", "ppo-00020", "ppo-00026"]
    evaluated = [f"{point}/evaluation/{set_}/report.json" for point in points for set_ in ("few", "test")]
    assert [product for _, product in products] == ["sft/adapter", "sft/adapter", "ppo/adapter", *evaluated]
    assert products[0][0] == "demonstrations"  # which nothing needs once the warm-up is there
    assert drawn[:3] == [
        {"few": "training setup (few)", "test": "unseen objects and tables"},
        {0: 0, 1600: 10, 3200: 20, 26 * 160: 26},
        "SFT 140",
    ]
    products.clear()
    curve.run(words)  # the same words continue
    with pytest.raises(UserError, match=r"sft.*optim\.lr|optim\.lr.*was"):
        curve.run([*words, "sft.optim.lr=2e-3"])


@pytest.mark.parametrize(
    "word",
    [
        "trainer.snapshot_every=0",
        "experience.schedule=[demos]",
        "env.id=PutOnReceptacleInWorld-v1",
        "optim.batch_size=100",
    ],
)
def test_a_curve_that_cannot_be_drawn_is_refused_before_training(
    word: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    with pytest.raises(UserError):
        curve.run([word])
    assert not list(tmp_path.iterdir())


def test_every_score_finds_its_place_in_the_curve(tmp_path: Path) -> None:
    counts = {"ppo-00000": 2, "ppo-00010": 7}
    successes = {(label, "train"): count for label, count in counts.items()}
    successes |= {(label, "test"): count - 1 for label, count in counts.items()}
    for (label, set_), count in successes.items():
        scores = {metric: rate([True] * count + [False] * (10 - count)) for metric in METRICS}
        write_json(curve.report(tmp_path, label, set_), scores)
    curve.draw(tmp_path, "ppo", {"train": "seen", "test": "unseen"}, {0: 0, 51_200: 10}, "SFT 140", {"episodes": 10})
    found = json.loads((tmp_path / "curve.json").read_text())
    for set_, less in (("train", 0), ("test", 0.1)):
        rl = {steps: scores["success_end"]["mean"] for steps, scores in found["rl"][set_].items()}
        assert rl == pytest.approx({"0": 0.2 - less, "51200": 0.7 - less})
    assert found["about"] == {"episodes": 10}
    assert (tmp_path / "curve.png").stat().st_size > 10_000
