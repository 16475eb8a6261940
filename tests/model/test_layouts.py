"""Full-size configurations on the meta device against the parameter lists of the published checkpoints.

The lists are rules written from the published files' indices: liuhaotian/llava-v1.5-7b and -13b (original layout),
llava-hf/llava-1.5-7b-hf and -13b-hf, Qwen/Qwen2-VL-2B-Instruct. Both directions: what we save has exactly these names
and shapes, and a file with these names and shapes fills our model with nothing missing and nothing left over.
"""

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.core_model_loading import revert_weight_conversion

from llava.model.assemble import wrap_config
from llava.model.original.names import hub_layout, to_hub_name, to_original_name
from llava.model.projector import projector_for

# width, mlp width, layers, heads
SIZES = {"7b": (4096, 11008, 32, 32), "13b": (5120, 13824, 40, 40)}


def both(name, *shape):
    """A weight with its bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def llama_parameters(width, mlp, layers, vocab):
    out = {"lm_head.weight": (vocab, width), "model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        out |= {f"{at}.{norm}_layernorm.weight": (width,) for norm in ("input", "post_attention")}
        out |= {f"{at}.self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        out |= {f"{at}.mlp.{name}_proj.weight": (mlp, width) for name in ("gate", "up")}
        out |= {f"{at}.mlp.down_proj.weight": (width, mlp)}
    return out


def clip_parameters():
    """openai/clip-vit-large-patch14-336, the vision side."""
    out = {
        "embeddings.class_embedding": (1024,),
        "embeddings.patch_embedding.weight": (1024, 3, 14, 14),
        "embeddings.position_embedding.weight": (577, 1024),
        **both("pre_layrnorm", 1024),
        **both("post_layernorm", 1024),
    }
    for layer in range(24):
        at = f"encoder.layers.{layer}"
        out |= both(f"{at}.layer_norm1", 1024) | both(f"{at}.layer_norm2", 1024)
        out |= both(f"{at}.mlp.fc1", 4096, 1024) | both(f"{at}.mlp.fc2", 1024, 4096)
        for name in ("q", "k", "v", "out"):
            out |= both(f"{at}.self_attn.{name}_proj", 1024, 1024)
    return out


def llava_original(size):
    width, mlp, layers, _ = SIZES[size]
    projector = both("model.mm_projector.0", width, 1024) | both("model.mm_projector.2", width, width)
    return llama_parameters(width, mlp, layers, 32000) | projector


def llava_hub(size):
    width, mlp, layers, _ = SIZES[size]
    out = {f"language_model.{name}": s for name, s in llama_parameters(width, mlp, layers, 32064).items()}
    out |= both("multi_modal_projector.linear_1", width, 1024) | both("multi_modal_projector.linear_2", width, width)
    return out | {f"vision_tower.vision_model.{name}": shape for name, shape in clip_parameters().items()}


def llava_config(size):
    width, mlp, layers, heads = SIZES[size]
    text = LlamaConfig(
        vocab_size=32000,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
    )
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    return wrap_config(text, vision, 32000)


def qwen_parameters():
    width, mlp, tower = 1536, 8960, 1280
    out = {"model.embed_tokens.weight": (151936, width), "model.norm.weight": (width,)}  # lm_head is tied, not stored
    for layer in range(28):
        at = f"model.layers.{layer}"
        out |= {f"{at}.{norm}_layernorm.weight": (width,) for norm in ("input", "post_attention")}
        out |= both(f"{at}.self_attn.q_proj", width, width)
        out |= both(f"{at}.self_attn.k_proj", 256, width) | both(f"{at}.self_attn.v_proj", 256, width)
        out |= {f"{at}.self_attn.o_proj.weight": (width, width), f"{at}.mlp.down_proj.weight": (width, mlp)}
        out |= {f"{at}.mlp.{name}_proj.weight": (mlp, width) for name in ("gate", "up")}
    out |= {"visual.patch_embed.proj.weight": (tower, 3, 2, 14, 14)}
    for layer in range(32):
        at = f"visual.blocks.{layer}"
        out |= both(f"{at}.norm1", tower) | both(f"{at}.norm2", tower)
        out |= both(f"{at}.attn.qkv", 3 * tower, tower) | both(f"{at}.attn.proj", tower, tower)
        out |= both(f"{at}.mlp.fc1", 4 * tower, tower) | both(f"{at}.mlp.fc2", tower, 4 * tower)
    merged = 4 * tower
    out |= both("visual.merger.ln_q", tower) | both("visual.merger.mlp.0", merged, merged)
    return out | both("visual.merger.mlp.2", width, merged)


def qwen_config():
    """The published config.json: flat, as of transformers 4.45."""
    return Qwen2VLConfig.from_dict(
        {
            "architectures": ["Qwen2VLForConditionalGeneration"],
            "attention_dropout": 0.0,
            "bos_token_id": 151643,
            "eos_token_id": 151645,
            "vision_start_token_id": 151652,
            "vision_end_token_id": 151653,
            "vision_token_id": 151654,
            "image_token_id": 151655,
            "video_token_id": 151656,
            "hidden_act": "silu",
            "hidden_size": 1536,
            "initializer_range": 0.02,
            "intermediate_size": 8960,
            "max_position_embeddings": 32768,
            "max_window_layers": 28,
            "model_type": "qwen2_vl",
            "num_attention_heads": 12,
            "num_hidden_layers": 28,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": 32768,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "use_sliding_window": False,
            "vision_config": {
                "depth": 32,
                "embed_dim": 1280,
                "mlp_ratio": 4,
                "num_heads": 16,
                "in_chans": 3,
                "hidden_size": 1536,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "spatial_patch_size": 14,
                "temporal_patch_size": 2,
            },
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
            "vocab_size": 151936,
        }
    )


def meta(parameters):
    return {name: torch.empty(shape, device="meta") for name, shape in parameters.items()}


def load_report(model_class, config, parameters):
    """transformers' own report of loading a file with these parameters, without any memory."""
    _, report = model_class.from_pretrained(
        None, config=config, state_dict=meta(parameters), device_map="meta", output_loading_info=True
    )
    return {key: report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}


