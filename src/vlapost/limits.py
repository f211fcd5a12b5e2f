"""Which values settings may have, where their type does not say it."""

from __future__ import annotations

from dataclasses import fields
from math import isfinite
from operator import attrgetter

from vlapost.schema import CONTROL_FREQ, Config, GroundingConfig, UserError

AT_LEAST_ONE = (
    "env.num_envs", "env.sim_freq", "policy.lora_rank", "demos.episodes", "demos.workers",
    "demos.shard_attempts", "demos.parts",
    "experience.demo_steps", "experience.rounds", "experience.passes", "experience.same_start",
    "optim.batch_size", "optim.accumulate", "trainer.iterations", "evaluation.episodes", "evaluation.workers",
    "generalization.seeds", "grounding.starts", "grounding.views", "grounding.batch_size",
    "grounding.acting_iterations",
)  # fmt: skip
AT_LEAST_ZERO = (
    "seed", "demos.seed", "demos.views", "demos.held_out", "demos.min_translation", "demos.min_rotation",
    "experience.approach_reward", "experience.success_steps", "algorithm.soft_targets", "algorithm.policy_coef",
    "algorithm.value_coef", "algorithm.imitation_coef", "algorithm.target_kl",
    "optim.lr", "optim.value_lr", "optim.weight_decay", "optim.grad_clip", "optim.warmup_steps",
    "trainer.devices", "trainer.eval_every", "trainer.eval_episodes", "trainer.video_episodes", "trainer.patience",
    "evaluation.videos", "evaluation.temperature", "grounding.position_coef", "grounding.segmentation_coef",
)  # fmt: skip
ABOVE_ZERO = (
    "policy.lora_alpha", "experience.temperature", "algorithm.clip", "algorithm.value_clip", "algorithm.huber_delta",
    "algorithm.beta",
)  # fmt: skip
FINITE = ("algorithm.entropy_coef", "optim.lr", "optim.value_lr")
MOST_ATTEMPTS = 200
SHARES = ("demos.disturbed", "algorithm.gamma", "algorithm.gae_lambda", "algorithm.value_lambda")
ONE_OF = {
    "env.backend": ("cpu", "gpu"),
    "env.shader": ("minimal", "default"),
    "policy.critic": ("none", "h0", "hn", "all", "separate", "state"),
    "algorithm.name": ("sft", "ppo", "grpo", "tpo", "pretrain"),
    "algorithm.ratio": ("action", "dimension"),
    "algorithm.advantage": ("group", "valid", "whole"),
    "demos.filter": ("merge", "drop", "none"),
    "demos.frames": ("kept", "all"),
    "policy.quantize": ("none", "nf4", "int8"),
    "policy.recompute": ("none", "mlp", "blocks"),
    "optim.schedule": ("constant", "cosine"),
    "optim.moment_bits": (32, 8),
    "trainer.accelerator": ("auto", "cpu"),
    "trainer.precision": ("32-true", "bf16-true"),
    "trainer.matmul": ("highest", "high", "medium"),
    "exchange.rotation": ("XYZ", "xyz", "axis_angle"),
}
OF_PPO = ("gamma", "gae_lambda", "value_lambda", "value_clip", "huber_delta", "value_coef", "normalise_advantage",
          "bootstrap_truncation", "imitation_coef")  # fmt: skip
OF_RATIOS = ("clip", "ratio", "policy_coef", "entropy_coef", "target_kl")
OF_ADAPTERS = ("adapter", "statistics", "lora_rank", "lora_alpha", "train_vision", "quantize", "recompute",
               "cuda_graph")  # fmt: skip
