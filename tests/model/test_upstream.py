"""What llava takes from inside transformers: each name is there, does what it is taken for, and is taken once."""

import ast
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import LlavaForConditionalGeneration
from transformers.integrations import deepspeed as hf_deepspeed
from transformers.models.llava import modeling_llava

import llava
from llava.model import upstream
from llava.model.projector import LlavaProjector
from tests.tiny import tiny_llava

PACKAGE = Path(llava.__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("upstream") / "llava"
    tiny_llava(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return LlavaForConditionalGeneration.from_pretrained(folder)


def private_names(file: Path) -> set[str]:
    """Attributes with a leading underscore that are taken of something else than one's own object."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = ast.unparse(node.value)
            if owner not in ("self", "cls"):
                found.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            found |= {name.name for name in node.names if name.name.startswith("_") and node.module != "__future__"}
    return found


def test_no_other_file_reaches_behind_an_underscore():
    taken = {file.name: names for file in PACKAGE.rglob("*.py") if (names := private_names(file))}
    assert taken == {
        "upstream.py": {
            "_from_config",
            "_weight_conversions",
            "_attn_implementation",
            "_no_split_modules",
            "_hf_deepspeed_config_weak_ref",
        }
    }


def test_from_config_makes_a_shell_with_the_attention_asked_for(model):
    shell = upstream.llava_shell(deepcopy(model.config), "eager")
    assert {parameter.device.type for parameter in shell.parameters()} == {"meta"}
    assert upstream.attention_of(shell) == "eager"
    assert upstream.attention_of(model) == "sdpa"


def test_weight_conversions_give_a_built_model_the_names_of_a_published_one(model, folder, tmp_path):
    built = LlavaForConditionalGeneration(model.config)
    upstream.save_under_hub_names(built)
    built.save_pretrained(tmp_path)

    def names(path):
        with safe_open(path / "model.safetensors", framework="pt") as weights:
            return set(weights.keys())

    assert names(tmp_path) == names(folder) == set(upstream.hub_state_dict(model))
    assert any(name.startswith("vision_tower.vision_model.") for name in names(tmp_path))


def test_the_projector_class_is_the_one_that_models_are_built_with(model):
    stock = modeling_llava.LlavaMultiModalProjector
    with upstream.projector_class(LlavaProjector):
        built = upstream.llava_shell(model.config)
    assert isinstance(built.model.multi_modal_projector, LlavaProjector)
    assert modeling_llava.LlavaMultiModalProjector is stock
    with upstream.projector_class(None):
        assert modeling_llava.LlavaMultiModalProjector is stock


def test_no_split_modules_names_layers_of_the_model(model):
    classes = {type(module).__name__ for module in model.modules()}
    assert classes & set(upstream.undivided_layers(model)) >= {"LlamaDecoderLayer"}


def test_zero3_is_off_inside_and_back_afterwards():
    class Settings:
        def is_zero3(self) -> bool:
            return True

    held = Settings()
    hf_deepspeed.set_hf_deepspeed_config(held)
    try:
        with upstream.without_zero3():
            assert not hf_deepspeed.is_deepspeed_zero3_enabled()
        assert hf_deepspeed.is_deepspeed_zero3_enabled()
    finally:
        hf_deepspeed.unset_hf_deepspeed_config()
    with upstream.without_zero3():
        torch.zeros(1)
    assert not hf_deepspeed.is_deepspeed_zero3_enabled()
