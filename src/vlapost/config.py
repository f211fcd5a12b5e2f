"""The configuration: its schema, and how a run's settings are put together.

    conf/base.yaml  <-  conf/<name>.yaml (only what differs)  <-  key=value words of the command line

The dataclasses below say which keys exist and of which type; `conf/base.yaml` gives each its value and its comment.
This file imports neither torch nor the simulator, so a wrong key stops a command before anything heavy loads; and
OmegaConf only where settings are read, so the policy can be used without it.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

ROOT = Path(os.environ.get("VLAPOST_ROOT", Path(__file__).resolve().parents[2]))
CONF = ROOT / "conf"


class UserError(Exception):
    """Something the user can mend; entry points print the sentence and exit with code 2."""


@dataclass
class EnvConfig:
    """The simulator (conf/base.yaml explains every key)."""

    id: str
    obj_set: str
    protocol: str
    assets: str
    image_size: list[int]
    shader: str
    sim_freq: int
    num_envs: int
    backend: str


@dataclass
class PolicyConfig:
    """The policy: a checkpoint folder in OpenVLA's layout, LoRA, critic."""

    checkpoint: str
    adapter: str
    unnorm_key: str
    lora_rank: int
    lora_alpha: int
    train_vision: bool
    critic: bool
    quantize: str
    recompute: str
    cuda_graph: bool


@dataclass
class DemosConfig:
    """Planner demonstrations."""

    path: str
    episodes: int
    workers: int
    seed: int
    disturbed: float
    shard_episodes: int
    filter: str
    min_translation: float
    min_rotation: float


@dataclass
class ExperienceConfig:
    """What the learner is fed."""

    schedule: list[str]
    demo_steps: int
    rounds: int
    passes: int
    temperature: float
    rejudge: bool
    augment: bool


@dataclass
class AlgorithmConfig:
    """The learning rule."""

    name: str
    gamma: float
    gae_lambda: float
    clip: float
    value_clip: float
    huber_delta: float
    policy_coef: float
    value_coef: float
    entropy_coef: float
    imitation_coef: float
    target_kl: float
    normalise_advantage: bool
    bootstrap_truncation: bool


@dataclass
class OptimConfig:
    """AdamW with one group for the adapter and one for the critic."""

    lr: float
    value_lr: float
    weight_decay: float
    batch_size: int
    accumulate: int
    grad_clip: float
    warmup_steps: int
    schedule: str
    moment_bits: int


@dataclass
class TrainerConfig:
    """Lightning's Trainer."""

    accelerator: str
    devices: int
    precision: str
    matmul: str
    iterations: int
    eval_every: int
    eval_episodes: int
    video_episodes: int
    snapshot_every: int


@dataclass
class EvaluationConfig:
    """Who acts on the fixed held-out episodes, and how."""

    actor: str
    episodes: int
    workers: int
    temperature: float
    top_k: int
    videos: int


@dataclass
class GeneralizationConfig:
    """The setups of the benchmark."""

    setups: list[str]
    seeds: int


@dataclass
class GroundingConfig:
    """The auxiliary objective of pretraining; never part of the policy that is fine-tuned."""

    position_coef: float
    segmentation_coef: float


@dataclass
class Config:
    """One run."""

    run: str
    seed: int
    env: EnvConfig
    policy: PolicyConfig
    demos: DemosConfig
    experience: ExperienceConfig
    algorithm: AlgorithmConfig
    optim: OptimConfig
    trainer: TrainerConfig
    evaluation: EvaluationConfig
    generalization: GeneralizationConfig
    grounding: GroundingConfig


def load(name: str, overrides: Sequence[str] = ()) -> Config:
    """Settings of the run `name` (a file conf/<name>.yaml, or "base"), with `key=value` overrides applied last.

    Raises:
        UserError: an unknown file or key, or a value of the wrong type; the sentence names it and the nearest.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError
    from yaml import YAMLError

    from vlapost.limits import check_values

    path = CONF / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in CONF.glob("*.yaml"))
        raise UserError(f"There is no configuration conf/{name}.yaml; there are: {', '.join(known)}.")
    for word in overrides:
        key = word.split("=", 1)[0]
        if "=" not in word:
            raise UserError(f"Override '{word}' is not of the form key=value.")
        _check_key(key, f"override '{word}'")
    layers = [(CONF / "base.yaml", OmegaConf.load(CONF / "base.yaml"))]
    if name != "base":
        layers.append((path, OmegaConf.load(path)))
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
    check_values(config)
    return config


def to_yaml(config: Config) -> str:
    """The settings as they are written beside a run."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(config))


def differences(config: Config, written: str) -> list[str]:
    """Keys in which `config` differs from settings written by `to_yaml`, as 'key: was A, now B'.

    A key that did not exist when they were written had its default.
    """
    from omegaconf import OmegaConf

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
