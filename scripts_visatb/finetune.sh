#!/usr/bin/env bash
# Fine-tune on tasks of your own, with the weights that were found for them.
#
# Command:  DATA_PATH="a_train.json b_train.json" IMAGE_FOLDER=images OUTPUT_DIR=outputs/final \
#           BASE_MODEL_PATH=my/checkpoint VISATB_WEIGHTS=weights.json bash scripts_visatb/finetune.sh
#           BASE_MODEL_PATH: an image-text model (docs/models.md). The weights file names the tasks. Without
#           VISATB_WEIGHTS: EW over the tasks of the data, or over TASK_NAMES. Other variables: the head of common.sh.
# Cost:     visatb plan counts the steps; LLaVA-v1.5-7B takes about 10 hours on 8 A100 (40 GB) for 665k samples.
# Result:   OUTPUT_DIR holds the model, its processor, trainer_state.json and run_card.json.
#SBATCH --ntasks-per-node=1 --cpus-per-task=64 --requeue --open-mode=append --signal=B:TERM@1800
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[[ -f "$here/common.sh" ]] || here="$SLURM_SUBMIT_DIR/scripts_visatb" # sbatch runs a copy: submit from the repository
source "$here/common.sh"

require DATA_PATH IMAGE_FOLDER OUTPUT_DIR BASE_MODEL_PATH
settings 128 2e-5 1 zero3
llava_parts "$BASE_MODEL_PATH" ""
tasks
launch "$here/finetune.sh"
