#!/usr/bin/env bash
# TextVQA, validation set, with OCR tokens: VQA accuracy.
#
# Command:  CKPT=outputs/final DATA_DIR=playground/data/eval bash scripts_visatb/eval/textvqa.sh
# Cost:     5,000 questions, short answers.
# Result:   a line in OUTPUT_DIR/summary_MODEL.json and on standard output; other variables: common.sh.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[[ -f "$here/common.sh" ]] || here="$SLURM_SUBMIT_DIR/scripts_visatb/eval" # sbatch runs a copy: submit from the repository
source "$here/common.sh"

zeroshot textvqa
