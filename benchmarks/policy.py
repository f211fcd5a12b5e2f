"""Speed and memory of the policy alone, with random weights: `python -m benchmarks.policy [out=FILE.json]`.

On a GPU: OpenVLA-7B in bfloat16, as rollouts and as the learner use it, with and without nf4, recomputation and CUDA
graph, and which share of the roofline that is. On a CPU: three small sizes against transformers' `generate`, against
all 32064 logits, and against a step that keeps all logits and hidden states. Needs neither simulator nor bitsandbytes
(rows in nf4 are left out without it) and downloads nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from benchmarks import baseline
from benchmarks.measure import peak_bytes, roofline, seconds
from benchmarks.networks import INSTRUCTION, Size, make_network, make_policy, observation, plain_policy, work
from vlapost import cli
from vlapost.config import ROOT, UserError
from vlapost.contracts import Observation
from vlapost.disk import write_text
from vlapost.policies.graphs import Graphs
from vlapost.policies.policy import OpenVLAPolicy

FULL = Size("OpenVLA-7B", 1, None)
SMALL = (Size("7B/16, 2 layers", 16, 2), Size("7B/16, 4 layers", 16, 4), Size("7B/8, 4 layers", 8, 4))
ACTING, LEARNING, ON_CPU = (1, 8, 32, 64), (8, 16, 32), (1, 32)  # samples at a time
RUNS = 5
Row = dict[str, Any]


def run(words: list[str]) -> None:
    """Measure, print, write."""
    outs = [word.removeprefix("out=") for word in words if word.startswith("out=")]
    if len(outs) != len(words):
        raise UserError("The only setting is out=FILE.json.")
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    report: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        report["device"] = torch.cuda.get_device_name()
        peak = roofline("cuda")
        report["roofline"] = {"operations_per_s": peak[0], "bytes_per_s": peak[1]}
        report["acting"] = show("Acting, OpenVLA-7B", acting(FULL, "cuda", ACTING, peak))
        report["learning"] = show("Learning, OpenVLA-7B", learning(FULL, "cuda", LEARNING, peak))
    else:
        report["device"] = "cpu"
        report["generate"] = show("Seven tokens against generate()", against_generate(SMALL, ON_CPU))
        report["logits"] = show("Log-probabilities against all logits", against_all_logits(SMALL, ON_CPU[-1]))
        report["memory"] = show("Memory of a training step", against_everything_kept(SMALL, 8))
    name = f"policy-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path = Path(outs[-1]) if outs else ROOT / "lightning_logs" / "benchmark" / name
    write_text(path, json.dumps(report, indent=2) + "\n")
    cli.console.print(f"Written to {path}", soft_wrap=True)


# ---- on a GPU: the whole model


def acting(size: Size, device: str, batches: Iterable[int], peak: tuple[float, float]) -> Iterable[Row]:
    """One decision for a batch of observations, images included."""
    for quantized in kinds():
        policy = make_policy(size, device, torch.bfloat16, quantized)
        needed = work(size, len(policy.prompts.ids(INSTRUCTION)) - 1)
        for graph in (False, True) if device == "cuda" else (False,):
            policy.graphs = Graphs() if graph else None
            for batch in batches:
                call = partial(policy.act, observation(batch, device), torch.zeros(batch, 7, 256, device=device))
                row = {"base": quantized, "graph": graph, "batch": batch}
                bound = {"least_s": needed.acting(batch, peak)} if quantized == "none" else {}  # bytes of bfloat16
                yield row | timed(call, device, batch) | bound
        del policy, call
        free(device)


def learning(size: Size, device: str, batches: Iterable[int], peak: tuple[float, float]) -> Iterable[Row]:
    """Forward and backward of a minibatch: log-probabilities, entropy and value, all adapters learning."""
    for quantized in kinds():
        for recomputed in ("none", "mlp", "blocks"):
            policy = make_policy(size, device, torch.bfloat16, quantized, recomputed)
            needed = work(size, len(policy.prompts.ids(INSTRUCTION)) - 1)
            for batch in batches:
                row = {"base": quantized, "recompute": recomputed, "batch": batch}
                step = training_step(policy, batch, device)
                yield row | timed(step, device, batch) | {"least_s": needed.learning(batch, peak)}
            del policy, step
            free(device)


def training_step(policy: Any, batch: int, device: str) -> Callable[[], None]:
    """Forward and backward of log-probabilities and values."""
    seen = observation(batch, device)
    tokens = torch.zeros(batch, 7, dtype=torch.int64, device=device)

    def step() -> None:
        judged = policy.evaluate(seen, tokens)
        (judged.logprob.sum() + judged.value.sum()).backward()

    return step


def timed(call: Callable[[], Any], device: str, batch: int) -> Row:
    """Seconds, samples per second and peak memory; empty where it does not fit."""
    try:
        peak = peak_bytes(call, device)
        taken = seconds(call, device, RUNS)
    except torch.OutOfMemoryError:
        free(device)
        return {"seconds": None, "samples_per_s": None, "peak_gib": None}
    return {"seconds": taken, "samples_per_s": batch / taken, "peak_gib": peak / 2**30}


def kinds() -> tuple[str, ...]:
    """Number types of the base that can be measured here."""
    return ("none", "nf4") if find_spec("bitsandbytes") else ("none",)


def free(device: str) -> None:
    """Give memory back before the next model is made."""
    if device == "cuda":
        torch.cuda.empty_cache()


# ---- on a CPU: small models against the usual way


def against_generate(sizes: Iterable[Size], batches: Iterable[int]) -> Iterable[Row]:
    """Greedy actions, from pictures and from patch features, against transformers' generate on the same weights."""
    for size in sizes:
        policy = plain_policy(make_network(size, "cpu", torch.float32), critic="none")
        for batch in batches:
            seen = observation(batch, "cpu")
            same = torch.equal(policy.act(seen, None).action_tokens, baseline.generate(policy, seen))
            for part, given in (("all", seen), ("Llama alone", with_patches(policy, seen))):
                ours = seconds(partial(policy.act, given, None), "cpu", RUNS)
                theirs = seconds(partial(baseline.generate, policy, given), "cpu", RUNS)
                yield {
                    "size": size.name, "batch": batch, "part": part, "seconds": ours, "generate_s": theirs,
                    "times_faster": theirs / ours, "same_tokens": same,
                }  # fmt: skip


