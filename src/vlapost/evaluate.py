"""Success of a policy on the fixed held-out episodes.

    make evaluate CKPT=lightning_logs/ppo/ppo/adapter
    make evaluate CKPT=lightning_logs/ppo/ppo/adapter ARGS="evaluation.temperature=0 env.obj_set=test"
    make evaluate CKPT=... AGAINST=lightning_logs/ppo/evaluation-before      # tests the difference, same episodes
    make evaluate ARGS="tasks env.id=WidowXStackCube-v1 evaluation.actor=planner"     # SimplerEnv's tasks and StackCube

Episodes, a report and videos go to lightning_logs/<run>/evaluation/<what was evaluated>/, where <run> is the one the
adapter comes from. The same command continues where it was stopped; more `evaluation.episodes` add to those finished.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from vlapost import against, cli, config, origin
from vlapost.config import ROOT, Config, UserError
from vlapost.disk import alone, write_text

if TYPE_CHECKING:
    from torch import Tensor

    from vlapost.assets.pack import Model, Table
    from vlapost.contracts import Actor, VectorEnv
    from vlapost.evaluation.parallel import Job

# of a checkpoint or an adapter: what decides actions beside the weights
BESIDE_WEIGHTS = (
    "config.json",
    "adapter_config.json",
    "dataset_statistics.json",
    "preprocessor_config.json",
    "tokenizer.json",
)
PACKAGES = ("vlapost", "torch", "transformers", "mani_skill", "sapien", "mplib")


def run(words: list[str]) -> None:
    """Evaluate and print the table."""
    words, other = against.split(words)
    c = config.load(*cli.parse(words, "base"))
    theirs = against.episodes(c, Path(other), ids_of(c)) if other else []
    origin.say_what_differs(c)
    out = folder(c)
    report = evaluate(c, out)
    from vlapost.evaluation import summary
    from vlapost.evaluation.report import compare

    how = report.get("decoding", c.evaluation.actor)
    cli.console.print(summary.table(report, f"{c.env.id}, {c.env.obj_set} objects, {how}"))
    if other:
        ours = against.episodes(c, out, ids_of(c))
        found = compare({c.env.obj_set: [ours]}, {c.env.obj_set: [theirs]})
        summary.write_json(out / "comparison.json", {"against": other, "setups": found})
        cli.console.print(against.table(found, other))
    cli.console.print(f"Episodes, report and videos: {out}", soft_wrap=True)


def evaluate(c: Config, out: Path) -> dict[str, Any]:
    """Run the first `evaluation.episodes` held-out episodes and write `out/report.json`.

    Returns:
        The report: "success_end", "success_once", "grasp", "consecutive_grasp", each {"mean", "low", "high", "n"} with
        Wilson's 95 % interval; "return", "by_object", and what was evaluated and how.

    Raises:
        UserError: no such checkpoint, more episodes than are held out, or another command is at work in `out`.
    """
    from vlapost.evaluation import summary
    from vlapost.evaluation.parallel import run_parallel

    job = job_of(c, out, f"{c.env.id}-{c.env.obj_set}")
    with alone(out):
        (results,) = run_parallel(build_actor, build_env, [job])
    labels = job.labels
    objects = sorted({str(label["object"]) for label in labels.values()})
    report = {
        **summary.summarise(results),
        "by_object": {
            name: summary.rate(r.success_end for r in results if labels[r.episode_id]["object"] == name)
            for name in objects
        },
        **identify(c),
    }
    summary.write_json(out / "report.json", report)
    return report


def job_of(c: Config, out: Path, name: str, skip: int = 0, most: int | None = None) -> Job:
    """The first `evaluation.episodes` held-out episodes of `c.env` after `skip`, of `most` there; `out` is claimed."""
    from vlapost.evaluation.parallel import Job

    ids = ids_of(c, skip, most)
    labels = labels_of(c, ids, name)
    _claim(c, out)
    return Job(name, c, ids, out, labels)


def ids_of(c: Config, skip: int = 0, most: int | None = None) -> list[int]:
    """The first `evaluation.episodes` held-out episodes of `c.env` after `skip`, of `most` there.

    Raises:
        UserError: there are not so many.
    """
    from vlapost.envs.episodes import held_out

    known = held_out(c.env.id, c.env.obj_set, c.env.protocol).tolist()[skip:][:most]
    if c.evaluation.episodes > len(known):
        raise UserError(
            f"evaluation.episodes is {c.evaluation.episodes}; only {len(known)} episodes of {c.env.id} {c.env.obj_set} "
            "are held out."
        )
    return known[: c.evaluation.episodes]


def identify(c: Config) -> dict[str, Any]:
    """What stands in every report: who acted, how, in which scenes, with which packages, and all settings."""
    from vlapost.assets.pack import exact_edition

    report: dict[str, Any] = {"actor": c.evaluation.actor, "protocol": c.env.protocol, "seed": c.seed}
    report |= {"edition": exact_edition(c.env.assets), "packages": {name: version(name) for name in PACKAGES}}
    if c.evaluation.actor == "policy":
        report["decoding"] = decoding(c)
        report["checkpoint"] = {"base": c.policy.checkpoint, "adapter": c.policy.adapter, "sha256": fingerprint(c)}
    return report | {"config": OmegaConf.to_container(OmegaConf.structured(c))}


def folder(c: Config) -> Path:
    """Where the results belong: equal for two commands exactly if their episodes may be counted together."""
    return run_folder(c) / "evaluation" / f"{c.env.id}-{c.env.obj_set}-{short(c)}-seed{c.seed}-{identity(c)}"


def run_folder(c: Config) -> Path:
    """The folder of the run that the adapter comes from, or else of this run."""
    logs, adapter = ROOT / "lightning_logs", ROOT / c.policy.adapter
    return logs / (adapter.relative_to(logs).parts[0] if c.policy.adapter and adapter.is_relative_to(logs) else c.run)


def short(c: Config) -> str:
    """Who acts and how, for the name of a folder."""
    e = c.evaluation
    if e.actor != "policy":
        return e.actor.replace(":", "-")
    return "greedy" if e.temperature == 0 else f"t{e.temperature:g}" + (f"-k{e.top_k}" if e.top_k else "")


def fingerprint(c: Config) -> str:
    """SHA-256 over what acts: weights, tokenizer, statistics and settings of the base and of the adapter, if any.

    Raises:
        UserError: a folder without weights, or an adapter that its run has trained on another base.
    """
    from vlapost.policies.hub import locate

    p = c.policy
    base = _files("policy.checkpoint", p.checkpoint, locate(p.checkpoint, ROOT))
    if not p.adapter:
        return _digest(base)
    adapter = _files("policy.adapter", p.adapter, ROOT / p.adapter)
    origin.refuse_other_base(c, _digest(base))
    return _digest((*base, *adapter))


def adapter_fingerprint(c: Config) -> str:
    """The same of `policy.adapter` alone."""
    return _digest(_files("policy.adapter", c.policy.adapter, ROOT / c.policy.adapter))


def _files(key: str, place: str, folder: Path) -> tuple[tuple[Path, int, int], ...]:
    """What decides actions of a base or an adapter: files, their sizes and times."""
    from vlapost.policies.files import refuse_pickles, restore

    restore(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        refuse_pickles(folder, "*.safetensors")
        remedy = "make pretrain writes the small model" if key == "policy.checkpoint" else "give a saved adapter"
        raise UserError(f"{key} is '{place}', where there is no *.safetensors file; {remedy}.")
    files = [*weights, *(folder / name for name in BESIDE_WEIGHTS if (folder / name).is_file())]
    return tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files)


@cache
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Over the content of files, read again only if size or time of one has changed."""
    digest = hashlib.sha256()
    for path, _, _ in files:
        with path.open("rb") as file:
            while block := file.read(2**22):
                digest.update(block)
    return digest.hexdigest()


