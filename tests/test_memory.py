"""The memory table against what PyTorch allocates, byte by byte, for the small model; and the published sizes at 7B."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benchmarks.measure import peak_bytes

from vlapost import config, memory
from vlapost.config import ROOT, UserError, load
from vlapost.contracts import Observation
from vlapost.policies import cache as cache_module
from vlapost.policies.load import load_policy
from vlapost.policies.memory import PROMPT, base_bytes, needs
from vlapost.policies.policy import OpenVLAPolicy
from vlapost.policies.sizes import scaled_7b
from vlapost.policies.tiny import FEATURIZER, FUSED_FEATURIZER, IMAGE, TEXT

BATCH = 24
INSTRUCTION = "put carrot on plate"


def make(dtype: torch.dtype, recompute: str = "none", train_vision: bool = True) -> OpenVLAPolicy:
    base = load("base").policy
    changes = {"critic": "h0", "recompute": recompute, "train_vision": train_vision}
    return load_policy(replace(base, checkpoint=str(ROOT / base.checkpoint), **changes), "cpu", dtype)


def peak_of_step(policy: OpenVLAPolicy) -> int:
    """Most bytes allocated at once in forward and backward, beyond what was there before; gradients were there."""
    observation = Observation(torch.zeros(BATCH, IMAGE, IMAGE, 3, dtype=torch.uint8), (INSTRUCTION,) * BATCH)
    tokens = torch.zeros(BATCH, 7, dtype=torch.int64)

    def step() -> None:
        evaluation = policy.evaluate(observation, tokens)
        (evaluation.logprob.sum() + evaluation.entropy.sum() + evaluation.value.sum()).backward()

    step()
    return peak_bytes(step, "cpu")


@pytest.mark.parametrize(
    ("dtype", "recompute", "train_vision", "fused"),
    [
        (torch.float32, "none", True, True),
        (torch.float32, "none", True, False),
        (torch.bfloat16, "none", True, True),
        (torch.float32, "none", False, True),
        (torch.float32, "mlp", True, True),
        (torch.float32, "blocks", True, True),
    ],
)
def test_table_is_what_is_allocated(dtype: torch.dtype, recompute: str, train_vision: bool, fused: bool) -> None:
    torch.backends.cuda.enable_flash_sdp(fused)
    policy = make(dtype, recompute, train_vision)
    predicted = estimate(policy, dtype, recompute, train_vision, fused)
    assert peak_of_step(policy) == pytest.approx(predicted.activations, rel=0.1)
    parameters = list(policy.network.parameters()) + list(policy.value_head.parameters())
    assert sum(p.numel() * p.element_size() for p in parameters) == predicted.weights + predicted.adapters
    learning = [p for p in parameters if p.requires_grad]
    assert sum(p.numel() for p in learning) == predicted.trainable
    assert sum(p.grad.numel() * 4 for p in learning) == predicted.gradients


def estimate(policy: OpenVLAPolicy, dtype: torch.dtype, recompute: str, train_vision: bool, fused: bool):
    from vlapost.policies.openvla import OpenVLA

    with torch.device("meta"):
        network = OpenVLA({"image_sizes": [IMAGE, IMAGE], "text_config": TEXT}, FEATURIZER, FUSED_FEATURIZER)
    return needs(
        network, dtype=dtype, rank=32, train_vision=train_vision, critic="h0", quantized="none", recomputed=recompute,
        moment_bits=32, batch=BATCH, scenes=BATCH, samples=0, fused=fused,
        prompt=len(policy.prompts.ids(INSTRUCTION)) - 1,
    )  # fmt: skip


def test_cache_is_what_a_rollout_fills(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(
        "vlapost.policies.policy.fixed_cache", lambda *words: made.append(cache_module.fixed_cache(*words)) or made[-1]
    )
    policy = make(torch.float32)
    policy.act(Observation(torch.zeros(BATCH, IMAGE, IMAGE, 3, dtype=torch.uint8), (INSTRUCTION,) * BATCH), None)
    (cache,) = made
    filled = sum(buffer.nbytes for layer in cache.layers for buffer in (layer.key_buffer, layer.value_buffer))
    assert filled == estimate(policy, torch.float32, "none", True, True).cache
    assert all(layer.keys.shape[2] == layer.length for layer in cache.layers)  # no longer than it has to be


def test_the_published_model() -> None:
    """15.1 GB of weights, 0.524 MB of cache per token, the study's 110,828,288 adapter weights less the unused ones."""
    _, network = scaled_7b(1)
    network.to(torch.bfloat16)
    assert base_bytes(network, "none") == 2 * 7_541_237_184
    assert base_bytes(network, "nf4") < 0.32 * 2 * 7_541_237_184
    words = ["policy.checkpoint=openvla/openvla-7b", "trainer.precision=bf16-true", "policy.critic=none"]
    found = memory.of(config.load("sft", [*words, "optim.batch_size=1", "env.num_envs=1", "optim.moment_bits=8"]))
    assert found.weights == 2 * 7_541_237_184
    assert found.cache == (1 + 256 + PROMPT + 6) * 524_288
    assert found.trainable == found.gradients // 4 == found.moments // 2 == 110_828_288 - 1_701_888


def test_recomputing_and_eight_bits_save_where_they_should() -> None:
    def at(*words: str):
        base = ["policy.checkpoint=openvla/openvla-7b", "trainer.precision=bf16-true", "optim.batch_size=2"]
        return memory.of(config.load("sft", [*base, *words]))

    full, mlp, blocks = at(), at("policy.recompute=mlp"), at("policy.recompute=blocks")
    assert full.activations > 1.5 * mlp.activations > 5 * blocks.activations
    small = at("policy.quantize=nf4")
    assert small.weights < full.weights / 3 and small.activations == full.activations
    three, four = (at(f"optim.batch_size={size}").activations for size in (3, 4))
    assert four - three == three - full.activations  # the rest are the rounded adapters, once


def test_the_command_prints_a_table_without_the_hub(capsys: pytest.CaptureFixture[str]) -> None:
    memory.run(["sft", "trainer.accelerator=cpu"])
    text = capsys.readouterr().out
    assert all(row in text for row in memory.ROWS) and "weights learn" in text


@pytest.mark.parametrize("critic", ["h0", "hn", "all", "separate", "state"])
def test_every_critic_is_counted(critic: str) -> None:
    def at(words: list[str]):
        return memory.of(config.load("ppo", ["policy.checkpoint=openvla/openvla-7b", "optim.batch_size=2", *words]))

    found, h0 = at([f"policy.critic={critic}"]), at(["policy.critic=h0"])
    head = {"all": 6 * 4096 * 512, "state": (16 - 4096) * 512}.get(critic, 0)  # its first layer is wider or narrower
    second = found.trainable - h0.trainable - head
    assert second == (h0.trainable - (4096 * 512 + 512 + 512 * 128 + 128 + 128) if critic == "separate" else 0)
    # 2 x 16 scenes x 80 steps: a picture of 224 x 224, and float32 features of 256 patches
    assert found.rollout == 2560 * (3 * 224 * 224 + 256 * (1024 + 1152) * 4)


def test_a_misspelt_folder_is_not_taken_for_a_name_on_the_hub() -> None:
    with pytest.raises(UserError, match=r"openvla-tiny.* is missing"):
        memory.of(config.load("ppo", ["policy.checkpoint=openvla-tiny"]))
