"""`make evaluate` with the real simulator and an untrained small model."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from vlapost import config, evaluate, origin
from vlapost.config import ROOT, Config, UserError
from vlapost.disk import alone

STATISTICS = {"action": {"q01": [-0.03] * 6 + [0.0], "q99": [0.03] * 6 + [1.0], "mask": [True] * 6 + [False]}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vlapost.policies.tiny import write_tiny

    folder = tmp_path_factory.mktemp("tiny")
    write_tiny(folder, 0, {"world": STATISTICS})
    return folder


def settings(checkpoint: Path, *words: str) -> Config:
    sizes = ["evaluation.episodes=2", "evaluation.workers=1", "evaluation.videos=1", "env.num_envs=2"]
    return config.load("base", [f"policy.checkpoint={checkpoint}", *sizes, *words])


@pytest.mark.sim
def test_report_videos_and_a_second_call(checkpoint: Path, tmp_path: Path) -> None:
    c = settings(checkpoint, "evaluation.temperature=0.6")
    out = tmp_path / "evaluation"
    report = evaluate.evaluate(c, out)
    assert report["success_end"]["n"] == 2
    assert report["decoding"] == "sampled at temperature 0.6 from all 256 bins"
    assert report["checkpoint"]["sha256"] == evaluate.fingerprint(c)
    assert sum(entry["n"] for entry in report["by_object"].values()) == 2
    assert json.loads((out / "report.json").read_text()) == report
    assert len(list((out / "videos").glob("*.mp4"))) == 1

    lines = (out / "episodes.jsonl").read_text()
    assert evaluate.evaluate(c, out) == report
    assert (out / "episodes.jsonl").read_text() == lines

    with pytest.raises(UserError, match="another policy or other settings"):
        evaluate.evaluate(replace(c, seed=1), out)


def test_folder_tells_apart_what_may_not_be_counted_together(checkpoint: Path) -> None:
    c = settings(checkpoint)
    same = settings(checkpoint, "evaluation.episodes=9", "env.num_envs=1", "evaluation.workers=2")
    assert evaluate.folder(c) == evaluate.folder(same)
    others = ["seed=1", "evaluation.temperature=0", "env.obj_set=test", "env.sim_freq=200", "env.assets=paper"]
    assert len({evaluate.folder(settings(checkpoint, word)) for word in others} | {evaluate.folder(c)}) == 6


def test_results_lie_beside_the_run_the_adapter_comes_from(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "fingerprint", lambda c: "0")
    c = settings(checkpoint, "policy.adapter=lightning_logs/mine/ppo/adapter")
    assert evaluate.folder(c).parent == ROOT / "lightning_logs" / "mine" / "evaluation"


def test_other_weights_have_another_fingerprint(checkpoint: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter_model.safetensors"
    prints = [evaluate.fingerprint(settings(checkpoint))]
    for content in (b"one", b"two"):
        adapter.write_bytes(content)
        prints.append(evaluate.fingerprint(settings(checkpoint, f"policy.adapter={tmp_path}")))
    for name in ("dataset_statistics.json", "tokenizer.json"):  # they decide actions too
        (tmp_path / name).write_text("{}")
        prints.append(evaluate.fingerprint(settings(checkpoint, f"policy.adapter={tmp_path}")))
    assert len(set(prints)) == 5


def test_an_adapter_belongs_to_the_base_of_its_run(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = tmp_path / "run/sft"
    for adapter in (stage / "adapter", stage / "snapshots/00010"):
        adapter.mkdir(parents=True)
        (adapter / "adapter_model.safetensors").touch()
        c = settings(checkpoint, f"policy.adapter={adapter}")
        evaluate.fingerprint(c)  # no run around it: as it says
        assert origin.differing(c) == ""
        (stage / "base.sha256").write_text(evaluate.fingerprint(settings(checkpoint)))
        (stage / "config.yaml").write_text(
            config.to_yaml(settings(checkpoint, "env.image_size=[224,224]", "trainer.precision=bf16-true"))
        )
        evaluate.fingerprint(c)
        origin.say_what_differs(c)
        said = " ".join(capsys.readouterr().out.split())
        assert "with trainer.precision=bf16-true (now 32-true), env.image_size=[224, 224] (now [128, 128])" in said
        (stage / "base.sha256").write_text("another")
        with pytest.raises(
            UserError, match=f"was trained when policy.checkpoint was {checkpoint}, and .* other weights"
        ):
            evaluate.fingerprint(c)
        (stage / "base.sha256").unlink()


def test_pickles_are_named_before_anything_else(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(UserError, match=r"has adapter_model\.bin but no .*a pickle can run code"):
        evaluate.fingerprint(settings(checkpoint, f"policy.adapter={tmp_path}"))


@pytest.mark.sim
def test_two_results_on_the_same_episodes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluation.episodes=2", "evaluation.workers=1", "evaluation.videos=0", "evaluation.actor=random"]
    monkeypatch.setattr(evaluate, "folder", lambda c: tmp_path / str(c.seed))
    evaluate.run([*words, "seed=0"])
    evaluate.run([*words[:3], "evaluation.actor=planner", "seed=1", f"against={tmp_path}/0"])
    found = json.loads((tmp_path / "1/comparison.json").read_text())["setups"]["few"]
    assert (found["n"], found["better"], found["worse"]) == (2, 2, 0)
    assert (found["ours"], found["theirs"], found["difference"]) == (1, 0, 1)
    assert "Success at end against" in capsys.readouterr().out
    for word, sentence in (
        ("env.obj_set=train", r"was made with env\.obj_set=few"),
        ("env.sim_freq=250", r"was made with env\.sim_freq=500"),
        ("evaluation.episodes=3", "lacks 1 of the 3 episodes"),
    ):
        with pytest.raises(UserError, match=sentence):
            evaluate.run([*words, word, f"against={tmp_path}/0"])
    with pytest.raises(UserError, match="holds no report; give the folder that make evaluate printed"):
        evaluate.run([*words, f"against={tmp_path}"])


def test_two_commands_do_not_evaluate_into_one_folder(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "job_of", lambda *_: None)
    with alone(tmp_path), pytest.raises(UserError, match=f"Another command is at work in {tmp_path}; wait for it"):
        evaluate.evaluate(settings(checkpoint), tmp_path)


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("evaluation.episodes=5000", ["evaluation.episodes", "5000", "1024"]),
        ("evaluation.episodes=0", ["evaluation.episodes", "1 or more"]),
        ("evaluation.temperature=-1", ["evaluation.temperature", "0 or more"]),
        ("policy.adapter=no/such/folder", ["policy.adapter", "no/such/folder"]),
        ("policy.checkpoint=nowhere", ["policy.checkpoint", "nowhere", "make pretrain"]),
    ],
)
def test_mistakes_are_named(checkpoint: Path, tmp_path: Path, word: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        evaluate.evaluate(settings(checkpoint, word), tmp_path)
    assert all(part in str(error.value) for part in parts), error.value
