"""What an adapter was trained on, where it still lies in the folder of its run."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from vlapost import cli
from vlapost.config import ROOT, Config, UserError

BASE = "base.sha256"  # of a run: the fingerprint of the weights it began with
# what a policy is used to, and the numbers it is computed in
SEEN = (
    "policy.unnorm_key",
    "policy.quantize",
    "trainer.precision",
    "env.image_size",
    "env.shader",
    "env.sim_freq",
)


def stage_of(adapter: Path) -> Path | None:
    """The folder of the training stage that an adapter lies in, or one of its snapshots; None elsewhere."""
    return next((place for place in (adapter.parent, adapter.parent.parent) if (place / BASE).is_file()), None)


def refuse_other_base(c: Config, base: str) -> None:
    """Make sure that `policy.adapter` was trained on the base whose fingerprint is `base`.

    Raises:
        UserError: its run had another one.
    """
    stage = stage_of(ROOT / c.policy.adapter)
    if stage is not None and (stage / BASE).read_text() != base:
        written = OmegaConf.load(stage / "config.yaml").policy.checkpoint
        raise UserError(
            f"policy.adapter={c.policy.adapter} was trained when policy.checkpoint was {written}, and "
            f"{c.policy.checkpoint} holds other weights now; name the base it belongs to."
        )


def say_what_differs(c: Config) -> None:
    """Say so where an adapter is evaluated with other settings than it was trained with."""
    if found := differing(c):
        cli.console.print(f"The adapter was trained with {found}.")


def differing(c: Config) -> str:
    """In which of the settings that a policy is used to `c` differs from those of its training; empty: in none."""
    stage = stage_of(ROOT / c.policy.adapter) if c.policy.adapter else None
    if stage is None:
        return ""
    trained, here = OmegaConf.load(stage / "config.yaml"), OmegaConf.structured(c)
    pairs = [(key, OmegaConf.select(trained, key), OmegaConf.select(here, key)) for key in SEEN]
    return ", ".join(f"{key}={then} (now {now})" for key, then, now in pairs if then is not None and then != now)
