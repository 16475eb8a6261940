# What all training scripts share: variables, SLURM, the launcher. Sourced, not run. Needs bash ≥ 4.4.
#
# Variables that are read, never overwritten:
#   DATA_PATH         training data: one JSON/JSONL file, or several separated by spaces
#   IMAGE_FOLDER      folder that the records' image paths are relative to
#   OUTPUT_DIR        folder of this run; a run that was stopped goes on from its last checkpoint when started again
#   VISATB_WEIGHTS    task weights "1.0 0.9 …" in the order of the tasks, or a weights.json; unset: EW
#   WEIGHT_METHOD     EW, TLA, RLW, DWA, IGB or VisATB (only VisATB takes VISATB_WEIGHTS)
#   TASK_NAMES, TASK_GROUPS   other tasks or groups than the script's own
#   BASE_MODEL_PATH, VISION_TOWER, MM_PROJECTOR   the model or the parts it is made of (path or Hugging Face name)
#   NUM_GPUS          processes per node (default: the visible GPUs; 0: one process on the CPU)
#   NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT   several nodes: run the script on each; under SLURM they are known
#   LAUNCHER          torchrun (default; exit code 2: bad input, 143: stopped by SIGTERM) or deepspeed (several nodes then need HOSTFILE, and one start)
#   DEEPSPEED         zero2, zero3, none, or a configuration file
#   GLOBAL_BATCH      samples of an optimizer step (default: the script's, 128 or 256); any number of processes will do
#   MICRO_BATCH       most samples that a GPU takes at once (default: 16); accumulation makes up the rest
#   LORA=1            LoRA with LLaVA-v1.5's LoRA settings
#   PYTHON            interpreter (default: python)
#   EXTRA_ARGS        further flags, quoted as in a shell; the last of two equal flags wins
#   DRY_RUN=1         print the command instead of running it

scripts_dir="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export PYTHONPATH="$(dirname "$scripts_dir")${PYTHONPATH:+:$PYTHONPATH}"

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 2
}

