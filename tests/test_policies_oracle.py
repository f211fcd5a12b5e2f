"""Every number the original code gives for a small random OpenVLA, against ours (tests/fixtures/oracle/README.md)."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load, load_file

from vlapost import config
from vlapost.contracts import Observation
from vlapost.policies import lora
from vlapost.policies.action_tokens import ActionTokens, bin_centres
from vlapost.policies.checkpoint import load_openvla
from vlapost.policies.load import load_policy
from vlapost.policies.openvla import OpenVLA
from vlapost.policies.policy import OpenVLAPolicy
from vlapost.policies.prompt import PAD
from vlapost.policies.tiny_tokenizer import write_tokenizer
from vlapost.policies.vit import ViTSizes

FIXTURE = Path(__file__).parent / "fixtures" / "oracle"
FEATURES = MEANS = 1e-5
# Between logits added up in two orders: 2e-5 of their spread. The recorded ones lie 2.6e-5 from ours in float64.
REORDERED = 5.69e-5
# On cores like those they were recorded on, ours add up in the same order.
LOGITS = 1e-5 if torch.backends.cpu.get_cpu_capability() == "AVX512" else REORDERED
NAMES = ("a", "b", "c", "d")


def unpack(name: str) -> dict[str, torch.Tensor]:
    return load(gzip.decompress((FIXTURE / f"{name}.safetensors.gz").read_bytes()))


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(actual.detach(), expected, atol=atol, rtol=0)


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return unpack("expected_openvla") | unpack("expected_rl4vla") | unpack("expected_lora")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The checkpoint folder and the adapter folder, unpacked."""
    checkpoint, adapter = tmp_path_factory.mktemp("checkpoint"), tmp_path_factory.mktemp("adapter")
    config = json.loads((FIXTURE / "config.json").read_text()) | {"vision_heads": [4, 5]}
    (checkpoint / "config.json").write_text(json.dumps(config))
    for name in ("preprocessor_config.json", "dataset_statistics.json"):
        (checkpoint / name).write_bytes((FIXTURE / name).read_bytes())
    packed = (FIXTURE / "model.safetensors.gz").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(gzip.decompress(packed))
    write_tokenizer(checkpoint / "tokenizer.json")
    (adapter / "adapter_config.json").write_bytes((FIXTURE / "adapter" / "adapter_config.json").read_bytes())
    packed = (FIXTURE / "adapter" / "adapter_model.safetensors.gz").read_bytes()
    (adapter / "adapter_model.safetensors").write_bytes(gzip.decompress(packed))
    return checkpoint, adapter


def make(checkpoint: Path, adapter: str, expected: dict[str, torch.Tensor]) -> OpenVLAPolicy:
    named = replace(config.load("base").policy, checkpoint=str(checkpoint), adapter=adapter, unnorm_key="bridge_orig")
    policy = load_policy(replace(named, critic="h0"), "cpu", torch.float32)
    head = load_file(FIXTURE / "value_head.safetensors")
    policy.value_head.load_state_dict({name.removeprefix("value_head."): t for name, t in head.items()})
    for i, name in enumerate(NAMES):  # the true Llama-2 ids of the four prompts
        policy.prompts.cache[name] = expected[f"prompt.{i}"].tolist()
    return policy


@pytest.fixture(scope="module")
def policy(folders: tuple[Path, Path], expected: dict[str, torch.Tensor]) -> OpenVLAPolicy:
    return make(folders[0], "", expected)


@pytest.fixture(scope="module")
def adapted(folders: tuple[Path, Path], expected: dict[str, torch.Tensor]) -> OpenVLAPolicy:
    return make(folders[0], str(folders[1]), expected)


@pytest.fixture(scope="module")
def observation(expected: dict[str, torch.Tensor]) -> Observation:
    return Observation(expected["image224.uint8"], NAMES)


def action_range(name: str, expected: dict[str, torch.Tensor]) -> torch.Tensor:
    """The stored logits of ids 31744..31999 in the order of the bins."""
    return expected[name][..., :256].flip(-1)


def test_preprocessing(policy: OpenVLAPolicy, expected: dict[str, torch.Tensor]) -> None:
    pixels = policy.preprocess(expected["image224.uint8"])
    close(pixels[:, :, :16], expected["image224.pixel_values_rows0to16"], 1e-6)


