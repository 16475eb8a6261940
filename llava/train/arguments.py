"""The arguments of a training run: LLaVA's names, ours beside them.

A flag that LLaVA-v1.5's published scripts pass does what it did there. A value that cannot be honoured is an error that
says so; nothing is silently ignored.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import is_torch_tf32_available

from llava.train.usage import unknown_arguments
from llava.train.values import faults
from transformers_patch.arguments import VitwTrainingArguments, WeightingArguments
from transformers_patch.weighter import WEIGHTERS


class UsageError(ValueError):
    """Bad arguments or bad input: shown without a traceback, exit code 2."""


def _arg(default: Any, text: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": text, **metadata})


@dataclass
class ModelArguments:
    """Which model is trained, from which parts, and which of them learn."""

    _argument_group_name = "model"

    model_name_or_path: str | None = _arg(
        None, "Language model to build a LLaVA on, or a saved LLaVA or other image-text model of transformers."
    )
    version: str | None = _arg(
        None, "Conversation template (v1, plain, chat, …); none: the one that the checkpoint or its family names."
    )
    vision_tower: str | None = _arg(None, "CLIP vision tower, to build a LLaVA or to load an original-layout one.")
    pretrain_mm_mlp_adapter: str | None = _arg(None, "Projector file (mm_projector.bin) from the pretraining stage.")
    mm_projector_type: str | None = _arg(None, "linear, mlpNx_gelu or identity (none: mlp2x_gelu).")
    mm_vision_select_layer: int | None = _arg(None, "Layer of the tower whose features are read (none: -2).")
    mm_vision_select_feature: str | None = _arg(None, "patch, or cls_patch to keep the class token (none: patch).")
    mm_patch_merge_type: str = _arg("flat", "Only flat, LLaVA-v1.5's.")
    mm_use_im_start_end: bool = _arg(False, "Only False: LLaVA-v1.5 wraps images in no tokens of their own.")
    mm_use_im_patch_token: bool = _arg(False, "Only False: LLaVA-v1.5 adds no token per patch.")
    tune_mm_mlp_adapter: bool = _arg(False, "Projector pretraining: only the projector learns.")
    freeze_backbone: bool = _arg(False, "Freeze the language model.")
    freeze_mm_mlp_adapter: bool = _arg(False, "Freeze the projector.")
    unfreeze_mm_vision_tower: bool = _arg(False, "Let the vision tower learn too (LLaVA-v1.5 keeps it frozen).")
    attn_implementation: str | None = _arg(None, "eager, sdpa or flash_attention_2 (none: transformers' choice).")
    bits: int = _arg(16, "16, or 8 or 4 for QLoRA (needs bitsandbytes).", choices=[4, 8, 16])
    double_quant: bool = _arg(True, "QLoRA: quantise the quantisation constants too.")
    quant_type: str = _arg("nf4", "QLoRA: 4-bit data type.", choices=["fp4", "nf4"])
    lora_enable: bool = _arg(False, "LoRA on the language model; the projector learns in full.")
    lora_r: int = _arg(64, "LoRA rank.")
    lora_alpha: int = _arg(16, "LoRA scale.")
    lora_dropout: float = _arg(0.05, "LoRA dropout.")
    lora_bias: str = _arg("none", "Biases that learn with LoRA.", choices=["none", "all", "lora_only"])
    lora_weight_path: str | None = _arg(None, "Adapter to go on from (with --lora_enable).")
    vision_modules: str | None = _arg(None, "Module paths of the vision tower, with commas (none: found by itself).")
    projector_modules: str | None = _arg(None, "Module paths of the projector, with commas (none: found by itself).")
    language_modules: str | None = _arg(None, "Paths of language model and head, with commas (none: found by itself).")

    def __post_init__(self) -> None:
        if not self.model_name_or_path:
            raise UsageError("--model_name_or_path is missing")
        for name in ("mm_use_im_start_end", "mm_use_im_patch_token"):
            if getattr(self, name):
                raise UsageError(f"--{name} True is not supported: LLaVA-v1.5 leaves it False")
        if self.mm_patch_merge_type != "flat":
            raise UsageError(f"--mm_patch_merge_type {self.mm_patch_merge_type} is not supported, only flat")
        if self.mm_vision_select_feature not in (None, "patch", "cls_patch"):
            raise UsageError(f"--mm_vision_select_feature must be patch or cls_patch: {self.mm_vision_select_feature}")
        if self.bits != 16 and not self.lora_enable:
            raise UsageError(f"--bits {self.bits} trains adapters only: add --lora_enable True")
        if self.lora_weight_path and not self.lora_enable:
            raise UsageError("--lora_weight_path needs --lora_enable True")
        if self.tune_mm_mlp_adapter and (self.lora_enable or self.freeze_mm_mlp_adapter):
            raise UsageError("--tune_mm_mlp_adapter trains the projector alone: not with LoRA or a frozen projector")


@dataclass
class DataArguments:
    """What the model is trained on, and how tasks are named, grouped and weighted."""

    _argument_group_name = "data and tasks"

    data_path: list[str] = field(
        default_factory=list,
        metadata={"help": "Training data: one or more JSON or JSONL files in LLaVA's format with `task`."},
    )
    image_folder: str | None = _arg(None, "Folder that the records' image paths are relative to.")
    eval_data_path: list[str] = field(
        default_factory=list, metadata={"help": "Data for --eval_strategy, in the same format."}
    )
    image_aspect_ratio: str | None = _arg(
        None,
        "LLaVA: pad to a square with the mean colour, or square: resize and crop the middle (none: the "
        "checkpoint's own, or pad).",
        choices=["pad", "square"],
    )
    image_min_pixels: int | None = _arg(
        None, "Qwen and others: smaller images are enlarged (none: the checkpoint's own)."
    )
    image_max_pixels: int | None = _arg(
        None,
        "Qwen and others: larger images are scaled down (none: the checkpoint's own, but an image takes at most 5/8 "
        "of --model_max_length). Kept with the model, for inference.",
    )
    lazy_preprocess: bool = _arg(True, "Only True: samples are always read on demand from a memory-mapped index.")
    is_multimodal: bool = _arg(True, "Only True; text-only samples are fine.")
    bad_samples: str = _arg("error", "Stop at bad records, or skip, count and list them.", choices=["error", "skip"])
    packing: bool | None = _arg(
        None,
        "Lay a micro-batch's samples end to end, in one row under flash attention, else in rows of --model_max_length "
        "(none: under flash attention).",
    )
    index_cache_dir: str | None = _arg(None, "Where data indices are kept (none: ~/.cache/visatb/index).")
    preprocess_workers: int | None = _arg(None, "Processes that build the index (none: by the number of cores).")
    task_names: list[str] = field(
        default_factory=list, metadata={"help": "The tasks, in the one order that bare numbers refer to."}
    )
    num_tasks: int | None = _arg(None, "How many tasks there must be (checked).")
    task_groups: str | None = _arg(None, 'Task groups: a JSON file, or {"group": ["task", …], …} itself.')
    file_tasks: str | None = _arg(
        None, 'Task of the records without one, by data file: a JSON file, or {"file": "task", …} itself.'
    )
    visatb_weights: list[str] = field(
        default_factory=list,
        metadata={"help": "Task weights: numbers in the order of --task_names, or a weights file."},
    )
    apply_weights: str = _arg(
        "loss",
        "How given weights are applied: in the loss (Equation 2), or as sampling ratios of a loss without weights, "
        "with the same expected gradient.",
        choices=["loss", "sampling"],
    )

    def __post_init__(self) -> None:
        if not self.data_path:
            raise UsageError("--data_path is missing")
        for path in [*self.data_path, *self.eval_data_path]:
            if not Path(path).is_file():
                raise UsageError(f"data file {path} does not exist")
        if self.image_folder is not None and not Path(self.image_folder).is_dir():
            raise UsageError(f"image folder {self.image_folder} does not exist")
        if not self.lazy_preprocess:
            raise UsageError("--lazy_preprocess False is not supported: the data index needs no memory to speak of")
        if not self.is_multimodal:
            raise UsageError("--is_multimodal False is not supported; data without images needs no flag")


@dataclass
class TrainingArguments(VitwTrainingArguments):
    """transformers' and the weighted loss's arguments, with LLaVA's additions and its older spellings."""

    _argument_group_name = "training"

    output_dir: str | None = _arg(None, "Folder of the run: checkpoints, then the finished model and its run card.")
    weight_method: str | None = _arg(
        None, "Task weighting method (none: VisATB with --visatb_weights, else EW).", choices=list(WEIGHTERS)
    )
    optim: str = _arg("adamw_torch_fused", "Optimizer (transformers' names).")
    model_max_length: int = _arg(2048, "Longest sample in tokens, image tokens included; longer ones are cut.")
    group_by_modality_length: bool = _arg(
        False, "Batch samples of like length, text-only ones apart (every rank's work is even)."
    )
    mm_projector_lr: float | None = _arg(None, "Learning rate of the projector, if it has one of its own.")
    mm_vision_tower_lr: float | None = _arg(None, "Learning rate of the vision tower, if it learns.")
    warmup_ratio: float | None = _arg(None, "Share of all steps spent warming up.")
    evaluation_strategy: str | None = _arg(None, "Older name of --eval_strategy.", choices=["no", "steps", "epoch"])
    cache_dir: str | None = _arg(None, "Where downloaded models are kept (none: the Hugging Face cache).")
    overwrite_output_dir: bool = _arg(False, "Replace another run's results in --output_dir.")
    ddp_timeout: int = _arg(7200, "Seconds a rank waits for the others in a collective operation.")

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise UsageError("--output_dir is missing")
        self._apply_older_names()
        if not torch.accelerator.is_available():
            self.use_cpu = True
        tf32 = self.tf32
        if not is_torch_tf32_available():
            self.tf32 = None  # a precision of NVIDIA's tensor cores: nothing to switch without them
        super().__post_init__()
        self.tf32 = tf32
        if self.model_max_length < 1:
            raise UsageError(f"--model_max_length must be positive: {self.model_max_length}")

    def _apply_older_names(self) -> None:
        """Move the values of arguments that newer transformers renamed to their present names."""
        if self.warmup_ratio is not None:
            if not 0 <= self.warmup_ratio < 1:
                raise UsageError(f"--warmup_ratio must lie in [0, 1): {self.warmup_ratio}")
            if self.warmup_steps and self.warmup_steps != self.warmup_ratio:
                raise UsageError("--warmup_ratio and --warmup_steps exclude each other")
            self.warmup_steps = self.warmup_ratio
        if self.evaluation_strategy is not None:
            self.eval_strategy = self.evaluation_strategy
        if self.gradient_checkpointing is not None and self.activation_checkpointing is None:
            self.activation_checkpointing = self.gradient_checkpointing
        if self.activation_checkpointing and self.activation_checkpointing_kwargs is None:
            # The re-entrant kind gives no gradients below frozen embeddings.
            self.activation_checkpointing_kwargs = self.gradient_checkpointing_kwargs or {"use_reentrant": False}


