"""Make openvla-tiny: `python -m vlapost.pretrain [key=value ...]`, or `make pretrain`.

Planner demonstrations in the pretraining world -> an untrained folder in OpenVLA's layout -> training of every weight
with grounding heads (algorithms/pretrain.py): seeing -> the same with frozen image encoders, on demonstrations alone:
acting -> `policy.checkpoint`. Interrupted, the same command continues. The work is in lightning_logs/<run>/; the
finished folder replaces models/openvla-tiny, with the recipe beside the weights.
"""

from __future__ import annotations

import csv
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlapost import cli, collect_demos, config, evaluate
from vlapost.config import ROOT, Config, UserError
from vlapost.evaluation.summary import METRICS, write_json
from vlapost.recipe import measured
from vlapost.runs import MAY_CHANGE, check, claim_settings
from vlapost.stages import Stage, check_evaluation, perform, process
from vlapost.train import fit, newest_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from vlapost.experience.demos import DemoDataset

# Logged of every update, not of iterations.
EACH_STEP = ("train/grad_norm", "train/empty_steps", "train/skipped_steps", "train/stopped_steps")
PART = "part="  # how this command starts the processes of its stages
SEEING, ACTING = "seeing", "acting"


def run(argv: list[str]) -> None:
    """Pretrain as the command line says."""
    part = cli.last(argv, PART) if "VLAPOST_STAGE" in os.environ else ""
    name, overrides = cli.parse([word for word in argv if not (part and word.startswith(PART))], "pretrain")
    cfg = config.load(name, overrides)
    refuse(cfg, name)
    collect_demos.check_complete(cfg)
    folder = ROOT / "lightning_logs" / cfg.run / "pretrain"
    check(cfg)
    if part:
        cli.end_with_parent()
        frozen = part == ACTING
        start = folder / SEEING / "openvla-tiny" if frozen else folder / "untrained"
        pretrain(acting(cfg) if frozen else cfg, start, folder / part, frozen)
        return
    claim_settings(folder, cfg, tuple(key for key in MAY_CHANGE if key != "trainer.iterations"))
    collect_demos.collect(cfg)
    if not (folder / SEEING / "openvla-tiny").is_dir():
        collect_demos.collect(views_of(cfg))

    def stage(part: str) -> Stage:
        return part, folder / part / "openvla-tiny", lambda: process("vlapost.pretrain", name, *overrides, PART + part)

    perform(folder, [stage(SEEING), stage(ACTING)])
    publish(cfg, folder, ROOT / cfg.policy.checkpoint)


def refuse(cfg: Config, name: str) -> None:
    """Before hours of work: what cannot be pretrained, and a folder that its end would replace and must not.

    Raises:
        UserError: the settings of another command; pictures of another size; an evaluation that cannot be;
            `policy.checkpoint` is something else than a checkpoint.
    """
    from vlapost.policies.files import occupied
    from vlapost.policies.tiny import IMAGE

    check_evaluation(cfg)
    evaluate.ids_of(replace(cfg, env=config.load("base").env))
    target, size = ROOT / cfg.policy.checkpoint, [IMAGE, IMAGE]
    if cfg.algorithm.name != "pretrain":
        raise UserError(f"conf/{name}.yaml describes no pretraining; leave it out, or begin its name with pretrain_.")
    if cfg.env.image_size != size:
        raise UserError(f"env.image_size is {cfg.env.image_size}; openvla-tiny sees {size}.")
    if occupied(target) and not (target / "model.safetensors").is_file():
        raise UserError(
            f"policy.checkpoint is {target}, which this command would replace, and which holds no model.safetensors; "
            "name a new folder, or that of a checkpoint."
        )


def acting(cfg: Config) -> Config:
    """The settings of the second part, in which the image encoders stay as they are: no views, nothing to segment."""
    g = cfg.grounding
    return replace(
        cfg,
        optim=replace(cfg.optim, batch_size=cfg.optim.batch_size + g.batch_size),
        trainer=replace(cfg.trainer, iterations=g.acting_iterations),
        grounding=replace(g, batch_size=0, segmentation_coef=0.0),
    )


def views_of(cfg: Config) -> Config:
    """The settings of the views that are learned from beside the demonstrations, of other starts."""
    g, d = cfg.grounding, cfg.demos
    demos = replace(
        d, path=g.path, episodes=g.starts, views=g.views, seed=d.seed + 1, disturbed=0.0, frames="all", filter="none"
    )
    return replace(cfg, demos=demos)


