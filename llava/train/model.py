"""The model of a run: from parts, from a saved checkpoint, or from one in LLaVA's original layout.

All three become a folder in transformers' layout that every rank loads in the same way, partitioned under ZeRO-3. Where
such a folder has to be made first, rank 0 makes it once in the output folder. What can be seen from configurations and
from the projector file's header is checked before any weight is read.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.integrations import deepspeed as hf_deepspeed

from llava.model.assemble import build_llava, llava_config, load_base_tokenizer
from llava.model.families.llava import LlavaSquareProcessor, square_image_processor
from llava.model.family import Family, Processor, family_of, get_family
from llava.model.lora import lora_config, quantization_config
from llava.model.original.config import config_from_original
from llava.model.original.model import from_original
from llava.model.original.names import is_original, read_config
from llava.model.original.processor import processor_from_original
from llava.model.projector import STOCK_TYPE, projector_type_of
from llava.model.projector_file import read_projector
from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments, UsageError
from llava.train.folder import BASE_MODEL

logger = logging.getLogger(__name__)

PROJECTOR_FILE = "mm_projector.bin"
_LANGUAGE_TYPES = ("llama", "mistral")


@dataclass
class Source:
    """Where the model comes from, resolved to local folders and checked.

    Attributes:
        kind: "saved", "original" or "parts".
        folder: the checkpoint, or the language model of the parts.
        processor: of the model to be, its template the one that this run trains with.
    """

    kind: str
    folder: Path
    family: Family
    config: PretrainedConfig
    processor: Processor
    vision_tower: Path | None = None
    projector: Path | None = None

    @property
    def ready(self) -> bool:
        """Whether `folder` can be loaded as it is."""
        return self.kind == "saved"


def find_source(model: ModelArguments, data: DataArguments, training: TrainingArguments) -> Source:
    """Resolve and check what the arguments name; downloads what is not on this machine.

    Raises:
        UsageError: a part does not exist, is of another kind, or its shape does not fit.
    """
    try:
        source = _find(model, data, training.cache_dir)
        quantization_config(model.bits, source.family)  # fails where it cannot be had
    except (ValueError, OSError, RuntimeError) as error:
        raise error if isinstance(error, UsageError) else UsageError(str(error)) from error
    text: Any = source.config.get_text_config()
    if training.model_max_length > text.max_position_embeddings:
        raise UsageError(
            f"--model_max_length {training.model_max_length} exceeds the {text.max_position_embeddings} positions of "
            f"{model.model_name_or_path}"
        )
    if model.version is not None:
        source.processor.default_template = model.version
    source.processor.tokenizer.model_max_length = training.model_max_length
    return source


def _find(model: ModelArguments, data: DataArguments, cache_dir: str | None) -> Source:
    assert model.model_name_or_path is not None
    folder = _local_folder(model.model_name_or_path, cache_dir)
    tower = _local_folder(model.vision_tower, cache_dir) if model.vision_tower else None
    values = read_config(folder)
    pad = None if data.image_aspect_ratio is None else data.image_aspect_ratio == "pad"
    if is_original(values):
        config = config_from_original(folder, None if tower is None else str(tower))
        source = Source("original", folder, get_family("llava"), config, processor_from_original(folder, config), tower)
    elif values.get("model_type") in _LANGUAGE_TYPES:
        return _parts(
            model, folder, tower, _local_projector(model.pretrain_mm_mlp_adapter, cache_dir), pad is not False
        )
    else:
        family = family_of(folder)
        source = Source("saved", folder, family, AutoConfig.from_pretrained(folder), family.load_processor(folder))
    _check_against(model, data, source)
    if pad is not None:
        source.processor.image_processor.do_pad = pad
    return source


def _parts(model: ModelArguments, folder: Path, tower: Path | None, projector: Path | None, pad: bool) -> Source:
    if tower is None:
        raise UsageError(f"{folder} is a language model: name a --vision_tower to build a LLaVA on it")
    kind = model.mm_projector_type or STOCK_TYPE
    layer = -2 if model.mm_vision_select_layer is None else model.mm_vision_select_layer
    config = llava_config(folder, tower, kind, layer, model.mm_vision_select_feature or "patch")
    vision: Any = config.vision_config
    text: Any = config.text_config
    processor = LlavaSquareProcessor(
        load_base_tokenizer(folder, config.image_token_index),
        square_image_processor(vision.image_size, pad),
        config,
        model.version or "v1",
    )
    source = Source("parts", folder, get_family("llava"), config, processor, tower, projector)
    if projector is not None:
        read_projector(projector, kind, vision.hidden_size, text.hidden_size)
    elif not model.tune_mm_mlp_adapter:
        logger.warning("no --pretrain_mm_mlp_adapter: the projector starts from random values")
    return source


def _check_against(model: ModelArguments, data: DataArguments, source: Source) -> None:
    """Flags that say how a LLaVA is built must agree with the one that was saved, and mean nothing elsewhere."""
    config: Any = source.config
    where = f"{model.model_name_or_path} is a {source.family.name} checkpoint"
    if source.family.name != "llava":
        for name in (
            "vision_tower",
            "pretrain_mm_mlp_adapter",
            "mm_projector_type",
            "mm_vision_select_layer",
            "mm_vision_select_feature",
        ):
            if getattr(model, name) is not None:
                raise UsageError(f"{where}: --{name} is for LLaVA models only")
        if data.image_aspect_ratio is not None:
            raise UsageError(f"{where}: --image_aspect_ratio is for LLaVA models only (others keep the image's own)")
        return
    if model.pretrain_mm_mlp_adapter is not None:
        raise UsageError(f"{where} with a projector of its own: leave out --pretrain_mm_mlp_adapter (MM_PROJECTOR)")
    for name, held in (
        ("mm_projector_type", projector_type_of(config)),
        ("mm_vision_select_layer", config.vision_feature_layer),
        ("mm_vision_select_feature", _feature(config)),
    ):
        if getattr(model, name) not in (None, held):
            raise UsageError(f"{where} with {name} {held}, not {getattr(model, name)}")
    if source.kind == "saved" and model.vision_tower:
        logger.info("%s holds its own vision tower; --vision_tower is not read", where)


def make_base(source: Source, output_dir: Path, dtype: torch.dtype) -> Path:
    """Return a folder in transformers' layout that holds the model, making it in `output_dir` where there is none.

    To be called on one rank only.
    """
    if source.ready:
        return source.folder
    base = output_dir / BASE_MODEL
    if base.is_dir():  # renamed into place when whole
        return base
    making = output_dir / f".{BASE_MODEL}"
    if making.exists():
        shutil.rmtree(making)
    with _without_zero3():
        if source.kind == "original":
            from_original(source.folder, making, None if source.vision_tower is None else str(source.vision_tower))
        else:
            _build_from_parts(source, making, dtype)
    source.processor.save_pretrained(making)
    making.rename(base)
    return base


def _build_from_parts(source: Source, folder: Path, dtype: torch.dtype) -> None:
    config: Any = source.config
    assert source.vision_tower is not None
    model, _ = build_llava(
        source.folder,
        source.vision_tower,
        projector_type_of(config),
        config.vision_feature_layer,
        _feature(config),
        source.projector,
        dtype=dtype,
    )
    model.save_pretrained(folder)


def _feature(config: Any) -> str:
    """LLaVA's name of what is read from the tower."""
    return {"default": "patch", "full": "cls_patch"}[config.vision_feature_select_strategy]


