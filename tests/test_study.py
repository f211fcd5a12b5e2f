"""Studies: what a grid is made of, what its cells share, what is drawn. What a stage does is tested with the recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from vlapost import config, study
from vlapost.config import CONF, UserError
from vlapost.evaluation.summary import METRICS, rate, write_json

FIGURES = sorted(path.stem for path in (CONF / "study").glob("*.yaml"))


def planned(monkeypatch: pytest.MonkeyPatch, root: Path, words: list[str]) -> list[str]:
    """Products of the stages that train and evaluate, in their order, below lightning_logs; nothing is trained."""
    found: list[str] = []

    def perform(_: Path, stages: list[study.Stage]) -> None:
        found.extend(str(product) for title, product, _ in stages if title != "demonstrations")

    monkeypatch.setattr(study, "ROOT", root)
    monkeypatch.setattr(study, "perform", perform)
    monkeypatch.setattr(study, "draw", lambda *_: None)
    study.run(words)
    return [product.removeprefix(f"{root}/lightning_logs/") for product in found]


def test_the_figures_of_the_paper_are_there() -> None:
    assert FIGURES == ["10", "11", "12", "3b", "4b", "5a", "5b"]


@pytest.mark.parametrize("figure", FIGURES)
def test_every_cell_is_a_valid_run_of_its_own(figure: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from vlapost.experience.sizes import check_batches

    grid = study.load(figure, [])
    products = planned(monkeypatch, tmp_path, [figure])
    assert len(products) == len(set(products))
    adapters = [p for p in products if p.endswith("adapter") and not p.startswith("study-warm-up")]
    assert len(adapters) == len(grid.cells) * len(grid.seeds)
    settings = []
    for name, cell in grid.cells.items():
        cfg = config.load(cell.conf, [*grid.words, *cell.words])
        check_batches(cfg, 80)
        settings.append(config.to_yaml(cfg) + str(cell.warm_up))
        _, stages, _ = study.plan(tmp_path / "lightning_logs/x", name, cell, 0, grid.words)
        trainings = [stage[2] for stage in stages if stage[1].name == "adapter" and stage[0] != "demonstrations"]
        for work in trainings:  # their words can be read
            (words,) = (c.cell_contents for c in work.__closure__ if isinstance(c.cell_contents, tuple))
            config.load(words[0], list(words[1:]))
    assert len(set(settings)) == len(grid.cells)


def test_another_run_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    products = planned(monkeypatch, tmp_path, ["11", "seeds=[0]", "run=trial"])
    assert {p.split("/")[0] for p in products} == {"trial", "study-warm-up"}


def test_cells_share_a_warm_up_where_its_settings_are_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def warm_ups(words: list[str]) -> int:
        return sum(
            p.startswith("study-warm-up") and p.endswith("adapter") for p in planned(monkeypatch, tmp_path, words)
        )

    assert warm_ups(["11", "seeds=[0,1]"]) == 2  # a warm-up per seed, whatever the temperature of RL
    assert warm_ups(["12", "seeds=[0]"]) == 4  # the rank is the warm-up's too
    assert warm_ups(["5a", "seeds=[0]"]) == 1  # one cell starts from the base
    with pytest.raises(UserError, match=r"other settings.*optim\.lr"):
        planned(monkeypatch, tmp_path, ["11", "seeds=[0]", "optim.lr=1"])


def test_a_cell_can_be_run_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    products = planned(monkeypatch, tmp_path, ["4b", "seeds=[0]", "only=[hn]"])
    assert [p for p in products if p.endswith("ppo/adapter")] == ["study-4b/hn-seed0/ppo/adapter"]


def test_sizes_that_do_not_fit_in_one_cell_leave_no_trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="whole pairs"):  # TPO, the last
        planned(monkeypatch, tmp_path, ["3b", "seeds=[0]", "optim.accumulate=1"])
    assert not list(tmp_path.iterdir())


def test_a_study_keeps_its_warm_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = planned(monkeypatch, tmp_path, ["11", "seeds=[0]"])
    others = ["demos.workers=5", "evaluation.workers=1", "evaluation.videos=1", "trainer.video_episodes=0"]
    assert planned(monkeypatch, tmp_path, ["11", "seeds=[0]", *others]) == first
    with pytest.raises(UserError, match=r"other settings.*policy\.adapter"):
        planned(monkeypatch, tmp_path, ["11", "seeds=[0]", "sft.trainer.iterations=5"])


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["7z"], "there are: 10, 11"),
        ([], "FIG="),
        (["5a", "seeds=[]"], "no seeds"),
        (["5a", "seeds=[x]"], "seeds"),
        (["5a", "seeds=[0"], "seeds"),
        (["4b", "seed=3"], r"give seeds=\[\.\.\.\]"),
        (["4b", "policy.adapter=x"], "policy.adapter is the warm-up's"),
        (["11", "experience.temperature=0.8"], "experience.temperature is what the cell '.*' sets itself"),
        (["4b", "evaluation.actor=random"], "this command evaluates the policy it trains"),
        (["4b", "only=[h1]"], "has no cell 'h1'; it has h0, hn, h0 to hn, separate"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], part: str) -> None:
    with pytest.raises(UserError, match=part):
        study.run(words)


def test_what_is_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    grid = study.Study("Two", [0, 1], [], {"a": study.Cell(), "b": study.Cell()})
    runs = [study.Run(c, s, tmp_path / f"{c}{s}", tmp_path / f"{c}{s}/report.json") for c in "ab" for s in (0, 1)]
    for k, one in enumerate(runs):
        write_json(one.report, {metric: rate([True] * k + [False] * (10 - k)) for metric in METRICS})
    curve = {"rollout/env_steps": [10.0, 20.0], "rollout/success_end": [0.1, 0.3], "seconds": [60.0, 120.0]}
    monkeypatch.setattr(study, "rollout_curve", lambda folder: curve)
    study.draw(tmp_path, grid, runs)
    found = json.loads((tmp_path / "study.json").read_text())
    assert [found[c][s]["held_out"]["success_end"]["mean"] for c in "ab" for s in "01"] == [0.0, 0.1, 0.2, 0.3]
    assert found["b"]["1"]["rollouts"] == curve
    assert (tmp_path / "study.png").stat().st_size > 10_000


def test_a_rollout_comes_after_all_that_was_before_it(tmp_path: Path) -> None:
    """Iterations of demonstrations take time and have no rollout."""
    with SummaryWriter(str(tmp_path)) as events:
        for step, success in ((32, 0.25), (72, None), (104, 0.5)):
            events.add_scalar("time/iteration_s", 10 + step, step)
            if success is not None:
                events.add_scalar("rollout/success_end", success, step)
                events.add_scalar("rollout/env_steps", 100 * step, step)
    found = study.rollout_curve(tmp_path)
    assert found["seconds"] == [42, 42 + 82 + 114] and found["rollout/success_end"] == [0.25, 0.5]
    assert found["rollout/grasp"] == []


def test_smooth() -> None:
    assert study.smooth([1.0, 2.0, 6.0, 0.0], 2) == [1.0, 1.5, 4.0, 3.0]


def test_cells_that_replay_demonstrations_collect_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a warm-up that another study has finished, or with none, nobody else would."""
    monkeypatch.setattr(study, "ROOT", tmp_path)
    for cell in (study.Cell(warm_up=False), study.Cell()):
        for words, collects in ((["experience.schedule=[rollout,demos]"], True), ([], False)):
            one, stages, _ = study.plan(tmp_path / "lightning_logs/x", "cell", cell, 0, words)
            products = [product for title, product, _ in stages if title == "demonstrations"]
            assert (one.folder / "adapter" in products) == collects
