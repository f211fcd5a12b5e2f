"""Success of a policy on the fixed held-out episodes.

    make evaluate ARGS="policy.adapter=lightning_logs/ppo/ppo/adapter"
    make evaluate ARGS="policy.adapter=lightning_logs/ppo/ppo/adapter evaluation.temperature=0 env.obj_set=test"

Episodes, a report and videos go to lightning_logs/<run>/evaluation/<what was evaluated>/, where <run> is the one the
adapter comes from. The same command continues where it was stopped; more `evaluation.episodes` add to those finished.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from vlapost import cli, config
from vlapost.config import ROOT, Config, UserError
from vlapost.disk import write_text

if TYPE_CHECKING:
    from vlapost.contracts import Policy, VectorEnv


def run(words: list[str]) -> None:
    """Evaluate and print the table."""
    c = config.load(*cli.parse(words, "base"))
    _check(c)
    out = folder(c)
    report = evaluate(c, out)
    from vlapost.evaluation import summary

    cli.console.print(summary.table(report, f"{c.env.id}, {c.env.obj_set} objects, {report['decoding']}"))
    cli.console.print(f"Episodes, report and videos: {out}", soft_wrap=True)


def evaluate(c: Config, out: Path) -> dict[str, Any]:
    """Run the first `evaluation.episodes` held-out episodes and write `out/report.json`.

    Returns:
        The report: "success_end", "success_once", "grasp", "consecutive_grasp", each {"mean", "low", "high", "n"} with
        Wilson's 95 % interval; "return", "by_object", and what was evaluated and how.

    Raises:
        UserError: no such checkpoint, or more episodes than are held out.
    """
    _check(c)
    from vlapost.envs.episodes import held_out
    from vlapost.evaluation import summary
    from vlapost.evaluation.parallel import run_parallel

    known = held_out(c.env.id, c.env.obj_set, c.env.protocol).tolist()
    if c.evaluation.episodes > len(known):
        raise UserError(f"evaluation.episodes is {c.evaluation.episodes}; only {len(known)} episodes are held out.")
    ids = known[: c.evaluation.episodes]
    labels = _labels(c, ids)
    _claim(c, out)
    results = run_parallel(_build, c, ids, out, labels)
    objects = sorted({labels[episode]["object"] for episode in ids})
    report = {
        **summary.summarise(results),
        "by_object": {
            name: summary.rate(r.success_end for r in results if labels[r.episode_id]["object"] == name)
            for name in objects
        },
        "decoding": _decoding(c),
        "seed": c.seed,
        "checkpoint": {"base": c.policy.checkpoint, "adapter": c.policy.adapter, "sha256": fingerprint(c)},
        "config": OmegaConf.to_container(OmegaConf.structured(c)),
    }
    summary.write_json(out / "report.json", report)
    return report


def folder(c: Config) -> Path:
    """Where the results belong: equal for two commands exactly if their episodes may be counted together."""
    decoding = "greedy" if c.evaluation.temperature == 0 else f"t{c.evaluation.temperature:g}"
    logs = ROOT / "lightning_logs"
    adapter = ROOT / c.policy.adapter
    run_name = adapter.relative_to(logs).parts[0] if c.policy.adapter and adapter.is_relative_to(logs) else c.run
    return logs / run_name / "evaluation" / f"{c.env.id}-{c.env.obj_set}-{decoding}-seed{c.seed}-{_identity(c)}"


def fingerprint(c: Config) -> str:
    """SHA-256 over the weights that act: those of the adapter if there is one, and those of the base.

    Raises:
        UserError: a folder without weights.
    """
    digest = hashlib.sha256()
    for key, place in (("policy.checkpoint", c.policy.checkpoint), ("policy.adapter", c.policy.adapter)):
        if not place:
            continue
        weights = sorted((ROOT / place).glob("*.safetensors"))
        if not weights:
            remedy = "make pretrain writes the small model" if key == "policy.checkpoint" else "give a saved adapter"
            raise UserError(f"{key} is '{place}', where there is no *.safetensors file; {remedy}.")
        for path in weights:
            with path.open("rb") as file:
                while block := file.read(2**22):
                    digest.update(block)
    return digest.hexdigest()


def _identity(c: Config) -> str:
    """Short digest of all that decides an episode: not how many there are, by how many processes, filmed or not."""
    from vlapost.assets.pack import edition

    env = OmegaConf.to_yaml(OmegaConf.structured(replace(c.env, num_envs=0, assets=edition(c.env.assets))))
    decisive = f"{env} {c.policy.unnorm_key} {c.evaluation.temperature} {c.seed} {c.trainer.precision} {fingerprint(c)}"
    return hashlib.sha256(decisive.encode()).hexdigest()[:8]


def _claim(c: Config, out: Path) -> None:
    """Never count episodes of different policies or settings together."""
    mark = out / "identity"
    identity = _identity(c)
    if not mark.is_file():
        write_text(mark, identity)
    if mark.read_text() != identity:
        raise UserError(f"{out} holds episodes of another policy or other settings; delete that folder to start anew.")


def _check(c: Config) -> None:
    e = c.evaluation
    for key, value, least in (
        ("episodes", e.episodes, 1),
        ("workers", e.workers, 1),
        ("videos", e.videos, 0),
        ("temperature", e.temperature, 0),
    ):
        if value < least:
            raise UserError(f"evaluation.{key} is {value}; it must be {least} or more.")


def _decoding(c: Config) -> str:
    t = c.evaluation.temperature
    return "greedy" if t == 0 else f"sampled at temperature {t:g} from all 256 bins"


def _labels(c: Config, ids: list[int]) -> dict[int, dict[str, str]]:
    """Names of object, receptacle and table of each episode."""
    import torch

    from vlapost.assets.pack import open_pack
    from vlapost.envs.episodes import decode
    from vlapost.envs.setups import find_setup

    pack = open_pack(c.env.assets)
    spec = decode(find_setup(c.env.id, c.env.obj_set, c.env.protocol), torch.tensor(ids))
    return {
        episode: {
            "object": pack.objects[int(spec.object[i])].id,
            "receptacle": pack.receptacles[int(spec.receptacle[i])].id,
            "table": pack.tables[int(spec.table[i])].id,
        }
        for i, episode in enumerate(ids)
    }


def _build(c: Config, num_envs: int) -> tuple[Policy, VectorEnv]:
    import torch

    from vlapost.build import build_policy
    from vlapost.envs.vector import make_env

    device = "cuda" if c.trainer.accelerator != "cpu" and torch.cuda.is_available() else "cpu"
    return build_policy(c, device), make_env(c.env, num_envs)


if __name__ == "__main__":
    cli.main(run)
