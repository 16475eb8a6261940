"""LoRA: what is adapted, original LLaVA's adapters both ways, loading and merging against W + (α/r)·B·A by hand."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from llava.model import convert, merge_lora
from llava.model.family import family_of
from llava.model.load import load_model_and_processor, load_pretrained_model
from llava.model.lora import language_linear_names, lora_config, quantization_config
from tests.model.conftest import original_settings, random_projector
from tests.model.test_convert import same_bits

LEAVES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def original_adapter(parts, tmp_path_factory):
    """An adapter as original LLaVA's training leaves it: PEFT on the causal model, the projector in a file beside."""
    folder = tmp_path_factory.mktemp("lora") / "llava-lora"
    torch.manual_seed(5)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=LEAVES, task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(LlamaForCausalLM.from_pretrained(parts[0]), settings)
    model.save_pretrained(folder)
    projector = random_projector("mlp2x_gelu", "base_model.model.model.mm_projector.", torch.float32)
    torch.save(projector, folder / "non_lora_trainables.bin")
    (folder / "config.json").write_text(json.dumps(original_settings(*parts)))
    return folder


def by_hand(parts, adapter):
    """Merged language model and projector, by hub names below the model's parts."""
    state = load_file(parts[0] / "model.safetensors")
    lora = load_file(adapter / "adapter_model.safetensors")
    for name, down in lora.items():
        if ".lora_A." in name:
            place = name.removeprefix("base_model.model.").replace(".lora_A", "")
            state[place] = state[place] + 8 / 4 * lora[name.replace("lora_A", "lora_B")] @ down
    return state


def check_merged(model, parts, adapter):
    wanted = by_hand(parts, adapter)
    plain = load_file(parts[0] / "model.safetensors")
    assert not torch.equal(wanted["model.layers.0.mlp.up_proj.weight"], plain["model.layers.0.mlp.up_proj.weight"])
    state = model.state_dict()
    for name, tensor in wanted.items():
        if name.startswith("model."):
            held = state[name.replace("model.", "model.language_model.", 1)]
            torch.testing.assert_close(held[: len(tensor)], tensor, msg=lambda text, name=name: f"{name}: {text}")
    projector = torch.load(adapter / "non_lora_trainables.bin", weights_only=True)
    for name, tensor in projector.items():
        layer = {"0": "1", "2": "2"}[name.split(".")[-2]]
        ours = state[f"model.multi_modal_projector.linear_{layer}.{name.rsplit('.', 1)[1]}"]
        assert torch.equal(ours, tensor)


def test_linear_names_are_the_language_models_only(built):
    names = language_linear_names(built[0], family_of(built[0].config))
    wanted = {
        f"model.language_model.layers.{layer}.{'mlp' if leaf in LEAVES[4:] else 'self_attn'}.{leaf}"
        for layer in range(2)
        for leaf in LEAVES
    }
    assert set(names) == wanted


@pytest.mark.parametrize("which", ["hub_folder", "qwen2_vl", "qwen2_5_vl"])
def test_what_learns_under_lora(which, request, tmp_path):
    folder = request.getfixturevalue(which)
    family = family_of(folder)
    model = family.load_model(folder)
    wanted = set(language_linear_names(model, family))
    adapted = get_peft_model(model, lora_config(model, family, r=2, alpha=4))
    learning = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    lora = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in learning if ".lora_" in name}
    full = {name for name in learning if ".lora_" not in name}
    assert lora == wanted
    marks = [prefix + ".modules_to_save.default." for prefix in family.projector_modules]
    assert full
    assert all(any(mark in name for mark in marks) for name in full)
    # and the saved adapter brings both back
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if name in learning:
                parameter.normal_()
    adapted.save_pretrained(tmp_path)
    again, _ = load_model_and_processor(tmp_path, folder, merge_adapter=False)
    theirs = dict(again.named_parameters())
    for name, parameter in adapted.named_parameters():
        assert torch.equal(parameter, theirs[name]), name


def test_original_adapter_loads_on_its_language_model(parts, original_adapter):
    model, processor = load_model_and_processor(original_adapter, parts[0])
    check_merged(model, parts, original_adapter)
    assert processor.image_token_id == 32000