ArgumentTriple = tuple[ModelArguments, DataArguments, TrainingArguments]
PARTS: Any = (ModelArguments, DataArguments, TrainingArguments)


# The stock flags that `--help` shows; `--help_all` shows all of transformers' own too.
COMMON = """
per_device_train_batch_size gradient_accumulation_steps learning_rate num_train_epochs max_steps weight_decay
lr_scheduler_type warmup_steps bf16 fp16 tf32 gradient_checkpointing deepspeed dataloader_num_workers seed
logging_steps save_strategy save_steps save_total_limit eval_strategy eval_steps per_device_eval_batch_size
report_to run_name"""


class _Help(argparse.HelpFormatter):
    """Each flag under its first spelling, with its choices, on a line of its own."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=112)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        choices = list(action.choices or ())
        return action.option_strings[0] + (f" {{{','.join(map(str, choices))}}}" if 0 < len(choices) < 7 else "")


class _Parser(HfArgumentParser):
    """The argument parser, with a help text that can be read and errors that are exceptions."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            PARTS,
            formatter_class=_Help,
            allow_abbrev=False,
            **kwargs,
        )
        self.add_argument("--help_all", action="store_true", help="show every flag, transformers' own included")

    def error(self, message: str) -> Any:
        raise UsageError(message)

    def show_common_only(self) -> None:
        parts = (*PARTS, VitwTrainingArguments, WeightingArguments)
        ours = {name for part in parts for name in part.__annotations__}
        shown = {*ours, *COMMON.split(), "help", "help_all"}
        for action in self._actions:
            if action.dest not in shown or action.const is False:  # the --no_… twin of a switch
                action.help = argparse.SUPPRESS

    @property
    def flags(self) -> list[str]:
        """All flags that it knows, short ones too."""
        return list(self._option_string_actions)

    def unknown(self, words: Sequence[str]) -> UsageError:
        return UsageError(unknown_arguments(words, self.flags))


