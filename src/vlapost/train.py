"""Train one stage: `python -m vlapost.train sft|ppo|grpo|tpo [key=value ...]`.

Writes lightning_logs/<run>/<algorithm>/: config.yaml, TensorBoard events, checkpoints/ (the newest two iterations),
videos/, and at the end adapter/ (what `policy.adapter` of a later stage or an evaluation points at). The same
command continues an interrupted run from its last finished iteration, and leaves a finished one as it is.
"""

from __future__ import annotations

import logging
import os
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from vlapost import cli, collect_demos, config
from vlapost.config import Config, UserError
from vlapost.disk import alone
from vlapost.runs import amount, check, claim, keep_processes, place, processes, weights

if TYPE_CHECKING:
    import lightning as L

    from vlapost.algorithms.base import PolicyModule
    from vlapost.experience.datamodule import ExperienceModule
HARMLESS = (
    ".*module\\(s\\) in eval mode.*",  # there is no dropout: train() and eval() are the same here
    ".*Grad strides do not match bucket view strides.*",  # of tensors with one row
    ".*does not have many workers.*",  # simulators do not survive a fork; loading is measured (time/loading_s)
    ".*Experiment logs directory.*",  # a resumed run
    ".*Checkpoint directory.*exists and is not empty.*",
    ".*treespec, LeafSpec.*",  # Lightning 2.6 asks PyTorch 2.13 in an older way
)


def run(argv: list[str]) -> None:
    """Train the stage named by the command line."""
    name, overrides = cli.parse(argv, "sft")
    cfg = config.load(name, overrides)
    if cfg.algorithm.name == "pretrain":
        raise UserError("conf/pretrain.yaml is trained by make pretrain.")
    collect_demos.check_complete(cfg)
    folder = config.ROOT / "lightning_logs" / cfg.run / cfg.algorithm.name
    if "LOCAL_RANK" in os.environ or "VLAPOST_STAGE" in os.environ:  # started by another process of ours
        cli.end_with_parent()
    elif "demos" in cfg.experience.schedule:
        check(cfg)
        check_start(cfg)
        if (folder / "config.yaml").is_file():
            claim(folder, cfg)
        else:  # a new run is claimed when its demonstrations are there
            weights(cfg)
        collect_demos.collect(cfg)
    train(cfg, folder)


def check_start(cfg: Config) -> None:
    """Make sure that the adapter to start from, if there is to be one, is there and fits.

    Raises:
        UserError: it is not, or does not.
    """
    if cfg.policy.adapter:
        from vlapost.policies.load import check_adapter

        check_adapter(config.ROOT / cfg.policy.adapter, cfg.policy)


def train(cfg: Config, folder: Path) -> None:
    """Run a stage to its end, from its newest checkpoint if there is one."""
    check(cfg)
    check_start(cfg)  # before the run's name is taken
    claim(folder, cfg)
    checkpoint = newest_checkpoint(folder / "checkpoints")  # damaged: said before anything heavy loads
    adapter = folder / "adapter"
    if checkpoint and iterations(checkpoint) >= last_iteration(cfg, checkpoint) and newer(adapter, checkpoint):
        cli.console.print(f"{folder.name}: already finished ({adapter}).")
        return

    from vlapost.build import build_experience, build_module, build_policy
    from vlapost.policies.policy import save_policy

    policy = build_policy(cfg, place(cfg))
    module = build_module(cfg, policy)
    if fit(cfg, folder, module, build_experience(cfg, policy, module), checkpoint):
        save_policy(policy, adapter)


def fit(cfg: Config, folder: Path, module: PolicyModule, data: ExperienceModule, checkpoint: Path | None) -> bool:
    """Train to the last iteration, from the beginning or from a checkpoint; true on the first process."""
    trainer = build_trainer(cfg, folder, last_iteration(cfg, checkpoint))
    if trainer.is_global_zero:
        cli.console.print(f"{folder.name}: {learning(module):,} weights learn; {amount(cfg)}.")
    with alone(folder, trainer.is_global_zero):
        keep_processes(cfg, folder, checkpoint is not None)
        if checkpoint is not None and trainer.is_global_zero:
            cli.console.print(f"{folder.name}: continuing from {checkpoint.name}.")
        try:
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit:
            if trainer.interrupted:  # Lightning turns Ctrl-C into an exit of its own
                raise KeyboardInterrupt from None
            raise
    return trainer.is_global_zero


