"""The data that flows between simulator, policy, experience and algorithms, and the interfaces they meet at.

Shape legend (used as a suffix where a shape is not obvious, `reward_TE`):

    T  control steps of an episode             E  episodes simulated side by side
    B  samples of a minibatch                  A  action dimensions = action tokens (7)
    V  action vocabulary (256 bins)            H, W  image height and width in pixels
    P  image patches                           Dv  width of a patch's features

Every batch is a frozen dataclass with its own `.to(device)`: Lightning moves batches by calling it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

ACTION_DIM, ACTION_BINS, STATE_DIM = 7, 256, 16


@dataclass(frozen=True)
class Observation:
    """What the policy sees.

    image: `[B, H, W, 3]` uint8, RGB, greenscreen already composited.
    instruction: B sentences, for example "put carrot on plate".
    patches: `[B, P, Dv]` features of the images where a frozen image encoder has computed them already (`Policy.see`).
    state: `[B, STATE_DIM]` float32, what a critic may be told in training and an actor never is: the share of the time
        that is left; positions of object, receptacle and gripper in the robot base frame, in units of 5 cm from the
        middle of the workspace, at most 10; the fingers' opening, 0 to 1; whether the object is held; `Metrics`.
    """

    image: Tensor
    instruction: tuple[str, ...]
    patches: Tensor | None = None
    state: Tensor | None = None

    def __len__(self) -> int:
        return len(self.instruction)

    def take(self, index: Tensor) -> Observation:
        """The observations at `index` `[B]`."""
        patches, state = (None if x is None else x[index] for x in (self.patches, self.state))
        return Observation(self.image[index], tuple(self.instruction[int(i)] for i in index), patches, state)

    def to(self, device: torch.device | str) -> Observation:
        """Move the tensors; the sentences stay."""
        extra = (None if x is None else x.to(device, non_blocking=True) for x in (self.patches, self.state))
        return Observation(self.image.to(device, non_blocking=True), self.instruction, *extra)


@dataclass(frozen=True)
class Metrics:
    """The study's four measures at one control step (spec: success is instantaneous, the others are latched).

    success: `[E]` bool, the object stands on its receptacle now.
    success_once: `[E]` bool, success at any step since reset.
    grasp: `[E]` bool, the right object was held at any step since reset.
    consecutive_grasp: `[E]` bool, it was held for five evaluations in a row at any time since reset.
    """

    success: Tensor
    success_once: Tensor
    grasp: Tensor
    consecutive_grasp: Tensor


@dataclass(frozen=True)
class Step:
    """Outcome of one control step (0.2 s).

    observation: what the policy sees next. reward: `[E]` float32, difference of the stage potential.
    metrics: the measures after this step. truncated: the limit of steps was reached, for all episodes at once.
    """

    observation: Observation
    reward: Tensor
    metrics: Metrics
    truncated: bool


@dataclass(frozen=True)
class PolicyOutput:
    """One decision per observation.

    action_tokens: `[B, A]` int64, bins counted from the LOWEST value (0 is -1, 255 is +1; vocabulary id `31999 - bin`).
    logprob: `[B, A]` float32, of each token under the distribution it was drawn from; the action's is their sum.
    value: `[B]` float32, the critic's estimate; zeros where the policy has no critic.
    """

    action_tokens: Tensor
    logprob: Tensor
    value: Tensor


@dataclass(frozen=True)
class PolicyEvaluation:
    """Given actions judged by the current weights (training forward).

    logprob: `[B, A]` float32 per action token. entropy: `[B, A]` float32. value: `[B]` float32.
    """

    logprob: Tensor
    entropy: Tensor
    value: Tensor


@dataclass(frozen=True)
class Rollout:
    """On-policy episodes before they are cut into minibatches: E side by side, T steps of each.

    All end after step T; with `experience.success_steps` one ends once success has lasted, and another takes its place.

    image: `[T, E, H, W, 3]` uint8, before each action. instruction: T times E sentences.
    action_tokens: `[T, E, A]` int64. logprob: `[T, E, A]` float32. value, reward: `[T, E]` float32.
    done: `[T, E]` bool, an episode ended with this step. last_value: `[E]` float32, the critic's estimate after step T.
    metrics: the measures of each episode at its end, or where it was cut.
    patches: `[T, E, P, Dv]`, state: `[T, E, STATE_DIM]`, those of the observations.
    """

    image: Tensor
    instruction: tuple[tuple[str, ...], ...]
    action_tokens: Tensor
    logprob: Tensor
    value: Tensor
    reward: Tensor
    done: Tensor
    last_value: Tensor
    metrics: Metrics
    patches: Tensor | None = None
    state: Tensor | None = None


@dataclass(frozen=True)
class RolloutBatch:
    """A minibatch of on-policy samples.

    Of the behaviour policy: action_tokens `[B, A]`, logprob `[B, A]` and value, advantage, return_ `[B]` float32.
    """

    observation: Observation
    action_tokens: Tensor
    logprob: Tensor
    value: Tensor
    advantage: Tensor
    return_: Tensor

    TENSORS = ("action_tokens", "logprob", "value", "advantage", "return_")

    def __len__(self) -> int:
        return len(self.observation)

    def take(self, index: Tensor) -> RolloutBatch:
        """The samples at `index` `[B]`."""
        tensors = {name: getattr(self, name)[index] for name in self.TENSORS}
        return RolloutBatch(observation=self.observation.take(index), **tensors)

    def to(self, device: torch.device | str) -> RolloutBatch:
        """Move every tensor."""
        tensors = {name: getattr(self, name).to(device, non_blocking=True) for name in self.TENSORS}
        return RolloutBatch(observation=self.observation.to(device), **tensors)


@dataclass(frozen=True)
class DemoBatch:
    """A minibatch of demonstrated actions: `action_tokens` `[B, A]` int64 bins for `observation`."""

    observation: Observation
    action_tokens: Tensor

    def __len__(self) -> int:
        return len(self.observation)

    def to(self, device: torch.device | str) -> DemoBatch:
        """Move every tensor."""
        return DemoBatch(self.observation.to(device), self.action_tokens.to(device, non_blocking=True))


@dataclass(frozen=True)
class GroundedBatch:
    """Demonstrations, and views behind them, with what is true in them; for pretraining.

    demo: the first `acted` samples are demonstrated; the actions of the others mean nothing.
    position: `[B, 9]` standardised x, y, z of object, receptacle and gripper in the robot base frame.
    segmentation: `[B, H, W]` uint8, 0 background, 1 robot, 2 object, 3 receptacle.
    """

    demo: DemoBatch
    position: Tensor
    segmentation: Tensor
    acted: int

    def __len__(self) -> int:
        return len(self.demo)

    def to(self, device: torch.device | str) -> GroundedBatch:
        """Move every tensor."""
        return GroundedBatch(self.demo.to(device), self.position.to(device), self.segmentation.to(device), self.acted)


@dataclass(frozen=True)
class EpisodeBatch:
    """Finished held-out episodes. metrics: name -> `[B]` (success_end, success_once, grasp, consecutive_grasp)."""

    metrics: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.metrics.values())))

    def to(self, device: torch.device | str) -> EpisodeBatch:
        """Move every tensor."""
        return EpisodeBatch({name: value.to(device) for name, value in self.metrics.items()})


class Policy(Protocol):
    """What rollouts and algorithms ask of a policy."""

    def fixed_weights(self) -> AbstractContextManager[None]:
        """For a block in which no weight changes, as a rollout: what can be worked out from weights alone is, once."""

    def see(self, observation: Observation) -> Observation:
        """What is worth keeping: pictures at the policy's size, and features where the image encoder is frozen."""

    def act(
        self, observation: Observation, noise: Tensor | None, temperature: float = 1.0, top_k: int = 0
    ) -> PolicyOutput:
        """Choose actions. `noise` is Gumbel noise `[B, A, V]` (the caller owns the random numbers); None is greedy."""

    def evaluate(self, observation: Observation, action_tokens: Tensor, temperature: float = 1.0) -> PolicyEvaluation:
        """Log-probabilities, entropy and value of given actions at that temperature, with gradients."""

    def action_logits(self, observation: Observation, action_tokens: Tensor) -> Tensor:
        """Logits `[B, A, V]` float32 of given actions, each token after those before it, with gradients."""

    def adapter_parameters(self) -> Iterator[Tensor]:
        """The trainable weights but the critic's."""

    def critic_parameters(self) -> Iterator[Tensor]:
        """The critic's weights; none without one."""

    def value(self, observation: Observation) -> Tensor:
        """The critic's estimate `[B]`; zeros where the policy has no critic."""

    def remember(self) -> None:
        """Take the weights as they are for the reference of preference learning."""

    def reference(self) -> AbstractContextManager[None]:
        """For a block without gradients in which the policy is the one it was at `remember`."""

    def decode(self, action_tokens: Tensor) -> Tensor:
        """Bins `[B, A]` to un-normalised actions `[B, A]` float32 as the controller wants them."""

    def encode(self, action: Tensor) -> Tensor:
        """Un-normalised actions `[B, A]` to bins `[B, A]`; the mirror of `decode` up to quantisation."""


