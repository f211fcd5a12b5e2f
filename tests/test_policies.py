"""Behaviour of the small policy: sampling, log-probabilities, padding, files and error sentences."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft.tuners import lora as peft_lora
from safetensors.torch import load_file, save_file
from tests.helpers import with_effect

from vlapost.config import ROOT, PolicyConfig, UserError, load
from vlapost.contracts import Metrics, Observation, Step
from vlapost.experience.buffer import rejudge
from vlapost.experience.collect import Stopwatch, collect
from vlapost.policies import lora
from vlapost.policies.action_tokens import ActionTokens
from vlapost.policies.cache import fixed_cache
from vlapost.policies.graphs import Graphs
from vlapost.policies.load import load_full_policy, load_policy
from vlapost.policies.lora_layers import AdaptedLinear, FoldedLinear
from vlapost.policies.policy import OpenVLAPolicy, save_policy
from vlapost.policies.tiny import write_tiny
from vlapost.policies.tiny_tokenizer import sentences, write_tokenizer

STATISTICS = {
    "sft": {
        "action": {
            "q01": [-0.03, -0.04, -0.02, -0.1, -0.1, -0.2, -1.0],
            "q99": [0.03, 0.04, 0.04, 0.1, 0.1, 0.2, 1.0],
            "mask": [True] * 6 + [False],
        }
    }
}
INSTRUCTIONS = (
    "put carrot on plate",
    "Take the fast food cup and put it on the gramophone disk",
    "C on the plate, please.",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "openvla-tiny"
    write_tiny(folder, seed=0, statistics=STATISTICS)
    return folder


def config(checkpoint: Path, adapter: str = "", critic: str = "h0") -> PolicyConfig:
    return replace(
        load("base").policy, checkpoint=str(checkpoint), adapter=adapter, unnorm_key="sft",
        lora_rank=8, lora_alpha=4, critic=critic,
    )  # fmt: skip


def make(checkpoint: Path, dtype: torch.dtype = torch.float32) -> OpenVLAPolicy:
    """A policy whose adapters and critic are not zero, so that they matter."""
    torch.manual_seed(1)
    return with_effect(load_policy(config(checkpoint), "cpu", dtype))


@pytest.fixture(scope="module")
def policy(checkpoint: Path) -> OpenVLAPolicy:
    return make(checkpoint)


@pytest.fixture(scope="module")
def observation() -> Observation:
    image = torch.randint(0, 256, (3, 128, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    return Observation(image, INSTRUCTIONS)


def gumbel(batch: int) -> torch.Tensor:
    uniform = torch.rand(batch, 7, 256, generator=torch.Generator().manual_seed(3)).clamp_min(1e-9)
    return -torch.log(-torch.log(uniform))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_recorded_logprob_is_that_of_the_distribution_drawn_from(
    policy: OpenVLAPolicy, observation: Observation, temperature: float
) -> None:
    noise = gumbel(3)
    output = policy.act(observation, noise, temperature)
    evaluation = policy.evaluate(observation, output.action_tokens, temperature)
    torch.testing.assert_close(output.logprob, evaluation.logprob.detach(), atol=1e-4, rtol=0)
    torch.testing.assert_close(output.value, evaluation.value.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(output.value, policy.value(observation).detach(), atol=1e-5, rtol=0)
    logits = policy.action_logits(observation, output.action_tokens)
    assert torch.equal(output.action_tokens, (logits / temperature + noise).argmax(-1))
    assert output.action_tokens.unique().numel() > 5  # the noise did decide


def test_top_k_draws_from_the_likeliest(policy: OpenVLAPolicy, observation: Observation) -> None:
    noise = gumbel(3)
    output = policy.act(observation, noise, 2.0, top_k=5)
    logits = policy.action_logits(observation, output.action_tokens).detach() / 2.0
    values, bins = logits.topk(5)
    place = (bins == output.action_tokens[..., None]).float()
    assert place.sum(-1).eq(1).all() and place.argmax(-1).unique().numel() > 2  # one of the five, not always the first
    drawn = (values + noise.gather(2, bins)).argmax(-1)
    assert torch.equal(place.argmax(-1), drawn)
    logprob = values.log_softmax(-1).gather(2, drawn[..., None])[..., 0]
    torch.testing.assert_close(output.logprob, logprob, atol=1e-4, rtol=0)


def test_greedy_is_the_argmax(policy: OpenVLAPolicy, observation: Observation) -> None:
    output = policy.act(observation, None, temperature=0.0)
    logits = policy.action_logits(observation, output.action_tokens)
    assert torch.equal(output.action_tokens, logits.argmax(-1))
    likely = logits.log_softmax(-1).amax(-1)
    torch.testing.assert_close(output.logprob, likely.detach(), atol=1e-4, rtol=0)


def test_entropy_of_equal_logits(policy: OpenVLAPolicy, observation: Observation) -> None:
    """At a very high temperature all 256 bins are equally likely: entropy log 256, log-probability -log 256."""
    evaluation = policy.evaluate(observation, torch.zeros(3, 7, dtype=torch.int64), temperature=1e6)
    torch.testing.assert_close(evaluation.entropy.detach(), torch.full((3, 7), np.log(256.0)).float())
    torch.testing.assert_close(evaluation.logprob.detach(), torch.full((3, 7), -np.log(256.0)).float())


def test_padding_changes_nothing(policy: OpenVLAPolicy, observation: Observation) -> None:
    lengths = [len(policy.prompts.ids(instruction)) for instruction in INSTRUCTIONS]
    assert len(set(lengths)) == 3
    bins = torch.randint(0, 256, (3, 7), generator=torch.Generator().manual_seed(4))
    together, noise = policy.features(observation, bins), gumbel(3)
    drawn = policy.act(observation, noise)
    for i in range(3):
        one = Observation(observation.image[i : i + 1], observation.instruction[i : i + 1])
        alone = policy.features(one, bins[i : i + 1])
        torch.testing.assert_close(alone.logits[0], together.logits[i], atol=1e-4, rtol=0)
        torch.testing.assert_close(alone.hidden[0], together.hidden[i], atol=1e-4, rtol=0)
        assert torch.equal(policy.act(one, noise[i : i + 1]).action_tokens[0], drawn.action_tokens[i])


def test_the_last_block_is_llamas_own(checkpoint: Path) -> None:
    """Positions that are read, of a whole sequence and of a token behind it, against transformers' forward."""
    policy = with_effect(make(checkpoint))
    llama, width = policy.network.language_model.model, policy.sizes.hidden_dim
    embeds = torch.randn(2, 9, width, generator=torch.Generator().manual_seed(0))
    mask, positions = torch.ones(2, 1, 9, 9, dtype=torch.bool).tril(), torch.arange(9).expand(2, 9)
    mask[1, :, 2:, 1] = False  # padding
    with torch.no_grad():
        whole = llama(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).last_hidden_state
        three = policy.network.hidden(embeds, mask, positions, 3)
        cache = fixed_cache(len(llama.layers), 9)
        eighth = policy.network.hidden(embeds[:, :8], mask[:, :, :8, :8], positions[:, :8], 1, cache)
        ninth = policy.network.hidden(embeds[:, 8:], mask[:, :, 8:], positions[:, 8:], 1, cache)
    torch.testing.assert_close(three, whole[:, -3:], rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cat([eighth, ninth], 1), whole[:, -2:], rtol=0, atol=1e-5)