def test_resize_is_the_rl_codes_and_near_pil(policy: OpenVLAPolicy, expected: dict[str, torch.Tensor]) -> None:
    image = torch.tensor(list(Image.open(FIXTURE / "image640_0.png").convert("RGB").tobytes()), dtype=torch.uint8)
    preprocess = policy.preprocess
    pixels = preprocess(image.view(1, 480, 640, 3)) * preprocess.std + preprocess.mean
    close(pixels[0, :3] * 255, expected["image640.rl4vla_resized_f32_image0"], 1e-3)
    pil = expected["image640.resize-naive.uint8"][0].permute(2, 0, 1).float()
    assert (pixels[0, 3:] * 255 - pil).clamp(-255, 255).abs().quantile(0.99) < 1.5


def test_vision_and_projector(
    policy: OpenVLAPolicy, observation: Observation, expected: dict[str, torch.Tensor]
) -> None:
    patches = policy.network.patch_features(policy.preprocess(observation.image))
    close(patches, expected["vision.patch_features"], FEATURES)
    close(policy.network.projector(patches), expected["vision.projected"], FEATURES)


def test_teacher_forced(policy: OpenVLAPolicy, observation: Observation, expected: dict[str, torch.Tensor]) -> None:
    bins = 31999 - expected["forced.tokens"]
    features = policy.features(observation, bins)
    close(features.logits, action_range("forced.logits_action_range", expected), LOGITS)
    close(features.logits, expected["rl.eval_forced.logits_256"].flip(-1), LOGITS)
    close(features.hidden[:, 0], expected["forced.last_hidden_first_action"], FEATURES)
    close(features.patches, expected["vision.patch_features"], FEATURES)
    evaluation = policy.evaluate(observation, bins)
    close(evaluation.logprob, expected["forced.logprob_256"], LOGITS)
    close(evaluation.logprob, expected["rl.eval_forced.logprob_per_token"], LOGITS)
    close(evaluation.entropy.mean(1), expected["rl.eval_forced.entropy_mean"][:, 0], MEANS)
    close(evaluation.value, expected["rl.eval_forced.values"][:, 0], FEATURES)
    close(policy.value(observation), expected["rl.get_value"][:, 0], FEATURES)
    loss = F.cross_entropy(policy.action_logits(observation, bins).flatten(0, 1), bins.flatten())
    close(loss, -expected["forced.logprob_256"].mean(), MEANS)


@pytest.mark.parametrize("kind", ["greedy", "forced"])
def test_every_piece_of_the_studys_evaluation(
    policy: OpenVLAPolicy, observation: Observation, expected: dict[str, torch.Tensor], kind: str
) -> None:
    tokens = expected[f"{kind}.tokens"] if kind == "forced" else expected["rl.greedy.tokens"]
    ids, mask = policy.prompts.batch(NAMES, torch.device("cpu"))
    assert torch.equal(torch.cat([ids, tokens], 1), expected[f"rl.eval_{kind}.input_ids"][:, 1:-1])  # BOS ... </s>
    assert torch.equal(mask, expected[f"rl.eval_{kind}.attention_mask"][:, 1:-8].bool())
    features, judged = policy.features(observation, 31999 - tokens), policy.evaluate(observation, 31999 - tokens)
    close(features.logits, expected[f"rl.eval_{kind}.logits_256"].flip(-1), LOGITS)
    close(features.hidden[:, 0], expected[f"rl.eval_{kind}.last_hidden_first_action"], FEATURES)
    close(features.hidden[:, 0], expected["rl.get_hidden"][:, 0], FEATURES)  # of the last three layers, the last first
    close(judged.logprob, expected[f"rl.eval_{kind}.logprob_per_token"], LOGITS)
    close(judged.logprob.sum(1), expected[f"rl.eval_{kind}.logprob_sum"][:, 0], LOGITS)
    close(judged.entropy.mean(1), expected[f"rl.eval_{kind}.entropy_mean"][:, 0], MEANS)
    close(judged.value, expected[f"rl.eval_{kind}.values"][:, 0], FEATURES)


def test_whole_vocabulary(policy: OpenVLAPolicy, observation: Observation, expected: dict[str, torch.Tensor]) -> None:
    """Where all words compete: the log-probabilities of the forced tokens among 32064."""
    tokens = expected["forced.tokens"]
    hidden, _ = policy._forward(policy.network, observation, 31999 - tokens[:, :-1])
    logprob = policy.network.language_model.lm_head(hidden).log_softmax(-1)
    close(logprob.gather(2, tokens[..., None])[..., 0], expected["forced.logprob_full_vocab"], LOGITS)


