"""Load any saved checkpoint by what its folder holds.

==================== ==============================================================================
folder               how it is loaded
==================== ==============================================================================
transformers layout  its family's own way (``config.model_type``)
original LLaVA       renamed as it is read, nothing written
LoRA adapter         on its base (a saved model, or a language model that is first made a LLaVA)
projector only       on its base language model
==================== ==============================================================================
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import dispatch_model, infer_auto_device_map
from peft import PeftModel
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from llava.model.assemble import build_llava, generation_config
from llava.model.families.llava import LlavaSquareProcessor
from llava.model.family import Processor, family_of, get_family, saved_template
from llava.model.hub import local_folder
from llava.model.lora import quantization_config
from llava.model.original.config import config_from_original, recorded_tower
from llava.model.original.lora import is_original_adapter, lora_from_original
from llava.model.original.model import tensors_from_original
from llava.model.original.names import is_original, read_config
from llava.model.original.processor import processor_from_original
from llava.model.projector import VisionFeatures, projector_for
from llava.model.projector_file import PROJECTOR_FILE
from llava.model.upstream import undivided_layers

DTYPES = ("auto", "float32", "float16", "bfloat16")
"""What weights can be loaded in; "auto": as they were saved."""
DEFAULT_CONTEXT = 2048  # tokens; original LLaVA's where a checkpoint does not say


def load_model_and_processor(
    path: str | Path,
    base: str | Path | None = None,
    dtype: torch.dtype | str = "auto",
    *,
    vision_tower: str | None = None,
    bits: int = 16,
    attn_implementation: str | None = None,
    merge_adapter: bool = True,
    **load_kwargs: Any,
) -> tuple[PreTrainedModel | PeftModel, Processor]:
    """The model saved at ``path``, in evaluation mode, and its processor.

    Args:
        path: a folder, or a name on the hub.
        base: what a LoRA adapter or a lone projector stands on, if not where the adapter's configuration says.
        dtype: of the weights; "auto" as saved.
        vision_tower: the CLIP folder, for original layouts and parts, if not where the configuration says.
        bits: 4 or 8 quantise the language model with bitsandbytes.
        merge_adapter: add LoRA into the weights (not when quantised) and return the plain model.
        load_kwargs: go to ``from_pretrained`` (``device_map`` and the like).

    Raises:
        ValueError: the folder is no model that we know, or a part that it needs is absent or does not fit.
    """
    folder = local_folder(path)
    if isinstance(dtype, str) and dtype != "auto":
        dtype = getattr(torch, dtype)
    options: dict[str, Any] = load_kwargs | {"dtype": dtype, "attn_implementation": attn_implementation}
    if bits < 16:
        compute = dtype if isinstance(dtype, torch.dtype) else torch.float16
        original = is_original(read_config(folder))
        family = get_family("llava") if original else family_of(folder)
        options["quantization_config"] = quantization_config(bits, family, compute)
    if (folder / "adapter_config.json").exists():
        model, processor = _load_adapter(folder, base, vision_tower, merge_adapter and bits >= 16, options)
    elif is_original(read_config(folder)):
        model, processor = _load_original(folder, base, vision_tower, options)
    else:
        family = family_of(folder)
        model, processor = family.load_model(folder, **options), family.load_processor(folder)
    return model.eval(), processor


def load_pretrained_model(
    model_path: str,
    model_base: str | None,
    model_name: str,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: Any = "auto",
    device: str = "cuda",
    use_flash_attn: bool = False,
    **kwargs: Any,
) -> tuple[Tokenizer, PreTrainedModel | PeftModel, Any, int]:
    """LLaVA users' loader: ``(tokenizer, model, image_processor, context_len)``.

    ``model_name`` is taken and not read: what a checkpoint is, its configuration says. Without ``torch_dtype`` the
    weights are float16 on a GPU, as LLaVA does, and as saved on a CPU.
    """
    dtype = kwargs.pop("torch_dtype", None) or kwargs.pop("dtype", None)
    if device == "cuda" and not torch.cuda.is_available():
        device = "cpu"
    if device == "cpu":
        device_map = None
    elif device != "cuda":
        device_map = {"": device}
    model, processor = load_model_and_processor(
        model_path,
        model_base,
        dtype or ("auto" if device == "cpu" else torch.float16),
        bits=4 if load_4bit else 8 if load_8bit else 16,
        attn_implementation="flash_attention_2" if use_flash_attn else None,
        device_map=device_map,
        **kwargs,
    )
    return processor.tokenizer, model, processor.image_processor, context_length(model.config)


def context_length(config: Any) -> int:
    """Tokens that the model was trained to read: original LLaVA's rule, else 2048."""
    for key in ("max_sequence_length", "tokenizer_model_max_length"):
        if getattr(config, key, None):
            return int(getattr(config, key))
    return DEFAULT_CONTEXT