def build_trainer(cfg: Config, folder: Path, last: int) -> L.Trainer:
    """Lightning's Trainer: one epoch is one iteration; two newest checkpoints are kept."""
    import lightning as L
    import torch
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
    from lightning.pytorch.loggers import TensorBoardLogger
    from lightning.pytorch.plugins.environments import LightningEnvironment
    from lightning.pytorch.strategies import DDPStrategy

    from vlapost.callbacks.checkpoints import SafeCheckpoints
    from vlapost.callbacks.progress import Progress
    from vlapost.callbacks.rollout_stats import RolloutStats
    from vlapost.callbacks.snapshots import Snapshots
    from vlapost.callbacks.termination import Termination
    from vlapost.callbacks.videos import Videos

    for known in HARMLESS:
        warnings.filterwarnings("ignore", message=known)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    t = cfg.trainer
    gpus, devices = processes(cfg)
    if not gpus or ("rollout" in cfg.experience.schedule and cfg.env.backend == "cpu"):
        torch.set_num_threads(1)  # a second thread gains 1.2x at best, a second process nearly 2x
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # or Lightning sets them again, where it starts processes
    if not gpus:
        torch.set_float32_matmul_precision(t.matmul)
        torch.backends.cuda.enable_flash_sdp(False)  # its many small products are slow in oneDNN
    checkpoints = ModelCheckpoint(
        dirpath=folder / "checkpoints", filename="iteration{epoch:05d}", auto_insert_metric_name=False,
        monitor="step", mode="max", save_top_k=2, every_n_epochs=1, save_on_train_epoch_end=True,
        enable_version_counter=False,
    )  # fmt: skip
    return L.Trainer(
        accelerator="gpu" if gpus else "cpu",
        devices=devices,
        strategy=DDPStrategy(forward_sync_buffers=False) if devices > 1 else "auto",  # buffers never change
        precision="32-true",  # trainer.precision is that of the frozen base; adapters and RL scalars stay float32
        max_epochs=last,
        accumulate_grad_batches=cfg.optim.accumulate,
        gradient_clip_val=cfg.optim.grad_clip,
        check_val_every_n_epoch=t.eval_every or None,
        limit_val_batches=None if t.eval_every else 0,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        inference_mode=False,
        log_every_n_steps=1,
        logger=TensorBoardLogger(folder.parent, name="", version=folder.name),
        callbacks=[
            checkpoints,
            RolloutStats(),
            Videos(folder / "videos"),
            Snapshots(folder / "snapshots", t.snapshot_every),
            Progress(),
            Termination(),
            *([EarlyStopping("val/demo_loss", patience=t.patience, check_finite=False)] if t.patience else []),
        ],
        plugins=[SafeCheckpoints(), LightningEnvironment()],  # we start the processes, in a job of SLURM too
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def learning(module: PolicyModule) -> int:
    """How many weights are trained: adapters and critic, or a whole policy in pretraining."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the last finished iteration, or None.

    Raises:
        UserError: it is truncated; the one before it is kept and is used once this one is deleted.
    """
    files = sorted(folder.glob("iteration*.ckpt"))
    if not files:
        return None
    if not zipfile.is_zipfile(files[-1]) or zipfile.ZipFile(files[-1]).testzip() is not None:
        before = f"the one before it, {files[-2].name}" if len(files) > 1 else "the start"
        raise UserError(
            f"The checkpoint {files[-1]} is truncated or damaged; delete it and the same command continues "
            f"from {before}."
        )
    return files[-1]


def iterations(checkpoint: Path) -> int:
    """How many iterations a checkpoint has behind it."""
    return int(checkpoint.stem.removeprefix("iteration")) + 1


def newer(adapter: Path, checkpoint: Path) -> bool:
    """Whether an adapter was written after a checkpoint; if not, it is of a shorter training."""
    return adapter.is_dir() and adapter.stat().st_mtime >= checkpoint.stat().st_mtime


def last_iteration(cfg: Config, checkpoint: Path | None) -> int:
    """How many iterations a stage has: `trainer.iterations`, or fewer where its patience came to an end before.

    Not fewer than there have been: a stage that is told to end earlier ends at once.
    """
    if checkpoint is None:
        return cfg.trainer.iterations
    done = iterations(checkpoint)
    if cfg.trainer.patience:
        import torch

        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["callbacks"]
        (stopping,) = (found for name, found in state.items() if name.startswith("EarlyStopping"))
        if stopping["wait_count"] >= cfg.trainer.patience:
            return done
    return max(cfg.trainer.iterations, done)


if __name__ == "__main__":
    cli.main(run)