def test_original_adapter_round_trip(parts, original_adapter, tmp_path):
    hub, back = tmp_path / "hub", tmp_path / "back"
    assert convert.main(["--source", str(original_adapter), "--output", str(hub)]) == 0
    assert convert.main(["--source", str(hub), "--output", str(back), "--to", "original"]) == 0
    for file in ("adapter_model.safetensors", "non_lora_trainables.bin"):
        loader = load_file if file.endswith("safetensors") else lambda path: torch.load(path, weights_only=True)
        same_bits(loader(original_adapter / file), loader(back / file))
    settings = json.loads((back / "adapter_config.json").read_text())
    assert settings["target_modules"] == sorted(LEAVES)
    assert settings["modules_to_save"] is None
    model, processor = load_model_and_processor(hub)  # the base is named in the adapter
    check_merged(model, parts, original_adapter)
    assert processor.tokenizer.convert_tokens_to_ids("<image>") == 32000


def test_merge_command(parts, original_adapter, tmp_path, capsys):
    arguments = ["--model-path", str(original_adapter), "--model-base", str(parts[0])]
    assert merge_lora.main([*arguments, "--save-model-path", str(tmp_path / "merged")]) == 0
    model, processor = load_model_and_processor(tmp_path / "merged")
    check_merged(model, parts, original_adapter)
    assert "vision_tower.vision_model.embeddings.class_embedding" in load_file(tmp_path / "merged/model.safetensors")
    assert processor.default_template == "v1"
    assert merge_lora.main([*arguments, "--save-model-path", str(tmp_path / "merged")]) == 2
    assert merge_lora.main(["--model-path", str(parts[0]), "--save-model-path", str(tmp_path / "x")]) == 2
    errors = capsys.readouterr().err
    assert "already there" in errors
    assert "holds no LoRA adapter" in errors


def test_adapter_follows_its_moved_output_folder(hub_folder, tmp_path):
    """The base lies in the adapter's folder, and the folder was moved after training."""
    family = family_of(hub_folder)
    model = family.load_model(hub_folder)
    get_peft_model(model, lora_config(model, family, r=2, alpha=4)).save_pretrained(tmp_path / "out")
    file = tmp_path / "out" / "adapter_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"base_model_name_or_path": "/where/it/was/base_model"}))
    shutil.copytree(hub_folder, tmp_path / "out" / "base_model")
    again, _ = load_model_and_processor(tmp_path / "out")
    same_bits(again.state_dict(), family.load_model(hub_folder).state_dict())


def test_llava_users_loader(hub_folder, original_adapter, parts, original_folder):
    tokenizer, model, image_processor, length = load_pretrained_model(str(hub_folder), None, "anything", device="cpu")
    assert tokenizer.convert_tokens_to_ids("<image>") == 32000
    assert image_processor.do_pad
    assert length == 2048
    assert not model.training
    model = load_pretrained_model(str(original_adapter), str(parts[0]), "llava-lora", device="cpu")[1]
    check_merged(model, parts, original_adapter)
    model = load_pretrained_model(str(original_folder), None, "llava", device="cpu", torch_dtype=torch.float32)[1]
    assert model.dtype == torch.float32


def test_projector_on_a_language_model(parts, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(original_settings(*parts)))
    weights = random_projector("mlp2x_gelu", dtype=torch.float32)
    torch.save(weights, tmp_path / "mm_projector.bin")
    model, _ = load_model_and_processor(tmp_path, parts[0])
    assert torch.equal(model.model.multi_modal_projector.linear_2.weight, weights["model.mm_projector.2.weight"])
    with pytest.raises(ValueError, match="give the base model"):
        load_model_and_processor(tmp_path)


def test_quantisation_says_what_is_missing(built):
    family = family_of(built[0].config)
    assert quantization_config(16, family) is None
    with pytest.raises(ValueError, match="--bits must be 4, 8, 16 or 32"):
        quantization_config(5, family)
    import importlib.util

    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(RuntimeError, match="needs bitsandbytes"):
            quantization_config(4, family)
    else:
        assert "model.vision_tower" in quantization_config(4, family).llm_int8_skip_modules


def test_no_such_model():
    with pytest.raises(ValueError, match="neither a folder nor a model"):
        load_model_and_processor("/no/such/model")