READ_BY = {  # settings that only some learning rules read; of others they must keep their default
    **dict.fromkeys((*(f"algorithm.{key}" for key in OF_PPO), "optim.value_lr"), ("ppo",)),
    **dict.fromkeys((f"algorithm.{key}" for key in OF_RATIOS), ("ppo", "grpo")),
    **dict.fromkeys((f"grounding.{field.name}" for field in fields(GroundingConfig)), ("pretrain",)),
    **{"algorithm.advantage": ("grpo",), "algorithm.beta": ("tpo",), "algorithm.soft_targets": ("sft", "ppo")},
    **dict.fromkeys((*(f"policy.{key}" for key in OF_ADAPTERS), "trainer.precision"), ("sft", "ppo", "grpo", "tpo")),
}
OF_ROLLOUTS = ("rounds", "passes", "same_start", "approach_reward", "success_steps", "temperature", "rejudge")
OF_SOURCE = {
    "rollout": tuple(f"experience.{key}" for key in OF_ROLLOUTS),
    "demos": ("experience.demo_steps", "experience.augment", "algorithm.imitation_coef", "algorithm.soft_targets"),
}


def check_read(config: Config, default: Config) -> None:
    """Refuse settings that differ from their default and that the learning rule, or what it learns from, does not read.

    Raises:
        UserError: the sentence names key, value and default.
    """
    name, schedule = config.algorithm.name, config.experience.schedule
    for source, keys in OF_SOURCE.items():
        for key in keys:
            value, usual = attrgetter(key)(config), attrgetter(key)(default)
            if value != usual and source not in schedule:
                what = "rollouts" if source == "rollout" else "demonstrations"
                of_sft = source == "demos" and "sft" in READ_BY.get(key, ("sft",))
                warm_up = f", or for the warm-up set sft.{key}" if of_sft else ""
                raise UserError(
                    f"{key} is {value}, but experience.schedule names no {what}; leave it {usual}{warm_up}."
                )
    for key, rules in READ_BY.items():
        value, usual = attrgetter(key)(config), attrgetter(key)(default)
        if value != usual and name not in rules:
            raise UserError(f"{key} is {value}, which {name.upper()} does not use; leave it {usual or repr(usual)}.")


