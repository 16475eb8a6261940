# What all zero-shot scripts share: variables and the launch. Sourced, not run. Needs bash ≥ 4.4.
#
# Variables that are read, never overwritten:
#   CKPT          checkpoint to evaluate (transformers' or original LLaVA's layout, or a LoRA adapter; a folder,
#                 or a Hugging Face name)
#   DATA_DIR      folder of the benchmarks' official files (LLaVA: playground/data/eval; see docs/zeroshot.md)
#   OUTPUT_DIR    answers, submissions, scores and the summary (default: outputs/zeroshot)
#   MODEL_NAME    name of the method or model in tables and file names (default: the checkpoint folder's)
#   MODEL_BASE    base of a LoRA adapter, if not where its configuration says
#   NUM_GPUS      processes, one a GPU (default: the visible GPUs; 0: one process on the CPU)
#   JUDGE=1       score open answers by the judge of JUDGE_MODEL, OPENAI_BASE_URL, OPENAI_API_KEY
#   PYTHON        interpreter (default: python)
#   EXTRA_ARGS    further flags of `visatb zeroshot`, quoted as in a shell
#   DRY_RUN=1     print the command instead of running it
# A run that was stopped goes on where it stopped when it is started again.

source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

zeroshot() { # zeroshot BENCHMARK…
  local name missing=() extra=() gpus
  for name in CKPT DATA_DIR; do
    [[ -n "${!name:-}" ]] || missing+=("$name")
  done
  ((${#missing[@]} == 0)) || fail "set ${missing[*]} first (see scripts_visatb/eval/common.sh and docs/zeroshot.md)"
  [[ -d "$DATA_DIR" ]] || fail "DATA_DIR: there is no folder $DATA_DIR"
  gpus="${NUM_GPUS:-$(visible_gpus)}"
  if ((gpus == 0)); then
    gpus=1
    export CUDA_VISIBLE_DEVICES=""
  fi
  local command=("${PYTHON:-python}" -m)
  ((gpus == 1)) || command+=(llava.train.launch --nproc_per_node "$gpus" --standalone --module)
  command+=(visatb.cli zeroshot "$CKPT" --data "$DATA_DIR" --output "${OUTPUT_DIR:-outputs/zeroshot}")
  command+=(--benchmarks "$@")
  [[ -z "${MODEL_NAME:-}" ]] || command+=(--model-name "$MODEL_NAME")
  [[ -z "${MODEL_BASE:-}" ]] || command+=(--model-base "$MODEL_BASE")
  [[ "${JUDGE:-0}" != 1 ]] || command+=(--judge)
  mapfile -t extra < <(words "${EXTRA_ARGS:-}")
  command+=("${extra[@]}")
  if [[ "${DRY_RUN:-0}" == 1 ]]; then
    printf '%q ' "${command[@]}"
    echo
  else
    exec "${command[@]}"
  fi
}
