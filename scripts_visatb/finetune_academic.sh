#!/usr/bin/env bash
# Fine-tune LLaVA-v1.5-7B on the Academic Benchmark (or on a subset of it, for a proxy).
#
# Command:  DATA_PATH=academic_train.json IMAGE_FOLDER=images OUTPUT_DIR=outputs/academic \
#           VISATB_WEIGHTS=weights.json bash scripts_visatb/finetune_academic.sh
#           Without VISATB_WEIGHTS: EW. Other variables: the head of common.sh.
# Cost:     LLaVA-v1.5 reports about 10 hours on 8 A100 (40 GB) for 665k samples of this kind.
# Result:   OUTPUT_DIR holds the model, its processor, trainer_state.json and run_card.json. Paper, Table 3:
#           ΔI 11.29% and ΔE 0.15% with VisATB, 8.75% and 0.10% with EW.
#SBATCH --ntasks-per-node=1 --cpus-per-task=64 --requeue --open-mode=append --signal=B:TERM@1800
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[[ -f "$here/common.sh" ]] || here="$SLURM_SUBMIT_DIR/scripts_visatb" # sbatch runs a copy: submit from the repository
source "$here/common.sh"

require DATA_PATH IMAGE_FOLDER OUTPUT_DIR
settings 128 2e-5 1 zero3
llava_parts lmsys/vicuna-7b-v1.5 liuhaotian/llava-v1.5-mlp2x-336px-pretrain-vicuna-7b-v1.5
args+=(--version v1)
tasks ShareGPT4V RefCOCO-caption VQAv2 GQA ChartQA OCRVQA RefCOCO-bbox ShareGPT
launch "$here/finetune_academic.sh"
