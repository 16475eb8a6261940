"""The loader under the name that LLaVA users import; the code is ``llava.model.load``."""

from llava.model.load import load_model_and_processor, load_pretrained_model

__all__ = ["load_model_and_processor", "load_pretrained_model"]
