"""Written by `python -m llava.train.usage`; see there."""

TRANSFORMERS = "5.23.0"
HELP = """\
usage: visatb train --model_name_or_path MODEL --data_path FILE … --image_folder FOLDER --output_dir FOLDER …

Fine-tune a multimodal model under a task-weighting method (docs/training.md).

options:
  -h                            show this help message and exit
  --help_all                    show every flag, transformers' own included

model:
  --model_name_or_path          Language model to build a LLaVA on, or any saved LLaVA / Qwen2-VL / Qwen2.5-VL
                                checkpoint.
  --version                     Conversation template (v1, plain, chat, …); none: the one that the checkpoint or
                                its family names.
  --vision_tower                CLIP vision tower, to build a LLaVA or to load an original-layout one.
  --pretrain_mm_mlp_adapter     Projector file (mm_projector.bin) from the pretraining stage.
  --mm_projector_type           linear, mlpNx_gelu or identity (none: mlp2x_gelu).
  --mm_vision_select_layer      Layer of the tower whose features are read (none: -2).
  --mm_vision_select_feature    patch, or cls_patch to keep the class token (none: patch).
  --mm_patch_merge_type         Only flat, LLaVA-v1.5's.
  --mm_use_im_start_end         Only False: LLaVA-v1.5 wraps images in no tokens of their own.
  --mm_use_im_patch_token       Only False: LLaVA-v1.5 adds no token per patch.
  --tune_mm_mlp_adapter         Projector pretraining: only the projector learns.
  --freeze_backbone             Freeze the language model.
  --freeze_mm_mlp_adapter       Freeze the projector.
  --unfreeze_mm_vision_tower    Let the vision tower learn too (LLaVA-v1.5 keeps it frozen).
  --attn_implementation         eager, sdpa or flash_attention_2 (none: transformers' choice).
  --bits {4,8,16}               16, or 8 or 4 for QLoRA (needs bitsandbytes).
  --double_quant                QLoRA: quantise the quantisation constants too.
  --quant_type {fp4,nf4}        QLoRA: 4-bit data type.
  --lora_enable                 LoRA on the language model; the projector learns in full.
  --lora_r                      LoRA rank.
  --lora_alpha                  LoRA scale.
  --lora_dropout                LoRA dropout.
  --lora_bias {none,all,lora_only}
                                Biases that learn with LoRA.
  --lora_weight_path            Adapter to go on from (with --lora_enable).
  --vision_modules              Module paths of the vision tower, with commas (none: found by itself).
  --projector_modules           Module paths of the projector, with commas (none: found by itself).
  --language_modules            Paths of language model and head, with commas (none: found by itself).

data and tasks:
  --data_path                   Training data: one or more JSON or JSONL files in LLaVA's format with `task`.
  --image_folder                Folder that the records' image paths are relative to.
  --eval_data_path              Data for --eval_strategy, in the same format.
  --image_aspect_ratio {pad,square}
                                LLaVA: pad to a square with the mean colour, or square: resize and crop the
                                middle (none: the checkpoint's own, or pad).
  --image_min_pixels            Qwen and others: smaller images are enlarged (none: the checkpoint's own).
  --image_max_pixels            Qwen and others: larger images are scaled down (none: the checkpoint's own, but
                                an image takes at most 5/8 of --model_max_length). Kept with the model, for
                                inference.
  --lazy_preprocess             Only True: samples are always read on demand from a memory-mapped index.
  --is_multimodal               Only True; text-only samples are fine.
  --bad_samples {error,skip}    Stop at bad records, or skip, count and list them.
  --packing                     Lay a micro-batch's samples end to end, in one row under flash attention, else
                                in rows of --model_max_length (none: under flash attention).
  --index_cache_dir             Where data indices are kept (none: ~/.cache/visatb/index).
  --preprocess_workers          Processes that build the index (none: by the number of cores).
  --task_names                  The tasks, in the one order that bare numbers refer to.
  --num_tasks                   How many tasks there must be (checked).
  --task_groups                 Task groups: a JSON file, or {"group": ["task", …], …} itself.
  --file_tasks                  Task of the records without one, by data file: a JSON file, or {"file": "task",
                                …} itself.
  --visatb_weights              Task weights: numbers in the order of --task_names, or a weights file.
  --apply_weights {loss,sampling}
                                How given weights are applied: in the loss (Equation 2), or as sampling ratios
                                of a loss without weights, with the same expected gradient.

training:
  --output_dir                  Folder of the run: checkpoints, then the finished model and its run card.
  --per_device_train_batch_size
                                The batch size per device for training.
  --num_train_epochs            Total number of training epochs to perform.
  --max_steps                   Overrides `num_train_epochs`. If set to a positive number, the total number of
                                training steps to perform. Must be set when the training dataset does not
                                implement `__len__` (e.g. a streaming dataset).
  --learning_rate               The initial learning rate for the optimizer.
  --lr_scheduler_type           The learning rate scheduler type to use. See `SchedulerType` for all possible
                                values.
  --warmup_steps                Number of steps for a linear warmup from 0 to `learning_rate`. Can be an integer
                                (exact steps) or a float in [0, 1) (ratio of total steps).
  --optim                       Optimizer (transformers' names).
  --weight_decay                Weight decay coefficient applied by the optimizer. Automatically excluded from
                                bias and LayerNorm parameters.
  --gradient_accumulation_steps
                                Number of update steps to accumulate gradients before performing a
                                backward/update pass. Effective batch size = per_device_train_batch_size *
                                num_devices * gradient_accumulation_steps.
  --bf16                        Enable bfloat16 (BF16) mixed precision training. Generally preferred over FP16
                                due to better numerical stability.
  --fp16                        Enable float16 (FP16) mixed precision training. Consider using BF16 instead if
                                your hardware supports it.
  --tf32                        Enable TF32 mode on Ampere and newer GPUs. Provides up to 8x speedup with
                                negligible accuracy loss.
  --gradient_checkpointing      Deprecated alias of `activation_checkpointing`, will be removed in v6.
  --logging_steps               Log every X updates steps. Should be an integer or a float in range `[0,1)`. If
                                smaller than 1, will be interpreted as ratio of total training steps.
  --report_to                   The list of integrations to report the results and logs to. Use 'all' for all
                                installed integrations, 'none' for no integrations.
  --run_name                    An optional descriptor for the run. Notably used for trackio, wandb, mlflow
                                comet and swanlab logging.
  --eval_strategy {no,steps,epoch}
                                When to run evaluation. Options: 'no', 'steps', 'epoch'.
  --eval_steps                  Number of update steps between evaluations if `eval_strategy='steps'`. Defaults
                                to `logging_steps` if not set. Should be an integer or a float in range `[0,1)`.
                                If smaller than 1, will be interpreted as ratio of total training steps.
  --per_device_eval_batch_size  The batch size per device (GPU/TPU core/CPU) for evaluation.
  --save_strategy {no,steps,epoch,best}
                                The checkpoint save strategy to adopt during training. Options: 'no', 'epoch',
                                'steps', 'best'.
  --save_steps                  Save checkpoint every X updates steps. Should be an integer or a float in range
                                `[0,1)`. If smaller than 1, will be interpreted as ratio of total training
                                steps.
  --save_total_limit            Maximum number of checkpoints to keep. Deletes older checkpoints in
                                `output_dir`. The best checkpoint is always retained when
                                `load_best_model_at_end=True`.
  --seed                        Random seed that will be set at the beginning of training.
  --dataloader_num_workers      Number of subprocesses to use for data loading (PyTorch only). 0 means that the
                                data will be loaded in the main process.
  --ddp_timeout                 Seconds a rank waits for the others in a collective operation.
  --deepspeed                   Enable DeepSpeed integration. Value is a path to a JSON config file or a dict.
  --weight_method {EW,TLA,RLW,DWA,IGB,VisATB}
                                Task weighting method (none: VisATB with --visatb_weights, else EW).
  --dwa_window                  DWA: observations of a task per window.
  --dwa_temperature             DWA: softmax temperature.
  --igb_window                  IGB: the base loss is taken over optimizer steps w to 2w.
  --loss_impl {auto,select,chunked,full}
                                How token losses are computed: logits of valid target tokens only (select), the
                                same in chunks that bound memory (chunked), the one of the two that fits (auto),
                                or all logits (full, the reference).
  --loss_norm {step,micro_batch}
                                Divide by the Σλ of the whole optimizer step (step, Equation 2) or of each
                                micro-batch (micro_batch, the published divisor, for comparison).
  --global_batch_size           Samples of an optimizer step, where processes × accumulation × micro-batch give
                                more than is wanted: blanks that count nothing fill each step up (default: all
                                of them are samples).
  --model_max_length            Longest sample in tokens, image tokens included; longer ones are cut.
  --group_by_modality_length    Batch samples of like length, text-only ones apart (every rank's work is even).
  --mm_projector_lr             Learning rate of the projector, if it has one of its own.
  --mm_vision_tower_lr          Learning rate of the vision tower, if it learns.
  --warmup_ratio                Share of all steps spent warming up.
  --evaluation_strategy {no,steps,epoch}
                                Older name of --eval_strategy.
  --cache_dir                   Where downloaded models are kept (none: the Hugging Face cache).
  --overwrite_output_dir        Replace another run's results in --output_dir.
"""
FLAGS = frozenset(
    (
        "--accelerator-config",
        "--accelerator_config",
        "--activation-checkpointing",
        "--activation-checkpointing-kwargs",
        "--activation_checkpointing",
        "--activation_checkpointing_kwargs",
        "--adam-beta1",
        "--adam-beta2",
        "--adam-epsilon",
        "--adam_beta1",
        "--adam_beta2",
        "--adam_epsilon",
        "--apply-weights",
        "--apply_weights",
        "--attn-implementation",
        "--attn_implementation",
        "--auto-find-batch-size",
        "--auto_find_batch_size",
        "--average-tokens-across-devices",
        "--average_tokens_across_devices",
        "--bad-samples",
        "--bad_samples",
        "--batch-eval-metrics",
        "--batch_eval_metrics",
        "--bf16",
        "--bf16-full-eval",
        "--bf16_full_eval",
        "--bits",
        "--cache-dir",
        "--cache_dir",
        "--data-path",
        "--data-seed",
        "--data_path",
        "--data_seed",
        "--dataloader-drop-last",
        "--dataloader-in-order",
        "--dataloader-multiprocessing-context",
        "--dataloader-num-workers",
        "--dataloader-persistent-workers",
        "--dataloader-pin-memory",
        "--dataloader-prefetch-factor",
        "--dataloader_drop_last",
        "--dataloader_in_order",
        "--dataloader_multiprocessing_context",
        "--dataloader_num_workers",
        "--dataloader_persistent_workers",
        "--dataloader_pin_memory",
        "--dataloader_prefetch_factor",
        "--ddp-backend",
        "--ddp-broadcast-buffers",
        "--ddp-bucket-cap-mb",
        "--ddp-find-unused-parameters",
        "--ddp-static-graph",
        "--ddp-timeout",
        "--ddp_backend",
        "--ddp_broadcast_buffers",
        "--ddp_bucket_cap_mb",
        "--ddp_find_unused_parameters",
        "--ddp_static_graph",
        "--ddp_timeout",
        "--debug",
        "--deepspeed",
        "--disable-tqdm",
        "--disable_tqdm",
        "--do-eval",
        "--do-predict",
        "--do-train",
        "--do_eval",
        "--do_predict",
        "--do_train",
        "--double-quant",
        "--double_quant",
        "--dwa-temperature",
        "--dwa-window",
        "--dwa_temperature",
        "--dwa_window",
        "--enable-jit-checkpoint",
        "--enable_jit_checkpoint",
        "--eval-accumulation-steps",
        "--eval-data-path",
        "--eval-delay",
        "--eval-do-concat-batches",
        "--eval-on-start",
        "--eval-steps",
        "--eval-strategy",
        "--eval-use-gather-object",
        "--eval_accumulation_steps",
        "--eval_data_path",
        "--eval_delay",
        "--eval_do_concat_batches",
        "--eval_on_start",
        "--eval_steps",
        "--eval_strategy",
        "--eval_use_gather_object",
        "--evaluation-strategy",
        "--evaluation_strategy",
        "--file-tasks",
        "--file_tasks",
        "--fp16",
        "--fp16-full-eval",
        "--fp16_full_eval",
        "--freeze-backbone",
        "--freeze-mm-mlp-adapter",
        "--freeze_backbone",
        "--freeze_mm_mlp_adapter",
        "--fsdp",
        "--fsdp-config",
        "--fsdp_config",
        "--full-determinism",
        "--full_determinism",
        "--global-batch-size",
        "--global_batch_size",
        "--gradient-accumulation-steps",
        "--gradient-checkpointing",
        "--gradient-checkpointing-kwargs",
        "--gradient_accumulation_steps",
        "--gradient_checkpointing",
        "--gradient_checkpointing_kwargs",
        "--greater-is-better",
        "--greater_is_better",
        "--group-by-modality-length",
        "--group_by_modality_length",
        "--help",
        "--help_all",
        "--hub-always-push",
        "--hub-model-id",
        "--hub-private-repo",
        "--hub-revision",
        "--hub-strategy",
        "--hub-token",
        "--hub_always_push",
        "--hub_model_id",
        "--hub_private_repo",
        "--hub_revision",
        "--hub_strategy",
        "--hub_token",
        "--igb-window",
        "--igb_window",
        "--ignore-data-skip",
        "--ignore_data_skip",
        "--image-aspect-ratio",
        "--image-folder",
        "--image-max-pixels",
        "--image-min-pixels",
        "--image_aspect_ratio",
        "--image_folder",
        "--image_max_pixels",
        "--image_min_pixels",
        "--include-for-metrics",
        "--include-num-input-tokens-seen",
        "--include_for_metrics",
        "--include_num_input_tokens_seen",
        "--index-cache-dir",
        "--index_cache_dir",
        "--is-multimodal",
        "--is_multimodal",
        "--label-names",
        "--label-smoothing-factor",
        "--label_names",
        "--label_smoothing_factor",
        "--language-modules",
        "--language_modules",
        "--lazy-preprocess",
        "--lazy_preprocess",
        "--learning-rate",
        "--learning_rate",
        "--length-column-name",
        "--length_column_name",
        "--liger-kernel-config",
        "--liger_kernel_config",
        "--load-best-model-at-end",
        "--load_best_model_at_end",
        "--local-rank",
        "--local_rank",
        "--log-level",
        "--log-level-replica",
        "--log-on-each-node",
        "--log_level",
        "--log_level_replica",
        "--log_on_each_node",
        "--logging-first-step",
        "--logging-nan-inf-filter",
        "--logging-steps",
        "--logging-strategy",
        "--logging_first_step",
        "--logging_nan_inf_filter",
        "--logging_steps",
        "--logging_strategy",
        "--lora-alpha",
        "--lora-bias",
        "--lora-dropout",
        "--lora-enable",
        "--lora-r",
        "--lora-weight-path",
        "--lora_alpha",
        "--lora_bias",
        "--lora_dropout",
        "--lora_enable",
        "--lora_r",
        "--lora_weight_path",
        "--loss-impl",
        "--loss-norm",
        "--loss_impl",
        "--loss_norm",
        "--lr-scheduler-kwargs",
        "--lr-scheduler-type",
        "--lr_scheduler_kwargs",
        "--lr_scheduler_type",
        "--max-grad-norm",
        "--max-steps",
        "--max_grad_norm",
        "--max_steps",
        "--metric-for-best-model",
        "--metric_for_best_model",
        "--mm-patch-merge-type",
        "--mm-projector-lr",
        "--mm-projector-type",
        "--mm-use-im-patch-token",
        "--mm-use-im-start-end",
        "--mm-vision-select-feature",
        "--mm-vision-select-layer",
        "--mm-vision-tower-lr",
        "--mm_patch_merge_type",
        "--mm_projector_lr",
        "--mm_projector_type",
        "--mm_use_im_patch_token",
        "--mm_use_im_start_end",
        "--mm_vision_select_feature",
        "--mm_vision_select_layer",
        "--mm_vision_tower_lr",
        "--model-max-length",
        "--model-name-or-path",
        "--model_max_length",
        "--model_name_or_path",
        "--neftune-noise-alpha",
        "--neftune_noise_alpha",
        "--no-average-tokens-across-devices",
        "--no-dataloader-in-order",
        "--no-dataloader-pin-memory",
        "--no-double-quant",
        "--no-eval-do-concat-batches",
        "--no-is-multimodal",
        "--no-lazy-preprocess",
        "--no-log-on-each-node",
        "--no-logging-nan-inf-filter",
        "--no-remove-unused-columns",
        "--no-skip-memory-metrics",
        "--no_average_tokens_across_devices",
        "--no_dataloader_in_order",
        "--no_dataloader_pin_memory",
        "--no_double_quant",
        "--no_eval_do_concat_batches",
        "--no_is_multimodal",
        "--no_lazy_preprocess",
        "--no_log_on_each_node",
        "--no_logging_nan_inf_filter",
        "--no_remove_unused_columns",
        "--no_skip_memory_metrics",
        "--num-tasks",
        "--num-train-epochs",
        "--num_tasks",
        "--num_train_epochs",
        "--optim",
        "--optim-args",
        "--optim-target-modules",
        "--optim_args",
        "--optim_target_modules",
        "--output-dir",
        "--output_dir",
        "--overwrite-output-dir",
        "--overwrite_output_dir",
        "--packing",
        "--parallelism-config",
        "--parallelism_config",
        "--per-device-eval-batch-size",
        "--per-device-train-batch-size",
        "--per_device_eval_batch_size",
        "--per_device_train_batch_size",
        "--prediction-loss-only",
        "--prediction_loss_only",
        "--preprocess-workers",
        "--preprocess_workers",
        "--pretrain-mm-mlp-adapter",
        "--pretrain_mm_mlp_adapter",
        "--project",
        "--projector-modules",
        "--projector_modules",
        "--push-to-hub",
        "--push_to_hub",
        "--quant-type",
        "--quant_type",
        "--remove-unused-columns",
        "--remove_unused_columns",
        "--report-to",
        "--report_to",
        "--restore-callback-states-from-checkpoint",
        "--restore_callback_states_from_checkpoint",
        "--resume-from-checkpoint",
        "--resume_from_checkpoint",
        "--run-name",
        "--run_name",
        "--save-on-each-node",
        "--save-only-model",
        "--save-steps",
        "--save-strategy",
        "--save-total-limit",
        "--save_on_each_node",
        "--save_only_model",
        "--save_steps",
        "--save_strategy",
        "--save_total_limit",
        "--seed",
        "--skip-memory-metrics",
        "--skip_memory_metrics",
        "--task-groups",
        "--task-names",
        "--task_groups",
        "--task_names",
        "--tf32",
        "--torch-compile",
        "--torch-compile-backend",
        "--torch-compile-mode",
        "--torch-empty-cache-steps",
        "--torch_compile",
        "--torch_compile_backend",
        "--torch_compile_mode",
        "--torch_empty_cache_steps",
        "--trackio-bucket-id",
        "--trackio-space-id",
        "--trackio-static-space-id",
        "--trackio_bucket_id",
        "--trackio_space_id",
        "--trackio_static_space_id",
        "--train-sampling-strategy",
        "--train_sampling_strategy",
        "--tune-mm-mlp-adapter",
        "--tune_mm_mlp_adapter",
        "--unfreeze-mm-vision-tower",
        "--unfreeze_mm_vision_tower",
        "--use-cache",
        "--use-cpu",
        "--use-liger-kernel",
        "--use_cache",
        "--use_cpu",
        "--use_liger_kernel",
        "--version",
        "--visatb-weights",
        "--visatb_weights",
        "--vision-modules",
        "--vision-tower",
        "--vision_modules",
        "--vision_tower",
        "--warmup-ratio",
        "--warmup-steps",
        "--warmup_ratio",
        "--warmup_steps",
        "--weight-decay",
        "--weight-method",
        "--weight_decay",
        "--weight_method",
    )
)
