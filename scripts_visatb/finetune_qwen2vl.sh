#!/usr/bin/env bash
# Fine-tune Qwen2-VL-2B on the Academic Benchmark (the paper's second architecture; weights at temperature 1.0).
#
# Command:  DATA_PATH=academic_train.json IMAGE_FOLDER=images OUTPUT_DIR=outputs/academic-qwen2vl \
#           VISATB_WEIGHTS=weights.json bash scripts_visatb/finetune_qwen2vl.sh
#           BASE_MODEL_PATH may name any Qwen2-VL or Qwen2.5-VL model.
# Cost:     not measured.
# Result:   as finetune_academic.sh. Paper, Table 6: ΔI -1.32% and ΔE 3.70% with VisATB, -2.68% and 4.08% with EW.
#SBATCH --ntasks-per-node=1 --cpus-per-task=64 --requeue --open-mode=append --signal=B:TERM@1800
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[[ -f "$here/common.sh" ]] || here="$SLURM_SUBMIT_DIR/scripts_visatb" # sbatch runs a copy: submit from the repository
source "$here/common.sh"

require DATA_PATH IMAGE_FOLDER OUTPUT_DIR
settings 128 2e-5 1 zero3
args+=(--model_name_or_path "${BASE_MODEL_PATH:-Qwen/Qwen2-VL-2B-Instruct}")
tasks ShareGPT4V RefCOCO-caption VQAv2 GQA ChartQA OCRVQA RefCOCO-bbox ShareGPT
launch "$here/finetune_qwen2vl.sh"
