"""How many answers are written at once: as many as memory holds."""

from __future__ import annotations

import os
from collections.abc import Sequence

import psutil
import torch
from transformers import PretrainedConfig

from llava.infer.prompts import Prompt

MAX_BATCH = {"cuda": 128, "cpu": 64}  # beyond these a step's time grows as fast as the batch
_MEMORY_SHARE = {"cuda": 0.8, "cpu": 0.5}


def plan_batches(prompts: Sequence[Prompt], new_tokens: int, first: int, most: int) -> list[list[int]]:
    """Batches of indices into `prompts`, which come longest first.

    The first batch holds `first` prompts; later, shorter ones as many more as take the same number of tokens
    (prompt and answer), up to `most`.
    """
    if not prompts:
        return []
    budget = first * (prompts[0].length + new_tokens)
    batches: list[list[int]] = []
    begin = 0
    while begin < len(prompts):
        size = max(first, min(most, budget // (prompts[begin].length + new_tokens)))
        batches.append(list(range(begin, min(begin + size, len(prompts)))))
        begin += size
    return batches


def batch_size_for_memory(config: PretrainedConfig, length: int, new_tokens: int, beams: int, device: torch.device,
                          dtype: torch.dtype) -> int:  # fmt: skip
    """How many prompts of `length` tokens fit in the memory that is free now, 1 to `MAX_BATCH`."""
    kind = "cuda" if device.type == "cuda" else "cpu"
    room = free_memory(device) * _MEMORY_SHARE[kind]
    each = bytes_per_prompt(config.get_text_config(), length, new_tokens, dtype.itemsize) * beams
    return max(1, min(MAX_BATCH[kind], int(room // each)))


def bytes_per_prompt(text: PretrainedConfig, length: int, new_tokens: int, itemsize: int) -> int:
    """Memory of one row at its peak: keys and values of all layers, one layer's activations, and logits."""
    heads = text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    cache = 2 * text.num_hidden_layers * (getattr(text, "num_key_value_heads", None) or heads) * head_size
    layer = 3 * text.intermediate_size + 6 * text.hidden_size
    return ((length + new_tokens) * cache + length * layer) * itemsize + 4 * 4 * text.vocab_size


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take on `device`; a CPU is shared evenly by the machine's ranks."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether `error` says that memory ran out, on a GPU or in the CPU's allocator."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
