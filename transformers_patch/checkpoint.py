"""Finding and loading checkpoints that are whole."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

COMPLETE = "complete"
"""Empty file written into a checkpoint folder after everything else, when every rank has finished."""


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """Return the newest `checkpoint-STEP` folder of `output_dir` that was written to its end, or None."""
    steps = {}
    for folder in Path(output_dir).glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if match and (folder / COMPLETE).is_file():
            steps[int(match[1])] = str(folder)
        elif match:
            logger.warning("%s was not written to its end and is not used", folder)
    return steps[max(steps)] if steps else None


def load_whole(model_class: type[PreTrainedModel], folder: str | os.PathLike[str], **options: Any) -> PreTrainedModel:
    """`from_pretrained`, which gives weights that `folder` lacks random values and only warns, made to fail then.

    Raises:
        ValueError: the checkpoint lacks weights of the model, or has them in another shape.
    """
    loaded: Any = model_class.from_pretrained(folder, output_loading_info=True, **options)
    model, info = loaded
    missing = sorted({str(key) for key in info["missing_keys"]} | {str(key) for key in info["mismatched_keys"]})
    if missing:
        some = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        raise ValueError(f"{folder} is not a whole {model_class.__name__}: {len(missing)} weights do not fit ({some})")
    return model


def load_full_model(
    model: nn.Module, checkpoint: str, load_model: Callable[[str], PreTrainedModel] | None = None
) -> None:
    """Load every weight of `checkpoint` into `model`, in the model's own names and dtypes.

    Args:
        load_model: folder → model; None takes `from_pretrained` of the model's class.

    Raises:
        ValueError, RuntimeError: a weight is missing, left over or of another shape.
    """
    assert isinstance(model, PreTrainedModel)
    saved = load_model(checkpoint) if load_model else load_whole(type(model), checkpoint, dtype=model.dtype)
    model.load_state_dict(saved.state_dict(), strict=True)
