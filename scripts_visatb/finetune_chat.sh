#!/usr/bin/env bash
# Fine-tune LLaVA-v1.5-7B on the Chat Benchmark (LLaVA-Instruct-158K), three epochs.
#
# Command:  DATA_PATH=chat_train.json IMAGE_FOLDER=images OUTPUT_DIR=outputs/chat \
#           VISATB_WEIGHTS=weights.json bash scripts_visatb/finetune_chat.sh
# Cost:     about 475k samples in three epochs; by LLaVA-v1.5's rate some 7 hours on 8 A100.
# Result:   as finetune_academic.sh.
#SBATCH --ntasks-per-node=1 --cpus-per-task=64 --requeue --open-mode=append --signal=B:TERM@1800
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[[ -f "$here/common.sh" ]] || here="$SLURM_SUBMIT_DIR/scripts_visatb" # sbatch runs a copy: submit from the repository
source "$here/common.sh"

require DATA_PATH IMAGE_FOLDER OUTPUT_DIR
settings 128 2e-5 3 zero3
llava_parts lmsys/vicuna-7b-v1.5 liuhaotian/llava-v1.5-mlp2x-336px-pretrain-vicuna-7b-v1.5
args+=(--version v1)
tasks conversation detail complex_reasoning
launch "$here/finetune_chat.sh"
