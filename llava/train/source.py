"""Where the model of a run comes from: parts, a saved checkpoint, or one in LLaVA's original layout.

What can be seen from configurations and from the projector file's header is checked before any weight is read.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from llava.conversation import CHAT_TEMPLATE
from llava.model.assemble import LANGUAGE_TYPES, llava_config, load_base_tokenizer
from llava.model.families.llava import LlavaSquareProcessor, square_image_processor
from llava.model.family import Family, Processor, family_of, get_family
from llava.model.generic import GenericFamily, Parts
from llava.model.hub import local_file, local_folder
from llava.model.lora import quantization_config
from llava.model.original.config import config_from_original
from llava.model.original.names import is_original, read_config
from llava.model.original.processor import processor_from_original
from llava.model.projector import VisionFeatures
from llava.model.projector_file import PROJECTOR_FILE, read_projector
from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments, UsageError

logger = logging.getLogger(__name__)


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
    source = locate_source(model, data.image_aspect_ratio, training.model_max_length, training.cache_dir)
    if data.packing and (reason := source.family.why_not_packed(source.processor)):
        raise UsageError(f"--packing: samples of a {source.family.name} model cannot be packed: {reason}")
    try:
        source.processor.limit_pixels(data.image_min_pixels, data.image_max_pixels)
    except ValueError as error:
        raise UsageError(f"--image_min_pixels, --image_max_pixels: {error}") from error
    if data.image_max_pixels is None:
        limit = source.processor.fit_images(training.model_max_length * 5 // 8)
        if limit is not None:
            logger.info("images are scaled to at most %d pixels, so that they fit (--image_max_pixels)", limit)
    return source


def locate_source(
    model: ModelArguments, image_aspect_ratio: str | None, model_max_length: int, cache_dir: str | None
) -> Source:
    """`find_source` of those arguments that it depends on."""
    try:
        source = _find(model, image_aspect_ratio, cache_dir)
        quantization_config(model.bits, source.family)  # fails where it cannot be had
    except (ValueError, OSError, RuntimeError) as error:
        raise error if isinstance(error, UsageError) else UsageError(str(error)) from error
    positions = getattr(source.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and model_max_length > positions:
        raise UsageError(
            f"--model_max_length {model_max_length} exceeds the {positions} positions of {model.model_name_or_path}"
        )
    if model.version is not None:
        source.processor.default_template = model.version
    source.processor.tokenizer.model_max_length = model_max_length
    return source


def _find(model: ModelArguments, image_aspect_ratio: str | None, cache_dir: str | None) -> Source:
    assert model.model_name_or_path is not None
    folder = local_folder(model.model_name_or_path, cache_dir)
    tower = local_folder(model.vision_tower, cache_dir) if model.vision_tower else None
    values = read_config(folder)
    pad = None if image_aspect_ratio is None else image_aspect_ratio == "pad"
    if is_original(values):
        config = config_from_original(folder, None if tower is None else str(tower))
        source = Source("original", folder, get_family("llava"), config, processor_from_original(folder, config), tower)
    elif values.get("model_type") in LANGUAGE_TYPES:
        return _parts(model, folder, tower, _projector_file(model, cache_dir), pad is not False)
    else:
        family = family_of(folder)
        _name_parts(family, model)
        source = Source("saved", folder, family, AutoConfig.from_pretrained(folder), family.load_processor(folder))
    _check_against(model, image_aspect_ratio, source)
    if pad is not None:
        source.processor.image_processor.do_pad = pad
    return source


def _parts(model: ModelArguments, folder: Path, tower: Path | None, projector: Path | None, pad: bool) -> Source:
    if tower is None:
        raise UsageError(f"{folder} is a language model: name a --vision_tower to build a LLaVA on it")
    stock = VisionFeatures()
    features = VisionFeatures(
        model.mm_projector_type or stock.projector_type,
        stock.layer if model.mm_vision_select_layer is None else model.mm_vision_select_layer,
        model.mm_vision_select_feature or stock.feature,
    )
    config = llava_config(folder, tower, features)
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
        read_projector(projector, features.projector_type, vision.hidden_size, text.hidden_size)
    elif not model.tune_mm_mlp_adapter:
        logger.warning("no --pretrain_mm_mlp_adapter: the projector starts from random values")
    return source


def _name_parts(family: Family, model: ModelArguments) -> None:
    """Take over the parts that the arguments name, and find the others, before anything is loaded."""
    named = {kind: getattr(model, f"{kind}_modules") for kind in ("vision", "projector", "language")}
    if isinstance(family, GenericFamily):
        family.name_parts(
            Parts(**{kind: tuple(path.strip() for path in paths.split(",")) for kind, paths in named.items() if paths})
        )
    elif given := [kind for kind, paths in named.items() if paths is not None]:
        raise UsageError(f"{family.name} has its parts by its own file: leave out --{given[0]}_modules")


def _check_against(model: ModelArguments, image_aspect_ratio: str | None, source: Source) -> None:
    """Flags that say how a LLaVA is built must agree with the one that was saved, and mean nothing elsewhere."""
    config: Any = source.config
    where = f"{model.model_name_or_path} is a {source.family.name} checkpoint"
    if model.version is not None and isinstance(source.family, GenericFamily) and model.version != CHAT_TEMPLATE:
        raise UsageError(f"{where}: leave out --version, its own chat template is used")
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
        if image_aspect_ratio is not None:
            raise UsageError(f"{where}: --image_aspect_ratio is for LLaVA models only (others keep the image's own)")
        return
    if model.pretrain_mm_mlp_adapter is not None:
        raise UsageError(f"{where} with a projector of its own: leave out --pretrain_mm_mlp_adapter (MM_PROJECTOR)")
    features = VisionFeatures.of(config)
    for name, held in (
        ("mm_projector_type", features.projector_type),
        ("mm_vision_select_layer", features.layer),
        ("mm_vision_select_feature", features.feature),
    ):
        if getattr(model, name) not in (None, held):
            raise UsageError(f"{where} with {name} {held}, not {getattr(model, name)}")
    if source.kind == "saved" and model.vision_tower:
        logger.info("%s holds its own vision tower; --vision_tower is not read", where)


def _projector_file(model: ModelArguments, cache_dir: str | None) -> Path | None:
    """A projector file, one in a folder, or one in a Hugging Face repository."""
    if model.pretrain_mm_mlp_adapter is None:
        return None
    try:
        return local_file(model.pretrain_mm_mlp_adapter, PROJECTOR_FILE, cache_dir)
    except ValueError as error:
        raise UsageError(f"--pretrain_mm_mlp_adapter: {error}") from error