class VectorEnv(Protocol):
    """E scenes stepped together, on CPU (scenes in this process) or on GPU (parallel scenes)."""

    num_envs: int

    @property
    def steps(self) -> int:
        """Control steps of an episode."""

    def reset(self, episode_ids: Tensor) -> Observation:
        """Start the given episodes, `[E]` int64 ids of the environment's index space."""

    def step(self, action: Tensor, look: bool = True) -> Step:
        """Apply `[E, A]` float32: metres, radians, base frame; gripper +1 open, -1 closed. `look`: draw a picture."""

    def restart(self, which: Tensor, episode_ids: Tensor) -> Observation:
        """Start other episodes, `[K]` ids, in the scenes `which` `[K]`, on CPU; the others stay where they are."""

    def gripper_pose(self) -> Tensor:
        """Pose `[E, 7]` of the gripper in the robot base frame: metres, quaternion w, x, y, z."""

    def close(self) -> None:
        """Free simulator and renderer."""


class Actor(Protocol):
    """Whatever acts in an evaluation: a checkpoint, the planner, chance, a function of yours."""

    looks: bool = True  # whether `act` needs pictures; they are a third of a step's time

    def session(self) -> AbstractContextManager[None]:
        """Entered for a number of episodes in which the actor does not change; by default there is nothing to do."""
        return nullcontext()

    def start(self, env: VectorEnv, episode_ids: Sequence[int], seed: int) -> None:
        """`env` has been reset to these episodes; what is drawn in one follows from its id and the seed."""

    def act(self, observation: Observation) -> Tensor:
        """Actions `[E, A]` as `VectorEnv.step` takes them."""