require() { # require NAME…: every one of these variables must be set
  local name missing=()
  for name in "$@"; do
    [[ -n "${!name:-}" ]] || missing+=("$name")
  done
  ((${#missing[@]} == 0)) || fail "set ${missing[*]} first (see the head of this script and docs/training.md)"
}

visible_gpus() {
  if [[ -n "${CUDA_VISIBLE_DEVICES+set}" ]]; then
    local devices
    IFS=, read -r -a devices <<<"$CUDA_VISIBLE_DEVICES"
    echo "${#devices[@]}"
  elif [[ "${SLURM_GPUS_ON_NODE:-}" =~ ^[0-9]+$ ]]; then
    echo "$SLURM_GPUS_ON_NODE"
  elif command -v nvidia-smi >/dev/null; then
    nvidia-smi -L | grep -c '^GPU' || true
  else
    echo 0
  fi
}

first_gpus() { # first_gpus N: the first N of the GPUs that this script may use, as 4,5,6
  if [[ -n "${CUDA_VISIBLE_DEVICES:-}" ]]; then
    cut -d, -f"1-$1" <<<"$CUDA_VISIBLE_DEVICES"
  else
    seq -s, 0 $(($1 - 1))
  fi
}

free_port() { # a TCP port that nothing listens on, so that two runs on one machine do not meet
  "${PYTHON:-python}" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

cpu_threads() { # threads of a CPU process: more than the cores wait for one another; a core is left for the data
  local cores
  cores="$(nproc 2>/dev/null || echo 1)"
  echo "$((cores > 1 ? cores - 1 : 1))"
}

# SLURM: in a batch job (not yet inside a job step) run this script once per node as a job step, which is also what
# SLURM signals on preemption. A run that was stopped has saved a checkpoint and left OUTPUT_DIR/preempted.
in_slurm_batch() {
  [[ -n "${SLURM_JOB_ID:-}" && -z "${VISATB_STEP:-}" ]] && command -v srun >/dev/null
}

through_slurm() { # through_slurm SCRIPT ARG…
  local nodes="${SLURM_NNODES:-1}"
  export VISATB_STEP=1 NNODES="$nodes"
  export MASTER_ADDR="${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}"
  export MASTER_PORT="${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}"
  [[ -z "${SLURM_CPUS_PER_TASK:-}" ]] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
  supervise srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=1 bash "$@" || {
    local status=$? state
    state="$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)"
    if [[ -f "$OUTPUT_DIR/preempted" && "$state" != CANCELLED ]]; then
      echo "preempted: requeueing job $SLURM_JOB_ID" >&2
      scontrol requeue "$SLURM_JOB_ID"
    fi
    return "$status"
  }
}

supervise() { # run a command, pass SIGTERM and SIGINT on to it as SIGTERM, and return its exit status
  local child status=0
  "$@" &
  child=$!
  trap 'kill -TERM "$child" 2>/dev/null || true' TERM INT
  while kill -0 "$child" 2>/dev/null; do
    wait "$child" || true
  done
  wait "$child" || status=$?
  trap - TERM INT
  return "$status"
}

words() { # words TEXT: one line per shell word of TEXT
  xargs -r printf '%s\n' <<<"$1"
}

words_or_file() { # words_or_file TEXT: TEXT itself if it is a file, else its words
  if [[ -f "$1" ]]; then printf '%s\n' "$1"; else words "$1"; fi
}

whole_number() { # whole_number NAME: the variable's value must be a positive whole number
  [[ "${!1}" =~ ^[1-9][0-9]*$ ]] || fail "$1 must be a positive whole number, not ${!1}"
}

accumulation() { # accumulation BATCH: fewest accumulation steps, then the smallest micro-batch, that hold the batch
  GLOBAL_BATCH="${GLOBAL_BATCH:-$1}" MICRO_BATCH="${MICRO_BATCH:-16}"
  whole_number GLOBAL_BATCH
  whole_number MICRO_BATCH
  local world=$((NPROC * NNODES)) steps micro
  steps=$(((GLOBAL_BATCH + world * MICRO_BATCH - 1) / (world * MICRO_BATCH)))
  micro=$(((GLOBAL_BATCH + world * steps - 1) / (world * steps)))
  args+=(--per_device_train_batch_size "$micro" --gradient_accumulation_steps "$steps")
  # Where the processes do not divide the batch, blanks that count nothing fill each step up.
  ((world * steps * micro == GLOBAL_BATCH)) || args+=(--global_batch_size "$GLOBAL_BATCH")
}

# The settings of LLaVA-v1.5, which the paper trains with.
settings() { # settings BATCH LEARNING_RATE EPOCHS DEEPSPEED
  local zero="${DEEPSPEED:-$4}"
  NPROC="${NUM_GPUS:-$(visible_gpus)}"
  if ((NPROC == 0)); then
    NPROC=1
    export CUDA_VISIBLE_DEVICES=""
    zero="${DEEPSPEED:-none}" # one process has nothing to share, and DeepSpeed builds an operator first
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(cpu_threads)}"
  fi
  NNODES="${NNODES:-1}"
  NODE_RANK="${NODE_RANK:-${SLURM_NODEID:-0}}"
  mapfile -t data < <(words_or_file "$DATA_PATH")
  args=(--data_path "${data[@]}" --image_folder "$IMAGE_FOLDER" --output_dir "$OUTPUT_DIR")
  accumulation "$1"
  local rate="$2"
  if [[ "${LORA:-0}" == 1 ]]; then
    rate=2e-4
    args+=(--lora_enable True --lora_r 128 --lora_alpha 256 --mm_projector_lr 2e-5)
  fi
  args+=(--learning_rate "$rate" --num_train_epochs "$3" --lr_scheduler_type cosine --warmup_ratio 0.03)
  args+=(--weight_decay 0. --bf16 True --tf32 True --gradient_checkpointing True --model_max_length 2048)
  args+=(--group_by_modality_length True --dataloader_num_workers 4 --logging_steps 1)
  args+=(--save_strategy steps --save_steps 500 --save_total_limit 1 --report_to "${REPORT_TO:-none}")
  [[ ! -f "$scripts_dir/$zero.json" ]] || zero="$scripts_dir/$zero.json"
  [[ "$zero" == none ]] || args+=(--deepspeed "$zero")
}

llava_parts() { # llava_parts BASE PROJECTOR: the published parts, unless BASE_MODEL_PATH names another model
  local projector="${MM_PROJECTOR:-}" tower="${VISION_TOWER:-}"
  if [[ -z "${BASE_MODEL_PATH:-}" ]]; then
    projector="${projector:-$2}"
    tower="${tower:-openai/clip-vit-large-patch14-336}"
  fi
  args+=(--model_name_or_path "${BASE_MODEL_PATH:-$1}")
  [[ -z "$tower" ]] || args+=(--vision_tower "$tower")
  [[ -z "$projector" ]] || args+=(--pretrain_mm_mlp_adapter "$projector")
}

tasks() { # tasks NAME…: the script's tasks; TASK_NAMES or a weights file name others
  local names=("$@") weights=()
  [[ -z "${TASK_NAMES:-}" ]] || mapfile -t names < <(words "$TASK_NAMES")
  [[ -z "${VISATB_WEIGHTS:-}" ]] || mapfile -t weights < <(words_or_file "$VISATB_WEIGHTS")
  ((${#names[@]} == 0)) || args+=(--task_names "${names[@]}")
  [[ -z "${TASK_GROUPS:-}" ]] || args+=(--task_groups "$TASK_GROUPS")
  [[ -z "${WEIGHT_METHOD:-}" ]] || args+=(--weight_method "$WEIGHT_METHOD")
  ((${#weights[@]} == 0)) || args+=(--visatb_weights "${weights[@]}")
}

launcher() { # set `command` to what starts NPROC processes on this node
  local python="${PYTHON:-python}"
  case "${LAUNCHER:-torchrun}" in
    torchrun)
      command=("$python" -m llava.train.launch --nproc_per_node "$NPROC")
      if ((NNODES > 1)); then
        require MASTER_ADDR
        command+=(--nnodes "$NNODES" --node_rank "$NODE_RANK")
        command+=(--master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}")
      else
        command+=(--standalone)
      fi
      command+=(--module llava.train.train)
      ;;
    deepspeed)
      command=("$python" -m deepspeed.launcher.runner)
      if ((NNODES > 1)); then
        require HOSTFILE
        command+=(--num_gpus "$NPROC" --num_nodes "$NNODES" --hostfile "$HOSTFILE")
        [[ -z "${MASTER_ADDR:-}" ]] || command+=(--master_addr "$MASTER_ADDR")
        command+=(--master_port "${MASTER_PORT:-29500}")
      else # with --num_gpus it would take the first GPUs of the machine, whatever CUDA_VISIBLE_DEVICES says
        command+=(--include "localhost:$(first_gpus "$NPROC")" --master_port "${MASTER_PORT:-$(free_port)}")
      fi
      command+=(--module llava.train.train)
      ;;
    *) fail "LAUNCHER must be torchrun or deepspeed: $LAUNCHER" ;;
  esac
}

check() { # check ARG…: all flags and data, in one process, before a launcher or DeepSpeed starts anything
  "${PYTHON:-python}" -m llava.train.check "$@" || {
    local status=$?
    ((status != 2)) || echo "$(basename "$0"): nothing was started; variables: the head of common.sh, docs/training.md" >&2
    exit "$status"
  }
}

launch() { # launch SCRIPT: start training with `args` and EXTRA_ARGS
  local extra=()
  mapfile -t extra < <(words "${EXTRA_ARGS:-}")
  launcher
  command+=("${args[@]}" "${extra[@]}")
  if [[ "${DRY_RUN:-0}" != 1 && -z "${VISATB_STEP:-}" ]]; then # SLURM's steps are of a script that has checked
    check "${args[@]}" "${extra[@]}"
  fi
  if [[ "${DRY_RUN:-0}" == 1 ]]; then
    printf '%q ' "${command[@]}"
    echo
  elif in_slurm_batch; then
    through_slurm "$1"
  else
    # Saving a large checkpoint on SIGTERM takes longer than torchrun's 30 seconds of patience.
    export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-1800}"
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"
    supervise "${command[@]}"
  fi
}
