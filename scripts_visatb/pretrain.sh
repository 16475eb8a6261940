#!/usr/bin/env bash
# LLaVA-v1.5's first stage: train the projector on captions, everything else frozen.
#
# Command:  DATA_PATH=blip_laion_cc_sbu_558k.json IMAGE_FOLDER=images OUTPUT_DIR=outputs/pretrain \
#           bash scripts_visatb/pretrain.sh
#           13B: BASE_MODEL_PATH=lmsys/vicuna-13b-v1.5 VISION_TOWER=openai/clip-vit-large-patch14-336
# Cost:     LLaVA-v1.5 reports about 3.5 hours (7B) and 5.5 hours (13B) on 8 A100 for these 558k samples.
# Result:   OUTPUT_DIR/mm_projector.bin, which the fine-tuning scripts take as MM_PROJECTOR.
#SBATCH --ntasks-per-node=1 --cpus-per-task=64 --requeue --open-mode=append --signal=B:TERM@1800
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[[ -f "$here/common.sh" ]] || here="$SLURM_SUBMIT_DIR/scripts_visatb" # sbatch runs a copy: submit from the repository
source "$here/common.sh"

require DATA_PATH IMAGE_FOLDER OUTPUT_DIR
[[ "${LORA:-0}" != 1 ]] || fail "LORA=1 is for fine-tuning: pretraining trains the projector alone"
[[ -z "${BASE_MODEL_PATH:-}" ]] || require VISION_TOWER
settings 256 1e-3 1 zero2
llava_parts lmsys/vicuna-7b-v1.5 ""
args+=(--version plain --tune_mm_mlp_adapter True --mm_projector_type mlp2x_gelu)
tasks
launch "$here/pretrain.sh"
