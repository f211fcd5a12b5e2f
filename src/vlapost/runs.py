"""A run: how large it is, and what it keeps from its first command to its last: settings, weights, processes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from vlapost import config, evaluate, origin
from vlapost.config import Config, UserError
from vlapost.disk import write_text
from vlapost.drivers import gpus

# How demonstrations are collected, not which.
COLLECTING = tuple(f"demos.{key}" for key in ("workers", "part", "parts", "frames", "shard_attempts", "skip_corrupt"))
# Settings that may differ when a command of several stages is continued: how fast, what is shown; not what is learned
# or measured. How many processes there are is kept by `keep_processes`, since 0 means another number elsewhere.
HOW = (
    *("trainer.devices", "trainer.video_episodes"),
    *COLLECTING,
    *("policy.recompute", "policy.cuda_graph"),
    *("evaluation.workers", "evaluation.videos", "generalization."),
)
# ... and when a single stage is, which measures nothing: also how long.
MAY_CHANGE = (*HOW, "trainer.iterations", "trainer.snapshot_every", "evaluation.")


def processes(cfg: Config) -> tuple[int, int]:
    """How many GPUs there are to use, and how many processes train."""
    found = gpus(cfg.trainer.accelerator)
    return found, cfg.trainer.devices or found or min(2, os.cpu_count() or 1)


def place(cfg: Config) -> str:
    """The device this process trains on.

    Lightning would move a policy there too. But a base in CPU memory would first be there once for each process, and
    8-bit weights have to be quantised where they stay.
    """
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if processes(cfg)[0] else "cpu"


def check(*settings: Config) -> None:
    """Refuse sizes that do not fit, those of all trainings of a command before a folder is claimed for one.

    Raises:
        UserError: minibatches that do not divide a rollout, fewer episodes to evaluate than processes, or more
            processes than GPUs.
    """
    from vlapost.envs.episodes import held_out
    from vlapost.envs.setups import setup_of
    from vlapost.experience.sizes import check_sizes

    for cfg in settings:
        found, count = processes(cfg)
        if found and count > found:
            raise UserError(f"trainer.devices is {count}, but here {'is' if found == 1 else 'are'} {found} GPU(s).")
        check_sizes(cfg, setup_of(cfg.env).task.steps, count)
        known = len(held_out(cfg.env.id, cfg.env.obj_set, cfg.env.protocol))
        if cfg.trainer.eval_every and cfg.trainer.eval_episodes > known:
            raise UserError(f"trainer.eval_episodes is {cfg.trainer.eval_episodes}; only {known} are held out.")


def amount(cfg: Config) -> str:
    """How much an iteration is, in words."""
    from vlapost.envs.setups import setup_of
    from vlapost.experience.sizes import episodes, samples

    e, (_, count) = cfg.experience, processes(cfg)
    steps = samples(cfg, setup_of(cfg.env).task.steps) * count
    words = {
        "rollout": f"{episodes(cfg) * count} episodes, {steps:,} steps",
        "demos": f"{e.demo_steps * cfg.optim.batch_size * count:,} samples",
    }
    what = " or ".join(words[source] for source in dict.fromkeys(e.schedule))
    return f"{count} process{'es' * (count > 1)}, {what} an iteration"


def claim(folder: Path, cfg: Config, may_change: tuple[str, ...] = MAY_CHANGE) -> None:
    """Write settings, base and adapter of a new run; for an old one make sure that all that matters is still the same.

    Raises:
        UserError: it was started with other settings or on other weights; there are no such weights or statistics.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":  # the first process has read the base, which may be 15 GB
        claim_settings(folder, cfg, may_change)
        return
    held = weights(cfg)
    claim_settings(folder, cfg, may_change)
    for (key, now), mark in zip(held.items(), (folder / origin.BASE, folder / "adapter.sha256")):
        if not mark.is_file():
            write_text(mark, now)
        elif mark.read_text() != now:
            raise UserError(
                f"The run '{cfg.run}' was started when policy.{key}={getattr(cfg.policy, key)} held other weights; "
                "choose another name with run=NAME."
            )


def weights(cfg: Config) -> dict[str, str]:
    """Fingerprints of the base, "checkpoint", and of the adapter, "adapter", if there is one; both fit each other.

    Raises:
        UserError: there is no such base, or not with these action statistics; the adapter is of another one.
    """
    held = {"checkpoint": evaluate.fingerprint(base_of(cfg))}
    if cfg.policy.adapter and (config.ROOT / cfg.policy.adapter).is_dir():  # or an earlier stage has still to make it
        origin.refuse_other_base(cfg, held["checkpoint"])
        held["adapter"] = evaluate.adapter_fingerprint(cfg)
    known_key(cfg)
    return held


def known_key(cfg: Config) -> None:
    """Make sure that the base has the action statistics `policy.unnorm_key`.

    Raises:
        UserError: it has others; the sentence names them. Or `policy.statistics` has none at all.
    """
    from vlapost.policies.action_tokens import ActionTokens
    from vlapost.policies.checkpoint import read_config, statistics_of
    from vlapost.policies.hub import locate

    p = cfg.policy
    if p.statistics:
        evaluate.statistics_fingerprint(cfg)
    base = locate(p.checkpoint, config.ROOT)
    others = [config.ROOT / place for place in (p.statistics, p.adapter) if place]
    ActionTokens(statistics_of(read_config(base), base, *others), p.unnorm_key)


def base_of(cfg: Config) -> Config:
    """The settings without an adapter."""
    return replace(cfg, policy=replace(cfg.policy, adapter=""))


def claim_settings(folder: Path, cfg: Config, may_change: tuple[str, ...]) -> None:
    """The same for the settings alone."""
    written = folder / "config.yaml"
    if cfg.optim.schedule == "cosine":  # the rate falls to zero at the last iteration: another end is another rate
        may_change = tuple(key for key in may_change if key != "trainer.iterations")
    if written.is_file():
        changed = [c for c in config.differences(cfg, written.read_text()) if not c.startswith(may_change)]
        if changed:
            raise UserError(
                f"The run '{cfg.run}' was started with other settings ({'; '.join(changed[:3])}); "
                "choose another name with run=NAME, or give the settings it was started with."
            )
        return
    write_text(written, config.to_yaml(cfg))


def keep_processes(cfg: Config, folder: Path, continues: bool) -> None:
    """A stage goes on with as many processes as it began with: an iteration is so many times as large.

    Raises:
        UserError: there are more or fewer now.
    """
    mark, now = folder / "processes", processes(cfg)[1]
    if not continues:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            write_text(mark, f"{now}\n")
        return
    begun = int(mark.read_text()) if mark.is_file() else now
    if begun != now:
        raise UserError(
            f"{folder} was begun with {begun} processes and would go on with {now}, which is another experiment; "
            f"set trainer.devices={begun}, or choose another name with run=NAME."
        )
