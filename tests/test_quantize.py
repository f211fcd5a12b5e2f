"""A quantised base and 8-bit moments (bitsandbytes), and forgetting activations: what may change and what may not."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.helpers import with_effect

from vlapost.algorithms.base import adamw
from vlapost.config import ROOT, UserError, load
from vlapost.contracts import Observation
from vlapost.policies import tiny
from vlapost.policies.load import load_policy
from vlapost.policies.memory import base_bytes
from vlapost.policies.openvla import OpenVLA
from vlapost.policies.policy import OpenVLAPolicy

TOKENS = torch.arange(14).view(2, 7) * 18


def make(dtype: torch.dtype = torch.float32, **changes: str | int | bool) -> OpenVLAPolicy:
    """openvla-tiny with adapters that matter."""
    torch.manual_seed(1)
    base = load("base").policy
    policy = load_policy(replace(base, checkpoint=str(ROOT / base.checkpoint), critic="h0", **changes), "cpu", dtype)
    return with_effect(policy, std=0.05)


@pytest.fixture(scope="module")
def observation() -> Observation:
    image = torch.randint(0, 256, (2, 128, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    return Observation(image, ("put carrot on plate", "put the spoon on the towel"))


def gradients(policy: OpenVLAPolicy, observation: Observation) -> dict[str, torch.Tensor]:
    policy.zero_grad()
    evaluation = policy.evaluate(observation, TOKENS)
    (evaluation.logprob.sum() + evaluation.value.sum()).backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def cosine(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    a, b = (torch.cat([g[name].flatten() for name in sorted(one)]) for g in (one, other))
    return float(torch.cosine_similarity(a, b, dim=0))


# ---- bitsandbytes


def dequantised(layer: Any) -> torch.Tensor:
    """The weights a quantised layer stands for."""
    from bitsandbytes.functional import dequantize_4bit

    weight = layer.weight
    if hasattr(weight, "quant_state"):
        return dequantize_4bit(weight.data, weight.quant_state)
    return weight.data * weight.SCB[:, None] / 127  # rows scaled to -127..127


@pytest.mark.parametrize(("kind", "error", "close"), [("int8", 0.02, 0.1), ("nf4", 0.12, 0.02)])
def test_a_quantised_base_acts_and_learns(observation: Observation, kind: str, error: float, close: float) -> None:
    """Like a base of the dequantised weights (int8 also rounds the layers' inputs)."""
    pytest.importorskip("bitsandbytes")
    full, small = make(torch.bfloat16), make(torch.bfloat16, quantize=kind)
    count = 0
    for name, layer in small.network.named_modules():
        if isinstance(layer, torch.nn.Linear) and type(layer) is not torch.nn.Linear:
            assert layer.weight.element_size() == 1
            assert layer.weight.numel() == layer.in_features * layer.out_features // (2 if kind == "nf4" else 1)
            weight = full.network.get_submodule(name).weight
            back = dequantised(layer).to(weight.dtype)
            assert (back - weight).norm() <= error * weight.norm()
            weight.data.copy_(back)
            count += 1
    assert count > 30
    assert {p.dtype for p in small.parameters() if p.requires_grad} == {torch.float32}
    one, other = (p.action_logits(observation, TOKENS).detach() for p in (full, small))
    assert (one - other).norm() < close * one.norm()
    assert cosine(gradients(full, observation), gradients(small, observation)) > 1 - close
    output = small.act(observation, None)
    logprob = small.evaluate(observation, output.action_tokens).logprob.detach()
    torch.testing.assert_close(output.logprob, logprob, atol=0.3, rtol=0)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_the_memory_table_knows_what_quantised_weights_take(kind: str) -> None:
    """Weights with their scales, as bitsandbytes holds them."""
    pytest.importorskip("bitsandbytes")
    policy = make(torch.bfloat16, quantize=kind)
    taken = sum(p.numel() * p.element_size() for n, p in policy.network.named_parameters() if "lora_" not in n)
    for layer in policy.network.modules():
        weight = getattr(layer, "weight", None)
        if type(layer).__name__ == "Linear4bit":
            state = weight.quant_state
            taken += state.absmax.nbytes + state.state2.absmax.nbytes
        elif type(layer).__name__ == "Linear8bitLt":
            taken += weight.SCB.nbytes
    with torch.device("meta"):
        content = {"image_sizes": [tiny.IMAGE, tiny.IMAGE], "text_config": tiny.TEXT}
        network = OpenVLA(content, tiny.FEATURIZER, tiny.FUSED_FEATURIZER).to(torch.bfloat16)
    assert base_bytes(network, kind) == pytest.approx(taken, rel=0.01)
    assert base_bytes(network, kind) < base_bytes(network, "none")


def test_a_rollout_leaves_the_gradients_of_an_nf4_base_as_they_were(observation: Observation) -> None:
    """With bitsandbytes' own repacking on a CPU with AVX512-BF16 they are 79 % wrong afterwards."""
    pytest.importorskip("bitsandbytes")
    policy = make(torch.bfloat16, quantize="nf4")
    before = gradients(policy, observation)
    policy.act(observation, None)
    after = gradients(policy, observation)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_eight_bit_moments_step_like_full_ones() -> None:
    pytest.importorskip("bitsandbytes")
    optim = replace(load("base").optim, lr=0.01)
    start = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    target = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    reached, moments = {}, {}
    for bits in (32, 8):
        weight = torch.nn.Parameter(start.clone())
        optimizer = adamw([{"params": [weight]}], replace(optim, moment_bits=bits), 30)["optimizer"]
        for _ in range(30):
            optimizer.zero_grad()
            (weight - target).square().sum().backward()
            optimizer.step()
        reached[bits] = weight.detach()
        moments[bits] = sum(
            t.numel() * t.element_size()
            for t in optimizer.state[weight].values()
            if torch.is_tensor(t) and t.dim() == 2
        )
    distance = (reached[32] - start).norm()
    assert (reached[8] - reached[32]).norm() < 0.05 * distance
    assert moments[32] == 4 * moments[8] == 2 * 4 * 64 * 128


def test_without_bitsandbytes_the_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bitsandbytes", "bitsandbytes.nn", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"policy\.quantize=nf4 needs bitsandbytes; run pip"):
        make(quantize="nf4")
    with pytest.raises(UserError, match=r"optim\.moment_bits=8 needs bitsandbytes; run pip"):
        adamw([], replace(load("base").optim, moment_bits=8), 1)


def test_policies_need_neither_simulator_nor_bitsandbytes() -> None:
    """On a machine that only learns or measures: load, act, evaluate with those packages blocked."""
    program = (
        "import sys\n"
        "for name in ('mani_skill', 'sapien', 'mplib', 'bitsandbytes', 'omegaconf', 'lightning'):\n"
        "    sys.modules[name] = None\n"
        "import torch, benchmarks.policy\n"
        "from pathlib import Path\n"
        "from vlapost.policies.load import load_full_policy\n"
        "from vlapost.contracts import Observation\n"
        f"policy = load_full_policy(Path({str(ROOT / 'models' / 'openvla-tiny')!r}), 'world')\n"
        "seen = Observation(torch.zeros(1, 128, 128, 3, dtype=torch.uint8), ('put carrot on plate',))\n"
        "print(policy.act(seen, None).action_tokens.shape)\n"
    )
    child = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert "[1, 7]" in child.stdout


# ---- recomputation


def test_an_8_bit_base_keeps_no_input_that_recomputing_could_not_drop(observation: Observation) -> None:
    pytest.importorskip("bitsandbytes")
    everything, less = (make(torch.bfloat16, quantize="int8", recompute=what) for what in ("none", "blocks"))
    one, other = gradients(everything, observation), gradients(less, observation)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    waiting, seen, found = [less.evaluate(observation, TOKENS).logprob.grad_fn], set(), 0
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [before for before, _ in node.next_functions]
        if type(node).__name__ == "MatMul8bitLtBackward":
            assert all(tensor is None for tensor in node.tensors)
            found += 1
    assert found > 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("what", ["mlp", "blocks"])
def test_recomputing_changes_no_gradient_and_keeps_less(
    observation: Observation, what: str, dtype: torch.dtype
) -> None:
    everything, less = make(dtype), make(dtype, recompute=what)
    one, other = gradients(everything, observation), gradients(less, observation)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    with torch.no_grad():
        a, b = (p.evaluate(observation, TOKENS).logprob for p in (everything, less))
    assert torch.equal(a, b)
    assert kept(less, observation) < 0.85 * kept(everything, observation)  # the last of few blocks keeps little anyway


def kept(policy: OpenVLAPolicy, observation: Observation) -> int:
    """Bytes that autograd keeps between forward and backward, weights included once."""
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        evaluation = policy.evaluate(observation, TOKENS)
    total = sum(storages.values())
    del evaluation
    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    return total - sum(size for place, size in storages.items() if place in weights)


def test_adapters_in_bfloat16_keep_no_float32_copies(observation: Observation) -> None:
    """PEFT's own layer casts its input to float32 in every layer; ours keeps what the base keeps."""
    from peft.tuners.lora import Linear

    policy = make(torch.bfloat16)
    layer = policy.network.language_model.model.layers[0].mlp.up_proj
    x = torch.randn(2, 5, layer.in_features, dtype=torch.bfloat16, requires_grad=True)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ours = layer(x)
    assert not [t for t in saved if t.dtype == torch.float32 and t.shape == x.shape]
    assert [t for t in saved if t.data_ptr() == x.data_ptr()]  # the input itself, not a copy
    torch.testing.assert_close(ours, Linear.forward(layer, x), atol=0.05, rtol=0.05)
