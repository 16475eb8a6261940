"""Tiny checkpoints shared by the model tests; made once, never changed by a test."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.model.assemble import build_llava
from tests import tiny


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    """Folders ``(language model, CLIP tower)``."""
    root = tmp_path_factory.mktemp("parts")
    return tiny.tiny_language_model(root / "vicuna"), tiny.tiny_clip(root / "clip")


@pytest.fixture(scope="session")
def built(parts):
    """``(model, processor)`` built of the parts."""
    torch.manual_seed(7)
    return build_llava(*parts)


@pytest.fixture(scope="session")
def hub_folder(built, tmp_path_factory):
    """The built model, saved."""
    folder = tmp_path_factory.mktemp("hub") / "llava"
    built[0].save_pretrained(folder)
    built[1].save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def qwen2_vl(tmp_path_factory):
    return tiny.tiny_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl"))


@pytest.fixture(scope="session")
def qwen2_5_vl(tmp_path_factory):
    return tiny.tiny_qwen2_5_vl(tmp_path_factory.mktemp("qwen2_5_vl"))


def original_settings(language: Path, tower: Path, kind: str = "mlp2x_gelu") -> dict:
    """config.json as original LLaVA writes it: the language model's, with LLaVA's own keys beside."""
    values = json.loads((language / "config.json").read_text())
    return values | {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "torch_dtype": "float16",
        "image_aspect_ratio": "pad",
        "mm_hidden_size": tiny.VISION_HIDDEN,
        "mm_projector_type": kind,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": str(tower),
        "tune_mm_mlp_adapter": False,
        "use_mm_proj": True,
    }


def random_projector(kind: str, prefix: str = "model.mm_projector.", dtype: torch.dtype = torch.float16) -> dict:
    """Projector weights by original LLaVA's names."""
    generator = torch.Generator().manual_seed(3)
    places = {"identity": [], "linear": [""], "mlp1x_gelu": ["0."], "mlp2x_gelu": ["0.", "2."]}
    places["mlp3x_gelu"] = ["0.", "2.", "4."]
    out = {}
    for number, place in enumerate(places[kind]):
        width_in = tiny.HIDDEN if number else tiny.VISION_HIDDEN
        weight = torch.randn(tiny.HIDDEN, width_in, generator=generator)
        out[f"{prefix}{place}weight"] = (weight / 5).to(dtype)
        out[f"{prefix}{place}bias"] = torch.randn(tiny.HIDDEN, generator=generator).to(dtype)
    return out


@pytest.fixture(scope="session")
def original_folder(parts, tmp_path_factory):
    """A LLaVA in original layout, float16, its tower apart; in one safetensors file."""
    folder = tmp_path_factory.mktemp("original") / "llava-v1.5"
    folder.mkdir()
    language, tower = parts
    state = {name: tensor.half() for name, tensor in load_file(language / "model.safetensors").items()}
    save_file(state | random_projector("mlp2x_gelu"), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(original_settings(language, tower)))
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(language / name, folder)
    return folder
