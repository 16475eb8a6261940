#!/usr/bin/env bash
# MM-Vet: answers for its grader; with JUDGE=1 the judged score.
#
# Command:  CKPT=outputs/final DATA_DIR=playground/data/eval bash scripts_visatb/eval/mmvet.sh
# Cost:     218 questions, long answers; with JUDGE=1 218 short requests to the judge.
# Result:   a line in OUTPUT_DIR/summary_MODEL.json and on standard output; other variables: common.sh.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[[ -f "$here/common.sh" ]] || here="$SLURM_SUBMIT_DIR/scripts_visatb/eval" # sbatch runs a copy: submit from the repository
source "$here/common.sh"

zeroshot mmvet
