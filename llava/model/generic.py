"""Any image-text model of transformers, without a file of its own.

Class and parts are found from its configuration: the model is laid out once without weights, and its modules are sorted
into vision tower, projector and language model by where transformers itself finds them. `Parts` can be named instead,
where that is not how a model is to be cut.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from llava.conversation import CHAT_TEMPLATE
from llava.model.family import Family, Processor, layers_behind
from llava.model.generic_processor import load_generic
from llava.model.upstream import shell
from transformers_patch.forward import check_config

_PROJECTOR_NAMES = ("merger", "projector", "connector", "adapter", "aligner", "resampler")
"""What a projector is called where it lies within the vision tower."""
_ATTENTION = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Parts:
    """Module paths of a model's parts; empty ones are found from the model."""

    vision: tuple[str, ...] = ()
    projector: tuple[str, ...] = ()
    language: tuple[str, ...] = ()


class GenericFamily(Family):
    """An image-text model by its configuration.

    Raises ValueError for a model that transformers does not list as one.
    """

    default_template = CHAT_TEMPLATE

    def __init__(self, config: PretrainedConfig) -> None:
        self.name = self.model_type = config.model_type
        name = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type)
        if name is None:
            raise ValueError(f"{config.model_type} is none of transformers' image-text models")
        self.model_class: type[PreTrainedModel] = getattr(transformers, str(name))
        self.config = config
        self.parts = Parts()

    def name_parts(self, parts: Parts) -> None:
        """Cut the model as `parts` says.

        Raises ValueError for a model that has no weighted loss, a module that is not in it, or a part not found.
        """
        check_config(self.name, self.config)
        self.parts = parts
        assert self._found

    @cached_property
    def vision_modules(self) -> tuple[str, ...]:  # type: ignore[override]
        return self._found["vision"]

    @cached_property
    def projector_modules(self) -> tuple[str, ...]:  # type: ignore[override]
        return self._found["projector"]

    @cached_property
    def language_modules(self) -> tuple[str, ...]:  # type: ignore[override]
        return self._found["language"]

    @cached_property
    def _found(self) -> dict[str, tuple[str, ...]]:
        model = shell(self.model_class, self.config)
        found = find_parts(model)
        named = {"vision": self.parts.vision, "projector": self.parts.projector, "language": self.parts.language}
        known = {*dict(model.named_modules()), *dict(model.named_parameters())}
        for kind, paths in named.items():
            if unknown := [path for path in paths if path not in known]:
                tops = ", ".join(sorted({".".join(name.split(".")[:2]) for name in known if name}))
                raise ValueError(f"{self.name} has no module {', '.join(unknown)} ({kind}); it has {tops}")
        return {kind: paths or found[kind] for kind, paths in named.items()}

    def load_processor(self, path: str | os.PathLike[str]) -> Processor:
        """The processor saved at ``path``; ValueError says what this model lacks for it."""
        return load_generic(path, self.config)

    def why_not_packed(self, processor: Processor) -> str | None:
        text: Any = self.config.get_text_config()
        layers = sorted(set(getattr(text, "layer_types", None) or ()) - set(_ATTENTION))
        if layers:
            return f"its layers of {', '.join(layers)} would carry one sample into the next"
        if "token_type_ids" in processor.row_inputs(torch.zeros(1, 1, dtype=torch.int64)) or getattr(
            text, "use_bidirectional_attention", None
        ):
            return "tokens of an image see all of it, and which image that is, is counted by rows"
        if getattr(processor, "has_axes", False) and not getattr(processor, "has_grids", False):
            return "its rotary positions have axes, and how images lie on them is not known here"
        return None

    def unused_vision_modules(self, model: nn.Module) -> list[nn.Module]:
        """Layers behind the one whose features are read, where the configuration names one."""
        if getattr(self.config, "vision_feature_layer", None) is None:
            return []
        return layers_behind(model.get_submodule(self.vision_modules[0]), self.config.vision_feature_layer)


def find_parts(model: PreTrainedModel) -> dict[str, tuple[str, ...]]:
    """Module paths of vision tower, projector and language model.

    The tower and the language model are where transformers finds them (`get_encoder`, `get_decoder`), the head belongs
    to the language model. The projector is what else the model holds, or lies within the tower under a usual name.
    """
    names = {id(module): name for name, module in model.named_modules()}
    tower, language, head = model.get_encoder(modality="image"), model.get_decoder(), model.get_output_embeddings()
    if tower is model or language is model or head is None or id(tower) not in names or id(language) not in names:
        raise ValueError(f"{type(model).__name__}: no vision tower, language model or output head is found in it")
    known = {names[id(module)] for module in (tower, language, head)}
    projector = list(_others(model, "", known)) or [
        name
        for name, _ in _units(tower, names[id(tower)])
        if any(part in name.rpartition(names[id(tower)])[2] for part in _PROJECTOR_NAMES)
    ]
    return {
        "vision": (names[id(tower)],),
        "projector": tuple(projector),
        "language": (names[id(language)], names[id(head)]),
    }


def _others(module: nn.Module, path: str, known: set[str]) -> Iterator[str]:
    """Paths of the largest modules that hold none of the known ones and lie in none, and of single parameters."""
    yield from (f"{path}.{name}" if path else name for name, _ in module.named_parameters(recurse=False))
    for name, child in module.named_children():
        here = f"{path}.{name}" if path else name
        if here in known or not any(True for _ in child.parameters()):
            continue
        if any(other.startswith(f"{here}.") for other in known):
            yield from _others(child, here, known)
        else:
            yield from (unit for unit, _ in _units_of(child, here))


def _units(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Children with their paths, lists of modules taken apart (PEFT trains no list as a whole)."""
    for name, child in module.named_children():
        yield from _units_of(child, f"{path}.{name}")


def _units_of(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(module, nn.ModuleList):
        yield from _units(module, path)
    else:
        yield path, module
