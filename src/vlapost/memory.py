"""What a stage needs in memory: `python -m vlapost.memory [sft|ppo|...] [key=value ...]`. Nothing is loaded.

    make memory ARGS="ppo policy.checkpoint=openvla/openvla-7b trainer.precision=bf16-true optim.batch_size=8"

A checkpoint folder is measured by its own shapes; a name on the Hub stands for OpenVLA-7B's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from vlapost import cli, config
from vlapost.config import ROOT, Config

if TYPE_CHECKING:
    from vlapost.policies.memory import Needs

GIB = 2**30
ROWS = {
    "weights": "frozen base",
    "adapters": "adapters and critic, float32",
    "gradients": "of the weights that learn",
    "moments": "of AdamW",
    "activations": "kept for the backward pass of a minibatch",
    "cache": "keys and values while a rollout decodes",
    "rollout": "pictures, and features of frozen encoders, of an iteration",
}


def run(words: list[str]) -> None:
    """Work it out and print it."""
    c = config.load(*cli.parse(words, "ppo"))
    needs = of(c)
    shown = Table(title=f"{c.policy.checkpoint}, {c.trainer.precision}, minibatches of {c.optim.batch_size}")
    for column in ("what", "GiB", "detail"):
        shown.add_column(column, justify="right" if column == "GiB" else "left")
    for name, detail in ROWS.items():
        shown.add_row(name, f"{getattr(needs, name) / GIB:.3f}", detail)
    shown.add_section()
    shown.add_row("learning", f"{needs.learning / GIB:.3f}", "all but the cache; kernels need some more for themselves")
    shown.add_row("acting", f"{needs.acting / GIB:.3f}", f"weights, moments, cache of {c.env.num_envs} scenes")
    cli.console.print(shown)
    cli.console.print(f"{needs.trainable:,} weights learn.")


def of(c: Config) -> Needs:
    """The bytes of one training process."""
    import torch

    from vlapost.envs.setups import setup_of
    from vlapost.experience.sizes import samples
    from vlapost.policies.checkpoint import empty_network, read_config
    from vlapost.policies.files import stored_model
    from vlapost.policies.hub import on_hub
    from vlapost.policies.memory import needs
    from vlapost.policies.sizes import scaled_7b

    folder, p = ROOT / c.policy.checkpoint, c.policy
    if on_hub(p.checkpoint, ROOT):
        _, network = scaled_7b(1)
    else:
        network = empty_network(folder, read_config(folder), stored_model(folder))
    return needs(
        network,
        dtype=torch.bfloat16 if c.trainer.precision.startswith("bf16") else torch.float32,
        rank=p.lora_rank,
        train_vision=p.train_vision,
        critic=p.critic,
        quantized=p.quantize,
        recomputed=p.recompute,
        moment_bits=c.optim.moment_bits,
        batch=c.optim.batch_size,
        scenes=c.env.num_envs,
        samples=samples(c, setup_of(c.env).task.steps) if "rollout" in c.experience.schedule else 0,
        fused=c.trainer.accelerator != "cpu",
    )


if __name__ == "__main__":
    cli.main(run)