def identity(c: Config) -> str:
    """Short digest of all that decides an episode: not how many there are, by how many processes, filmed or not."""
    from vlapost.assets.pack import exact_edition

    # On a GPU and with protocol paper scenes that share a batch share crops and settling.
    by_itself = c.env.protocol == "v2" or c.env.backend == "cpu"
    env = replace(c.env, num_envs=0 if by_itself else c.env.num_envs, assets=exact_edition(c.env.assets))
    env_text = OmegaConf.to_yaml(OmegaConf.structured(env))
    precision = c.trainer.precision + (c.policy.quantize if c.policy.quantize != "none" else "")
    key = c.policy.unnorm_key + (f" {statistics_fingerprint(c)}" if c.policy.statistics else "")
    actor = f"{key} {precision} {fingerprint(c)}" if c.evaluation.actor == "policy" else _source(c)
    decisive = f"{env_text} {short(c)} {c.seed} {actor}"
    return hashlib.sha256(decisive.encode()).hexdigest()[:8]


def statistics_fingerprint(c: Config) -> str:
    """The same of the action statistics in `policy.statistics`.

    Raises:
        UserError: there are none.
    """
    path = ROOT / c.policy.statistics / "dataset_statistics.json"
    if not path.is_file():
        raise UserError(f"policy.statistics={c.policy.statistics} holds no {path.name}; make import-demos writes one.")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _source(c: Config) -> str:
    """Digest of the file that an actor of one's own comes from; empty where there is none."""
    module, _, function = c.evaluation.actor.partition(":")
    try:
        found = find_spec(module) if function else None
    except Exception:  # the module is run if it is in a package; building the actor says what is wrong
        return ""
    path = Path(found.origin) if found and found.has_location and found.origin else None
    return _digest(((path, path.stat().st_size, path.stat().st_mtime_ns),)) if path else ""


