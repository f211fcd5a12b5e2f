"""The policy's benchmark at toy size: it runs on this machine, and what it compares with computes the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks import policy as benchmark
from benchmarks.measure import peak_bytes, roofline
from benchmarks.networks import Size, work

from vlapost.config import UserError

TOY = (Size("toy", 16, 1),)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RUNS", 1), ("SMALL", TOY), ("ON_CPU", (1, 2))):
        monkeypatch.setattr(benchmark, name, value)


def test_operations_of_the_published_model() -> None:
    """Arithmetic done elsewhere for 280 tokens: 3.65 TFLOP to read, 13.4 GFLOP and 0.524 MB a token.

    Encoders and projector: 0.164, 0.219 and 0.037 TFLOP with the last blocks, which are not computed here.
    """
    w = work(benchmark.FULL, prompt=280 - 257)
    assert w.see == pytest.approx(0.164e12 * 23 / 24 + 0.219e12 * 26 / 27 + 0.037e12, rel=0.01)
    assert w.read == pytest.approx(3.65e12, rel=0.03)
    assert w.token == pytest.approx(13.4e9, rel=0.03)
    assert w.weights == pytest.approx(13.0e9, rel=0.03)
    assert w.cache == pytest.approx(280 * 524_288)
    h200 = (989e12, 4.8e12)
    assert w.acting(64, h200) == pytest.approx(0.291, rel=0.03)
    assert w.learning(5120, h200) == pytest.approx(44, rel=0.04)


def test_it_compares_with_what_computes_the_same() -> None:
    (first, *_) = benchmark.against_generate(TOY, (2,))
    assert first["same_tokens"]
    (logits,) = benchmark.against_all_logits(TOY, 2)
    assert logits["difference"] < 1e-4


def test_a_step_keeps_less_than_the_usual_one() -> None:
    (row,) = benchmark.against_everything_kept(TOY, 2)
    assert row["share"] < 0.5  # 2 x 293 x 32064 logits in float32, twice, are most of it


def test_the_tables_of_a_gpu_come_out_of_a_cpu_too() -> None:
    peak = roofline("cpu")
    rows = benchmark.show("acting", benchmark.acting(TOY[0], "cpu", (1,), peak))
    rows += benchmark.show("learning", benchmark.learning(TOY[0], "cpu", (1,), peak))
    assert {row["recompute"] for row in rows if "recompute" in row} == {"none", "mlp", "blocks"}
    assert all(row["samples_per_s"] > 0 for row in rows)
    assert all(row["share_of_roofline"] > 0 for row in rows if row["base"] == "none")


def test_peak_is_what_was_there_at_once() -> None:
    def work() -> None:
        one = torch.empty(1_000_000)
        two = torch.empty(500_000)
        del one
        torch.empty(800_000)
        del two

    assert peak_bytes(work, "cpu") == 6_000_000


def test_the_report_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    benchmark.run([f"out={tmp_path / 'policy.json'}"])
    report = json.loads((tmp_path / "policy.json").read_text())
    assert [row["batch"] for row in report["generate"]] == [1, 1, 2, 2]
    with pytest.raises(UserError, match=r"out=FILE\.json"):
        benchmark.run(["batch=3"])
