"""A policy as a whole checkpoint folder in OpenVLA's layout: `python -m vlapost.export out=FOLDER [key=value ...]`.

    make export CKPT=lightning_logs/ppo/ppo/adapter OUT=models/mine

Adds the adapter `policy.adapter` into `policy.checkpoint` and writes weights, config, tokenizer, action statistics and
a model card. (Adapter folders are in PEFT's format as they are.) Needs no GPU, and memory for a shard of 5 GB.
"""

from __future__ import annotations

from vlapost import cli, config, evaluate
from vlapost.config import ROOT, UserError

OUT = "out="


def run(words: list[str]) -> None:
    """Merge and say what was written."""
    out = cli.last(words, OUT)
    c = config.load(*cli.parse([word for word in words if not word.startswith(OUT)], "base"))
    if not out:
        raise UserError("Where to? Give a new folder: make export CKPT=lightning_logs/ppo/ppo/adapter OUT=models/mine.")
    if not c.policy.adapter:
        raise UserError("policy.adapter is empty; name the adapter to merge: make export CKPT=FOLDER OUT=FOLDER.")

    from vlapost.policies.files import occupied
    from vlapost.policies.hub import locate
    from vlapost.policies.merge import TITLE, merge

    source, adapter, folder = locate(c.policy.checkpoint, ROOT), ROOT / c.policy.adapter, ROOT / out
    card = folder / "README.md"
    ours = card.is_file() and TITLE in card.read_text()
    if occupied(folder) and not ours:
        raise UserError(f"{folder} is there and was not written by this command; give another folder as OUT.")
    if folder.resolve() == source.resolve():
        raise UserError(f"{folder} is what is to be merged; give another folder as OUT.")
    evaluate.fingerprint(c)  # refuses an adapter of another base
    merged = merge(source, adapter, c.policy.unnorm_key, folder)
    cli.console.print(
        f"Wrote {folder}: {merged.changed} tensors changed; rounding lost {merged.lost:.2%} of the change.",
        soft_wrap=True,
    )


if __name__ == "__main__":
    cli.main(run)
