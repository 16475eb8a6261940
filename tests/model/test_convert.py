"""Original LLaVA's layout to transformers' and back: bit-equal, sharded or not, safetensors or .bin."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPVisionModel

from llava.model import convert, shards
from llava.model.family import family_of
from llava.model.load import load_model_and_processor
from tests.model.conftest import original_settings, random_projector


def read(folder):
    """All tensors of a folder, by an implementation of its own."""
    index = folder / "model.safetensors.index.json"
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    return {name: tensor for file in names for name, tensor in load_file(folder / file).items()}


def same_bits(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor.view(torch.uint8), right[name].view(torch.uint8)), name


def run(*arguments):
    return convert.main([str(argument) for argument in arguments])


def test_round_trip_is_bit_equal(original_folder, parts, tmp_path, capsys):
    hub, back = tmp_path / "hub", tmp_path / "back"
    assert run("--source", original_folder, "--output", hub) == 0
    assert run("--source", hub, "--output", back, "--to", "original") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"model in transformers layout: {hub}",
        f"model in original layout: {back}",
    ]
    same_bits(read(original_folder), read(back))
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (original_folder, back))
    for key, value in before.items():
        if key.startswith("mm_") or key in ("vocab_size", "architectures", "torch_dtype", "image_aspect_ratio"):
            assert after[key] == value, key
    assert after["unfreeze_mm_vision_tower"] is False
    text = "USER: What is it?\nASSISTANT: A dog.</s>USER: ok"
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (parts[0], back)]
    assert tokenizers[0](text).input_ids == tokenizers[1](text).input_ids
    assert len(tokenizers[1]) == 32000
    assert (back / "tokenizer.model").read_bytes() == (parts[0] / "tokenizer.model").read_bytes()


def test_hub_layout_holds_what_the_original_held(original_folder, parts, tmp_path):
    """Names written out here by hand, the tower in the model's dtype, the added rows zero."""
    convert.from_original(original_folder, tmp_path / "hub")
    state, original = read(tmp_path / "hub"), read(original_folder)
    for name in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        assert torch.equal(state[f"language_model.{name}"], original[name])
    assert torch.equal(state["multi_modal_projector.linear_2.bias"], original["model.mm_projector.2.bias"])
    head = state["language_model.lm_head.weight"]
    assert head.shape == (32064, 32)
    assert torch.equal(head[:32000], original["lm_head.weight"])
    assert not head[32000:].any()
    tower = CLIPVisionModel.from_pretrained(parts[1]).state_dict()["encoder.layers.2.mlp.fc1.weight"]
    assert torch.equal(state["vision_tower.vision_model.encoder.layers.2.mlp.fc1.weight"], tower.half())
    model = family_of(tmp_path / "hub").load_model(tmp_path / "hub")
    assert model.dtype == torch.float16
    assert model.generation_config.suppress_tokens[0] == 32000


