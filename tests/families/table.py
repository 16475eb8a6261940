"""The families that are tested by name: one entry each, in small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tests.families.micro import Micro

# SmolVLM's processor asks for this library, which it needs for the numbers in a video's prompt.
processing_smolvlm.num2words = processing_smolvlm.num2words or str

Token = Callable[[str], int]
Values = dict[str, Any]

HIDDEN = 32
TEXT = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
    "initializer_range": 0.2,
}
GRID = {"depth": 2, "hidden_size": 16, "out_hidden_size": HIDDEN, "intermediate_size": 24, "num_heads": 2}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
SQUARE = {"size": {"height": 28, "width": 28}, **HALF}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1}


def chatml(image: str) -> str:
    """A template as Qwen's: turns of texts and images in their order."""
    return (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}"
        "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
        f"{image}"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


QWEN_SPECIALS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
# The last answer comes behind an empty thought, and the question for an answer opens one.
QWEN_THINKING = chatml(QWEN_IMAGE).replace(
    "{% if message['content'] is string %}",
    "{% if message['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{% if message['content'] is string %}",
).replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")  # fmt: skip
SMOLVLM_SPECIALS = (
    *("<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>", "<video>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)
SMOLVLM = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def gemma(image: str, start: str, end: str) -> str:
    """A template as Gemma's, which trims texts and calls the assistant model."""
    return (
        "{{ bos_token }}{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
        f"{start}"
        "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] | trim }}"
        "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
        f"{image}"
        "{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}{% endif %}"
        f"{end}\n"
        "{% endfor %}{% if add_generation_prompt %}"
        f"{start}model\n"
        "{% endif %}"
    )


# Images first, and a blank before the line's end that the question for an answer does not have.
ONEVISION = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ '\n' + part['text'] }}{% endgeneration %}{% else %}{{ '\n' + part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# No turn ends by itself: the token that begins the next one ends the answer.
GLM = (
    "[gMASK]<sop>{% for message in messages %}{% if message['role'] == 'user' %}<|user|>\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|begin_of_image|><|image|><|end_of_image|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% else %}<|assistant|>\n{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
GLM_SPECIALS = (
    *("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|begin_of_image|>", "<|image|>", "<|end_of_image|>"),
    *("<|begin_of_video|>", "<|video|>", "<|end_of_video|>"),
)
# The tokenizer, not the template, writes the beginning token; answers are plain or in parts.
INSTRUCT = (
    "{% for message in messages %}{% if message['role'] == 'user' %}[INST] "
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %} [/INST]"
    "{% else %} {% for part in message['content'] %}{{ part['text'] }}{% endfor %}</s>{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST]"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}[IMG]{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}[/INST]{% elif message['content'] is string %}{{ message['content'] }}</s>"
    "{% else %}{{ message['content'][0]['text'] }}</s>{% endif %}{% endfor %}"
)


def qwen_images() -> Any:
    return Qwen2VLImageProcessorPil(patch_size=16, size={"shortest_edge": 1024, "longest_edge": 16 * 1024}, **HALF)


def qwen(text: Values, vision: Values, token: Token) -> Values:
    marks = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    marks |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
    ids = {name: token(f"<|{mark}|>") for name, mark in marks.items()}
    return {"text_config": TEXT | text, "vision_config": GRID | vision | {"initializer_range": 0.2}, **ids}


def qwen3_vl(token: Token, **text: Any) -> Values:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    vision = {"depth": 3, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    return qwen({"rope_parameters": rope, **text}, vision, token) | {"tie_word_embeddings": not text}


def qwen3_5(token: Token) -> Values:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 2}
    linear |= {
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    }
    text = {"rope_parameters": rope | {"partial_rotary_factor": 0.25}, "head_dim": 32, **linear}
    return qwen(text, {"num_position_embeddings": 16}, token)


def internvl(token: Token) -> Values:
    vision = TOWER | {"image_size": [28, 28], "patch_size": [7, 7]}
    text = TEXT | {"model_type": "qwen3"}
    return {
        "text_config": text,
        "vision_config": vision,
        "image_token_id": token("<IMG_CONTEXT>"),
        "image_seq_length": 4,
    }


def smolvlm(token: Token) -> Values:
    vision = TOWER | {"image_size": 32, "patch_size": 8}
    return {
        "text_config": TEXT | {"model_type": "llama"}, "vision_config": vision, "scale_factor": 2,
        "image_token_id": token("<image>"), "pad_token_id": token("<|pad|>"),
    }  # fmt: skip


def gemma3(token: Token) -> Values:
    text = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64, "query_pre_attn_scalar": 8}
    ids = {"image_token_index": token("<image_soft_token>")}
    ids |= {"boi_token_index": token("<start_of_image>"), "eoi_token_index": token("<end_of_image>")}
    vision = TOWER | {"model_type": "siglip_vision_model", "vision_use_head": False}
    return {"text_config": TEXT | text, "vision_config": vision, "mm_tokens_per_image": 4, **ids}


