#!/usr/bin/env bash
# LLaVA-Bench (COCO): answers; with JUDGE=1 their score relative to the references.
#
# Command:  CKPT=outputs/final DATA_DIR=playground/data/eval bash scripts_visatb/eval/llava_bench_coco.sh
# Cost:     90 questions, long answers; with JUDGE=1 90 requests to the judge.
# Result:   a line in OUTPUT_DIR/summary_MODEL.json and on standard output; other variables: common.sh.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[[ -f "$here/common.sh" ]] || here="$SLURM_SUBMIT_DIR/scripts_visatb/eval" # sbatch runs a copy: submit from the repository
source "$here/common.sh"

zeroshot llava_bench_coco
