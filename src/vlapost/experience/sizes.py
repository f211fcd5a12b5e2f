"""How many samples an iteration has, and which sizes of minibatches and evaluations fit."""

from __future__ import annotations

from vlapost.config import Config, UserError


def episodes(config: Config) -> int:
    """Episodes of one rollout and process: scenes x rounds."""
    return config.env.num_envs * config.experience.rounds


def samples(config: Config, steps: int) -> int:
    """Samples of one rollout and process: control steps of an episode x episodes."""
    return steps * episodes(config)


def check_sizes(config: Config, steps: int, processes: int) -> None:
    """Refuse minibatches of rollouts of `steps` control steps, or evaluations by `processes`, that do not fit.

    Raises:
        UserError: the sentence says which numbers.
    """
    name, t = config.algorithm.name, config.trainer
    if "rollout" in config.experience.schedule:
        check_batches(config, steps)
    demo_steps, accumulate = config.experience.demo_steps, config.optim.accumulate
    if "demos" in config.experience.schedule and demo_steps % accumulate:
        raise UserError(f"optim.accumulate={accumulate} must divide experience.demo_steps={demo_steps}.")
    if t.eval_every and 0 < t.eval_episodes < processes:
        raise UserError(
            f"trainer.eval_episodes of {name} is {t.eval_episodes}; {processes} processes (trainer.devices) need one "
            "each at least."
        )


def check_batches(config: Config, steps: int) -> None:
    """Whole minibatches and whole accumulation windows, or a sentence that says which numbers do not fit."""
    total, batch, accumulate = samples(config, steps), config.optim.batch_size, config.optim.accumulate
    if total % batch or (total // batch) % accumulate:
        raise UserError(
            f"A rollout has {total} samples per process ({steps} steps x env.num_envs={config.env.num_envs} x "
            f"experience.rounds={config.experience.rounds}); optim.batch_size={batch} x "
            f"optim.accumulate={accumulate} must divide it."
        )
    if (lasting := config.experience.success_steps) > steps:
        raise UserError(
            f"experience.success_steps is {lasting}, more than the {steps} steps of an episode; set it to less, or to "
            "0 for none to end early."
        )
    name, same = config.algorithm.name, config.experience.same_start
    grouped = name == "tpo" or (name == "grpo" and config.algorithm.advantage == "group")
    if grouped and (same < 2 or episodes(config) % same):
        raise UserError(
            f"experience.same_start is {same}; to compare episodes from the same start it must be 2 or more and divide "
            f"the {episodes(config)} episodes of a process (env.num_envs x experience.rounds)."
        )
    if name == "tpo" and batch * accumulate % (2 * steps):
        raise UserError(
            f"optim.batch_size={batch} x optim.accumulate={accumulate} is one update of TPO and must be whole pairs of "
            f"episodes, a multiple of {2 * steps} samples."
        )
