"""What commands of several stages share: warm-up and RL, which settings go to which, and running what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from vlapost import cli, collect_demos, config, evaluate
from vlapost.config import ROOT, Config, UserError
from vlapost.evaluation.summary import write_json
from vlapost.runs import HOW, check, claim

LEARNING = ("algorithm.", "experience.", "optim.", "trainer.", "policy.critic")
MACHINE = ("trainer.accelerator", "trainer.devices", "trainer.precision", "trainer.matmul")
Stage = tuple[str, Path, Callable[[], object]]  # title, what it leaves when it is finished, the work


@dataclass(frozen=True)
class Training:
    """A warm-up and RL from it, each with the demonstrations it learns from.

    cfg, warmup, base: settings of RL, of the warm-up and of evaluations.
    folder: lightning_logs/<run>. warm: the adapter that RL starts from. tuned: the one it leaves.
    """

    cfg: Config
    warmup: Config
    base: Config
    folder: Path
    warm: Path
    tuned: Path
    warm_up: list[Stage]
    rl: list[Stage]

    def begin(self) -> None:
        """Refuse sizes and imports that do not fit, then claim the folders of RL, of `base` and of a warm-up."""
        from vlapost.exchange.folder import imported

        check(self.cfg, self.warmup)
        for cfg, product in ((self.warmup, self.warm), (self.cfg, self.tuned)):
            if "demos" in cfg.experience.schedule and not product.exists():
                d = cfg.demos
                imported(ROOT / d.path, d.episodes + d.held_out, cfg.env.image_size, d.skip_corrupt)
        claim(self.folder, self.cfg, HOW)
        if not self.cfg.policy.adapter:
            claim(self.folder / "sft", self.warmup, HOW)
        claim(self.folder / "evaluation", self.base, HOW)


def plan(name: str, words: list[str]) -> Training:
    """The training of conf/<name>.yaml with the overrides `words`; nothing is written.

    Raises:
        UserError: the file or an override does not fit a warm-up with RL after it.
    """
    overrides = [w for w in words if not w.startswith("sft.")]
    cfg = config.load(name, overrides)
    if cfg.algorithm.name == "sft":
        raise UserError(f"conf/{name}.yaml trains by SFT alone; use make train-sft.")
    check_evaluation(cfg)
    shared, warmup_words = split_words(words, cfg.run)
    warmup, base = config.load("sft", warmup_words), config.load("base", shared)
    refuse_for_rl_alone(name, cfg, base)
    folder, rl = ROOT / "lightning_logs" / cfg.run, cfg.algorithm.name
    warm, tuned = start_of(cfg, folder, words), folder / rl / "adapter"
    start = f"policy.adapter={below_root(warm)}"
    mixed_in = [demonstrations(cfg, tuned)] if "demos" in cfg.experience.schedule else []
    return Training(
        cfg, warmup, base, folder, warm, tuned,
        warm_up=[demonstrations(warmup, warm), ("warm-up", warm, training("sft", *warmup_words))],
        rl=[*mixed_in, (rl, tuned, training(name, *overrides, f"run={cfg.run}", start))],
    )  # fmt: skip


def check_evaluation(cfg: Config) -> None:
    """For commands that evaluate what they train: what is wrong is said before anything is trained.

    Raises:
        UserError: something else is to act, or fewer episodes are held out than are asked for.
    """
    if cfg.evaluation.actor != "policy":
        raise UserError(f"evaluation.actor is '{cfg.evaluation.actor}'; this command evaluates the policy it trains.")
    evaluate.ids_of(cfg)


def refuse_for_rl_alone(name: str, cfg: Config, base: Config) -> None:
    """Make sure that conf/<name>.yaml changes for RL alone only what concerns RL alone.

    Raises:
        UserError: it changes what the stages must agree about, which the command line tells all of them.
    """
    own = ("run:", "env.num_envs:", "policy.train_vision:", *LEARNING)
    for difference in config.differences(cfg, config.to_yaml(base)):
        key = difference.split(":")[0]
        if not difference.startswith(own) or key in MACHINE:
            raise UserError(f"conf/{name}.yaml sets {key}, which concerns every stage; give it in ARGS instead.")


def start_of(cfg: Config, folder: Path, words: list[str]) -> Path:
    """The adapter that RL starts from: `policy.adapter`, or else the warm-up's.

    Raises:
        UserError: it is not there or of another rank, or a warm-up that is not to be is described, or there.
    """
    if not cfg.policy.adapter:
        return folder / "sft/adapter"
    if own := [word for word in words if word.startswith("sft.")]:
        raise UserError(f"RL starts from policy.adapter={cfg.policy.adapter}, without a warm-up; leave {own[0]} out.")
    if (folder / "sft/config.yaml").is_file():
        raise UserError(f"The run '{cfg.run}' has a warm-up of its own; choose another name with run=NAME.")
    from vlapost.policies.load import check_adapter

    evaluate.fingerprint(cfg)
    check_adapter(ROOT / cfg.policy.adapter, cfg.policy)
    return ROOT / cfg.policy.adapter


def below_root(adapter: Path) -> str:
    """A folder as settings name it: relative to the repository, where it is inside."""
    return str(adapter.relative_to(ROOT) if adapter.is_relative_to(ROOT) else adapter)


def split_words(words: list[str], run: str) -> tuple[list[str], list[str]]:
    """The overrides of every stage, and those of the warm-up.

    Raises:
        UserError: one for the warm-up alone concerns every stage.
    """
    own = [w.removeprefix("sft.") for w in words if w.startswith("sft.")]
    known = [w for w in own if w.split("=")[0] in config.known_keys()]  # others have a sentence of their own
    if wrong := [w for w in known if not w.startswith(LEARNING) or w.startswith(MACHINE)]:
        raise UserError(f"sft.{wrong[0]} concerns every stage; give it without sft. in front.")
    shared = [w for w in words if not w.startswith(("sft.", *LEARNING)) or w.startswith(MACHINE)]
    shared = [*shared, f"run={run}"]
    return shared, [*shared, *own]


def demonstrations(cfg: Config, trained: Path) -> Stage:
    """The stage that collects what is missing of `cfg.demos.episodes`, until `trained` is there.

    Raises:
        UserError: only a part of them is to be collected.
    """
    collect_demos.check_complete(cfg)
    return "demonstrations", trained, lambda: collect_demos.collect(cfg).close()


def perform(folder: Path, stages: list[Stage]) -> dict[str, float]:
    """Run the stages whose product is not there yet; returns the seconds each took over all attempts, by title."""
    seconds_file = folder / "seconds.json"
    seconds: dict[str, float] = json.loads(seconds_file.read_text()) if seconds_file.is_file() else {}
    for title, product, stage in stages:
        if product.exists():
            cli.console.print(f"{title}: finished earlier", style="dim")
            continue
        cli.console.rule(title)
        begin = time.perf_counter()
        try:
            stage()
        finally:
            seconds[title] = seconds.get(title, 0.0) + time.perf_counter() - begin
            write_json(seconds_file, seconds)
    return seconds


def of_adapter(cfg: Config, adapter: Path | None) -> Config:
    """The settings with an adapter (None: the checkpoint alone, with the action statistics of `policy.adapter`)."""
    from vlapost.policies.checkpoint import STATISTICS

    p = cfg.policy
    if adapter:
        return replace(cfg, policy=replace(p, adapter=below_root(adapter)))
    own = p.adapter if p.adapter and (ROOT / p.adapter / STATISTICS).is_file() else ""
    return replace(cfg, policy=replace(p, adapter="", statistics=p.statistics or own))


def evaluation(cfg: Config, adapter: Path | None, folder: Path) -> Callable[[], object]:
    """The work of evaluating an adapter (None: the checkpoint without one) into `folder`."""
    return lambda: evaluate.evaluate(of_adapter(cfg, adapter), folder)


def training(*words: str) -> Callable[[], object]:
    """The work of a training stage, given the words of its command."""
    return lambda: process("vlapost.train", *words)


def process(module: str, *words: str) -> None:
    """A training stage is a process of its own: it may start more of them, and its memory goes when it ends."""
    child = subprocess.Popen([sys.executable, "-m", module, *words], cwd=ROOT, env=os.environ | {"VLAPOST_STAGE": "1"})
    try:
        code = child.wait()
    except KeyboardInterrupt:  # the stage has received it too, and may be writing a checkpoint
        child.wait()
        raise
    if code < 0:
        raise UserError(
            f"The stage python -m {module} was ended by signal {-code}, most likely for lack of memory (`make memory` "
            "says what it needs); the same command continues."
        )
    if code:
        sys.exit(code)