def _claim(c: Config, out: Path) -> None:
    """Never count episodes of different policies or settings together."""
    mark = out / "identity"
    expected = identity(c)
    if not mark.is_file():
        write_text(mark, expected)
    if mark.read_text() != expected:
        raise UserError(f"{out} holds episodes of another policy or other settings; delete that folder to start anew.")


def decoding(c: Config) -> str:
    """How a policy's actions are chosen, in words."""
    e = c.evaluation
    bins = f"the {e.top_k} likeliest" if e.top_k else "all 256"
    return "greedy" if e.temperature == 0 else f"sampled at temperature {e.temperature:g} from {bins} bins"


def labels_of(c: Config, ids: list[int], name: str) -> dict[int, dict[str, str | int]]:
    """What is drawn in each episode."""
    import torch

    from vlapost.assets.pack import open_pack
    from vlapost.envs.episodes import decode
    from vlapost.envs.setups import setup_of

    setup, pack = setup_of(c.env), open_pack(c.env.assets)
    spec = decode(setup, torch.tensor(ids))
    drawn: dict[str, tuple[Sequence[Model | Table], Tensor]] = {
        "object": (pack.objects, spec.object),
        "receptacle": (pack.receptacles, spec.receptacle),
        "table": (pack.tables, spec.table),
        "other_object": (pack.objects, spec.other_object),
        "other_receptacle": (pack.receptacles, spec.other_receptacle),
        "texture": (pack.tables, spec.texture),
    }
    common: dict[str, str | int] = {"setup": name, "seed": c.seed}
    return {
        episode: common | {key: pool[int(index[i])].id for key, (pool, index) in drawn.items() if int(index[i]) >= 0}
        for i, episode in enumerate(ids)
    }


def build_actor(c: Config) -> Actor:
    """In an evaluating process: who acts."""
    from vlapost.build import build_actor

    return build_actor(c)


def build_env(c: Config, num_envs: int) -> VectorEnv:
    """In an evaluating process: the scenes."""
    from vlapost.envs.vector import make_env

    return make_env(c.env, num_envs)


if __name__ == "__main__":
    cli.main(run)
