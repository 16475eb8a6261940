#!/usr/bin/env bash
# Fine-tune LLaVA-v1.5-13B on the Academic Benchmark (or on a subset of it, for a proxy).
#
# Command:  DATA_PATH=academic_train.json IMAGE_FOLDER=images OUTPUT_DIR=outputs/academic-13b \
#           VISATB_WEIGHTS=weights.json bash scripts_visatb/finetune_academic_13b.sh
# Cost:     LLaVA-v1.5 reports about 20 hours on 8 A100 (80 GB) for 665k samples of this kind.
# Result:   as finetune_academic.sh. Paper, Table 6: ΔI 6.89% and ΔE 0.29% with VisATB, 4.55% and 0.66% with EW.
#SBATCH --ntasks-per-node=1 --cpus-per-task=64 --requeue --open-mode=append --signal=B:TERM@1800
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[[ -f "$here/common.sh" ]] || here="$SLURM_SUBMIT_DIR/scripts_visatb" # sbatch runs a copy: submit from the repository
source "$here/common.sh"

require DATA_PATH IMAGE_FOLDER OUTPUT_DIR
settings 128 2e-5 1 zero3
llava_parts lmsys/vicuna-13b-v1.5 liuhaotian/llava-v1.5-mlp2x-336px-pretrain-vicuna-13b-v1.5
args+=(--version v1)
tasks ShareGPT4V RefCOCO-caption VQAv2 GQA ChartQA OCRVQA RefCOCO-bbox ShareGPT
launch "$here/finetune_academic_13b.sh"
