#!/usr/bin/env bash
# VizWiz, test set: the file for the challenge's server.
#
# Command:  CKPT=outputs/final DATA_DIR=playground/data/eval bash scripts_visatb/eval/vizwiz.sh
# Cost:     8,000 questions, short answers.
# Result:   OUTPUT_DIR/submissions/vizwiz_….json; other variables: common.sh.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[[ -f "$here/common.sh" ]] || here="$SLURM_SUBMIT_DIR/scripts_visatb/eval" # sbatch runs a copy: submit from the repository
source "$here/common.sh"

zeroshot vizwiz
