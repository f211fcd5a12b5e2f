"""The configuration: its schema, and how a run's settings are put together.

    conf/base.yaml  <-  conf/<name>.yaml (only what differs)  <-  key=value words of the command line

A name of several words, ppo_dimension, is what differs from conf/ppo.yaml.

`schema.py` says which keys exist and of which type; `conf/base.yaml` gives each its value and its comment.
This file imports neither torch nor the simulator, so a wrong key stops a command before anything heavy loads.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from itertools import accumulate
from operator import attrgetter
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError
from yaml import YAMLError

from vlapost.schema import (
    CONF,
    ROOT,
    AlgorithmConfig,
    Config,
    DemosConfig,
    EnvConfig,
    EvaluationConfig,
    ExperienceConfig,
    GeneralizationConfig,
    GroundingConfig,
    OptimConfig,
    PolicyConfig,
    TrainerConfig,
    UserError,
)

__all__ = [
    "CONF",
    "ROOT",
    "AlgorithmConfig",
    "Config",
    "DemosConfig",
    "EnvConfig",
    "EvaluationConfig",
    "ExperienceConfig",
    "GeneralizationConfig",
    "GroundingConfig",
    "OptimConfig",
    "PolicyConfig",
    "TrainerConfig",
    "UserError",
    "differences",
    "load",
    "to_yaml",
]


def load(name: str, overrides: Sequence[str] = ()) -> Config:
    """Settings of the run `name` (a file conf/<name>.yaml, or "base"), with `key=value` overrides applied last.

    Raises:
        UserError: an unknown file or key, or a value of the wrong type; the sentence names it and the nearest.
    """
    if not (CONF / f"{name}.yaml").is_file():
        known = sorted(p.stem for p in CONF.glob("*.yaml"))
        raise UserError(f"There is no configuration conf/{name}.yaml; there are: {', '.join(known)}.")
    for word in overrides:
        key = word.split("=", 1)[0]
        if "=" not in word:
            raise UserError(f"Override '{word}' is not of the form key=value.")
        _check_key(key, f"override '{word}'")
    layers = [(CONF / "base.yaml", OmegaConf.load(CONF / "base.yaml"))]
    names = accumulate(name.split("_"), "{}_{}".format)  # ppo_dimension is what differs from ppo
    files = [CONF / f"{part}.yaml" for part in names if part != "base"]
    layers += [(path, OmegaConf.load(path)) for path in files if path.is_file()]
    try:
        layers.append((Path("command line"), OmegaConf.from_dotlist(list(overrides))))
    except YAMLError as error:
        raise UserError(f"An override cannot be read: {' '.join(str(error).split())}.") from None
    merged = OmegaConf.structured(Config)
    for source, layer in layers:
        try:
            merged = OmegaConf.merge(merged, layer)
        except ConfigKeyError as error:
            _check_key(str(error.full_key), str(source.name))
            raise
        except (ValidationError, OmegaConfBaseException) as error:
            raise UserError(
                f"Wrong value for '{error.full_key or 'a section'}' in {source.name}: {str(error).splitlines()[0]}."
            ) from None
    try:
        config: Any = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(f"Wrong value for '{error.full_key}': {str(error).splitlines()[0]}.") from None
    _check_values(config)
    return config


def to_yaml(config: Config) -> str:
    """The settings as they are written beside a run."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def differences(config: Config, written: str) -> list[str]:
    """Keys in which `config` differs from settings written by `to_yaml`, as 'key: was A, now B'.

    A key that did not exist when they were written had its default.
    """
    old = OmegaConf.merge(OmegaConf.load(CONF / "base.yaml"), OmegaConf.create(written))
    new = OmegaConf.create(to_yaml(config))
    keys = list(_keys(Config))
    pairs = [(key, OmegaConf.select(old, key), OmegaConf.select(new, key)) for key in keys]
    return [f"{key}: was {a}, now {b}" for key, a, b in pairs if a != b]


def _keys(schema: type, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(schema)
    for item in fields(schema):
        if is_dataclass(hints[item.name]):
            yield from _keys(hints[item.name], f"{prefix}{item.name}.")
        else:
            yield prefix + item.name


def _check_key(key: str, where: str) -> None:
    known = list(_keys(Config))
    if key in known or any(k.startswith(key + ".") for k in known):
        return
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.3)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise UserError(f"Unknown key '{key}' in {where}{hint}")


