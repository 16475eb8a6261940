"""Training arguments that do not decide what comes out of a run, in the one list that everybody asks.

A run goes on in its folder, and the workflow takes a model for finished, while all other arguments are the same. No
imports: the workflow's commands read this list without loading torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T", bound=Any)

_BY_REASON = {
    "where results, copies and caches lie": """
        output_dir overwrite_output_dir index_cache_dir cache_dir logging_dir resume_from_checkpoint
    """,
    "on how many processes and on what device; the batch counts as a whole, by itself": """
        per_device_train_batch_size gradient_accumulation_steps per_device_eval_batch_size deepspeed local_rank
        use_cpu ddp_timeout ddp_backend ddp_bucket_cap_mb ddp_find_unused_parameters ddp_broadcast_buffers
    """,
    "how fast, and in how much memory": """
        preprocess_workers dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
        dataloader_prefetch_factor gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing
        activation_checkpointing_kwargs torch_empty_cache_steps enable_jit_checkpoint
    """,
    "what is told of it": """
        disable_tqdm log_level log_level_replica log_on_each_node logging_strategy logging_steps
        logging_first_step report_to run_name project skip_memory_metrics include_num_input_tokens_seen debug
    """,
    "what is saved, measured and uploaded on the way": """
        save_strategy save_steps save_total_limit save_on_each_node save_only_model
        restore_callback_states_from_checkpoint eval_strategy evaluation_strategy eval_steps eval_delay
        eval_on_start eval_accumulation_steps eval_data_path push_to_hub hub_token hub_model_id hub_strategy
        hub_private_repo hub_always_push hub_revision
    """,
    "stages of transformers' example scripts, and flags with one value that is allowed": """
        do_train do_eval do_predict lazy_preprocess is_multimodal
    """,
    "data and tasks: what they say is compared by its content, whatever it is named or however it is given": """
        data_path num_tasks task_names task_groups visatb_weights
    """,
}

WITHOUT_EFFECT = frozenset(name for names in _BY_REASON.values() for name in names.split())
"""The names. The defaults of transformers' other arguments count: of a new one it is not known what it does."""


def with_effect(arguments: Mapping[str, T]) -> dict[str, T]:
    """The arguments that decide what comes out of a run.

    The micro-batch is one of them where each micro-batch is normalised by itself (`loss_norm` micro_batch).
    """
    kept = {name: value for name, value in arguments.items() if name not in WITHOUT_EFFECT}
    micro_batch = "per_device_train_batch_size"
    if arguments.get("loss_norm") == "micro_batch" and micro_batch in arguments:
        kept[micro_batch] = arguments[micro_batch]
    return kept
