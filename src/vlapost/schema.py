"""What settings there are: every section and key of the configuration with its type, and the error for all mistakes.

conf/base.yaml gives each key its value and its comment. This file imports nothing of ours.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(os.environ.get("VLAPOST_ROOT", Path(__file__).resolve().parents[2]))
CONF = ROOT / "conf"
CONTROL_FREQ = 5  # actions per second


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
    statistics: str
    lora_rank: int
    lora_alpha: int
    train_vision: bool
    critic: str
    quantize: str
    recompute: str
    cuda_graph: bool


@dataclass
class DemosConfig:
    """Planner demonstrations."""

    path: str
    episodes: int
    held_out: int
    workers: int
    seed: int
    disturbed: float
    views: int
    shard_attempts: int
    part: int
    parts: int
    frames: str
    skip_corrupt: bool
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
    same_start: int
    approach_reward: float
    success_steps: int
    temperature: float
    rejudge: bool
    augment: bool


@dataclass
class AlgorithmConfig:
    """The learning rule."""

    name: str
    gamma: float
    gae_lambda: float
    value_lambda: float
    clip: float
    value_clip: float
    huber_delta: float
    ratio: str
    advantage: str
    beta: float
    soft_targets: float
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
    patience: int
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
class ExchangeConfig:
    """What is imported, and the conventions of its source."""

    episodes: int
    split: str
    camera: str
    action: list[str]
    instruction: str
    metres: float
    radians: float
    rotation: str
    gripper: list[float]
    turn: float


@dataclass
class GroundingConfig:
    """The auxiliary objective of pretraining; never part of the policy that is fine-tuned."""

    position_coef: float
    segmentation_coef: float
    path: str
    starts: int
    views: int
    batch_size: int
    acting_iterations: int


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
    exchange: ExchangeConfig
    grounding: GroundingConfig