def gemma4(token: Token) -> Values:
    text = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 256, "global_head_dim": 16}
    text |= {"hidden_size_per_layer_input": 8, "use_bidirectional_attention": "vision", "final_logit_softcapping": 30.0}
    text |= {"vocab_size_per_layer_input": 512}
    names = {"boi_token_id": "<|image>", "eoi_token_id": "<image|>", "image_token_id": "<|image|>"}
    names |= {"audio_token_id": "<|audio|>", "video_token_id": "<|video|>", "boa_token_id": "<|audio>"}
    vision = {**TOWER, "num_key_value_heads": 2, "head_dim": 8, "patch_size": 4, "position_embedding_size": 256}
    vision.pop("image_size")
    ids = {name: token(mark) for name, mark in names.items()}
    return {"text_config": TEXT | text, "vision_config": vision, "audio_config": None, **ids}


def llava_onevision(token: Token) -> Values:
    vision = TOWER | {"model_type": "siglip_vision_model", "vision_use_head": False}
    ids = {"image_token_index": token("<image>"), "video_token_index": token("<video>")}
    return {
        "text_config": TEXT | {"model_type": "qwen2"},
        "vision_config": vision,
        "image_grid_pinpoints": PINPOINTS,
    } | ids


def glm4v(token: Token) -> Values:
    names = {f"{kind}_token_id": f"<|{kind}|>" for kind in ("image", "video")}
    names |= {
        f"{kind}_{end}_token_id": f"<|{mark}_of_{kind}|>"
        for kind in ("image", "video") for end, mark in (("start", "begin"), ("end", "end"))
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
    text = TEXT | {"num_attention_heads": 2, "head_dim": 16, "rope_parameters": rope}
    vision = GRID | {"image_size": 56, "patch_size": 14, "initializer_range": 0.2}
    return {"text_config": text, "vision_config": vision, **{name: token(mark) for name, mark in names.items()}}


def mistral3(token: Token) -> Values:
    vision = TOWER | {"model_type": "pixtral", "image_size": 64, "patch_size": 8, "head_dim": 8}
    text = TEXT | {"model_type": "mistral", "sliding_window": None}
    return {"text_config": text, "vision_config": vision, "image_token_index": token("[IMG]"), "spatial_merge_size": 2}


def llava_next(token: Token) -> Values:
    vision = TOWER | {"model_type": "clip_vision_model", "num_hidden_layers": 3}
    text = TEXT | {"model_type": "mistral", "sliding_window": None}
    return {
        "text_config": text, "vision_config": vision, "image_grid_pinpoints": PINPOINTS, "image_seq_length": 16,
        "image_token_index": token("<image>"),
    }  # fmt: skip


PINPOINTS = [[28, 56], [56, 28], [56, 56], [28, 84]]
ONEVISION_SETTINGS = {"num_image_tokens": 16, "vision_feature_select_strategy": "full"}
NEXT_SETTINGS = {"patch_size": 7, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
INTERNVL_NAMES = {
    "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}  # fmt: skip
GEMMA3_NAMES = {
    "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>",
}  # fmt: skip
GEMMA4_NAMES = {
    "boi_token": "<|image>", "eoi_token": "<image|>", "image_token": "<|image|>", "audio_token": "<|audio|>",
    "boa_token": "<|audio>", "eoa_token": "<audio|>",
}  # fmt: skip

FAMILIES: dict[str, Micro] = {
    "qwen3_vl": Micro(
        "Qwen3-VL", "qwen3_vl", qwen3_vl, qwen_images, chatml(QWEN_IMAGE), QWEN_SPECIALS,
    ),
    "qwen3_vl_moe": Micro(
        "Qwen3-VL with experts", "qwen3_vl_moe", lambda token: qwen3_vl(token, **EXPERTS), qwen_images,
        chatml(QWEN_IMAGE), QWEN_SPECIALS, experts=True,
    ),
    "qwen3_5": Micro(
        "Qwen3.5", "qwen3_5", qwen3_5, qwen_images, QWEN_THINKING, (*QWEN_SPECIALS, "<think>", "</think>"),
        thought="</think>",
    ),
    "internvl": Micro(
        "InternVL3, InternVL3.5", "internvl", internvl,
        lambda: GotOcr2ImageProcessorPil(crop_to_patches=True, min_patches=1, max_patches=4, **SQUARE),
        chatml("<IMG_CONTEXT>\n"), ("<|im_start|>", "<|im_end|>"), INTERNVL_NAMES, {"image_seq_length": 4},
    ),
    "smolvlm": Micro(
        "SmolVLM2", "smolvlm", smolvlm,
        lambda: SmolVLMImageProcessorPil(size={"longest_edge": 96}, max_image_size={"longest_edge": 32}, **HALF),
        SMOLVLM, SMOLVLM_SPECIALS, settings={"image_seq_len": 4}, eos="<end_of_utterance>",
        target_end="<end_of_utterance>", needs="num2words",
    ),
    "idefics3": Micro(
        "Idefics3", "idefics3", smolvlm,
        lambda: Idefics3ImageProcessorPil(size={"longest_edge": 96}, max_image_size={"longest_edge": 32}, **HALF),
        SMOLVLM, SMOLVLM_SPECIALS, settings={"image_seq_len": 4}, eos="<end_of_utterance>",
        target_end="<end_of_utterance>",
    ),
    "gemma3": Micro(
        "Gemma 3", "gemma3", gemma3, lambda: Gemma3ImageProcessorPil(**SQUARE),
        gemma("<start_of_image>", "<start_of_turn>", "<end_of_turn>"), ("<start_of_turn>", "<end_of_turn>"),
        GEMMA3_NAMES, {"image_seq_length": 4}, bos="<bos>", eos="<eos>", ends=("<eos>", "<end_of_turn>"),
        target_end="<end_of_turn>",
    ),
    "gemma4": Micro(
        "Gemma 4", "gemma4", gemma4, lambda: Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70),
        gemma("<|image|>", "<|turn>", "<turn|>"), ("<|turn>", "<turn|>", "<|video|>"), GEMMA4_NAMES, bos="<bos>",
        eos="<eos>", ends=("<eos>", "<turn|>"), target_end="<turn|>",
    ),
    "llava_onevision": Micro(
        "LLaVA-OneVision", "llava_onevision", llava_onevision,
        lambda: LlavaOnevisionImageProcessorPil(image_grid_pinpoints=PINPOINTS, **SQUARE), ONEVISION,
        ("<|im_start|>", "<|im_end|>", "<image>", "<video>"), settings=ONEVISION_SETTINGS,
    ),
    "glm4v": Micro(
        "GLM-4.1V", "glm4v", glm4v,
        lambda: Glm4vImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 112 * 112}), GLM, GLM_SPECIALS,
        eos="<|endoftext|>", ends=("<|endoftext|>", "<|user|>"), target_end="<|user|>",
    ),
    "mistral3": Micro(
        "Mistral Small 3, Pixtral", "mistral3", mistral3,
        lambda: PixtralImageProcessorPil(patch_size=16, size={"longest_edge": 64}), MISTRAL,
        ("[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        settings={"patch_size": 8, "spatial_merge_size": 2}, bos="<s>", eos="</s>", target_end="</s>",
        needs="torchvision",
    ),
    "llava_next": Micro(
        "LLaVA-NeXT", "llava_next", llava_next,
        lambda: LlavaNextImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=PINPOINTS
        ),
        INSTRUCT, ("<image>",), settings=NEXT_SETTINGS, bos="<s>", adds_bos=True, eos="</s>", target_end="</s>",
    ),
}  # fmt: skip
