#!/usr/bin/env bash
# GQA, test-dev balanced: accuracy, and the file for the official script.
#
# Command:  CKPT=outputs/final DATA_DIR=playground/data/eval bash scripts_visatb/eval/gqa.sh
# Cost:     12,578 questions, short answers.
# Result:   a line in OUTPUT_DIR/summary_MODEL.json and on standard output; other variables: common.sh.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[[ -f "$here/common.sh" ]] || here="$SLURM_SUBMIT_DIR/scripts_visatb/eval" # sbatch runs a copy: submit from the repository
source "$here/common.sh"

zeroshot gqa