def against_all_logits(sizes: Iterable[Size], batch: int) -> Iterable[Row]:
    """Log-probabilities of given tokens without gradients, patch features given, against logits of every position."""
    for size in sizes:
        policy = plain_policy(make_network(size, "cpu", torch.float32), critic="none")
        seen = with_patches(policy, observation(batch, "cpu"))
        tokens = torch.arange(batch * 7).view(batch, 7) % 256
        with torch.no_grad():
            difference = policy.evaluate(seen, tokens).logprob - baseline.all_logits(policy, seen, tokens)
            ours = seconds(partial(policy.evaluate, seen, tokens), "cpu", RUNS)
            theirs = seconds(partial(baseline.all_logits, policy, seen, tokens), "cpu", RUNS)
        yield {
            "size": size.name, "batch": batch, "seconds": ours, "all_logits_s": theirs,
            "times_faster": theirs / ours, "difference": float(difference.abs().max()),
        }  # fmt: skip


def against_everything_kept(sizes: Iterable[Size], batch: int) -> Iterable[Row]:
    """Peak memory of forward and backward, against one with the logits and hidden states of every position."""
    for size in sizes:
        policy = make_policy(size, "cpu", torch.float32)
        step = training_step(policy, batch, "cpu")
        step()  # gradients are there from now on
        ours = peak_bytes(step, "cpu")
        seen, tokens = observation(batch, "cpu"), torch.zeros(batch, 7, dtype=torch.int64)
        usual = peak_bytes(partial(baseline.everything_kept, policy, seen, tokens), "cpu")
        yield {
            "size": size.name, "batch": batch, "mib": ours / 2**20, "usual_mib": usual / 2**20, "share": ours / usual,
        }  # fmt: skip


def with_patches(policy: OpenVLAPolicy, seen: Observation) -> Observation:
    """As if the image encoders were frozen and had looked already."""
    with torch.no_grad():
        return replace(seen, patches=policy.network.patch_features(policy.preprocess(seen.image)))


# ---- printing


def show(title: str, rows: Iterable[Row]) -> list[Row]:
    """Print rows as they come, then as a table."""
    done: list[Row] = []
    for row in rows:
        if row.get("seconds") and "least_s" in row:
            row["share_of_roofline"] = row["least_s"] / row["seconds"]
        cli.console.print("  ".join(f"{k} {text(v)}" for k, v in row.items()), style="dim", soft_wrap=True)
        done.append(row)
    table = Table(title=title)
    for column in max(done, key=len):
        table.add_column(column.replace("_", " "), justify="right")
    for row in done:
        table.add_row(*[text(row.get(column)) for column in max(done, key=len)])
    cli.console.print(table)
    return done


def text(value: object) -> str:
    """Three digits of a number."""
    return "does not fit" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    cli.main(run)