def _load_original(
    folder: Path, base: str | Path | None, vision_tower: str | None, options: dict[str, Any]
) -> tuple[PreTrainedModel, Processor]:
    config = config_from_original(folder, vision_tower)
    if (folder / PROJECTOR_FILE).exists() and base is not None:
        return _build_on(local_folder(base), config, folder / PROJECTOR_FILE, options)
    tensors = dict(tensors_from_original(folder, config))
    if not any(name.startswith("language_model.") for name in tensors):
        raise ValueError(f"{folder}: holds no language model; give the base model that its projector belongs to")
    if options["dtype"] == "auto":
        options["dtype"] = next(iter(tensors.values())).dtype
    with projector_for(config):
        model = LlavaForConditionalGeneration.from_pretrained(None, config=config, state_dict=tensors, **options)
    processor = processor_from_original(folder, config)
    model.generation_config = generation_config(config, processor.tokenizer)
    return model, processor


def _build_on(
    base: Path, config: LlavaConfig, projector: Path | None, options: dict[str, Any]
) -> tuple[PreTrainedModel, LlavaSquareProcessor]:
    """A LLaVA on a bare language model, with the parts that ``config`` names."""
    dtype = options["dtype"]
    pad_images = read_config(projector.parent).get("image_aspect_ratio", "pad") == "pad" if projector else True
    if options.get("quantization_config") is not None:
        raise ValueError(f"{base}: a LLaVA made of parts is quantised only once saved: merge and save it first")
    model, processor = build_llava(
        base,
        config.mm_vision_tower,
        VisionFeatures.of(config),
        projector,
        pad_images,
        dtype=family_dtype(base) if dtype == "auto" else dtype,
        attn_implementation=options["attn_implementation"],
    )
    if options.get("device_map") is not None:
        return dispatch(model, options["device_map"]), processor
    return model, processor


def dispatch(model: PreTrainedModel, device_map: Any) -> PreTrainedModel:
    """A whole model put where ``device_map`` says ("auto", or the usual mapping)."""
    if isinstance(device_map, str):
        device_map = infer_auto_device_map(model, no_split_module_classes=undivided_layers(model))
    return dispatch_model(model, device_map)


def family_dtype(folder: Path) -> torch.dtype:
    """The dtype that a saved model's configuration names; float16 if none."""
    values = read_config(folder)
    return getattr(torch, str(values.get("dtype") or values.get("torch_dtype") or "float16"))


def _load_adapter(
    folder: Path, base: str | Path | None, vision_tower: str | None, merge: bool, options: dict[str, Any]
) -> tuple[PreTrainedModel | PeftModel, Processor]:
    with tempfile.TemporaryDirectory() as scratch:
        if is_original_adapter(folder):
            converted = Path(scratch) / "adapter"
            lora_from_original(folder, converted, vision_tower, None if base is None else str(base))
            folder = converted
        model, processor = _load_base(folder, _base_folder(folder, base), vision_tower, options)
        adapted = PeftModel.from_pretrained(model, str(folder))
        return (adapted.merge_and_unload() if merge else adapted), processor


def _base_folder(folder: Path, base: str | Path | None) -> Path:
    """The base that was given, else the one that the adapter names, wherever its output folder was moved to."""
    if base is None:
        base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        beside = folder / Path(str(base)).name
        if not Path(str(base)).is_dir() and beside.is_dir():
            base = beside
    return local_folder(str(base))


def _load_base(
    folder: Path, base: Path, vision_tower: str | None, options: dict[str, Any]
) -> tuple[PreTrainedModel, Processor]:
    """The plain model under an adapter, with the processor that was saved with the adapter (else the base's own)."""
    values = read_config(base)
    own = (folder / "config.json").exists()
    if is_original(values) or "vision_config" in values:
        model, processor = load_model_and_processor(base, None, vision_tower=vision_tower, **options)
        processor.default_template = saved_template(folder, processor.default_template)
    elif own and family_of(folder).name == "llava":
        config = LlavaConfig.from_pretrained(folder)
        config.mm_vision_tower = vision_tower or recorded_tower(config, folder)
        model, processor = _build_on(base, config, None, options)
    else:
        raise ValueError(f"{base}: is no base for the adapter in {folder}")
    return cast(PreTrainedModel, model), family_of(folder).load_processor(folder) if own else processor