AT_LEAST_ONE = (
    "env.num_envs", "env.sim_freq", "policy.lora_rank", "demos.episodes", "demos.workers", "demos.shard_episodes",
    "experience.demo_steps", "experience.rounds", "experience.passes", "experience.same_start",
    "optim.batch_size", "optim.accumulate", "trainer.iterations", "evaluation.episodes", "evaluation.workers",
    "generalization.seeds",
)  # fmt: skip
AT_LEAST_ZERO = (
    "demos.held_out", "algorithm.soft_targets", "trainer.patience", "evaluation.videos", "evaluation.temperature",
)  # fmt: skip
ONE_OF = {
    "policy.critic": ("none", "h0", "hn", "all", "separate", "state"),
    "algorithm.name": ("sft", "ppo", "grpo", "tpo", "pretrain"),
    "algorithm.ratio": ("action", "dimension"),
    "algorithm.advantage": ("group", "valid", "whole"),
    "demos.filter": ("merge", "drop", "none"),
    "optim.schedule": ("constant", "cosine"),
    "trainer.accelerator": ("auto", "cpu"),
    "trainer.precision": ("32-true", "bf16-true"),
    "trainer.matmul": ("highest", "high", "medium"),
}


def _check_values(config: Config) -> None:
    """What types cannot express."""
    for key in (*AT_LEAST_ONE, *AT_LEAST_ZERO):
        if (value := attrgetter(key)(config)) < (least := int(key in AT_LEAST_ONE)):
            raise UserError(f"{key} is {value}; it must be {least} or more.")
    for key, allowed in ONE_OF.items():
        if (value := attrgetter(key)(config)) not in allowed:
            raise UserError(f"{key} is '{value}'; it must be {', '.join(allowed[:-1])} or {allowed[-1]}.")
    if (e := config.evaluation).actor not in ("policy", "planner", "random") and ":" not in e.actor:
        raise UserError(f"evaluation.actor is '{e.actor}'; it must be policy, planner, random or module:function.")
    if not 0 <= e.top_k <= 256:
        raise UserError(f"evaluation.top_k is {e.top_k}; it must be between 0 and 256, the number of action bins.")
    if config.experience.temperature <= 0:
        raise UserError(f"experience.temperature is {config.experience.temperature}; it must be above 0.")
    if config.trainer.snapshot_every and (config.trainer.snapshot_every < 0 or config.algorithm.name == "pretrain"):
        raise UserError(
            f"trainer.snapshot_every is {config.trainer.snapshot_every}; it must be 0 or more, and 0 in pretraining."
        )
    name, critic = config.algorithm.name, config.policy.critic
    if name != "ppo" and critic != "none":
        raise UserError(f"policy.critic is '{critic}', but {name.upper()} trains no critic; leave it none.")
    if name == "ppo" and critic == "none":
        raise UserError("policy.critic is 'none', but PPO needs a critic: h0, hn, all, separate or state.")
    if name == "tpo" and "demos" in config.experience.schedule:
        raise UserError("experience.schedule names 'demos', but TPO learns from rollouts alone; leave it [rollout].")
    if config.algorithm.beta <= 0:
        raise UserError(f"algorithm.beta is {config.algorithm.beta}; it must be above 0.")
    if name == "pretrain" and config.demos.held_out:
        raise UserError(f"demos.held_out is {config.demos.held_out}, but pretraining keeps none back; leave it 0.")
    if config.trainer.patience and not (config.demos.held_out and config.trainer.eval_every):
        raise UserError(
            f"trainer.patience is {config.trainer.patience}, but nothing is watched; set demos.held_out to the number "
            "of demonstrations to keep back, and trainer.eval_every."
        )
    if not config.experience.schedule:
        raise UserError("experience.schedule is empty; it must name rollout, demos or both.")
    if not 0 <= config.demos.disturbed <= 1:
        raise UserError(f"demos.disturbed is {config.demos.disturbed}; it is a share and must be between 0 and 1.")
    for source in config.experience.schedule:
        if source not in ("rollout", "demos"):
            raise UserError(f"experience.schedule names '{source}'; it may hold only rollout and demos.")
    if len(config.env.image_size) != 2 or min(config.env.image_size) < 16:
        raise UserError(f"env.image_size is {config.env.image_size}; it must be [height, width], 16 or more each.")