def test_image_and_instruction_both_matter(policy: OpenVLAPolicy, observation: Observation) -> None:
    bins = torch.zeros(3, 7, dtype=torch.int64)
    first = policy.action_logits(observation, bins)
    flipped = policy.action_logits(replace(observation, image=observation.image.flip(0)), bins)
    renamed = policy.action_logits(replace(observation, instruction=INSTRUCTIONS[::-1]), bins)
    assert (first - flipped)[0].abs().max() > 1e-3
    assert (first - renamed)[0].abs().max() > 1e-3


def test_other_image_sizes_are_resized(policy: OpenVLAPolicy) -> None:
    flat = torch.full((1, 480, 640, 3), 77, dtype=torch.uint8)
    small = torch.full((1, 128, 128, 3), 77, dtype=torch.uint8)
    torch.testing.assert_close(policy.preprocess(flat), policy.preprocess(small), atol=1e-5, rtol=0)


def test_encode_mirrors_decode(policy: OpenVLAPolicy) -> None:
    bins = torch.arange(255)[:, None].repeat(1, 7)
    bins[:, 6] = torch.where(bins[:, 6] > 190, 255, 0)
    assert torch.equal(policy.encode(policy.decode(bins)), bins)
    q01, q99 = (torch.tensor(STATISTICS["sft"]["action"][key]) for key in ("q01", "q99"))
    low, high = policy.encode(torch.stack([q01, q99]))
    assert low.tolist() == [0] * 7 and (high >= 254).all()  # the two highest bins mean the same
    assert policy.encode(torch.stack([q01 - 1, q99 + 1])).tolist() == [[0] * 7, [255] * 7]
    action = q01 + (q99 - q01) * torch.rand(200, 7, generator=torch.Generator().manual_seed(5))
    error = (policy.decode(policy.encode(action)) - action).abs()[:, :6]
    assert (error <= (q99 - q01)[:6] / 255 * 1.01).all()


