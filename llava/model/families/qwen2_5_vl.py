"""Qwen2.5-VL: Qwen2-VL's inputs, another tower."""

from transformers import Qwen2_5_VLForConditionalGeneration

from llava.model.families.qwen2_vl import Qwen2VLFamily


class Qwen25VLFamily(Qwen2VLFamily):
    """Qwen2.5-VL in transformers' layout."""

    name = "qwen2_5_vl"
    model_type = "qwen2_5_vl"
    model_class = Qwen2_5_VLForConditionalGeneration