def make_parser() -> _Parser:
    """The parser of a training command line."""
    return _Parser(
        prog="visatb train",
        usage="visatb train --model_name_or_path MODEL --data_path FILE … --image_folder FOLDER --output_dir FOLDER …",
        description="Fine-tune a multimodal model under a task-weighting method (docs/training.md).",
    )


def parse_arguments(argv: Sequence[str] | None = None, start: bool = True) -> ArgumentTriple:
    """Parse and check a command line (none: the process's own).

    Args:
        start: whether training follows. Without it DeepSpeed is left out, which builds its operators when its
            configuration is read; that takes longer than all checks. Its file must be there all the same.

    Raises:
        UsageError: an unknown flag, a missing or contradictory value, a file that does not exist.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser()
    if "--help_all" in argv:
        parser.print_help()
        parser.exit()
    if "--help" in argv or "-h" in argv:
        parser.show_common_only()
    try:
        given, unknown = parser.parse_known_args(argv)
        if not start:
            _leave_out_deepspeed(given)
        model, data, training = (
            part(**{field.name: getattr(given, field.name) for field in fields(part) if field.init}) for part in PARTS
        )
    except UsageError:
        raise
    except (ValueError, OSError) as error:  # transformers' own checks of its arguments
        raise UsageError(str(error)) from error
    if unknown:
        raise parser.unknown(unknown)
    if training.hub_token:  # the environment is where Hugging Face looks, and no file that is kept or uploaded
        os.environ["HF_TOKEN"] = training.hub_token
        training.hub_token = None
    check_together(model, data, training)
    return model, data, training


def _leave_out_deepspeed(given: argparse.Namespace) -> None:
    name = given.deepspeed or ""
    if (
        name and not name.lstrip().startswith("{") and not Path(name).is_file()
    ):  # else JSON itself, as transformers has it
        raise UsageError(f"--deepspeed: {name} does not exist")
    given.deepspeed = None


def check_together(model: ModelArguments, data: DataArguments, training: TrainingArguments) -> None:
    """Check what no group of arguments can check alone, and all values."""
    if wrong := list(faults(model, data, training)):
        raise UsageError("\n".join(wrong))
    if training.eval_strategy != "no" and not data.eval_data_path:
        raise UsageError(f"--eval_strategy {IntervalStrategy(training.eval_strategy).value} needs --eval_data_path")
    if training.mm_vision_tower_lr is not None and not model.unfreeze_mm_vision_tower:
        raise UsageError("--mm_vision_tower_lr needs --unfreeze_mm_vision_tower True")
    if training.mm_projector_lr is not None and model.freeze_mm_mlp_adapter:
        raise UsageError("--mm_projector_lr has no effect on a frozen projector (--freeze_mm_mlp_adapter True)")
    learns = model.lora_enable or model.unfreeze_mm_vision_tower
    if model.freeze_backbone and model.freeze_mm_mlp_adapter and not learns:
        raise UsageError("nothing is left to train: --freeze_backbone and --freeze_mm_mlp_adapter freeze everything")
    if data.apply_weights == "sampling":
        _check_sampling(data, training)
    if model.bits != 16 and is_deepspeed_zero3_enabled():
        raise UsageError("quantised weights cannot be partitioned: use zero2.json with --bits 4 or 8")


def _check_sampling(data: DataArguments, training: TrainingArguments) -> None:
    if not data.visatb_weights:
        raise UsageError("--apply_weights sampling needs --visatb_weights: there is nothing to sample by")
    if training.group_by_modality_length:
        raise UsageError("--apply_weights sampling draws the samples itself: not with --group_by_modality_length True")
    if training.loss_norm != "step":
        raise UsageError("--apply_weights sampling is right for the mean over a whole step: not with --loss_norm")
