"""Make openvla-tiny: `python -m vlapost.pretrain [key=value ...]`, or `make pretrain`.

Planner demonstrations of the training split -> an untrained folder in OpenVLA's layout -> training of every weight with
grounding heads (algorithms/pretrain.py) -> `policy.checkpoint`. Interrupted, the same command continues. The work is in
lightning_logs/<run>/; the finished folder replaces models/openvla-tiny, with the recipe beside the weights.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from vlapost import cli, collect_demos, config
from vlapost.config import ROOT, Config
from vlapost.train import claim, fit


def run(argv: list[str]) -> None:
    """Pretrain as the command line says."""
    name, overrides = cli.parse(argv, "pretrain")
    cfg = config.load(name, overrides)
    folder = ROOT / "lightning_logs" / cfg.run / "pretrain"
    claim(folder, cfg)
    collect_demos.collect(cfg)
    pretrain(cfg, folder, ROOT / cfg.policy.checkpoint)


def pretrain(cfg: Config, folder: Path, target: Path) -> None:
    """Train from random weights and write the checkpoint folder `target`."""
    import torch

    from vlapost.algorithms.pretrain import Pretrain, standardise
    from vlapost.build import build_experience, open_demos, total_steps
    from vlapost.contracts import DemoBatch, GroundedBatch, Observation
    from vlapost.experience.datamodule import DemoFeed
    from vlapost.policies.policy import load_full_policy
    from vlapost.policies.tiny import write_tiny

    demos = open_demos(cfg)
    untrained = folder / "untrained"
    if not untrained.is_dir():
        write_tiny(untrained, cfg.seed, {cfg.policy.unnorm_key: demos.statistics()})
    policy = load_full_policy(untrained, cfg.policy.unnorm_key)
    tokens = policy.encode(demos.actions)

    def make(index: torch.Tensor, generator: torch.Generator) -> GroundedBatch:
        truth = demos.grounding(index)
        positions = (truth.object_position, truth.receptacle_position, truth.gripper_position)
        return GroundedBatch(
            DemoBatch(Observation(*demos.observation(index)), tokens[index]),
            standardise(torch.cat(positions, -1)),
            truth.segmentation,
        )

    torch.manual_seed(cfg.seed)  # of the grounding heads
    module = Pretrain(policy, cfg.grounding, cfg.optim, total_steps(cfg), policy.sizes)
    data = build_experience(cfg, policy, module, lambda: DemoFeed(len(demos), make))
    if fit(cfg, folder, module, data):
        finished = folder / "openvla-tiny"
        policy.save_full(finished)
        shutil.copy(folder / "config.yaml", finished / "recipe.yaml")
        shutil.copytree(finished, target, dirs_exist_ok=True)
        cli.console.print(f"Wrote {target}.")


if __name__ == "__main__":
    cli.main(run)
