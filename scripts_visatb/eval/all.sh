#!/usr/bin/env bash
# All zero-shot benchmarks, the model being loaded once.
#
# Command:  CKPT=outputs/final DATA_DIR=playground/data/eval bash scripts_visatb/eval/all.sh
# Cost:     about 167,000 questions, of which VQAv2 has 107,000.
# Result:   OUTPUT_DIR/summary_MODEL.json and a table; other variables: common.sh.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[[ -f "$here/common.sh" ]] || here="$SLURM_SUBMIT_DIR/scripts_visatb/eval" # sbatch runs a copy: submit from the repository
source "$here/common.sh"

zeroshot all