@contextlib.contextmanager
def _without_zero3() -> Iterator[None]:
    """Load whole models on one rank although the run is under ZeRO-3, where loading is done by all ranks together."""
    reference = hf_deepspeed._hf_deepspeed_config_weak_ref
    held = reference() if reference is not None else None
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if held is not None:
            hf_deepspeed.set_hf_deepspeed_config(held)


def load_base(source: Source, base: Path, model: ModelArguments, dtype: torch.dtype) -> PreTrainedModel:
    """Load the model on this rank (its part of it under ZeRO-3)."""
    quantization = quantization_config(model.bits, source.family, dtype, model.double_quant, model.quant_type)
    try:
        net = source.family.load_model(
            base, dtype=dtype, attn_implementation=model.attn_implementation, quantization_config=quantization
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    if source.vision_tower is not None:
        net.config.mm_vision_tower = _recorded(model.vision_tower or "")
    return net


def weight_dtype(model: ModelArguments, training: TrainingArguments) -> torch.dtype:
    """Return the dtype that weights are loaded in.

    bfloat16 where something else keeps float32 masters (DeepSpeed) or where most weights stay as they are (LoRA, or the
    projector alone); else float32, with mixed precision by autocast.
    """
    frozen = model.lora_enable or model.tune_mm_mlp_adapter
    if training.bf16 and (training.deepspeed or frozen):
        return torch.bfloat16
    return torch.float16 if training.fp16 and training.deepspeed else torch.float32


def choose_trainable(net: PreTrainedModel, family: Family, model: ModelArguments) -> None:
    """Set what learns: language model and projector, unless the arguments say otherwise (LoRA adds its own)."""
    net.requires_grad_(False)
    parts = {
        "vision": model.unfreeze_mm_vision_tower,
        "projector": not model.freeze_mm_mlp_adapter,
        "language": not (model.freeze_backbone or model.tune_mm_mlp_adapter or model.lora_enable),
    }
    # In this order: Qwen's projector lies inside its tower.
    for kind, learns in parts.items():
        for module in family.find_modules(net, kind):
            module.requires_grad_(learns)
    if not model.lora_enable and not any(parameter.requires_grad for parameter in net.parameters()):
        raise UsageError("nothing is left to train: the arguments freeze every part that has weights")


def keep_masters(net: nn.Module) -> None:
    """Hold what learns in float32, where no DeepSpeed keeps a float32 copy of it."""
    for parameter in net.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


def adapter_base(source: Source, model: ModelArguments, base: Path) -> Path | str:
    """Return what an adapter of this run stands on, as its configuration records it: a folder or a Hugging Face name.

    The model that the run started from, or the bare language model of parts, whose projector the adapter brings. Only
    where the adapter brings none is it the model that was built in the output folder.
    """
    if source.kind == "parts" and model.freeze_mm_mlp_adapter:
        return base.resolve()
    return _recorded(model.model_name_or_path or "")


def _recorded(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def add_lora(
    net: PreTrainedModel, family: Family, model: ModelArguments, base: Path | str, one_dtype: bool
) -> PeftModel:
    """Wrap the model in LoRA: the language model's linear layers adapted, the projector trained in full.

    Args:
        one_dtype: keep adapters in the model's dtype (DeepSpeed wants one for all that learns, and holds float32
            masters itself) rather than in float32.
    """
    if model.bits != 16:
        prepare_model_for_kbit_training(net, use_gradient_checkpointing=False)
    if model.lora_weight_path is not None:
        return PeftModel.from_pretrained(
            net, model.lora_weight_path, is_trainable=True, autocast_adapter_dtype=not one_dtype
        )
    config = lora_config(
        net,
        family,
        model.lora_r,
        model.lora_alpha,
        model.lora_dropout,
        model.lora_bias,
        not model.freeze_mm_mlp_adapter,
    )
    adapted = cast(PeftModel, get_peft_model(net, config, autocast_adapter_dtype=not one_dtype))
    config.base_model_name_or_path = str(base)  # PEFT has put the folder there that the weights were loaded from
    return adapted


def _local_folder(name: str, cache_dir: str | None) -> Path:
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, cache_dir=cache_dir, ignore_patterns=["*.h5", "*.msgpack", "*.gguf"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UsageError(f"{name} is neither a folder nor a model that can be downloaded: {error}") from error


def _local_projector(name: str | None, cache_dir: str | None) -> Path | None:
    """A projector file, a folder that holds one, or a Hugging Face repository that does."""
    if name is None or Path(name).is_file():
        return None if name is None else Path(name)
    if (Path(name) / PROJECTOR_FILE).is_file():
        return Path(name) / PROJECTOR_FILE
    try:
        return Path(hf_hub_download(name, PROJECTOR_FILE, cache_dir=cache_dir))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UsageError(f"--pretrain_mm_mlp_adapter: no projector file at {name}: {error}") from error