def test_gripper_is_open_or_closed(policy: OpenVLAPolicy) -> None:
    bins = torch.arange(256)[:, None].repeat(1, 7)
    gripper = policy.decode(bins)[:, 6]
    # centres are 2 (b - 127) / 255, so 0.5 lies between bins 190 (0.494) and 191 (0.502)
    assert (gripper[:191] == -1).all() and (gripper[191:] == 1).all()


def test_adapters_train_alone_and_all_of_them(policy: OpenVLAPolicy, observation: Observation) -> None:
    policy.zero_grad()
    evaluation = policy.evaluate(observation, torch.full((3, 7), 9))
    (evaluation.logprob.sum() + evaluation.value.sum()).backward()
    trained = {name for name, p in policy.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    wanted = {name for name, p in policy.named_parameters() if "lora_" in name or name.startswith("value_head")}
    assert trained == wanted == {name for name, p in policy.named_parameters() if p.requires_grad}
    count = len(list(policy.adapter_parameters())) + len(list(policy.critic_parameters()))
    assert count == len(wanted)


def test_frozen_encoders_see_once_and_judge_alike(checkpoint: Path, observation: Observation) -> None:
    torch.manual_seed(3)
    frozen = load_policy(replace(config(checkpoint), train_vision=False), "cpu", torch.float32)
    seen = frozen.see(observation)
    assert seen.patches is not None
    assert seen.patches.shape == (3, 64, 192)
    tokens = torch.arange(21).view(3, 7)
    from_image, from_patches = (frozen.evaluate(o, tokens) for o in (observation, seen))
    assert torch.equal(from_image.logprob, from_patches.logprob)
    dark = replace(seen, image=torch.zeros_like(seen.image))  # the picture is not looked at again
    assert torch.equal(frozen.evaluate(dark, tokens).logprob, from_patches.logprob)
    (from_patches.logprob.sum() + from_patches.value.sum()).backward()
    with_gradient = {name for name, p in frozen.named_parameters() if p.grad is not None}
    assert with_gradient == {n for n, p in frozen.named_parameters() if p.requires_grad}
    assert not any("vision_backbone" in name for name in with_gradient)
    assert any("vision_backbone" in name for name in frozen.adapter_state())  # they are still saved with the others


def test_learning_encoders_see_nothing_in_advance(policy: OpenVLAPolicy, observation: Observation) -> None:
    assert policy.see(observation) is observation


@pytest.mark.parametrize("critic", ["hn", "all", "separate"])
def test_rollout_and_learner_agree_on_the_value_wherever_the_critic_reads(
    critic: str, checkpoint: Path, observation: Observation, tmp_path: Path
) -> None:
    policy = load_policy(config(checkpoint, critic=critic), "cpu", torch.float32)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name or "head_l3" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    output = policy.act(observation, gumbel(3))
    value = policy.evaluate(observation, output.action_tokens).value
    torch.testing.assert_close(output.value, value.detach(), atol=1e-5, rtol=0)
    assert output.value.unique().numel() == 3
    greedy = policy.act(observation, None).value if critic != "separate" else output.value
    torch.testing.assert_close(policy.value(observation).detach(), greedy, atol=1e-5, rtol=0)
    value.sum().backward()
    moved = {name.split(".")[0] for name, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"value_head", "critic_network" if critic == "separate" else "network"}
    save_policy(policy, tmp_path / "adapter")
    again = load_policy(config(checkpoint, str(tmp_path / "adapter"), critic), "cpu", torch.float32)
    assert torch.equal(again.act(observation, gumbel(3)).value, output.value)


def test_a_critic_of_another_kind_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    save_policy(load_policy(config(checkpoint, critic="h0"), "cpu", torch.float32), tmp_path / "adapter")
    with pytest.raises(
        UserError, match=r"value_head\.safetensors is a critic of the kind h0, but policy\.critic is hn"
    ):
        load_policy(config(checkpoint, str(tmp_path / "adapter"), "hn"), "cpu", torch.float32)


def test_a_separate_critic_never_changes_the_encoders_of_the_policy(checkpoint: Path, tmp_path: Path) -> None:
    policy = load_policy(config(checkpoint, critic="separate"), "cpu", torch.float32)
    assert policy.critic_network is not None
    folder = tmp_path / "adapter"
    later = replace(config(checkpoint, str(folder), "separate"), train_vision=False)
    save_policy(policy, folder)
    load_policy(later, "cpu", torch.float32)  # both have the encoders they began with
    with torch.no_grad():
        for name, parameter in policy.critic_network.named_parameters():
            if "lora_B" in name and "vision_backbone" in name:
                parameter.fill_(0.1)
    save_policy(policy, folder)
    load_policy(replace(later, train_vision=True), "cpu", torch.float32)
    with pytest.raises(UserError, match=r"critic_adapter\.safetensors has image encoders of its own"):
        load_policy(later, "cpu", torch.float32)


def test_a_second_network_costs_its_adapters_only(checkpoint: Path) -> None:
    policy = load_policy(config(checkpoint, critic="separate"), "cpu", torch.float32)
    assert policy.critic_network is not None
    first, second = dict(policy.network.named_parameters()), dict(policy.critic_network.named_parameters())
    assert all((first[name] is second[name]) is not p.requires_grad for name, p in first.items())


def test_the_reference_is_the_policy_that_was_remembered(policy: OpenVLAPolicy, observation: Observation) -> None:
    tokens = torch.randint(0, 256, (3, 7), generator=torch.Generator().manual_seed(4))

    def logprob() -> torch.Tensor:
        return policy.evaluate(observation, tokens).logprob.detach()

    start = logprob()
    weights = {name: p.detach().clone() for name, p in policy.named_parameters()}
    policy.remember()
    try:
        with torch.no_grad():
            for parameter in policy.adapter_parameters():
                parameter.add_(0.05)
        learned = logprob()
        assert not torch.allclose(learned, start, atol=1e-3)
        with policy.reference():
            assert torch.equal(logprob(), start)
        assert torch.equal(logprob(), learned)
    finally:
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                parameter.copy_(weights[name])


def test_remembering_new_adapters_keeps_no_copy(checkpoint: Path, observation: Observation) -> None:
    policy = load_policy(config(checkpoint), "cpu", torch.float32)
    policy.remember()
    assert sum(tensor.untyped_storage().nbytes() for _, tensor in policy._remembered) < 4 * 100
    tokens = torch.zeros(3, 7, dtype=torch.int64)
    start = policy.evaluate(observation, tokens).logprob.detach()
    with torch.no_grad():
        for parameter in policy.adapter_parameters():
            parameter.normal_(std=0.1)
    with policy.reference():
        assert torch.equal(policy.evaluate(observation, tokens).logprob.detach(), start)
    assert not torch.equal(policy.evaluate(observation, tokens).logprob.detach(), start)


@pytest.mark.parametrize("train_vision", [True, False])
def test_a_rollout_keeps_pictures_at_the_policys_size(checkpoint: Path, train_vision: bool) -> None:
    """Bytes, within rounding of what the network would have seen; acting and learning see the same."""
    policy = load_policy(replace(config(checkpoint), train_vision=train_vision), "cpu", torch.float32)
    ramp = torch.arange(0, 240, dtype=torch.uint8)[None, :, None, None].expand(2, 240, 320, 3)
    seen = policy.see(Observation(ramp, INSTRUCTIONS[:2]))
    assert seen.image.shape == (2, 128, 128, 3) and seen.image.dtype == torch.uint8
    std = policy.preprocess.std
    assert ((policy.preprocess(seen.image) - policy.preprocess(ramp)) * std).abs().max() <= 0.51 / 255
    output = policy.act(seen, gumbel(2))
    logprob = policy.evaluate(seen, output.action_tokens).logprob.detach()
    torch.testing.assert_close(output.logprob, logprob, atol=1e-4, rtol=0)


def test_a_new_critic_says_zero(checkpoint: Path, observation: Observation) -> None:
    assert torch.equal(load_policy(config(checkpoint), "cpu", torch.float32).value(observation), torch.zeros(3))


def test_full_policy_trains_every_weight_in_use(checkpoint: Path, observation: Observation) -> None:
    policy = load_full_policy(checkpoint, "sft")
    features = policy.features(observation, torch.full((3, 7), 9))
    (features.logits.square().sum() + features.hidden.sum() + features.patches.square().sum()).backward()
    trained = {name for name, p in policy.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in policy.named_parameters() if p.requires_grad}
    unused = ("blocks.3.", "attn_pool.", "featurizer.norm.")
    assert {n for n, _ in policy.named_parameters()} - trained == {
        n for n, _ in policy.named_parameters() if any(part in n for part in unused)
    }
    assert policy.sizes.patch_grid == (8, 8)
    assert features.patches.shape == (3, 64, policy.sizes.patch_dim)
    assert features.hidden.shape == (3, 7, policy.sizes.hidden_dim)


def test_folded_layer_is_pefts(policy: OpenVLAPolicy) -> None:
    layer = policy.network.projector.fc1
    assert isinstance(layer, FoldedLinear)
    x = torch.randn(5, layer.in_features)
    torch.testing.assert_close(layer(x), peft_lora.Linear.forward(layer, x), atol=1e-5, rtol=1e-5)


HEAD = "network.language_model.lm_head"  # of which only the action rows are ever computed


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recorded_decoding_is_the_same_and_follows_the_weights(checkpoint: Path, observation: Observation) -> None:
    plain = load_policy(config(checkpoint), "cuda", torch.bfloat16)
    graphed = load_policy(replace(config(checkpoint), cuda_graph=True), "cuda", torch.bfloat16)
    graphed.load_state_dict(plain.state_dict())
    for _ in range(2):
        for noise in (gumbel(3), None):
            with plain.fixed_weights(), graphed.fixed_weights():
                one, other = plain.act(observation, noise), graphed.act(observation, noise)
            assert torch.equal(one.action_tokens, other.action_tokens)
            torch.testing.assert_close(one.logprob, other.logprob, atol=0.05, rtol=0)
        for policy in (plain, graphed):
            with torch.no_grad():
                for parameter in policy.adapter_parameters():
                    parameter.add_(0.01)
    assert len(graphed.graphs.recorded) == 1


def test_a_graph_reads_the_adapters_themselves(checkpoint: Path) -> None:
    """Not what `fixed_weights` keeps of them, which is another tensor in every block."""
    policy = make(checkpoint, torch.bfloat16)
    policy.graphs = Graphs()
    with policy.fixed_weights():
        assert all(m.kept is None for m in policy.modules() if isinstance(m, AdaptedLinear))


def test_a_graph_without_a_gpu_is_refused(checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"policy\.cuda_graph is true, which needs a GPU"):
        load_policy(replace(config(checkpoint), cuda_graph=True), "cpu", torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_weights_are_used_at_once(checkpoint: Path, observation: Observation, dtype: torch.dtype) -> None:
    """A block of fixed weights works adapters out anew: none stale after an optimiser step, none kept afterwards."""
    policy = make(checkpoint, dtype)
    layers = {n: m for n, m in policy.named_modules() if isinstance(m, FoldedLinear | AdaptedLinear)}
    without = policy.act(observation, None).logprob
    with policy.fixed_weights():
        before = policy.act(observation, None).logprob
        assert layers and all((m.kept is None) == (n == HEAD) for n, m in layers.items())
    assert torch.equal(before, without)
    with torch.no_grad():
        for parameter in policy.adapter_parameters():
            parameter.mul_(0.5)
    with policy.fixed_weights():
        after = policy.act(observation, None)
    assert not torch.equal(before, after.logprob)
    logprob = policy.evaluate(observation, after.action_tokens).logprob.detach()
    torch.testing.assert_close(after.logprob, logprob, atol=1e-4 if dtype == torch.float32 else 0.1, rtol=0)
    assert all(m.kept is None for m in layers.values())


def test_bfloat16_base_keeps_float32_adapters(checkpoint: Path, observation: Observation) -> None:
    policy = make(checkpoint, torch.bfloat16)
    assert {p.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32}
    output = policy.act(observation, gumbel(3))
    evaluation = policy.evaluate(observation, output.action_tokens)
    assert output.logprob.dtype == evaluation.logprob.dtype == torch.float32
    torch.testing.assert_close(output.logprob, evaluation.logprob.detach(), atol=0.1, rtol=0)


class Pictures:
    """Three random pictures per scene, then the end."""

    num_envs, steps = 3, 3

    def reset(self, ids: torch.Tensor) -> Observation:
        self.random, self.time = torch.Generator().manual_seed(6), 0
        return self.see()

    def see(self) -> Observation:
        image = torch.randint(0, 256, (3, 128, 128, 3), dtype=torch.uint8, generator=self.random)
        return Observation(image, INSTRUCTIONS)

    def step(self, action: torch.Tensor) -> Step:
        self.time += 1
        flags = torch.zeros(3, dtype=torch.bool)
        return Step(self.see(), torch.zeros(3), Metrics(flags, flags, flags, flags), self.time == 3)


@pytest.mark.parametrize(("dtype", "rejudged"), [(torch.float32, False), (torch.bfloat16, True)])
def test_ratios_start_at_one(checkpoint: Path, dtype: torch.dtype, rejudged: bool) -> None:
    """In float32 as decoding recorded them; in bfloat16, where that is off by more, as judged again."""
    policy, generator = make(checkpoint, dtype), torch.Generator().manual_seed(7)
    recorded = collect(Pictures(), policy, torch.arange(3), generator, 0.8, Stopwatch())  # type: ignore[arg-type]
    rollout = rejudge(recorded, policy, 3, 0.8) if rejudged else recorded
    for t in range(3):
        observation = Observation(rollout.image[t], INSTRUCTIONS)
        evaluation = policy.evaluate(observation, rollout.action_tokens[t], 0.8)
        ratio = (evaluation.logprob - rollout.logprob[t]).sum(1).exp().detach()
        torch.testing.assert_close(ratio, torch.ones(3), atol=1e-3, rtol=0)
        torch.testing.assert_close(evaluation.value.detach(), rollout.value[t], atol=1e-3, rtol=0)
    if rejudged:
        assert ((rollout.logprob - recorded.logprob).sum(-1).exp() - 1).abs().max() > 1e-3


def test_adapter_folder_round_trip(checkpoint: Path, observation: Observation, tmp_path: Path) -> None:
    policy, folder = make(checkpoint), tmp_path / "adapter"
    for _ in range(2):  # the second time it replaces the first
        save_policy(policy, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    again = load_policy(config(checkpoint, str(folder)), "cpu", torch.float32)
    bins = torch.zeros(3, 7, dtype=torch.int64)
    first, second = policy.evaluate(observation, bins), again.evaluate(observation, bins)
    assert torch.equal(first.logprob, second.logprob)
    assert torch.equal(first.value, second.value)
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["peft_type"]) == (8, 4, "LORA")


def test_published_adapter_with_head_copy_loads(checkpoint: Path, tmp_path: Path) -> None:
    """PEFT writes a copy of the head and adapters of unused layers; both are skipped."""
    policy, folder = make(checkpoint), tmp_path / "adapter"
    save_policy(policy, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.language_model.lm_head.base_layer.weight"] = torch.zeros(32064, 96)
    tensors["base_model.model.vision_backbone.featurizer.blocks.3.attn.qkv.lora_A.weight"] = torch.zeros(8, 128)
    save_file(tensors, folder / "adapter_model.safetensors")
    again = load_policy(config(checkpoint, str(folder)), "cpu", torch.float32)
    state = again.adapter_state()
    assert all(torch.equal(state[name], tensor) for name, tensor in policy.adapter_state().items())


def test_whole_checkpoint_round_trip_and_shards(checkpoint: Path, tmp_path: Path) -> None:
    policy, folder = load_full_policy(checkpoint, "sft"), tmp_path / "copy"
    policy.save_full(folder)
    tensors = load_file(folder / "model.safetensors")
    assert all(
        torch.equal(tensor, tensors[name]) for name, tensor in load_file(checkpoint / "model.safetensors").items()
    )
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for shard, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / shard)
    index = {"weight_map": {name: shard for shard, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    again = load_full_policy(folder, "sft")
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), again.parameters()))
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-2\.safetensors is missing"):
        load_full_policy(folder, "sft")


def test_tiny_checkpoint_is_small_and_repeatable(checkpoint: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path / "again", seed=0, statistics=STATISTICS)
    files = sorted(path.name for path in checkpoint.iterdir())
    assert files == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in files:
        assert (checkpoint / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    assert sum(path.stat().st_size for path in checkpoint.iterdir()) <= 10_000_000
    assert (checkpoint / "tokenizer.json").stat().st_size < 200_000


def test_stem_is_read_off_the_weights_and_looks_over_the_edges_of_a_patch(policy: OpenVLAPolicy) -> None:
    """Pixel 24 goes to 12, 6, 3 of the halved pictures, inside a patch; pixel 31 to 15 and 16, then 7, 8, 3, 4."""
    encoder = policy.network.vision_backbone.featurizer
    assert (encoder.sizes.stem, encoder.sizes.patch, encoder.sizes.patches) == ((16, 32, 64), 16, 64)
    picture = torch.zeros(3, 3, 128, 128)
    picture[1, :, 24, 24] = 1
    picture[2, :, 24, 31] = 1
    nothing, inside, edge = encoder.patch_embed(picture)
    changed = [(patches != nothing).any(-1).nonzero().flatten().tolist() for patches in (inside, edge)]
    assert changed == [[9], [9, 10]]  # row 1, column 1; and its neighbour


def test_tokenizer(policy: OpenVLAPolicy, tmp_path: Path) -> None:
    known = write_tokenizer(tmp_path / "tokenizer.json")
    assert not {id_ for id_ in known if 31744 <= id_ <= 31999}
    tokenizer = policy.prompts._tokenizer
    for sentence in sentences():
        ids = tokenizer(sentence)["input_ids"]
        assert ids[0] == 1 and 0 not in ids[1:] and max(ids) < 31744
    assert tokenizer.decode(tokenizer(sentences()[0])["input_ids"][1:]) == sentences()[0]
    assert tokenizer("Out: ")["input_ids"][-1] == 29871
    ids = policy.prompts.ids("put carrot on plate")
    assert ids != policy.prompts.ids("Put carrot on plate")  # as written: whoever wants it lower lowers it
    assert ids[0] == 1 and ids[-1] == 29871
    assert tokenizer.decode(tokenizer("zwölf Züge")["input_ids"][1:]) == "zwölf Züge"  # bytes for the unknown


def broken(checkpoint: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "broken"
    shutil.copytree(checkpoint, folder)
    return folder


def test_the_committed_checkpoint_fits_the_default_settings(observation: Observation) -> None:
    default = load("base").policy
    folder = ROOT / default.checkpoint
    policy = load_policy(replace(default, checkpoint=str(folder)), "cpu", torch.float32)
    assert policy.act(observation, None).action_tokens.shape == (3, 7)
    words = [
        policy.prompts.ids(f"put {thing} on {place}") for thing, place in (("carrot", "plate"), ("red box", "blue mat"))
    ]
    assert max(len(ids) for ids in words) < 25  # its tokenizer knows the words of benchmark and pretraining world
    kept = {"README.md", "recipe.yaml", "log.csv", "log-acting.csv", "scores.json"}
    assert kept <= {file.name for file in folder.iterdir()}
    assert sum(file.stat().st_size for file in folder.iterdir()) < 10e6


def test_missing_folders(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no checkpoint folder .*absent; `make pretrain`"):
        load_policy(config(tmp_path / "absent"), "cpu", torch.float32)
    with pytest.raises(UserError, match=r"no adapter folder absent \(policy.adapter\)"):
        load_policy(config(checkpoint, "absent"), "cpu", torch.float32)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"])
def test_missing_or_truncated_file_is_named(checkpoint: Path, tmp_path: Path, name: str) -> None:
    folder = broken(checkpoint, tmp_path)
    content = (folder / name).read_bytes()
    for damage in (content[: len(content) // 2], b""):
        (folder / name).write_bytes(damage)
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            load_policy(config(folder), "cpu", torch.float32)
    (folder / name).unlink()
    with pytest.raises(UserError, match=name.replace(".", r"\.") + " is missing"):
        load_policy(config(folder), "cpu", torch.float32)


def test_weights_that_do_not_fit(checkpoint: Path, tmp_path: Path) -> None:
    folder = broken(checkpoint, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    missing = dict(tensors)
    del missing["projector.fc3.bias"]
    save_file(missing, folder / "model.safetensors")
    with pytest.raises(
        UserError, match=r"1 tensors differ, first 'projector\.fc3\.bias' \(expected \(96,\), found none\)"
    ):
        load_policy(config(folder), "cpu", torch.float32)
    save_file(tensors, folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"image_sizes": [224, 224]}))
    with pytest.raises(UserError, match="64 patches of 16 pixels; correct image_sizes"):
        load_policy(config(folder), "cpu", torch.float32)
    (folder / "config.json").write_text(json.dumps(settings | {"vision_heads": [5, 4]}))
    with pytest.raises(UserError, match="'vision_heads'"):
        load_policy(config(folder), "cpu", torch.float32)


def test_wrong_settings(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unnorm_key 'bridge' is not .*; there are: sft\."):
        load_policy(replace(config(checkpoint), unnorm_key="bridge"), "cpu", torch.float32)
    with pytest.raises(UserError, match="lora_rank is 0"):
        load_policy(replace(config(checkpoint), lora_rank=0), "cpu", torch.float32)
    whole = {"q01": [0.0] * 7, "q99": [1.0] * 7}
    ActionTokens({"sft": {"action": whole}}, "sft")
    for wrong in (
        *({"action": whole | change} for change in ({"q01": [0.0] * 6}, {"q99": ["a"] * 7}, {"mask": [True] * 3})),
        *({"action": {"q01": [0.0] * 7}}, {}, [1]),
    ):
        with pytest.raises(UserError, match="need lists q01 and q99 of 7 numbers"):
            ActionTokens({"sft": wrong}, "sft")
    save_policy(make(checkpoint), tmp_path / "adapter")
    cfg = config(checkpoint, str(tmp_path / "adapter"))
    with pytest.raises(UserError, match=r"has rank 8 and alpha 4, .* set policy\.lora_rank=8 policy\.lora_alpha=4"):
        load_policy(replace(cfg, lora_rank=16), "cpu", torch.float32)
    settings = json.loads((tmp_path / "adapter" / lora.SETTINGS).read_text())
    (tmp_path / "adapter" / lora.SETTINGS).write_text(json.dumps(settings | {"use_dora": True}))
    with pytest.raises(UserError, match="only plain LoRA"):
        load_policy(cfg, "cpu", torch.float32)
    (tmp_path / "adapter" / lora.SETTINGS).write_text(json.dumps(settings))
    tensors = load_file(tmp_path / "adapter" / lora.WEIGHTS)
    tensors.popitem()
    save_file(tensors, tmp_path / "adapter" / lora.WEIGHTS)
    with pytest.raises(UserError, match="does not fit the checkpoint: 1 tensors differ"):
        load_policy(cfg, "cpu", torch.float32)