def check_values(config: Config) -> None:
    """Refuse values that have the right type and make no sense.

    Raises:
        UserError: the sentence names key, value and what is allowed.
    """
    for key in (*AT_LEAST_ONE, *AT_LEAST_ZERO):
        if not (value := attrgetter(key)(config)) >= (least := int(key in AT_LEAST_ONE)):  # NaN is refused too
            raise UserError(f"{key} is {value}; it must be {least} or more.")
    for key in ABOVE_ZERO:
        if not (value := attrgetter(key)(config)) > 0:
            raise UserError(f"{key} is {value}; it must be above 0.")
    for key in FINITE:
        if not isfinite(value := attrgetter(key)(config)):
            raise UserError(f"{key} is {value}; it must be a finite number.")
    for key in SHARES:
        if not 0 <= (value := attrgetter(key)(config)) <= 1:
            raise UserError(f"{key} is {value}; it must be between 0 and 1.")
    for key, allowed in ONE_OF.items():
        if (value := attrgetter(key)(config)) not in allowed:
            raise UserError(f"{key} is '{value}'; it must be {', '.join(map(str, allowed[:-1]))} or {allowed[-1]}.")
    if (e := config.evaluation).actor not in ("policy", "planner", "random") and ":" not in e.actor:
        raise UserError(f"evaluation.actor is '{e.actor}'; it must be policy, planner, random or module:function.")
    if e.actor == "planner" and config.env.backend != "cpu":
        raise UserError("evaluation.actor is 'planner', which plans in scenes on the CPU; set env.backend=cpu.")
    if not 0 <= e.top_k <= 256:
        raise UserError(f"evaluation.top_k is {e.top_k}; it must be between 0 and 256, the number of action bins.")
    if config.trainer.snapshot_every and (config.trainer.snapshot_every < 0 or config.algorithm.name == "pretrain"):
        raise UserError(
            f"trainer.snapshot_every is {config.trainer.snapshot_every}; it must be 0 or more, and 0 in pretraining."
        )
    name, critic = config.algorithm.name, config.policy.critic
    if name != "ppo" and critic != "none":
        raise UserError(f"policy.critic is '{critic}', but {name.upper()} trains no critic; leave it none.")
    if name == "ppo" and critic == "none":
        raise UserError("policy.critic is 'none', but PPO needs a critic: h0, hn, all, separate or state.")
    schedule = config.experience.schedule
    if "demos" in schedule and name in ("grpo", "tpo"):
        raise UserError(f"experience.schedule names 'demos', but {name.upper()} learns from rollouts alone.")
    if "rollout" in schedule and name in ("sft", "pretrain"):
        raise UserError(f"experience.schedule names 'rollout', but {name} learns from demonstrations alone.")
    if name == "tpo" and config.experience.rejudge:
        raise UserError("experience.rejudge is true, but TPO works its log-probabilities out itself; set it to false.")
    if critic == "separate" and config.policy.quantize == "int8":
        raise UserError("policy.critic=separate cannot share weights of policy.quantize=int8; use nf4 or none.")
    if held := config.experience.success_steps:
        if name != "ppo" or config.env.backend == "gpu":
            raise UserError(f"experience.success_steps is {held}, which needs PPO and env.backend=cpu; set it to 0.")
        if config.experience.same_start > 1:
            raise UserError("experience.success_steps draws new starts as it goes; set experience.same_start to 1.")
        if config.algorithm.bootstrap_truncation:
            raise UserError("experience.success_steps cuts episodes; set algorithm.bootstrap_truncation to false.")
    if name == "pretrain" and config.demos.held_out:
        raise UserError(f"demos.held_out is {config.demos.held_out}, but pretraining keeps none back; leave it 0.")
    watched = config.demos.held_out and config.trainer.eval_every and "demos" in schedule
    if config.trainer.eval_every and not config.trainer.eval_episodes and not watched:
        raise UserError(
            "trainer.eval_episodes is 0, and there are no held-out demonstrations to evaluate on either; set "
            "demos.held_out, or trainer.eval_every=0."
        )
    if config.trainer.patience and not watched:
        raise UserError(
            f"trainer.patience is {config.trainer.patience}, but nothing is watched; set demos.held_out to the number "
            "of demonstrations to keep back, trainer.eval_every, and demos in experience.schedule."
        )
    if (attempts := config.demos.shard_attempts) > MOST_ATTEMPTS:  # a shard is held in memory until it is written
        raise UserError(f"demos.shard_attempts is {attempts}; it must be {MOST_ATTEMPTS} or less.")
    if not 0 <= config.demos.part < config.demos.parts:
        raise UserError(
            f"demos.part is {config.demos.part}; it must be 0 to {config.demos.parts - 1} (demos.parts - 1)."
        )
    if not config.experience.schedule:
        raise UserError("experience.schedule is empty; it must name rollout, demos or both.")
    for source in config.experience.schedule:
        if source not in ("rollout", "demos"):
            raise UserError(f"experience.schedule names '{source}'; it may hold only rollout and demos.")
    if config.env.sim_freq % CONTROL_FREQ:
        raise UserError(f"env.sim_freq is {config.env.sim_freq}; it must be a multiple of {CONTROL_FREQ}, as 500 is.")
    if len(config.env.image_size) != 2 or min(config.env.image_size) < 16:
        raise UserError(f"env.image_size is {config.env.image_size}; it must be [height, width], 16 or more each.")
    exchange = config.exchange
    if exchange.episodes < 0:
        raise UserError(f"exchange.episodes is {exchange.episodes}; it must be 0 (all) or more.")
    if len(exchange.gripper) != 2 or exchange.gripper[0] == exchange.gripper[1]:
        raise UserError(f"exchange.gripper is {exchange.gripper}; it must be two numbers, [open, closed].")
    for key in ("metres", "radians"):
        if getattr(exchange, key) == 0:
            raise UserError(f"exchange.{key} is 0, which would forget every motion; 1.0 leaves it as it is.")
