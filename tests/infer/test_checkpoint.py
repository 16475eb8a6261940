"""Checkpoints that hold no processor of their own: adapters, and original LLaVA's layout."""

import json

import torch
from peft import get_peft_model

from inference_visatb import main
from llava.infer.checkpoint import Checkpoint
from llava.infer.engine import GenerationSettings, Generator
from llava.model.assemble import build_llava
from llava.model.convert import convert
from llava.model.family import family_of
from llava.model.load import load_model_and_processor
from llava.model.lora import lora_config
from tests.infer.conftest import mixed_requests
from tests.tiny import tiny_clip, tiny_language_model


def answers(model, processor):
    generator = Generator(model, processor, settings=GenerationSettings(max_new_tokens=6))
    return dict(generator.generate(mixed_requests(6)))


def test_a_lora_adapter_on_its_base(checkpoints, world):
    base = checkpoints["qwen2_vl"]
    model, processor = load_model_and_processor(base, dtype=torch.float32)
    plain = answers(model, processor)
    torch.manual_seed(0)
    adapted = get_peft_model(model, lora_config(model, family_of(base), r=4, alpha=64))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(world / "adapter")
    wanted = answers(adapted.eval(), processor)
    assert wanted != plain
    checkpoint = Checkpoint(str(world / "adapter"), str(base), "float32", "cpu")
    assert answers(checkpoint.model, checkpoint.processor) == wanted

    paths = ["--image-folder", str(world / "images"), "--question-file", str(world / "vqa_val-7.json")]
    words = ["--model-path", str(world / "adapter"), *paths, "--answers-folder", str(world), "--max_new_tokens", "4"]
    assert main([*words, "--model-base", str(base)]) == 0
    assert len(json.loads((world / "vqa_val-7_adapter.json").read_text())) == 7


def test_original_llava(tmp_path):
    language, clip = tiny_language_model(tmp_path / "language"), tiny_clip(tmp_path / "clip")
    torch.manual_seed(0)
    model, processor = build_llava(language, clip, dtype=torch.float32)
    model.save_pretrained(tmp_path / "hub")
    processor.save_pretrained(tmp_path / "hub")
    convert(tmp_path / "hub", tmp_path / "llava-tiny", "original", str(clip))
    checkpoint = Checkpoint(str(tmp_path / "llava-tiny"), None, "float32", "cpu")
    assert checkpoint.name == "llava-tiny"
    assert checkpoint.context_length == 2048
    assert answers(checkpoint.model, checkpoint.processor) == answers(model, processor)


def test_precision_is_float32_on_a_cpu_unless_named(checkpoints):
    assert Checkpoint(str(checkpoints["qwen2_vl"]), None, "auto", "cpu").dtype is torch.float32
    assert Checkpoint(str(checkpoints["qwen2_vl"]), None, "bfloat16", "cpu").model.dtype is torch.bfloat16


def test_on_a_gpu_float32_weights_answer_in_bfloat16_and_others_as_saved(checkpoints, tmp_path):
    assert Checkpoint(str(checkpoints["qwen2_vl"]), None, "auto", "cuda").dtype is torch.bfloat16
    assert Checkpoint(str(checkpoints["qwen2_vl"]), None, "float32", "cuda").dtype is torch.float32
    (tmp_path / "config.json").write_text('{"model_type": "llava", "dtype": "float16"}')
    assert Checkpoint(str(tmp_path), None, "auto", "cuda").dtype == "auto"


def test_weights_go_straight_to_the_device(checkpoints):
    """Not through the machine's memory, where every rank of a node would hold a copy."""
    model = Checkpoint(str(checkpoints["qwen2_vl"]), None, "auto", "meta").model
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_a_training_checkpoint_goes_by_its_run(checkpoints, tmp_path):
    (tmp_path / "run" / "checkpoint-20").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-20" / "config.json").write_text("{}")
    assert Checkpoint(str(tmp_path / "run" / "checkpoint-20") + "/", None, "auto", "cpu").name == "run_checkpoint-20"