NOTHING = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}


@pytest.mark.parametrize("size", SIZES)
def test_llava_saves_the_published_hub_layout(size):
    assert hub_layout(llava_config(size)) == llava_hub(size)


@pytest.mark.parametrize("size", SIZES)
def test_llava_loads_the_published_hub_layout(size):
    from transformers import LlavaForConditionalGeneration

    with projector_for(llava_config(size)):
        report = load_report(LlavaForConditionalGeneration, llava_config(size), llava_hub(size))
    assert report == NOTHING


@pytest.mark.parametrize("size", SIZES)
def test_original_names_map_onto_the_hubs_and_back(size):
    original, hub = llava_original(size), llava_hub(size)
    for name, shape in original.items():
        there = to_hub_name(name, "mlp2x_gelu")
        padded = (32064, *shape[1:]) if shape[0] == 32000 else shape
        assert hub.pop(there) == padded
        assert to_original_name(there, "mlp2x_gelu") == name
    assert all(name.startswith("vision_tower.") for name in hub)  # the tower is apart
    for name in hub:
        assert to_hub_name(to_original_name(name, "mlp2x_gelu"), "mlp2x_gelu") == name


def test_qwen_saves_the_published_layout():
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(qwen_config())
    saved = revert_weight_conversion(model, model.state_dict())
    shapes = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    assert shapes.pop("lm_head.weight") == shapes["model.embed_tokens.weight"]  # tied: dropped when written
    assert shapes == qwen_parameters()


def test_qwen_loads_the_published_layout():
    assert load_report(Qwen2VLForConditionalGeneration, qwen_config(), qwen_parameters()) == NOTHING


def test_the_loading_report_sees_a_fault():
    """The check above can fail: a lost, a strange and a misshapen parameter all show."""
    parameters = qwen_parameters()
    del parameters["model.norm.weight"]
    parameters["visual.strange"] = (3,)
    parameters["visual.merger.ln_q.bias"] = (7,)
    with pytest.raises(RuntimeError, match="mismatch"):
        load_report(Qwen2VLForConditionalGeneration, qwen_config(), parameters)
    del parameters["visual.merger.ln_q.bias"]
    report = load_report(Qwen2VLForConditionalGeneration, qwen_config(), parameters)
    assert {"model.language_model.norm.weight", "model.visual.merger.ln_q.bias"} <= set(report["missing_keys"])
    assert len(report["unexpected_keys"]) == 1