def test_one_sample_alone(policy: OpenVLAPolicy, observation: Observation, expected: dict[str, torch.Tensor]) -> None:
    """No padding: embeddings, all hidden states and the whole vocabulary."""
    network, tokens = policy.network, expected["forced.tokens"][:1]
    ids = torch.cat([expected["prompt.0"][None, 1:], tokens], dim=1)
    patches = network.patch_features(policy.preprocess(observation.image[:1]))
    embeds = network.embed(patches, ids)
    close(embeds[0], expected["forced.sample0.embeds"], FEATURES)
    length = embeds.shape[1]
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    hidden = network.hidden(embeds, mask, torch.arange(length)[None], length)
    close(hidden[0], expected["forced.sample0.last_hidden_all"], FEATURES)
    logits = network.language_model.lm_head(hidden[0, -8])
    close(logits, expected["forced.sample0.logits_full_at_first_action"], LOGITS)


def test_greedy_over_the_actions(
    policy: OpenVLAPolicy, observation: Observation, expected: dict[str, torch.Tensor]
) -> None:
    output = policy.act(observation, None)
    assert torch.equal(31999 - output.action_tokens, expected["rl.greedy.tokens"])
    close(output.logprob.sum(1), expected["rl.greedy.logprob_sum"][:, 0], LOGITS)
    close(output.value, expected["rl.greedy.values"][:, 0], FEATURES)


def test_greedy_over_the_vocabulary(
    policy: OpenVLAPolicy, observation: Observation, expected: dict[str, torch.Tensor]
) -> None:
    """Where the original's free choice fell on action tokens, ours is the same, and so is the action."""
    inside = ((expected["greedy.tokens"] >= 31744) & (expected["greedy.tokens"] <= 31999)).all(1)
    assert inside.tolist() == [True, False, True, True]
    bins = policy.act(observation, None).action_tokens
    assert torch.equal(31999 - bins[inside], expected["greedy.tokens"][inside])
    logits = policy.action_logits(observation, bins)
    close(logits[inside], action_range("greedy.logits_action_range", expected)[inside], LOGITS)
    for key in ("bridge_orig", "no_mask_set"):
        values = ActionTokens(policy.statistics, key).values
        close(values.gather(1, bins.T).T[inside], expected[f"greedy.actions_{key}"][inside], 1e-12)


def test_padding_layout(policy: OpenVLAPolicy, expected: dict[str, torch.Tensor]) -> None:
    ids, mask = policy.prompts.batch(NAMES, torch.device("cpu"))
    assert torch.equal(ids, expected["rl.input_ids"][:, 1:])
    assert torch.equal(mask, expected["rl.attention_mask"][:, 1:].bool())


def test_bins(expected: dict[str, torch.Tensor]) -> None:
    unscaled = {"q01": [-1.0] * 7, "q99": [1.0] * 7, "mask": [False] * 7}
    tokens = ActionTokens({"x": {"action": unscaled}}, "x")
    action = expected["bins.example_actions_f64"][:, None].expand(-1, 7)
    assert torch.equal(31999 - tokens.encode(action)[:, 0], expected["bins.example_token_ids"])
    inside = (expected["bins.decode_ids"] >= 31744) & (expected["bins.decode_ids"] <= 31999)
    bins = 31999 - expected["bins.decode_ids"][inside]
    assert torch.equal(torch.from_numpy(bin_centres())[bins], expected["bins.decode_values_f64"][inside])
    centres = torch.from_numpy(bin_centres())
    assert torch.equal(centres[:255], expected["bins.centers_f64"])
    edges = expected["bins.edges_f64"]
    assert torch.equal(tokens.encode(edges[:, None].expand(-1, 7))[:, 0], torch.arange(256))  # an edge opens its bin