@pytest.mark.parametrize("form", ["safetensors", "bin", "old_bin"])
def test_sharded_sources_and_outputs(original_folder, tmp_path, monkeypatch, form):
    """Several shards in, several out, whatever the format; buffers of old versions are left behind."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("config.json", "tokenizer.model", "tokenizer_config.json"):
        (source / name).write_bytes((original_folder / name).read_bytes())
    state = read(original_folder)
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    names, weight_map = sorted(state), {}
    stem = "model" if form == "safetensors" else "pytorch_model"
    ending = "safetensors" if form == "safetensors" else "bin"
    for number in range(3):
        file = f"{stem}-0000{number + 1}-of-00003.{ending}"
        shard = {name: state[name].clone() for name in names[number::3]}
        if form == "safetensors":
            save_file(shard, source / file)
        else:
            torch.save(shard, source / file, _use_new_zipfile_serialization=form == "bin")
        weight_map.update(dict.fromkeys(shard, file))
    (source / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    monkeypatch.setattr(shards.ShardWriter.__init__, "__defaults__", (1_000_000,))
    assert run("--source", source, "--output", tmp_path / "hub") == 0
    assert run("--source", tmp_path / "hub", "--output", tmp_path / "back", "--to", "original") == 0
    assert len(list((tmp_path / "hub").glob("model-*-of-*.safetensors"))) > 2
    same_bits(read(original_folder), read(tmp_path / "back"))
    model = family_of(tmp_path / "hub").load_model(tmp_path / "hub")
    assert torch.equal(model.lm_head.weight[:32000], state["lm_head.weight"])


def test_writer_holds_one_shard_at_most(tmp_path, monkeypatch):
    writer = shards.ShardWriter(tmp_path, shard_bytes=1000)
    sizes = []
    monkeypatch.setattr(
        shards, "save_file", lambda tensors, *_, **__: sizes.append(sum(t.nbytes for t in tensors.values()))
    )
    monkeypatch.setattr(shards, "move_into_place", lambda *_: None)
    for number in range(20):
        writer.add(f"t{number}", torch.zeros(75))
    writer.finish()
    assert sum(sizes) == 20 * 300
    assert max(sizes) == 900


def test_writer_takes_tied_and_strided_tensors(tmp_path):
    weight = torch.randn(6, 4)
    tensors = {"a": weight, "b": weight, "c": weight.T, "d": weight[:3], "e": weight[1:]}
    writer = shards.ShardWriter(tmp_path)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    with pytest.raises(ValueError, match="a is there twice"):
        writer.add("a", weight)
    writer.finish()
    same_bits(read(tmp_path), {name: tensor.contiguous() for name, tensor in tensors.items()})


def test_trained_tower_goes_into_the_checkpoint(original_folder, tmp_path):
    convert.from_original(original_folder, tmp_path / "hub")
    file = tmp_path / "hub" / "model.safetensors"
    state = load_file(file)
    state["vision_tower.vision_model.post_layernorm.bias"] += 1
    save_file(state, file, metadata={"format": "pt"})
    convert.to_original(tmp_path / "hub", tmp_path / "back")
    original = read(tmp_path / "back")
    assert "model.vision_tower.vision_tower.vision_model.post_layernorm.bias" in original
    assert json.loads((tmp_path / "back" / "config.json").read_text())["unfreeze_mm_vision_tower"] is True
    convert.from_original(tmp_path / "back", tmp_path / "again")
    same_bits(state, read(tmp_path / "again"))


def with_text_settings(original_folder, folder, **values):
    """A hub folder whose language model has other settings."""
    convert.from_original(original_folder, folder)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["text_config"] |= values
    file.write_text(json.dumps(config))
    return folder


def test_configuration_as_llavas_own_transformers_reads_it(original_folder, parts, tmp_path):
    """Key by key: what transformers 4.37's LlamaConfig and LLaVA-v1.5's code take, and nothing of a later form."""
    convert.from_original(original_folder, tmp_path / "hub")
    convert.to_original(tmp_path / "hub", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == {
        "architectures": ["LlavaLlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 32,
        "image_aspect_ratio": "pad",
        "initializer_range": 0.2,
        "intermediate_size": 48,
        "max_position_embeddings": 2048,
        "mm_hidden_size": 24,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": str(parts[1]),
        "model_type": "llava_llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "pad_token_id": 0,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "tokenizer_model_max_length": 2048,
        "torch_dtype": "float16",
        "unfreeze_mm_vision_tower": False,
        "use_cache": True,
        "use_mm_proj": True,
        "vocab_size": 32000,
    }


@pytest.mark.parametrize("legacy", [True, False])
def test_tokenizer_as_llavas_own_transformers_reads_it(original_folder, tmp_path, legacy):
    """The files that transformers 4.37's slow LlamaTokenizer reads, each setting by name."""
    source = tmp_path / "source"
    shutil.copytree(original_folder, source)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(settings | {"legacy": legacy}))
    convert.from_original(source, tmp_path / "hub")
    convert.to_original(tmp_path / "hub", tmp_path / "back")
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}
    assert json.loads((tmp_path / "back" / "special_tokens_map.json").read_text()) == special
    assert json.loads((tmp_path / "back" / "tokenizer_config.json").read_text()) == special | {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": legacy,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "padding_side": "right",
        "sp_model_kwargs": {},
    }
    names = sorted(file.name for file in (tmp_path / "back").glob("*token*"))
    assert names == ["special_tokens_map.json", "tokenizer.model", "tokenizer_config.json"]


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_rotary_scaling_survives_the_way_back(original_folder, tmp_path, kind):
    rope = {"rope_type": kind, "factor": 2, "rope_theta": 5e5}
    hub = with_text_settings(original_folder, tmp_path / "hub", rope_parameters=rope)
    convert.to_original(hub, tmp_path / "back")
    values = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (values["rope_scaling"], values["rope_theta"]) == ({"type": kind, "factor": 2.0}, 5e5)
    assert isinstance(values["rope_scaling"]["factor"], float)  # transformers 4.37 refuses an int
    assert "rope_parameters" not in values
    convert.from_original(tmp_path / "back", tmp_path / "again")
    first, again = (family_of(folder).load_model(folder) for folder in (hub, tmp_path / "again"))
    ids = torch.arange(3, 60)[None]
    assert torch.equal(first(ids).logits, again(ids).logits)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}}, "linear or dynamic"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0.5, "rope_theta": 1e4}}, "by a factor above 1"),
        ({"head_dim": 16}, "heads of another width"),
        ({"mlp_bias": True}, "biases in the MLP"),
    ],
)
def test_what_llavas_own_loader_cannot_read_is_refused(original_folder, tmp_path, values, message):
    hub = with_text_settings(original_folder, tmp_path / "hub", **values)
    with pytest.raises(ValueError, match=message):
        convert.to_original(hub, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_way_back_without_tokenizer_model_is_refused(original_folder, tmp_path, capsys):
    convert.from_original(original_folder, tmp_path / "hub")
    (tmp_path / "hub" / "tokenizer.model").unlink()
    assert run("--source", tmp_path / "hub", "--output", tmp_path / "back", "--to", "original") == 2
    assert "has no tokenizer.model" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["linear", "mlp3x_gelu"])
