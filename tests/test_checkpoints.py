"""Checkpoint folders in and out: what loads, what is refused and never executed, what a merge gives."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer
from peft.utils.save_and_load import set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tests.helpers import with_effect

from vlapost import cli, config, export
from vlapost.config import PolicyConfig, UserError
from vlapost.contracts import Observation
from vlapost.policies import lora, merge
from vlapost.policies.checkpoint import load_openvla
from vlapost.policies.hub import locate, on_hub
from vlapost.policies.load import load_full_policy, load_policy
from vlapost.policies.policy import OpenVLAPolicy, save_policy
from vlapost.policies.tiny import write_tiny
from vlapost.policies.value_head import ValueHead

ACTION = {"q01": [-0.03] * 6 + [0.0], "q99": [0.03] * 6 + [1.0], "mask": [True] * 6 + [False]}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model in float32, in two shards; its config.json names remote code, as the published one does."""
    folder = tmp_path_factory.mktemp("models") / "base"
    write_tiny(folder, seed=0, statistics={"bridge_orig": {"action": ACTION}})
    tensors = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    generator = torch.Generator().manual_seed(1)
    for name, tensor in tensors.items():
        if "embed_tokens" not in name:
            tensor.add_(0.02 * torch.randn(tensor.shape, generator=generator))
    (folder / "model.safetensors").unlink()
    shard(tensors, folder, 2)
    settings = json.loads((folder / "config.json").read_text())
    settings["auto_map"] = {"AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction"}
    (folder / "config.json").write_text(json.dumps(settings))
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings["auto_map"] = {"AutoProcessor": "processing_prismatic.PrismaticProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def shard(tensors: dict[str, torch.Tensor], folder: Path, count: int) -> None:
    places = {name: f"model-{1 + i % count}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        save_file({name: tensors[name] for name, place in places.items() if place == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def settings(checkpoint: Path, adapter: Path | str = "", **changes: str) -> PolicyConfig:
    base = config.load("base").policy
    named = replace(base, checkpoint=str(checkpoint), adapter=str(adapter), unnorm_key="bridge_orig", critic="h0")
    return replace(named, lora_rank=8, lora_alpha=4, **changes)


def trained(checkpoint: Path) -> OpenVLAPolicy:
    """A policy whose adapters and critic are not zero."""
    torch.manual_seed(1)
    return with_effect(load_policy(settings(checkpoint), "cpu", torch.float32))


@pytest.fixture(scope="module")
def adapted(checkpoint: Path) -> OpenVLAPolicy:
    return trained(checkpoint)


@pytest.fixture(scope="module")
def adapter(adapted: OpenVLAPolicy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "adapter"
    save_policy(adapted, folder)
    return folder


@pytest.fixture(scope="module")
def observation() -> Observation:
    image = torch.randint(0, 256, (4, 128, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    return Observation(image, ("put carrot on plate", "put the spoon on the towel") * 2)


@pytest.fixture
def broken(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "broken")


# ---- in


def test_code_in_a_folder_is_ignored(broken: Path, tmp_path: Path) -> None:
    """A poisoned module where auto_map points, and beside it under every name a loader might import."""
    proof = tmp_path / "executed"
    for name in ("modeling_prismatic", "configuration_prismatic", "processing_prismatic", "__init__"):
        (broken / f"{name}.py").write_text(f"open({str(proof)!r}, 'w').close()\n")
    load_policy(settings(broken), "cpu", torch.float32)
    assert not proof.exists()
    assert not {"modeling_prismatic", "configuration_prismatic"} & sys.modules.keys()


def test_weights_are_the_files(checkpoint: Path) -> None:
    stored = {n: t for file in checkpoint.glob("model-*.safetensors") for n, t in load_file(file).items()}
    for dtype in (torch.float32, torch.bfloat16):
        state = load_openvla(checkpoint, "cpu", dtype).state_dict()
        assert all(torch.equal(state[name], tensor.to(dtype)) for name, tensor in stored.items())
        assert {tensor.dtype for tensor in state.values()} == {dtype}


def test_a_file_that_changes_later_does_not_matter(broken: Path) -> None:
    """Weights are in memory of their own, not pages of the file."""
    policy = load_full_policy(broken, "bridge_orig")
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    for file in broken.glob("*.safetensors"):
        with file.open("r+b") as content:
            content.truncate(0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())


class Poison:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.proof), "w")


def refused(cfg: PolicyConfig, *parts: str) -> None:
    with pytest.raises(UserError) as error:
        load_policy(cfg, "cpu", torch.float32)
    text = str(error.value)
    assert all(part in text for part in parts), text
    assert "\n" not in text


def test_another_architecture(broken: Path) -> None:
    content = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(content | {"model_type": "llava"}))
    refused(settings(broken), "config.json", "'llava'", "policy.checkpoint")


def test_a_missing_shard(broken: Path) -> None:
    (broken / "model-2.safetensors").unlink()
    refused(settings(broken), "model-2.safetensors is missing")


def test_a_truncated_shard(broken: Path) -> None:
    content = (broken / "model-2.safetensors").read_bytes()
    (broken / "model-2.safetensors").write_bytes(content[: len(content) // 2])
    refused(settings(broken), "model-2.safetensors is not a complete safetensors file")


def test_a_shard_without_a_tensor_it_should_have(broken: Path) -> None:
    tensors = load_file(broken / "model-1.safetensors")
    lost = sorted(tensors)[0]
    del tensors[lost]
    save_file(tensors, broken / "model-1.safetensors")
    refused(settings(broken), "model-1.safetensors", f"'{lost}'")


@pytest.mark.parametrize("index", ["{}", '{"weight_map": {"a": "../../elsewhere.safetensors"}}'])
def test_an_index_that_points_elsewhere(broken: Path, index: str) -> None:
    (broken / "model.safetensors.index.json").write_text(index)
    refused(settings(broken), "model.safetensors.index.json", "weight_map")


def test_a_tensor_of_another_shape(broken: Path) -> None:
    tensors = load_file(broken / "model-1.safetensors")
    name = next(n for n in sorted(tensors) if n.endswith("proj.weight") and "language_model" in n)
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, broken / "model-1.safetensors")
    refused(settings(broken), "1 tensors differ", f"'{name}'", "expected", "found")


def test_pickles_are_refused_and_not_read(broken: Path, adapter: Path, tmp_path: Path) -> None:
    proof, runs = tmp_path / "executed", shutil.copytree(adapter, tmp_path / "adapter")
    (runs / "value_head.safetensors").unlink()
    (runs / "training_state.pt").write_bytes(pickle.dumps(Poison(proof)))
    refused(settings(broken, runs), "training_state.pt", "nothing in it is executed")
    torch.save({"vh": Poison(proof)}, runs / "training_state.pt")
    refused(settings(broken, runs), "training_state.pt", "nothing in it is executed")
    (runs / "adapter_model.safetensors").rename(runs / "adapter_model.bin")
    refused(settings(broken, runs), "adapter_model.bin", "adapter_model.safetensors", "convert it")
    for file in (*broken.glob("*.safetensors"), broken / "model.safetensors.index.json"):
        file.unlink()
    (broken / "pytorch_model.bin").write_bytes(pickle.dumps(Poison(proof)))
    refused(settings(broken), "pytorch_model.bin", "model.safetensors", "convert it")
    assert not proof.exists()


def test_the_studys_training_state_gives_the_critic(adapted: OpenVLAPolicy, adapter: Path, tmp_path: Path) -> None:
    """Its value head is under 'vh', in bfloat16, beside the states of two optimisers."""
    runs = shutil.copytree(adapter, tmp_path / "adapter")
    (runs / "value_head.safetensors").unlink()
    head = {name: tensor.bfloat16() for name, tensor in adapted.value_head.state_dict().items()}
    adam = torch.optim.AdamW(ValueHead(4).parameters()).state_dict()
    torch.save({"vh": head, "vh_optimizer": adam, "vla_optimizer": adam}, runs / "training_state.pt")
    found = load_policy(settings(adapted.source, runs), "cpu", torch.float32).value_head.state_dict()
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in head.items())
    torch.save({"vla_optimizer": adam}, runs / "training_state.pt")
    refused(settings(adapted.source, runs), "no value head under 'vh'")


def test_unknown_statistics_are_named(checkpoint: Path) -> None:
    refused(replace(settings(checkpoint), unnorm_key="fractal"), "'fractal'", "there are: bridge_orig")


def test_adapters_that_are_not_plain_lora(checkpoint: Path, adapter: Path, tmp_path: Path) -> None:
    runs = shutil.copytree(adapter, tmp_path / "adapter")
    content = json.loads((runs / "adapter_config.json").read_text())
    (runs / "adapter_config.json").write_text(json.dumps(content | {"alpha_pattern": {"q_proj": 64}}))
    refused(settings(checkpoint, runs), "adapter_config.json", "'alpha_pattern'", "plain LoRA")


# ---- memory while loading

MEASURE = """
import sys, torch
from pathlib import Path
from vlapost.policies.checkpoint import load_openvla
def memory(line):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(text.split()[1]) for text in lines if text.startswith(line))
load_openvla(Path(sys.argv[2]), "cpu", torch.float32)  # libraries and first allocations
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = memory("VmRSS")
network = load_openvla(Path(sys.argv[1]), "cpu", getattr(torch, sys.argv[3]))
size = sum(p.numel() * p.element_size() for p in network.parameters())
print((memory("VmHWM") - before) / size, size)
"""


@pytest.fixture(scope="module")
def eighth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OpenVLA-7B at an eighth of its width and full depth, random, bfloat16, in four shards."""
    from vlapost.policies.sizes import scaled_7b

    folder = tmp_path_factory.mktemp("eighth")
    content, network = scaled_7b(8)
    (folder / "config.json").write_text(json.dumps(content))
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    noise = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).bfloat16()
    tensors = {n: noise.repeat(-(-s.numel() // len(noise)))[: s.numel()].view(s).clone() for n, s in shapes.items()}
    shard(tensors, folder, 4)
    return folder


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_holds_the_model_once(eighth: Path, checkpoint: Path, dtype: str) -> None:
    words = [sys.executable, "-c", MEASURE, str(eighth), str(checkpoint), dtype]
    share, size = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    assert int(size) > 2.5e8
    assert 0.9 < float(share) <= 1.15


# ---- the Hub


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as a download needs: the list of a repository's files, and the files."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.reply(send=False)

    def do_GET(self) -> None:
        self.reply(send=True)

    def reply(self, send: bool) -> None:
        commit = "c0ffee" * 6 + "c0ff"
        name = self.path.partition("?")[0].rpartition("/")[2]
        if "/tree/" in self.path:
            paths = sorted(self.folder.iterdir())
            content = json.dumps(
                [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0"} for p in paths]
            )
        elif "/api/models/" in self.path:
            files = [{"rfilename": path.name} for path in self.folder.iterdir()]
            content = json.dumps({"id": "gen-robot/x", "sha": commit, "siblings": files, "private": False})
        elif (self.folder / name).is_file():
            self.asked.append(name)
            content = (self.folder / name).read_bytes()
        else:
            self.send_error(404)
            return
        content = content if isinstance(content, bytes) else content.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{abs(hash(content)):x}"')
        self.end_headers()
        if send:
            self.wfile.write(content)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def hub(broken: Path) -> Iterator[tuple[str, list[str]]]:
    for name in ("modeling_prismatic.py", "pytorch_model.bin", "training_state.pt"):
        (broken / name).write_text("harmful")
    handler = type("Handler", (Hub,), {"folder": broken, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler.asked
        server.shutdown()


def locate_elsewhere(endpoint: str, home: Path, name: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import sys; from pathlib import Path; from vlapost import cli; from vlapost.policies.hub import locate\n"
        f"sys.exit(cli.guard(lambda words: print(locate({name!r}, Path({str(home)!r}))), []))"
    )
    environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_TOKEN": ""}
    words = [sys.executable, "-c", program]
    return subprocess.run(words, capture_output=True, text=True, env=os.environ | environment, timeout=120)


def test_from_the_hub_come_json_and_safetensors_only(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, asked = hub
    child = locate_elsewhere(endpoint, tmp_path, "gen-robot/openvla-7b-rlvla-rl")
    assert child.returncode == 0, child.stderr
    folder = Path(child.stdout.strip().splitlines()[-1])
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    assert not [name for name in asked if not name.endswith((".json", ".safetensors"))]
    load_policy(settings(folder), "cpu", torch.float32)


def test_no_hub_says_which_files_to_put_where(tmp_path: Path) -> None:
    child = locate_elsewhere("http://127.0.0.1:9", tmp_path, "openvla/openvla-7b")
    assert child.returncode == 2
    sentence = child.stderr.splitlines()[-1]
    assert "'openvla/openvla-7b'" in sentence and "tokenizer.json" in sentence
    assert str(tmp_path / "openvla" / "openvla-7b") in sentence


def test_folders_come_before_the_hub(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    assert locate("models/openvla-tiny", tmp_path) == tmp_path / "models" / "openvla-tiny"  # missing: said when loaded
    assert locate("/somewhere/else/deep", tmp_path) == Path("/somewhere/else/deep")
    assert on_hub("openvla/openvla-7b", tmp_path)
    assert not on_hub("models/openvla-tiny", tmp_path) and not on_hub("openvla-tiny", tmp_path)


# ---- out


def test_peft_itself_reads_our_adapter(adapted: OpenVLAPolicy, adapter: Path, observation: Observation) -> None:
    network = load_openvla(adapted.source, "cpu", torch.float32)
    peft.inject_adapter_in_model(peft.LoraConfig.from_pretrained(adapter), network)
    result = set_peft_model_state_dict(network, load_file(adapter / lora.WEIGHTS))
    assert not result.unexpected_keys
    assert not [name for name in result.missing_keys if "lora_" in name]
    pixels = adapted.preprocess(observation.image)
    torch.testing.assert_close(
        network.patch_features(pixels), adapted.network.patch_features(pixels), atol=1e-5, rtol=0
    )


@pytest.fixture(scope="module")
def merged(checkpoint: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged") / "whole"
    words = [f"policy.checkpoint={checkpoint}", f"policy.adapter={adapter}", "policy.unnorm_key=bridge_orig"]
    export.run([*words, f"out={folder}"])
    return folder


def test_merged_acts_as_the_adapter_does(merged: Path, adapted: OpenVLAPolicy, observation: Observation) -> None:
    whole = load_full_policy(merged, "bridge_orig")
    one, other = adapted.act(observation, None), whole.act(observation, None)
    assert torch.equal(one.action_tokens, other.action_tokens)
    assert torch.equal(adapted.decode(one.action_tokens), whole.decode(other.action_tokens))
    torch.testing.assert_close(one.logprob, other.logprob, atol=1e-4, rtol=0)
    plain = load_full_policy(adapted.source, "bridge_orig").act(observation, None)
    assert not torch.equal(plain.action_tokens, other.action_tokens)  # the adapter did matter


def test_merged_folder_is_in_the_bases_layout(merged: Path, checkpoint: Path) -> None:
    base = {n: t for file in checkpoint.glob("model-*.safetensors") for n, t in load_file(file).items()}
    whole = load_file(merged / "model.safetensors")
    assert whole.keys() == base.keys() | {"language_model.lm_head.weight"}  # no longer tied
    assert {n: t.dtype for n, t in whole.items() if n in base} == {n: t.dtype for n, t in base.items()}
    before, after = (json.loads((f / "config.json").read_text()) for f in (checkpoint, merged))
    assert "auto_map" not in after and after["text_config"].pop("tie_word_embeddings") is False
    before["text_config"].pop("tie_word_embeddings")
    before.pop("auto_map")
    assert after == before
    names = {path.name for path in merged.iterdir()}
    before, after = (json.loads((f / "preprocessor_config.json").read_text()) for f in (checkpoint, merged))
    assert before.pop("auto_map") and after == before
    assert names >= {"README.md", "dataset_statistics.json", "tokenizer.json", "preprocessor_config.json"}
    assert "`bridge_orig`" in (merged / "README.md").read_text()


def test_merged_weights_are_pefts(merged: Path, adapted: OpenVLAPolicy) -> None:
    """PEFT's own delta of every layer, both convolutions included."""
    whole, count = load_file(merged / "model.safetensors"), 0
    for name, layer in adapted.network.named_modules():
        if isinstance(layer, LoraLayer):
            expected = layer.get_base_layer().weight + layer.get_delta_weight("default")
            torch.testing.assert_close(whole[f"{name}.weight"], expected.detach(), atol=1e-6, rtol=1e-5)
            count += 1
    assert count == len(lora.adapter_parameters(adapted.network)) // 2


def test_merging_in_bfloat16_says_what_it_loses(checkpoint: Path, adapter: Path, tmp_path: Path, monkeypatch) -> None:
    """Into several shards; the loss is recomputed here from the files."""
    half = tmp_path / "half"
    shutil.copytree(checkpoint, half)
    tensors = {n: t.bfloat16() for f in half.glob("model-*.safetensors") for n, t in load_file(f).items()}
    shard(tensors, half, 3)
    monkeypatch.setattr(merge, "SHARD_BYTES", 3 * 10**6)
    report = merge.merge(half, adapter, "bridge_orig", tmp_path / "whole")
    files = sorted(path.name for path in (tmp_path / "whole").glob("*.safetensors"))
    assert len(files) >= 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    whole = load_openvla(tmp_path / "whole", "cpu", torch.float32).state_dict()
    exact, lost = 0.0, 0.0
    policy = load_policy(settings(half, adapter), "cpu", torch.float32)
    for name, layer in policy.network.named_modules():
        if isinstance(layer, LoraLayer):
            delta = layer.get_delta_weight("default").detach()
            exact += float(delta.square().sum())
            lost += float((layer.get_base_layer().weight + delta - whole[f"{name}.weight"]).square().sum())
    assert 0 < report.lost < 0.2
    assert report.lost == pytest.approx((lost / exact) ** 0.5, rel=1e-2)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["policy.adapter=x"], ["OUT="]),
        (["out=somewhere"], ["policy.adapter is empty"]),
        (["policy.adapter={adapter}", "out={out}", "policy.unnorm_key=fractal"], ["'fractal'", "bridge_orig"]),
        (["policy.adapter={adapter}", "out=src"], ["src", "was not written by this command"]),
        (["policy.adapter={adapter}", "out={adapter}"], ["was not written by this command"]),
        (["policy.adapter={out}", "out={out}-2"], ["there is no *.safetensors file"]),
    ],
)
def test_a_wrong_export_is_one_sentence(
    checkpoint: Path, adapter: Path, tmp_path: Path, capsys, words: list[str], parts: list[str]
) -> None:
    copy = shutil.copytree(adapter, tmp_path / "adapter")
    (copy / "config.json").write_text("{}")
    given = [word.format(adapter=copy, out=tmp_path / "new") for word in words]
    assert cli.guard(export.run, [f"policy.checkpoint={checkpoint}", *given]) == 2
    text = capsys.readouterr().err
    assert all(part in text for part in parts), text
    assert text.count("\n") == 1