def whole_vocabulary_loss(
    policy: OpenVLAPolicy, observation: Observation, expected: dict[str, torch.Tensor]
) -> torch.Tensor:
    """The study's SFT loss: padded on the right, all words compete, `</s>` counts as an eighth token."""
    network, ids, labels = policy.network, expected["sft.input_ids"], expected["sft.labels"]
    patches = network.patch_features(policy.preprocess(observation.image))
    embeds = network.embed(patches, ids[:, 1:])
    mask = F.pad(ids[:, 1:] != PAD, (1 + patches.shape[1], 0), value=True)
    lower = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool).tril()
    hidden = network.hidden(embeds, lower & mask[:, None, None], mask.cumsum(1) - 1, mask.shape[1])
    logits = network.language_model.lm_head(hidden[:, patches.shape[1] :])
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def test_sft_loss(
    policy: OpenVLAPolicy, adapted: OpenVLAPolicy, observation: Observation, expected: dict[str, torch.Tensor]
) -> None:
    close(whole_vocabulary_loss(policy, observation, expected)[None], expected["sft.loss"], MEANS)
    close(whole_vocabulary_loss(adapted, observation, expected)[None], expected["lora.sft.loss"], MEANS)


def test_adapter(adapted: OpenVLAPolicy, observation: Observation, expected: dict[str, torch.Tensor]) -> None:
    features = adapted.features(observation, 31999 - expected["forced.tokens"])
    close(features.patches, expected["lora.vision.patch_features"], FEATURES)
    logits = action_range("lora.forced.logits_action_range", expected)
    close(features.logits, logits, REORDERED)  # W + s B A in one product


def test_adapter_as_two_products(
    adapted: OpenVLAPolicy,
    folders: tuple[Path, Path],
    observation: Observation,
    expected: dict[str, torch.Tensor],
) -> None:
    """The layer that bases in bfloat16 or 4 bits use, here in float32."""
    network = load_openvla(folders[0], "cpu", torch.float32)
    lora.add_adapters(network, rank=32, alpha=16, folded=False)
    lora.load_adapters(network, folders[1] / lora.WEIGHTS)
    policy = OpenVLAPolicy(network, folders[0], adapted.statistics, "bridge_orig", critic="none")
    policy.prompts.cache = adapted.prompts.cache
    logits = policy.action_logits(observation, 31999 - expected["forced.tokens"])
    close(logits, action_range("lora.forced.logits_action_range", expected), LOGITS)


def test_adapter_gradients(adapted: OpenVLAPolicy, observation: Observation, expected: dict[str, torch.Tensor]) -> None:
    """Every gradient norm; the layers we leave out are exactly those that had none."""
    adapted.zero_grad()
    whole_vocabulary_loss(adapted, observation, expected).backward()
    names = json.loads((FIXTURE / "lora_targets.json").read_text())["grad_norm_names"]
    wanted = {n.replace(".default", ""): g for n, g in zip(names, expected["lora.sft.grad_norms"].tolist()) if g >= 0}
    found = {n: float(p.grad.norm()) for n, p in lora.adapter_parameters(adapted.network).items()}
    assert found.keys() == wanted.keys()
    assert all(math.isclose(found[name], wanted[name], rel_tol=1e-3, abs_tol=1e-6) for name in wanted)


def test_published_7b_shapes() -> None:
    """The network built from the published sizes has the published names and shapes, and the study's adapters."""
    shapes = json.loads(gzip.decompress((FIXTURE / "openvla7b_shapes.json.gz").read_bytes()))
    encoders = [
        ViTSizes.from_shapes({n.removeprefix(p): torch.Size(s) for n, s in shapes.items() if n.startswith(p)}, heads=16)
        for p in ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")
    ]
    config = {"image_sizes": [224, 224], "text_config": {"vocab_size": 32064, "pad_token_id": 32000}}
    with torch.device("meta"):
        network = OpenVLA(config, *encoders)
        assert {n: list(t.shape) for n, t in network.state_dict().items()} == shapes
        before = sum(p.numel() for p in network.parameters())
        lora.add_adapters(network, rank=32, alpha=16, folded=False)
    assert before == 7_541_237_184
    unused = 0  # rank * (in + out) of the last block of each encoder and of the pooling head
    for width, mlp in ((1024, 4096), (1152, 4304)):
        unused += 32 * ((width + 3 * width) + 2 * width + 2 * (width + mlp))
    unused += 32 * (2 * 1152 + (1152 + 2 * 1152) + 2 * 1152 + 2 * (1152 + 4304))
    assert sum(p.numel() for p in lora.adapter_parameters(network).values()) == 110_828_288 - unused