def test_other_projectors(parts, original_folder, tmp_path, kind):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (source / name).write_bytes((original_folder / name).read_bytes())
    state = {name: tensor for name, tensor in read(original_folder).items() if "mm_projector" not in name}
    save_file(state | random_projector(kind), source / "model.safetensors")
    (source / "config.json").write_text(json.dumps(original_settings(*parts, kind)))
    convert.from_original(source, tmp_path / "hub")
    convert.to_original(tmp_path / "hub", tmp_path / "back")
    same_bits(read(source), read(tmp_path / "back"))


def test_loading_the_original_equals_converting_it(original_folder, tmp_path):
    convert.from_original(original_folder, tmp_path / "hub")
    direct, processor = load_model_and_processor(original_folder)
    converted = family_of(tmp_path / "hub").load_model(tmp_path / "hub")
    same_bits(direct.state_dict(), converted.state_dict())
    assert processor.image_token_id == 32000
    assert direct.generation_config.suppress_tokens == converted.generation_config.suppress_tokens
    direct.save_pretrained(tmp_path / "resaved")
    same_bits(read(tmp_path / "hub"), read(tmp_path / "resaved"))


@pytest.mark.parametrize("kind", ["linear", "mlp2x_gelu", "mlp3x_gelu"])
def test_projector_file(tmp_path, kind):
    weights = random_projector(kind)
    torch.save(weights, tmp_path / "mm_projector.bin")
    assert run("--source", tmp_path / "mm_projector.bin", "--output", tmp_path / "p.safetensors") == 0
    names = sorted(load_file(tmp_path / "p.safetensors"))
    assert names[:2] == ["multi_modal_projector.linear_1.bias", "multi_modal_projector.linear_1.weight"]
    assert run("--source", tmp_path / "p.safetensors", "--output", tmp_path / "back.bin", "--to", "original") == 0
    same_bits(weights, torch.load(tmp_path / "back.bin", weights_only=True))


def test_bad_input_is_named_and_leaves_nothing(original_folder, tmp_path, capsys):
    def fails(*arguments, message):
        assert run(*arguments) == 2
        assert message in capsys.readouterr().err
        assert not list(tmp_path.glob("*out*"))
        assert not list(tmp_path.glob(".*out*"))

    out = tmp_path / "out"
    fails("--source", tmp_path / "nothing", "--output", out, message="no such file or folder")
    fails("--source", original_folder, "--output", out, "--to", "original", message="is in original layout already")
    fails("--source", original_folder, "--output", out, "--vision-tower", "/no/tower", message="/no/tower")
    bad = tmp_path / "bad"
    bad.mkdir()
    for name in ("config.json", "tokenizer.model", "tokenizer_config.json"):
        (bad / name).write_bytes((original_folder / name).read_bytes())
    state = read(original_folder)
    lost = state.pop("model.norm.weight")
    save_file(state, bad / "model.safetensors")
    fails("--source", bad, "--output", out, message="lack language_model.model.norm.weight")
    save_file(state | {"model.norm.weight": lost[:5].clone()}, bad / "model.safetensors")
    fails("--source", bad, "--output", out, message="model.norm.weight has shape (5,)")
    save_file(state | {"model.norm.weight": lost, "model.image_newline": lost.clone()}, bad / "model.safetensors")
    fails("--source", bad, "--output", out, message="model.image_newline is not a parameter of a LLaVA-1.5 model")
    (bad / "model.safetensors").write_bytes((original_folder / "model.safetensors").read_bytes()[:5000])
    fails("--source", bad, "--output", out, message="not a readable weight file")
    (bad / "config.json").write_text("{")
    fails("--source", bad, "--output", out, message="not valid JSON")


def test_existing_output_is_not_touched(original_folder, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "keep").write_text("x")
    assert run("--source", original_folder, "--output", tmp_path / "full") == 2
    assert "already there" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["keep"]


def test_module_runs_from_the_command_line():
    done = subprocess.run(
        [sys.executable, "-m", "llava.model.convert", "--source", "/none", "--output", "/none2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "error: /none: no such file or folder" in done.stderr