def pretrain(cfg: Config, start: Path, folder: Path, frozen: bool) -> None:
    """Train the weights in `start` and write the folder `folder`/openvla-tiny.

    frozen: the image encoders stay as they are; otherwise `start` is made at random if it is not there.
    """
    import torch

    from vlapost.algorithms.pretrain import Pretrain, standardise
    from vlapost.assets.pack import open_pack
    from vlapost.build import build_experience, open_demos, total_steps
    from vlapost.contracts import DemoBatch, GroundedBatch, Observation
    from vlapost.envs.overlay import table_picture
    from vlapost.experience.augment import repaint
    from vlapost.experience.datamodule import DemoFeed
    from vlapost.policies.load import load_full_policy
    from vlapost.policies.tiny import write_tiny

    demos = open_demos(cfg)
    if not demos.meta.grounded:
        raise UserError(
            f"demos.path={cfg.demos.path} holds imported demonstrations, without the positions and labels that "
            "pretraining learns from; name a folder of the planner's."
        )
    views = open_demos(views_of(cfg)) if cfg.grounding.batch_size else None
    if not frozen and not start.is_dir():
        write_tiny(start, cfg.seed, {cfg.policy.unnorm_key: demos.statistics()})
    policy = load_full_policy(start, cfg.policy.unnorm_key)
    if frozen:
        policy.network.vision_backbone.requires_grad_(False)
    tokens = policy.encode(demos.actions)
    height, width = cfg.env.image_size
    tables = torch.stack([table_picture(t.image, height, width) for t in open_pack(cfg.env.assets).tables])

    def seen(data: DemoDataset, index: Tensor, generator: torch.Generator | None) -> tuple[Any, ...]:
        truth = data.grounding(index)
        positions = (truth.object_position, truth.receptacle_position, truth.gripper_position)
        image, instruction = data.observation(index)
        if cfg.experience.augment and generator is not None:
            image = repaint(image, truth.segmentation, tables, generator)
        return image, instruction, standardise(torch.cat(positions, -1)), truth.segmentation

    def make(index: Tensor, generator: torch.Generator | None) -> GroundedBatch:
        image, instruction, position, segmentation = seen(demos, index, generator)
        if views is None:
            demo = DemoBatch(Observation(image, instruction), tokens[index])
            return GroundedBatch(demo, position, segmentation, len(index))
        others = torch.randint(len(views), (cfg.grounding.batch_size,), generator=generator)
        more = seen(views, others, generator)
        nothing = tokens.new_zeros(len(others), tokens.shape[1])
        return GroundedBatch(
            DemoBatch(
                Observation(torch.cat([image, more[0]]), instruction + more[1]), torch.cat([tokens[index], nothing])
            ),
            torch.cat([position, more[2]]),
            torch.cat([segmentation, more[3]]),
            len(index),
        )

    torch.manual_seed(cfg.seed)  # of the grounding heads
    module = Pretrain(policy, cfg.grounding, cfg.optim, total_steps(cfg), policy.sizes)
    data = build_experience(cfg, policy, module, lambda: DemoFeed(len(demos), make))
    if fit(cfg, folder, module, data, newest_checkpoint(folder / "checkpoints")):
        policy.save_full(folder / "openvla-tiny")


def publish(cfg: Config, folder: Path, target: Path) -> None:
    """Score the finished folder in its world, and it and the untrained one on the benchmark; put all in place."""
    from vlapost.policies.files import new_folder

    benchmark = config.load("base").env
    scores: dict[str, Any] = {}
    for label, name, env in (
        ("world", f"{ACTING}/openvla-tiny", cfg.env),
        ("untrained", "untrained", benchmark),
        ("pretrained", f"{ACTING}/openvla-tiny", benchmark),
    ):
        c = replace(cfg, env=env, policy=replace(cfg.policy, checkpoint=str(folder / name)))
        report = evaluate.evaluate(c, folder / f"evaluation-{label}")
        scores[label] = {m: report[m] for m in METRICS}
    scores["measured"] = measured(benchmark, report)
    finished = folder / ACTING / "openvla-tiny"
    shutil.copy(folder / "config.yaml", finished / "recipe.yaml")
    write_json(finished / "scores.json", scores)
    write_log(folder / SEEING, finished / "log.csv")
    write_log(folder / ACTING, finished / "log-acting.csv")
    with new_folder(target) as new:
        shutil.copytree(finished, new, dirs_exist_ok=True)
        if (target / "README.md").is_file():
            shutil.copy(target / "README.md", new)
    cli.console.print(f"Wrote {target}.")


def write_log(folder: Path, path: Path) -> None:
    """The losses of every iteration, from the run's TensorBoard events."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    found = events.Tags()["scalars"]
    tags = [t for t in sorted(found) if t.startswith(("train/", "val/")) and t not in EACH_STEP]
    rows: dict[int, dict[str, float]] = {}
    for tag in tags:
        for event in events.Scalars(tag):
            rows.setdefault(event.step, {})[tag] = round(event.value, 5)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, ["step", *tags])
        table.writeheader()
        table.writerows({"step": step, **values} for step, values in sorted(rows.items()))


if __name__ == "__main__":
    cli.main(run)
